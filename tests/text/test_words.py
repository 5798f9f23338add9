"""Edges of words and of tokens without their white space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.text.words import find_words, marks, trimmed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("well-known, don't", ["well-known", "don't"]),
        ("rock 'n' roll -x- a--b", ["rock", "n", "roll", "x", "a", "b"]),
        ("cafe\u0301s na\u00efve", ["cafe\u0301s", "na\u00efve"]),
        ("snake_case and/or 3.14", ["snake", "case", "and", "or", "3", "14"]),
        ("日本語 Ελληνικά", ["日本語", "Ελληνικά"]),
        (" \t", []),
    ],
)
def test_words_lie_where_their_edges_say(text, words):
    edges, found = find_words(text)
    assert found == words
    assert edges.shape == (len(words), 2)
    assert [text[a:b] for a, b in edges] == words


def test_marks_are_combining():
    assert "\u0300-" in marks()


def test_white_space_is_taken_off_and_blank_tokens_keep_the_order():
    text = "a  bc \n d"
    offsets = np.array([[-1, -1], [0, 1], [1, 5], [5, 8], [8, 9]])
    start, stop, blank = trimmed(text, offsets)
    assert blank.tolist() == [True, False, False, True, False]
    assert [(int(a), int(b)) for a, b, e in zip(start, stop, blank, strict=True) if not e] == [(0, 1), (3, 5), (8, 9)]
    assert (np.diff(start) >= 0).all()
    assert (np.diff(stop) >= 0).all()


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic, O’Brien!", ["Don't", "panic", "O’Brien"]),
        ("well-known re-entry - or -not- 'quoted'", ["well-known", "re-entry", "or", "not", "quoted"]),
        ("3.14 and 1,000 in the 1990s", ["3", "14", "and", "1", "000", "in", "the", "1990s"]),
        ("naïve e\u0301tude हिन्दी 日本語 Ελληνικά", ["naïve", "e\u0301tude", "हिन्दी", "日本語", "Ελληνικά"]),
        ("snake_case and/or x² dogs'", ["snake", "case", "and", "or", "x²", "dogs"]),
        (" \n", []),
    ],
)
def test_words(text, words):
    edges, found = find_words(text)
    assert found == words
    assert [text[a:b] for a, b in edges] == words


@settings(max_examples=60, deadline=None)
@given(UNICODE)
def test_every_letter_and_digit_is_in_one_word(text):
    edges, _ = find_words(text)
    inside = np.zeros(len(text), int)
    for a, b in edges:
        assert text[a].isalnum()
        inside[a:b] += 1
    assert inside.max(initial=0) <= 1
    for character, n in zip(text, inside, strict=True):
        if character.isalnum():
            assert n == 1
        elif character.isspace():
            assert n == 0
