"""The real tokens of a batch as rows, without padding: what they are, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch


class Tokens:
    """The tokens of a batch, prompt by prompt, padding left out.

    Parameters
    ----------
    ids, special : torch.Tensor
        (prompt, position) of the batch.
    numbers, lengths, starts : sequence of int
        Of each prompt: its number, its tokens, and the place of the first among the tokens of all prompts of the run.
    """

    def __init__(
        self, ids: torch.Tensor, special: torch.Tensor, numbers: Sequence[int], lengths: Sequence[int],
        starts: Sequence[int],
    ) -> None:  # fmt: skip
        self._ids, self._special = ids, special
        self._numbers, self._lengths, self._starts = (np.asarray(v, np.int64) for v in (numbers, lengths, starts))

    def __len__(self) -> int:
        return int(self._lengths.sum())

    @cached_property
    def _flat(self) -> torch.Tensor:
        """Flat indices of the real tokens (made from lengths: no wait for the device)."""
        width = self._ids.shape[1]
        return self._sent(np.repeat(np.arange(len(self._lengths)) * width, self._lengths) + self._position)

    @cached_property
    def _position(self) -> np.ndarray:
        ends = np.cumsum(self._lengths)
        return np.arange(len(self)) - np.repeat(ends - self._lengths, self._lengths)

    def _sent(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(self._ids.device, non_blocking=True)

    @cached_property
    def ids(self) -> torch.Tensor:
        """(row,) token id."""
        return self.flatten(self._ids)

    @cached_property
    def prompt(self) -> torch.Tensor:
        """(row,) number of the prompt in the input."""
        return self._sent(np.repeat(self._numbers, self._lengths))

    @cached_property
    def position(self) -> torch.Tensor:
        """(row,) position in the prompt, BOS counted."""
        return self._sent(self._position)

    @cached_property
    def special(self) -> torch.Tensor:
        """(row,) bool, true on special tokens."""
        return self.flatten(self._special)

    @cached_property
    def place(self) -> np.ndarray:
        """(row,) place among the tokens of all prompts of the run (``prompts.token_ids``)."""
        return np.repeat(self._starts, self._lengths) + self._position

    def below(self, tokens: int | None) -> torch.Tensor:
        """Return which rows are of the prompts numbered below ``tokens``; None for all."""
        few = np.ones(len(self._numbers), bool) if tokens is None else self._numbers < tokens
        return self._sent(np.flatnonzero(np.repeat(few, self._lengths)))

    def drawn(self, each: int | None) -> torch.Tensor:
        """Return which rows a draw of so many positions of each prompt takes, ascending; None for all rows.

        Drawn from those with a next token.  What is drawn of a prompt depends on where it stands among all prompts, not
        on the batch.
        """
        if each is None:
            return self._sent(np.arange(len(self)))
        key = self.place.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        last = self._position + 1 == np.repeat(self._lengths, self._lengths)
        prompt = np.repeat(np.arange(len(self._lengths)), self._lengths)
        order = np.lexsort((key, last, prompt))  # prompt by prompt, a last position after the others
        chosen = (self._position < each) & ~last[order]  # sorted like this, its position counts the rows of a prompt
        return self._sent(np.sort(order[chosen]))

    def flatten(self, padded: torch.Tensor) -> torch.Tensor:
        """Drop padding: (prompt, position, ...) -> (row, ...)."""
        return padded.reshape(-1, *padded.shape[2:]).index_select(0, self._flat)

    def spread(self, rows: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Put rows back where they stand: (row, ...) -> (prompt, position, ...), ``fill`` on padding."""
        full = rows.new_full((self._ids.numel(), *rows.shape[1:]), fill)
        return full.index_copy(0, self._flat, rows).unflatten(0, tuple(self._ids.shape))

    def of_stream(self, values: np.ndarray, fill: float = 0) -> torch.Tensor:
        """Return what is known of every token of all prompts for those here.

        Parameters
        ----------
        values : numpy.ndarray
            (token, ...) in the order of ``prompts.token_ids``.
        fill : float
            On padding.

        Returns
        -------
        torch.Tensor
            (prompt, position, ...) on the device of the batch.
        """
        return self.spread(torch.from_numpy(values[self.place]).to(self._ids.device), fill)
