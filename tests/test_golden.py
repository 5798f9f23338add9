"""Every golden file says which code of whose made its numbers, and by which calls."""

import json
import re

import pytest
from conftest import ROOT

FOLDER = ROOT / "tests" / "golden"
FILES = sorted(FOLDER.glob("*.json"))


def keys(found):
    """All names in a tree of mappings and lists."""
    if isinstance(found, dict):
        return {*found}.union(*map(keys, found.values()))
    return set().union(*map(keys, found)) if isinstance(found, list) else set()


def check(found):
    """Assert that numbers name repository, commit and calls, and that calls are said of numbers that are there."""
    numbers = {k: v for k, v in found.items() if k not in ("source", "sources", "versions")}
    named = set()
    for source in found.get("sources") or [found["source"]]:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source["repository"]), source
        assert re.fullmatch(r"[0-9a-f]{40}", source["commit"]), source
        assert source["calls"], source
        named |= {name for of in keys(source["calls"]) for name in of.split(", ")}
    assert named & keys(numbers), f"the calls are those of {named}, the numbers {keys(numbers)}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_golden_files_name_repository_commit_and_calls(file):
    check(json.loads(file.read_text(encoding="utf-8")))
    assert [*FOLDER.glob(f"*{file.stem}.py")], "no recipe"


def test_nothing_else_holds_golden_numbers():
    assert {f.suffix for f in FOLDER.iterdir() if f.is_file()} <= {".json", ".py"}
    assert len(FILES) == len([*FOLDER.glob("*.py")]) - 1, "a recipe without numbers (all but authors.py have some)"


@pytest.mark.parametrize(
    "wrong", [{"commit": "d9038b3"}, {"repository": "DADApy"}, {"calls": {}}, {"calls": {"y": "f(x)"}}]
)
def test_an_origin_that_is_missing_is_noticed(wrong):
    source = {"repository": "a/b", "commit": "0" * 40, "calls": {"x": "f(x)"}}
    check({"source": source, "x": 1.0})
    with pytest.raises(AssertionError):
        check({"source": source | wrong, "x": 1.0})
