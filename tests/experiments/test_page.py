"""The page of results is what the records and claims give, and says of every record where it comes from."""

import json

import pytest

from experiments.runner import page
from experiments.runner.record import RECORDS, as_json, read

FILES = sorted(RECORDS.glob("*.json"))


def test_the_page_is_made_of_the_records():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "make results writes it anew"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_record_says_where_it_comes_from_or_that_it_does_not_know(file):
    kept = read(file)
    assert file.read_text(encoding="utf-8") == as_json(kept) + "\n"
    assert f"{kept['experiment']}.{kept['preset']}" == file.stem.partition("+")[0]
    said = " ".join(kept["lacking"])
    for name, word in (("command", "command"), ("commit", "commit"), ("texts", "texts"), ("store", "store")):
        assert kept[name] or word in said, f"{name} is missing and not said to be"
    assert kept["dirty"] is False or kept["converted"]
    assert kept["claims"]


def test_rows_hold_numbers_intervals_and_verdicts(tmp_path):
    kept = {
        "experiment": "first_look", "preset": "bundled", "changed": [], "command": "python -m x", "commit": "a" * 40,
        "dirty": False, "claims_computed_by": {"commit": "c" * 40, "dirty": True}, "created": "2026-01-01",
        "model": {"id": "m"}, "device": "cpu", "lacking": ["the seeds"],
        "texts": {"texts": {"n": 3, "sha256": "b" * 64}}, "claims": [
            {"claim": "a | b", "source": "we", "how": "x", "target": "above 0", "verdict": "yes", "numbers": {
                "text": {"value": 0.51234, "interval": [0.4, 0.6]}, "other": {"value": 1.0, "interval": [None, None]},
                "by layer": {"curve": [1.0, None]}}}],
    }  # fmt: skip
    (tmp_path / "first_look.bundled.json").write_text(json.dumps(kept), encoding="utf-8")
    (tmp_path / "first_look.tiny.json").write_text(json.dumps({**kept, "preset": "tiny"}), encoding="utf-8")
    bench = {"rows": {"ours": {"seconds": 2.0, "ratio": 1.0}, "theirs": {"seconds": 4.0, "ratio": 2.0, "ratio_low": 1.5,
             "ratio_high": 3.0}, "note": {"bytes": 3}}, "bars": [
             {"what": "a", "value": 1.23456, "limit": 1.3, "at": "most", "met": True, "why": "x"},
             {"what": "b", "value": 0.5, "limit": 3, "at": "least", "met": False, "why": "the cache"}]}  # fmt: skip
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "probes.json").write_text(json.dumps(bench), encoding="utf-8")
    grown = {"sizes": {"tokens": "4"}, "commit": "d" * 40, "device": "CPU", "rows": {
        "hash": {"microseconds": {"1000": 2.0, "100000": 3.0}, "growth": 1.5},
        "run": {"megabytes": {"400": 7.0}}}}  # fmt: skip
    (tmp_path / "bench" / "growth.json").write_text(json.dumps(grown), encoding="utf-8")
    text = page.page(tmp_path)
    assert "| hash | 1,000 prompts: 2; 100,000 prompts: 3 | 1.5 |" in text
    assert "| run | 400 prompts: 7 |" in text
    assert "| probes | a | 1.23 | at most 1.3 | met |" in text
    assert "| probes | b | 0.5 | at least 3 | not met: the cache |" in text
    assert "| a \\| b | yes | x (target: above 0) | text: 0.5123 [0.4, 0.6] | other 1 (no interval); by layer" in text
    assert "by layer 1.00 – | we |" in text
    assert "`python -m x`" in text
    assert "`aaaaaaaaa`" in text
    assert "Claims by commit `ccccccccc`, changed." in text
    assert "Not in this record: the seeds." in text
    assert "bbbbbbbbbbbb" in text
    assert text.count("### first_look") == 1
    assert "| probes | theirs | 4 | 2 [1.5, 3] | [probes.json](results/bench/probes.json) |" in text
    assert "bytes" not in text
