"""Words cut into other tokens, misspelt, or put together anew from the tokens of other words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..text.vocabulary import Vocabulary

TYPOS = ("substitute", "delete", "insert", "swap")
SWEEPS = 200  # attempts to exchange tokens until all recombined words are non-words


class Pieces:
    """The tokens of a vocabulary by their text, to cut words into them.

    Parameters
    ----------
    vocabulary : Vocabulary
        Special tokens, bytes that are no whole character and byte-fallback tokens take no part.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        every = np.arange(vocabulary.known)
        every = every[~vocabulary.special(every)]
        names = vocabulary.tokenizer.convert_ids_to_tokens(every.tolist()) if vocabulary.tokenizer is not None else []
        self.id_of: dict[str, int] = {}
        for number, name, data in zip(every.tolist(), names, vocabulary.bytes(every), strict=True):
            if name is None or (isinstance(name, str) and name.startswith("<0x") and name.endswith(">")):
                continue
            try:
                self.id_of.setdefault(data.decode("utf-8"), number)
            except UnicodeDecodeError:
                continue
        self.longest = max(map(len, self.id_of), default=0)

    def cut(self, text: str, size: int, draw: np.random.Generator) -> tuple[int, ...] | None:
        """Return ids of ``size`` tokens that join to a text, all ways equally likely; None where there is none.

        The first token holds more than white space.
        """
        n = len(text)
        # ways[m][i]: in how many ways the text from character i on is cut into m tokens
        ways = np.zeros((size + 1, n + 1))
        ways[0, n] = 1
        ends = [
            [j for j in range(i + 1, min(n, i + self.longest) + 1) if text[i:j] in self.id_of and text[i:j].strip()]
            for i in range(n)
        ]
        for m in range(1, size + 1):
            for i in range(n):
                ways[m, i] = sum(ways[m - 1, j] for j in ends[i])
        if ways[size, 0] == 0:
            return None
        out, at = [], 0
        for m in range(size, 0, -1):
            weight = np.array([ways[m - 1, j] for j in ends[at]])
            j = ends[at][int(draw.choice(len(weight), p=weight / weight.sum()))]
            out.append(self.id_of[text[at:j]])
            at = j
        return tuple(out)


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
