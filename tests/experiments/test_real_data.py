"""The command that checks real data: it compares, it says what is missing, and its exit code can be trusted."""

import pytest

from experiments import real_data


def test_a_difference_and_a_missing_file_are_failures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        real_data, "CHECKS", {"same": lambda _: real_data.equal(3, 3), "other": lambda _: real_data.equal(3, 4)}
    )
    assert real_data.main([str(tmp_path), "--only", "same"]) == 0
    assert real_data.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "DIFFERS other: found 3, known 4"


def test_what_is_not_there_is_said(tmp_path, capsys, monkeypatch):
    for name in ("gold_spans", "questions", "parts_of_speech", "aligned_spans"):
        assert real_data.main([str(tmp_path), "--only", name]) == 1
        assert f"DIFFERS {name}: needs a file that is not there" in capsys.readouterr().out
    monkeypatch.delenv("TOKINTERP_DATA", raising=False)
    for arguments in ([], [str(tmp_path / "nothing")]):
        with pytest.raises(SystemExit):
            real_data.main(arguments)
        assert "does not exist: name the data folder" in capsys.readouterr().err


def test_spans_of_a_small_file(tmp_path):
    """The plain second way of reading entities, on lines whose entities are plain to see."""
    file = tmp_path / "small.txt"
    file.write_text("Ann I-PER\nLee I-PER\nsaw O\nRome I-LOC\nParis B-LOC\n\nBo I-PER\n", encoding="utf-8")
    assert real_data._entities(file) == ["AnnLee", "Rome", "Paris", "Bo"]
