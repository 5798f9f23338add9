"""Words of several tokens, and runs of words of one token of the same lengths to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .spans import Spans

if TYPE_CHECKING:
    from .prompts import Prompts


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
