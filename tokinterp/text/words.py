"""Where the words of a text begin and end, and where its tokens do once white space is off."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np

from ..settings import checked

_SPACES = np.array([c for c in range(0x3001) if chr(c).isspace()], dtype=np.uint32)


_PLAIN = re.compile(r"[^\W_]+(?:['’‐-][^\W_]+)*")


@cache
def marks() -> str:
    """Return all combining marks as ranges for a class of characters in a pattern."""
    every = [*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)]  # none lies between
    codes = [c for c in every if unicodedata.category(chr(c)).startswith("M")]
    edges = [n for n in range(1, len(codes)) if codes[n] != codes[n - 1] + 1]
    runs = zip([0, *edges], [*edges, len(codes)], strict=True)
    return "".join(f"{chr(codes[a])}-{chr(codes[b - 1])}" for a, b in runs)


@cache
def _marked() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of a combining mark, and of words whose letters may carry some (slower than without)."""
    mark = f"[{marks()}]"
    unit = rf"(?:[^\W_]{mark}*)+"
    return re.compile(mark), re.compile(rf"{unit}(?:['’‐-]{unit})*")


@checked()
def find_words(text: str) -> tuple[np.ndarray, list[str]]:
    """Find the words of a text.

    A word is a run of letters and digits of any script with their combining marks; apostrophes (' ’) and hyphens (- ‐)
    belong to it where a letter or digit stands on both sides: "don't", "well-known", "1990s" and "naïve" are one word
    each, "3.14" and "and/or" are two.

    Parameters
    ----------
    text : str
        Raw text.

    Returns
    -------
    edges : numpy.ndarray
        (word, 2) int64 characters, start and stop.
    words : list of str
        The words.

    Examples
    --------
    >>> find_words("Don't panic: well-known 3.14")[1]
    ["Don't", 'panic', 'well-known', '3', '14']
    """
    pattern = _PLAIN if text.isascii() or not _marked()[0].search(text) else _marked()[1]
    edges = [m.span() for m in pattern.finditer(text)]
    return np.array(edges, dtype=np.int64).reshape(-1, 2), [text[a:b] for a, b in edges]


def trimmed(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take white space off the edges of tokens or spans.

    Parameters
    ----------
    text : str
        The text.
    offsets : numpy.ndarray
        (n, 2) characters, start and stop; negative for special tokens.

    Returns
    -------
    start, stop : numpy.ndarray
        (n,) int64 without white space at either edge; never decreasing where the offsets do not.
    blank : numpy.ndarray
        (n,) bool, true where nothing is left (white space, special tokens).
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    place = np.arange(len(points) + 1)
    black = np.append(~np.isin(points, _SPACES), True)
    following = np.minimum.accumulate(np.where(black, place, len(points))[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where(np.roll(black, 1), place, 0))
    special = offsets[:, 0] < 0
    inside = np.clip(offsets.astype(np.int64), 0, len(points))
    start, stop = following[inside[:, 0]], preceding[inside[:, 1]]
    blank = special | (start >= stop)
    # A blank token gets an empty range at the place reached so far, which keeps starts and stops searchable.
    reached = np.maximum.accumulate(np.where(blank, 0, stop)) if len(stop) else stop
    return np.where(blank, reached, start), np.where(blank, reached, stop), blank
