"""Delete stop words, punctuation or articles from a text, and as many other words as a control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..settings import checked, function, one_of
from .classes import STOP_WORDS
from .words import find_words

CONDITIONS = ("stop words", "punctuation", "stop words and punctuation", "articles")
"""The conditions of Razzhigaev et al. 2025 (arXiv 2502.15007, table 1) that need no judge."""
CLASSES = ("content word", "function word", "punctuation")
ARTICLES = frozenset({"a", "an", "the"})
Judge = Callable[[str], "str | Sequence[bool] | np.ndarray"]


@checked()
@dataclass
class Removal:
    """A text with some of its units deleted.

    Attributes
    ----------
    original, text : str
        Before and after.
    units : numpy.ndarray
        (unit, 2) int64 characters of the original: every word (see `find_words`) and every run of characters that are
        neither words nor white space.
    classes : numpy.ndarray
        (unit,) int8, place in ``CLASSES``; stop words and articles are function words.
    removed : numpy.ndarray
        (unit,) bool.
    places : numpy.ndarray
        (unit, 2) int64 characters of ``text``; -1 for a deleted unit.
    """

    original: str
    text: str
    units: np.ndarray
    classes: np.ndarray
    removed: np.ndarray
    places: np.ndarray

    @property
    def rate(self) -> float:
        """Share of the units that was deleted; NaN for a text without any."""
        return float(self.removed.mean()) if len(self.removed) else float("nan")


@checked()
def find_units(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit, 2) characters of all words and all runs of other signs, in order, and (unit,) their class.

    Parameters
    ----------
    text : str
        Any text.

    Examples
    --------
    >>> units, classes = find_units("The end, yes.")
    >>> [("The end, yes."[a:b], CLASSES[c]) for (a, b), c in zip(units, classes)][1:3]
    [('end', 'content word'), (',', 'punctuation')]
    """
    edges, words = find_words(text)
    found = [
        (int(a), int(b), int(w.lower().replace("’", "'") in STOP_WORDS)) for (a, b), w in zip(edges, words, strict=True)
    ]
    at = 0
    for a, b in [*edges.tolist(), [len(text), len(text)]]:
        while at < a:
            if text[at].isspace():
                at += 1
                continue
            stop = at
            while stop < a and not text[stop].isspace():
                stop += 1
            found.append((at, stop, 2))
            at = stop
        at = b
    found.sort()
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return table[:, :2], table[:, 2].astype(np.int8)


@checked(what=one_of(*CONDITIONS) | function)
def remove(text: str, what: str | Judge) -> Removal:
    """Delete the units that a condition names.

    Parameters
    ----------
    text : str
        Raw text.
    what : str or callable
        One of ``CONDITIONS``; or a judge that is given the text and returns either the text with words and signs
        deleted and nothing else changed, or a bool for each unit of `find_units`, true to delete it.

    Returns
    -------
    Removal
        Of two spaces that meet around a deleted unit one is deleted too; line breaks are kept.

    Raises
    ------
    ValueError
        For an unknown condition, or a judge that did something else than delete.

    Examples
    --------
    >>> remove("The end of a day, it seems.", "articles").text
    'end of day, it seems.'
    """
    units, classes = find_units(text)
    strings = [text[a:b] for a, b in units]
    if callable(what):
        gone = _judged(text, strings, what(text))
    elif what == "articles":
        gone = np.array([s.lower() in ARTICLES for s in strings], dtype=bool)
    else:
        wanted = {"stop words": (1,), "punctuation": (2,), "stop words and punctuation": (1, 2)}[what]
        gone = np.isin(classes, wanted)
    return delete(text, units, classes, gone)


@checked(within=one_of("any", "class"))
def remove_random(removal: Removal, seed: int, within: str = "any") -> Removal:
    """Delete as many units as another removal of the same text, drawn at random: its control.

    Parameters
    ----------
    removal : Removal
        What to match.
    seed : int
        Of the draw.
    within : str
        ``"any"``: any units. ``"class"``: in each of the ``CLASSES`` as many as the other removal deleted there, so for
        articles any function words.

    Raises
    ------
    ValueError
        If a class was deleted as a whole, so that the control would delete the same.

    Examples
    --------
    >>> first = remove("The end of a day, it seems.", "articles")
    >>> bool(remove_random(first, seed=0).removed.sum() == first.removed.sum())
    True
    """
    rng, gone = np.random.default_rng(seed), np.zeros(len(removal.removed), dtype=bool)
    groups = [np.arange(len(gone))] if within == "any" else [np.flatnonzero(removal.classes == c) for c in range(3)]
    for members in groups:
        n = int(removal.removed[members].sum())
        if within == "class" and n and n == len(members) > 1:
            raise ValueError(
                f"within={within!r}: every {CLASSES[removal.classes[members[0]]]} of the text was deleted, so a "
                "control within the class "
                "would delete the same: use within='any'"
            )
        gone[rng.choice(members, n, replace=False)] = True
    return delete(removal.original, removal.units, removal.classes, gone)


def can_match(removal: Removal) -> bool:
    """Return whether a random deletion within the same classes can be another one: something is left of each class.

    Examples
    --------
    >>> [can_match(remove("The end of a day, it seems.", what)) for what in ("articles", "stop words")]
    [True, False]
    """
    gone = [removal.removed[removal.classes == c] for c in range(len(CLASSES))]
    return not any(len(g) and g.all() for g in gone)


def delete(text: str, units: np.ndarray, classes: np.ndarray, gone: np.ndarray) -> Removal:
    """Return the removal of chosen units of `find_units`."""
    out, length = [], 0
    places = np.full((len(units), 2), -1, dtype=np.int64)
    at, fresh, hung = 0, False, False  # a unit was deleted since the last piece; a word that hung on an opening sign

    def put(piece: str) -> None:
        nonlocal length, fresh
        if fresh and piece[:1] == " " and (hung or not out or out[-1][-1:].isspace()):
            piece = piece.lstrip(" ")
        if fresh and piece[:1] == "\n" and out and out[-1].endswith(" "):
            length -= len(out[-1]) - len(out[-1].rstrip(" "))
            out[-1] = out[-1].rstrip(" ")
        if piece:
            out.append(piece)
            length += len(piece)
            fresh = False

    for i, (a, b) in enumerate(units.tolist()):
        put(text[at:a])
        if gone[i]:
            fresh, hung = (
                True,
                bool(classes[i] != 2 and i and classes[i - 1] == 2 and units[i - 1, 1] == a and not fresh),
            )
        else:
            put(text[a:b])
            places[i] = length - (b - a), length
        at = b
    put(text[at:])
    new = "".join(out)
    if fresh:
        new = new.rstrip(" ")
    return Removal(text, new, units, classes, np.asarray(gone, dtype=bool), places)


def _judged(text: str, strings: list[str], answer: str | Sequence[bool] | np.ndarray) -> np.ndarray:
    """Return which units a judge deleted."""
    if not isinstance(answer, str):
        gone = np.asarray(answer)
        if gone.shape != (len(strings),) or gone.dtype != bool:
            raise ValueError(f"the judge returned {gone.shape} {gone.dtype}: {len(strings)} bools, one for each unit")
        return gone
    left = [answer[a:b] for a, b in find_units(answer)[0]]
    gone, k = np.ones(len(strings), dtype=bool), 0
    for i, s in enumerate(strings):
        if k < len(left) and left[k] == s:
            gone[i], k = False, k + 1
    if k < len(left):
        raise ValueError(
            f"the judge did not only delete: {left[k]!r} (word {k + 1} of its answer) does not follow in the text "
            f"{text[:40]!r}..."
        )
    return gone
