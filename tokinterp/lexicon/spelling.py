"""Words misspelt, or put together anew from the tokens of other words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TYPOS = ("substitute", "delete", "insert", "swap")
SWEEPS = 200  # attempts to exchange tokens until all recombined words are non-words


def misspell(word: str, typo: str, draw: np.random.Generator, letters: Sequence[str]) -> str | None:
    """Return a word with one typing error, never at its first letter; None where that error is not possible.

    Parameters
    ----------
    word : str
        The word.
    typo : {"substitute", "delete", "insert", "swap"}
        One letter becomes another, is left out, is put in (perhaps at the end), or changes place with the next one.
    draw : numpy.random.Generator
        Where and with which letter.
    letters : sequence of str
        To substitute and insert.

    Examples
    --------
    >>> import numpy as np
    >>> misspell("river", "delete", np.random.default_rng(0), "abc")
    'rive'
    """
    n = len(word)
    if n < 2 + (typo == "swap"):
        return None
    if typo == "insert":
        i = int(draw.integers(1, n + 1))
        return word[:i] + str(draw.choice(list(letters))) + word[i:]
    if typo == "delete":
        i = int(draw.integers(1, n))
        return word[:i] + word[i + 1 :]
    if typo == "swap":
        places = [i for i in range(1, n - 1) if word[i] != word[i + 1]]
        if not places:
            return None
        i = int(draw.choice(places))
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = int(draw.integers(1, n))
    others = [c for c in letters if c != word[i]]
    return word[:i] + str(draw.choice(others)) + word[i + 1 :] if others else None


def recombine(
    words: Sequence[tuple[int, ...]],
    accepts: Callable[[list[tuple[int, ...]]], list[bool]],
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """Put words together anew from the tokens of words of the same length, each token at its own place.

    Words and non-words so have the same tokens equally often at each place: first, second, ..., last.

    Parameters
    ----------
    words : sequence of tuple of int
        Tokens of each word.
    accepts : callable
        Whether each of a list of candidates may be a non-word.
    seed : int
        Of the exchange.

    Returns
    -------
    list of tuple of int
        At most as many as words: those still not accepted after many exchanges are left out.
    """
    draw = np.random.default_rng(seed)
    out: list[tuple[int, ...]] = []
    for size in sorted({len(w) for w in words}):
        table = np.array([w for w in words if len(w) == size], dtype=np.int64)
        if len(table) < 2 or size < 2:
            continue
        for column in range(1, size):
            table[:, column] = table[draw.permutation(len(table)), column]
        good = _accepted(table, accepts)
        for _ in range(SWEEPS):
            bad = np.flatnonzero(~good)
            if not len(bad):
                break
            order = draw.permutation(len(table))
            # Each bad row offers to exchange one token with another row; nobody takes part twice.
            partner = order[~np.isin(order, bad)][: len(bad)]
            if len(partner) < len(bad):
                rest = draw.permutation(bad)
                half = len(rest) // 2
                bad, partner = rest[:half], rest[half : 2 * half]
            if not len(bad):
                break
            column = draw.integers(1, size, len(bad))
            new, back = table[bad].copy(), table[partner].copy()
            rows = np.arange(len(bad))
            new[rows, column], back[rows, column] = back[rows, column], new[rows, column]
            fine, still = _accepted(new, accepts), _accepted(back, accepts)
            gain = fine.astype(int) + still - good[bad] - good[partner]
            take = (gain > 0) | ((gain == 0) & (draw.random(len(bad)) < 0.5))
            table[bad[take]], table[partner[take]] = new[take], back[take]
            good[bad[take]], good[partner[take]] = fine[take], still[take]
        out += [tuple(row) for row in table[good].tolist()]
    return out


def _accepted(table: np.ndarray, accepts: Callable[[list[tuple[int, ...]]], list[bool]]) -> np.ndarray:
    return np.array(accepts([tuple(row) for row in table.tolist()]), dtype=bool)
