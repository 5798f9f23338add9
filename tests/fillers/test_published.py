"""Chains of thought and labels against the authors' functions (golden/filler_tokens.py) on the same rows."""

import json

import pytest
import torch
from conftest import ROOT
from golden.filler_tokens import SETTINGS, match2_rows, match3_rows

from tokinterp.fillers.tasks import match2, match3
from tokinterp.fillers.tasks.formats import parallel, serial
from tokinterp.fillers.tasks.words import Words

GOLDEN = ROOT / "tests" / "golden"

FOUND = json.loads((GOLDEN / "filler_tokens.json").read_text())


def texts(words, ids):
    """Words as the authors write them: digits without their coordinate."""
    return [words.name(int(i)).rpartition(":")[2] for i in ids]


@pytest.fixture(params=SETTINGS, ids=str)
def case(request):
    """Words, rows, what the authors' functions say of them, and a generator."""
    n, d, m = request.param
    rows = torch.from_numpy(match3_rows(n, d, m))
    return Words(n, d, m), rows, FOUND[f"{n},{d},{m}"], torch.Generator().manual_seed(0)


def open_digits(chain, rows):
    """A serial chain with a mark in the place of the three digits at a random coordinate, which are checked."""
    out, i = list(chain), 0
    while i < len(out):
        if out[i].endswith("-"):
            three = rows[[int(x[:-1]) for x in out[i : i + 3]]]
            assert [int(x) for x in out[i + 3 : i + 6]] in three.T.tolist()
            out[i + 3 : i + 6], i = ["digit"] * 3, i + 6
        else:
            i += 1
    return out


def test_serial_chains_are_those_of_the_published_code(case):
    words, rows, found, draw = case
    chains, lengths = serial(rows, words, draw, "released")
    ends, stopped = serial(rows, words, draw)
    longer = 0
    for x, ids, length, short, text in zip(rows, chains, lengths, stopped, found["serial_solve"], strict=True):
        *said, answer = text.split()
        assert open_digits(texts(words, ids[:length]), x) == open_digits(said, x)
        assert bool(match3.solve(x[None], words.m)) == (answer == "True")
        longer += int(length > short)
    assert longer > 0  # the chain that goes on after the solved triple
    assert ends.shape[1] == int(stopped.max())


def test_parallel_chains_are_those_of_the_published_code(case):
    words, rows, found, draw = case
    pairs = match3.pairs(words.n).T.tolist()
    for x, ids, text in zip(rows, parallel(rows, words, draw, "released"), found["rand_cot"], strict=True):
        *theirs, _, answer = text.split()
        ours = texts(words, ids)
        assert len(ours) == len(theirs) == words.n * (words.n - 1) + 2
        assert (answer == "True") == any(t.endswith("-") for t in theirs[1::2])
        for chain in (ours, theirs):
            for (i, j), one, other in zip([*pairs, pairs[-1]], chain[::2], chain[1::2], strict=True):
                assert one in (f"{i}-", f"{j}-")
                assert other.endswith("-") or int(other) in ((x[i] + x[j]) % words.m).tolist()
        ends = ["-" if t.endswith("-") else "digit" for t in ours[1::2]]
        assert ends == ["-" if t.endswith("-") else "digit" for t in theirs[1::2]]
        assert [t for t in ours[1::2] if "-" in t] == [t for t in theirs[1::2] if "-" in t]  # the third rows
        assert ours[-2] == theirs[-2] == f"{words.n - 1}-"


def test_labels_are_those_of_the_published_code(case):
    words, rows, found, _ = case
    assert match3.solve(rows, words.m).tolist() == found["solve"]
    two = torch.from_numpy(match2_rows(words.n, words.d, words.m))
    assert match2.matches(two, words.m).sum(1).tolist() == found["match2_solve"]
