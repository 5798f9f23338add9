"""The vocabulary of a synthetic task: one-hot columns, and row words that are a sum of several of them."""

from __future__ import annotations

import torch

SPECIAL = ("EOS", "True", "False", ".", "A", "P")
TABLE = 100
"""Digits of each key of Match2: rows * coordinates may not exceed it."""


class Words:
    """Ids of all words of a task, and the multi-hot vector that each stands for.

    Below ``len(words)`` an id is one column: EOS, True, False, ``.``, A, P, then n position slots, then d blocks of m
    digits (and for Match2 the keys and the labels).  An id of ``len(words) + code`` is a row word: all its digits at
    once, and, where it stands among the first n words, the position slot of its place (Pfau et al. 2024,
    arXiv 2404.15758, released code; the published position slot 0 shares a column with another word, not so here).

    Parameters
    ----------
    n, d, m : int
        Rows, coordinates of a row, and the modulus of its digits.
    n_keys : int
        Match2: number of keys; with them come the labels ``L0`` to ``Ln``.

    Examples
    --------
    >>> words = Words(n=4, d=2, m=10)
    >>> len(words), words.name(words.row(torch.tensor([7, 0])).item()), words.name(words.filler)
    (30, '70', '.')
    """

    def __init__(self, n: int, d: int, m: int, n_keys: int = 0) -> None:
        self.n, self.d, self.m, self.n_keys = n, d, m, n_keys
        self.eos, self.true, self.false, self.filler, self.answer, self.prompt = range(len(SPECIAL))
        self.slot = len(SPECIAL)
        self.digit = self.slot + n
        self.key = self.digit + d * m
        self.label = self.key + n_keys
        self.size = self.label + (n + 1 if n_keys else 0)

    def __len__(self) -> int:
        return self.size

    @property
    def n_rows(self) -> int:
        """Different row words."""
        return self.m**self.d

    def code(self, digits: torch.Tensor) -> torch.Tensor:
        """Return (...,) codes of (..., d) digits."""
        out = digits[..., 0]
        for c in range(1, self.d):
            out = out * self.m + digits[..., c]
        return out

    def row(self, digits: torch.Tensor) -> torch.Tensor:
        """Return (...,) ids of row words with (..., d) digits."""
        return self.code(digits) + self.size

    def digits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (..., d) digits of row words; of anything else, zeros."""
        code = (ids - self.size).clamp_min(0)
        # Constants instead of a tensor of powers: nothing is copied to the device, and torch.compile sees numbers.
        return torch.stack([code // self.m**c % self.m for c in reversed(range(self.d))], -1)

    def columns(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (..., position, 1 + d) columns of words; ``len(self)`` where a word has fewer."""
        row = ids >= self.size
        place = torch.arange(ids.shape[-1], device=ids.device, dtype=torch.int64).expand_as(ids)
        first = torch.where(row & (place < self.n), self.slot + place, self.size)
        first = torch.where(row, first, ids)
        block = self.digit + self.m * torch.arange(self.d, device=ids.device, dtype=torch.int64)
        rest = torch.where(row[..., None], self.digits(ids) + block, self.size)
        return torch.cat([first[..., None], rest], -1)

    def multi_hot(self, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return (..., position, len(self)) the columns as zeros and ones."""
        columns = self.columns(ids)
        out = torch.zeros(*ids.shape, self.size + 1, dtype=dtype, device=ids.device)
        return out.scatter_(-1, columns, 1.0)[..., : self.size]

    def target_hot(self, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the multi-hot vectors of words that are to be predicted: digits of rows, without position."""
        row = (ids >= self.size)[..., None]
        single = torch.where(ids >= self.size, self.size, ids)[..., None]
        block = self.digit + self.m * torch.arange(self.d, device=ids.device, dtype=torch.int64)
        rest = torch.where(row, self.digits(ids) + block, self.size)
        out = torch.zeros(*ids.shape, self.size + 1, dtype=dtype, device=ids.device)
        return out.scatter_(-1, torch.cat([single, rest], -1), 1.0)[..., : self.size]

    def name(self, i: int) -> str:
        """Return how a word is written: ``3-`` the slot of row 3, ``1:7`` digit 7 of coordinate 1, ``70`` a row."""
        if i >= self.size:
            if i >= self.size + self.n_rows:
                raise ValueError(f"id {i}: the ids end at {self.size + self.n_rows - 1}")
            return "".join(
                str(x) if self.m <= 10 else f"{x}."
                for x in self.digits(torch.tensor(i, dtype=torch.int64, device="cpu")).tolist()
            )
        if i < self.slot:
            return SPECIAL[i]
        if i < self.digit:
            return f"{i - self.slot}-"
        if i < self.key:
            return "{}:{}".format(*divmod(i - self.digit, self.m))
        return f"t{i - self.key}" if i < self.label else f"L{i - self.label}"
