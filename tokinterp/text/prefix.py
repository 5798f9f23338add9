"""The beginning of a long text that has the same tokens as the beginning of the whole."""

from __future__ import annotations

import re
from collections.abc import Callable

from .vocabulary import Vocabulary

LONG_TEXT = 50_000
"""Characters from which a text that is cut to a few tokens is not tokenised as a whole."""
_BORDER = re.compile(r"[^\W_](?=[ \n])")
_ACROSS = re.compile(rb"[0-9A-Za-z\x80-\xff][ \n]")


def begins_anew(vocabulary: Vocabulary) -> bool:
    """Whether no token holds a letter or digit that a space or line break follows.

    Then no token reaches over such a place, whatever comes later: merges (BPE) never join what stands on both sides of
    it, and the best split of what stands before it (unigram) is the same.
    """
    return vocabulary.kind != "plain" and not any(map(_ACROSS.search, vocabulary.bytes(range(vocabulary.known))))


def prefix(text: str, tokens: int, count: Callable[[str], list[int]], vocabulary: Vocabulary) -> str:
    """Return a beginning of a text with more than so many tokens, which are those of the whole text.

    It ends between a letter or digit and a space or line break.  That the tokens are the same follows from
    `begins_anew`, and is looked at: those of a beginning twice as long must begin with them.  Where it is not so, or
    there is no such place, the whole text is returned.

    Parameters
    ----------
    text : str
        The text.
    tokens : int
        Tokens that are kept of it.
    count : callable
        Returns the token ids of a text, without special tokens.
    vocabulary : Vocabulary
        What the ids stand for.
    """
    size = max(LONG_TEXT // 2, 8 * tokens)
    if len(text) <= 2 * size or not begins_anew(vocabulary):
        return text
    short = _border(text, size)
    ids = count(text[:short])
    while len(text) > 2 * short > 0:
        long = _border(text, 2 * short)
        if not long:
            break
        more = count(text[:long])
        if more[: len(ids)] != ids:
            break
        if len(ids) > tokens:
            return text[:short]
        short, ids = long, more
    return text


def _border(text: str, size: int) -> int:
    """Return the first place from ``size`` on where a letter or digit ends before a space or line break, or 0."""
    found = _BORDER.search(text, size)
    return found.end() if found else 0
