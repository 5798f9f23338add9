"""Numbered sequences of token ids in one array: counting, padding, batches, labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from ..settings import checked, integer, model, none, several, short
from .vocabulary import Vocabulary

T = TypeVar("T")


class Sequences:
    """The half of `Prompts` that knows nothing of text; see there for the attributes."""

    token_ids: np.ndarray
    starts: np.ndarray
    documents: np.ndarray
    vocabulary: Vocabulary
    bos: bool
    note: str
    marks: Mapping[str, np.ndarray] = MappingProxyType({})
    """(token,) bool of each named mark, see `tokinterp.text.mark`."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return np.diff(self.starts).tolist()

    @property
    def n_tokens(self) -> int:
        """Tokens of all prompts together."""
        return len(self.token_ids)

    def _ids_hash(self) -> Any:
        """Hash of ids, starts, BOS policy, note and marks."""
        digest = hashlib.sha256(f"bos={self.bos} note={self.note}\n".encode())
        digest.update(np.ascontiguousarray(self.starts, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.token_ids, dtype="<i4").tobytes())
        for name, flags in sorted(self.marks.items()):
            digest.update(f"mark {name} ".encode() + np.packbits(flags).tobytes())
        return digest

    def prompt_hashes(self) -> np.ndarray:
        """Return (prompt,) a whole number made of the token ids of each prompt, the same for the same ids only."""
        ids = np.ascontiguousarray(self.token_ids, dtype="<i4")
        parts = zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        marks = b"".join(hashlib.sha256(ids[a:b].tobytes()).digest()[:8] for a, b in parts)
        return np.frombuffer(marks, dtype="<i8").astype(np.int64)

    def _give_marks(self, part: Any, rows: Any) -> Any:
        """Return a part of these sequences, its marks those of these tokens."""
        part.marks = {name: flags[rows] for name, flags in self.marks.items()}
        return part

    def _range(self, i: int) -> slice:
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < len(self):
            raise IndexError(f"i={short(i)}: prompt {short(i)}: there are {len(self)} prompts, numbered from 0")
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def ids(self, i: int) -> np.ndarray:
        """Return the (n,) int32 token ids of prompt ``i``."""
        return self.token_ids[self._range(i)].copy()

    def special(self, i: int) -> np.ndarray:
        """Return (n,) bool, true on BOS and other special tokens of prompt ``i``."""
        return self.vocabulary.special(self.ids(i))

    @cached_property
    def special_mask(self) -> np.ndarray:
        """(token,) bool over all prompts one after the other, true on BOS and other special tokens."""
        return self.vocabulary.special(self.token_ids)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what was worked out under a key before, or work it out; prompts never change."""
        known = self.__dict__.setdefault("_known", {})
        if key not in known:
            known[key] = make()
        return known[key]

    def padded(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return prompts as right-padded arrays.

        Parameters
        ----------
        numbers : sequence of int
            Which prompts, in which order.

        Returns
        -------
        ids : numpy.ndarray
            (prompt, position) int64, 0 where padded.
        mask : numpy.ndarray
            (prompt, position) bool, true on tokens.
        special : numpy.ndarray
            (prompt, position) bool, true on BOS and other special tokens.
        """
        chosen = self._numbers(numbers)
        lengths = self.starts[chosen + 1] - self.starts[chosen]
        place = np.arange(int(lengths.max()) if len(chosen) else 0)
        mask = place < lengths[:, None]
        where = np.where(mask, self.starts[chosen][:, None] + place, 0)
        ids = np.where(mask, self.token_ids[where], 0).astype(np.int64)
        return ids, mask, self.vocabulary.special(ids) & mask

    def _numbers(self, numbers: Sequence[int] | np.ndarray, name: str = "numbers") -> np.ndarray:
        if isinstance(numbers, int | np.integer) and not isinstance(numbers, bool):
            numbers = [int(numbers)]
        chosen = np.array(several(integer)(name, numbers), dtype=np.int64).reshape(-1)
        bad = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(bad):
            raise IndexError(
                f"{name}={short(numbers)}: prompt {bad[0]}: there are {len(self)} prompts, numbered from 0"
            )
        return chosen

    @checked(model=model | none)
    def batches(self, batch_tokens: int, start: int = 0, *, model: Any = None) -> Iterator[list[int]]:
        """Yield the numbers of the prompts of each batch: longest prompts first, ties by number.

        Parameters
        ----------
        batch_tokens : int
            Most tokens in a batch, padding included; a longer prompt makes a batch of its own.
        start : int
            Prompts, in this order, that are already done.
        model : Model, optional
            Prompts on different sides of one of its ``length_steps`` are never in one batch.

        Examples
        --------
        >>> from tokinterp.text import Prompts
        >>> list(Prompts.from_ids([[1], [1, 2, 3], [1, 2]]).batches(4))
        [[1], [2, 0]]
        """
        steps = getattr(model, "length_steps", ())
        order = np.argsort(-np.diff(self.starts), kind="stable")
        while start < len(order):
            longest = self.lengths[order[start]]
            size = max(1, int(batch_tokens) // longest)
            shortest = max((s for s in steps if s < longest), default=0) + 1
            batch = [n for n in order[start : start + size].tolist() if self.lengths[n] >= shortest]
            yield batch
            start += len(batch)

    def token_table(self) -> dict[str, np.ndarray]:
        """Return (token,) arrays that label every token of all prompts: prompt, position, token_id, document."""
        lengths = np.diff(self.starts)
        return {
            "prompt": np.repeat(np.arange(len(self)), lengths),
            "position": np.arange(self.n_tokens) - np.repeat(self.starts[:-1], lengths),
            "token_id": self.token_ids.astype(np.int64),
            "document": np.repeat(self.documents, lengths),
        }
