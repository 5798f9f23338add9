"""Typing errors, other cuts and recombined words."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.lexicon.spelling import TYPOS, misspell, recombine
from tokinterp.text.pieces import Pieces

LETTERS = "abcdefgh"


# -- spelling -----------------------------------------------------------------------------------------------------
@given(st.text("abcxyz", min_size=1, max_size=9), st.sampled_from(TYPOS), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
@pytest.mark.slow
def test_a_typing_error_is_one_error_and_never_at_the_first_letter(word, typo, seed):
    wrong = misspell(word, typo, np.random.default_rng(seed), LETTERS)
    if wrong is None:
        assert len(word) < 2 or (typo == "swap" and len(set(word[1:])) < 2)
        return
    assert wrong[0] == word[0]
    assert len(wrong) - len(word) == {"substitute": 0, "delete": -1, "insert": 1, "swap": 0}[typo]
    if typo == "swap":
        assert any(word[:i] + word[i + 1] + word[i] + word[i + 2 :] == wrong for i in range(1, len(word) - 1))
        assert wrong != word
    elif typo == "substitute":
        assert sum(a != b for a, b in zip(word, wrong, strict=True)) == 1
    elif typo == "insert":
        assert any(wrong[:i] + wrong[i + 1 :] == word for i in range(1, len(wrong)))
    else:
        assert any(word[:i] + word[i + 1 :] == wrong for i in range(1, len(word)))


def test_every_place_but_the_first_can_be_hit():
    draw = np.random.default_rng(0)
    seen = {misspell("abcd", "delete", draw, LETTERS) for _ in range(200)}
    assert seen == {"acd", "abd", "abc"}
    assert {misspell("abcd", "swap", draw, LETTERS) for _ in range(100)} == {"acbd", "abdc"}
    assert {misspell("ab", "insert", draw, "z") for _ in range(100)} == {"azb", "abz"}


def pieces_of(*names):
    """Pieces of a vocabulary of these strings."""
    out = Pieces.__new__(Pieces)
    out.id_of, out.longest = {p: n for n, p in enumerate(names)}, max(map(len, names))
    return out


def test_all_ways_to_cut_a_word_are_equally_likely():
    pieces = pieces_of("a", "aa", "aaa", " a", " aa", " ")
    names = {n: p for p, n in pieces.id_of.items()}
    draw = np.random.default_rng(0)
    counts = Counter(tuple(names[i] for i in pieces.cut(" aaaa", 3, draw)) for _ in range(3000))
    # a|a|aa, a|aa|a, aa|a|a after the space; the space alone is no piece
    assert set(counts) == {(" a", "a", "aa"), (" a", "aa", "a"), (" aa", "a", "a")}
    assert max(counts.values()) < 1.15 * min(counts.values())
    assert pieces.cut(" aaaa", 5, draw) is None
    assert pieces.cut(" b", 1, draw) is None


def test_recombined_words_have_the_same_tokens_at_the_same_places():
    draw = np.random.default_rng(0)
    words = [tuple(map(int, draw.integers(0, 6, n))) for n in (2, 3, 4) for _ in range(40)]
    words = list(dict.fromkeys(words))
    known = set(words)

    def accepts(rows):
        return [r not in known for r in rows]

    made = recombine(words, accepts, seed=1)
    assert not known & set(made)
    assert len(made) > 0.7 * len(words)
    free = recombine(words, lambda rows: [True] * len(rows), seed=1)
    for size in (2, 3, 4):
        for place in range(size):
            a, b = (sorted(w[place] for w in x if len(w) == size) for x in (words, free))
            assert a == b
    draws = [tuple(map(int, draw.integers(0, 4, 3))) for _ in range(40)]
    bent = recombine(draws, lambda rows: [r[1] != r[2] for r in rows], seed=1)
    assert len(bent) == len(draws)
    assert all(r[1] != r[2] for r in bent)
    for place in range(3):
        assert sorted(w[place] for w in bent) == sorted(w[place] for w in draws)
    assert recombine(words, accepts, seed=1) == made != recombine(words, accepts, seed=2)
    assert recombine([(1, 2)], accepts) == []
