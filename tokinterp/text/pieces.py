"""The tokens of a vocabulary by their text, words cut into them at random, and words of several tokens in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .spans import Spans
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .prompts import Prompts


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

    def cut(self, text: str, size: int | None, draw: np.random.Generator) -> tuple[int, ...] | None:
        """Return ids of ``size`` tokens, or of any number, that join to a text; None where there are none.

        All ways are equally likely.  Each token holds more than white space.
        """
        n = len(text)
        if size is None:
            return self._any(text, draw)
        # ways[m][i]: in how many ways the text from character i on is cut into m tokens
        ways = np.zeros((size + 1, n + 1))
        ways[0, n] = 1
        ends = self._ends(text)
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

    def _ends(self, text: str) -> list[list[int]]:
        """Return where the tokens that begin at each character may end."""
        n = len(text)
        return [
            [j for j in range(i + 1, min(n, i + self.longest) + 1) if text[i:j] in self.id_of and text[i:j].strip()]
            for i in range(n)
        ]

    def _any(self, text: str, draw: np.random.Generator) -> tuple[int, ...] | None:
        n, ends = len(text), self._ends(text)
        ways = np.zeros(n + 1)
        ways[n] = 1
        for i in range(n - 1, -1, -1):
            ways[i] = sum(ways[j] for j in ends[i])
        if ways[0] == 0:
            return None
        out, at = [], 0
        while at < n:
            weight = np.array([ways[j] for j in ends[at]])
            j = ends[at][int(draw.choice(len(weight), p=weight / weight.sum()))]
            out.append(self.id_of[text[at:j]])
            at = j
        return tuple(out)


def word_pieces(prompts: Prompts, sizes: Sequence[int], min_position: int) -> np.ndarray:
    """Return (row, 4) int64: prompt, position of a last token, number of tokens, and whether it is of the control.

    The control has the same distances and no word: a word of one token, and as many tokens before it, which are all
    words of one token too.

    Parameters
    ----------
    prompts : Prompts
        With their texts.
    sizes : sequence of int
        Numbers of tokens of a word.
    min_position : int
        Words whose first token stands before this position (BOS counted) are left out.
    """
    found = Spans.words(prompts).align(prompts)
    rows = [
        np.stack([found.prompt, found.stop - 1, found.n_tokens, np.zeros(len(found), np.int64)], 1)[
            np.isin(found.n_tokens, sizes)
        ]
    ]
    single = np.zeros(prompts.n_tokens + 1, np.int64)  # tokens that are words, counted up to each place
    ones = found.where(found.n_tokens == 1)
    single[prompts.starts[ones.prompt] + ones.start + 1] = 1
    single = np.cumsum(single)
    for size in sizes:
        query = prompts.starts[ones.prompt] + ones.start
        before = np.maximum(query + 1 - size, 0)
        run = (ones.start + 1 >= size) & (single[query + 1] - single[before] == size)
        of = ones.prompt[run]
        rows.append(np.stack([of, ones.start[run], np.full(len(of), size), np.ones(len(of), np.int64)], 1))
    table = np.concatenate(rows)
    table = table[table[:, 1] + 1 - table[:, 2] >= min_position]
    return table[np.argsort(table[:, 0], kind="stable")]


def rows_of(table: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Return the rows of some prompts, with the place of each among these in place of its number."""
    begins, ends = (np.searchsorted(table[:, 0], numbers, side=s) for s in ("left", "right"))
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begins, ends, strict=True)])
    return np.column_stack([np.repeat(np.arange(len(numbers)), ends - begins), table[rows, 1:]])
