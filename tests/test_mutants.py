"""The list of wrong changes fits the code, and the runner tells a test that notices one from a test that does not."""

import pytest
from mutants import COPIED, Mutant, attempt, mistakes, read_list


def test_every_mutant_fits_the_code():
    mutants = read_list()
    assert list(mistakes(mutants)) == []
    assert mutants


def test_a_list_that_does_not_fit_is_noticed():
    bad = [
        Mutant("a", "tokinterp/none.py", "x", "y", "tests/models/test_models.py"),
        Mutant("a", "tests/mutants.py", "no such line in this file" + "!", "y", "tests/test_none.py"),
        Mutant("b", "tests/mutants.py", "import", "import", "tests/models/test_models.py"),
    ]
    found = list(mistakes(bad))
    for part in ("does not exist", "the name occurs twice", "holds the old text 0 times", "no tests/test_none.py"):
        assert any(part in line for line in found), part
    assert any("changes nothing" in line for line in found)


@pytest.mark.slow
def test_killed_survived_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # none is needed, and they take longer than the tests
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text("from sums import add\n\n\ndef test_add():\n    assert add(0, 3) == 3\n")
    for new, tests, outcome in (
        ("a - b", "test_sums.py", "killed"),
        ("b - a", "test_sums.py", "SURVIVED"),
        ("a - b", "test_nothing.py", "NOT RUN (pytest ended with 4)"),
    ):
        assert attempt(Mutant("m", "sums.py", "a + b", new, tests), tmp_path).startswith(outcome)
        assert "a + b" in (tmp_path / "sums.py").read_text()
    assert {"tokinterp", "tests"} <= set(COPIED)
