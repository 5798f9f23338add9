"""Words cut into the tokens of a vocabulary, all ways equally likely."""

from collections import Counter

import numpy as np

import tokinterp as ti
from tokinterp.text.pieces import Pieces


def pieces_of(*names):
    out = Pieces.__new__(Pieces)
    out.id_of, out.longest = {p: n for n, p in enumerate(names)}, max(map(len, names))
    return out


def test_ways_of_any_number_of_pieces_are_equally_likely():
    pieces, draw = pieces_of("a", "aa", " a", " "), np.random.default_rng(0)
    names = {n: p for p, n in pieces.id_of.items()}
    counts = Counter(tuple(names[i] for i in pieces.cut(" aaaa", None, draw)) for _ in range(3000))
    assert set(counts) == {(" a", "a", "a", "a"), (" a", "aa", "a"), (" a", "a", "aa")}
    assert max(counts.values()) < 1.15 * min(counts.values())
    assert pieces.cut(" b", None, draw) is None
    assert pieces.cut(" aaaa", 3, draw) is not None
    assert pieces.cut(" aaaa", 2, draw) is None


def test_special_tokens_and_halves_of_characters_are_no_pieces():
    pieces = Pieces(ti.text.Vocabulary(ti.load_tokenizer()))
    assert "<bos>" not in pieces.id_of
    assert " the" in pieces.id_of
    assert all(p == p.encode().decode() for p in pieces.id_of)
