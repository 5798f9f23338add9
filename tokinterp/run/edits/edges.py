"""Edges of the attention graph that are removed during a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import torch

from ...settings import checked, count, several
from ...settings.describe import describe, numbered
from .positions import Positions, fitting, in_words, select_positions


@checked(blocks=several(count(), 1), heads=several(count(), 1))
@dataclass(frozen=True, eq=False)
class KnockOut:
    """Remove attention edges from some queries to some keys; the other weights of a query grow to sum to one.

    Attributes
    ----------
    queries : Positions
        Positions that no longer see the keys; None means every position after the key.
    keys : Positions
        Positions that are no longer seen.
    blocks, heads : sequence of int or None
        Where; None means everywhere.
    """

    queries: Positions
    keys: Positions
    blocks: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def check(self, n_heads: int) -> None:
        """Raise ValueError if the model has no such heads."""
        bad = [h for h in self.heads or () if not 0 <= h < n_heads]
        if bad:
            raise ValueError(f"knock_out of heads {bad}: the model has heads 0 to {n_heads - 1}")

    def fit(self, width: int, longest: int) -> KnockOut:
        """Return the edit for a batch that is ``width`` wide, of prompts of which the longest is ``longest``."""
        return changed(self, queries=fitting(self.queries, width, longest), keys=fitting(self.keys, width, longest))

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> KnockOut:
        """Return the edit with its positions worked out for a batch, as bool tensors."""
        queries, keys = (None if w is None else select_positions(w, ids, mask) for w in (self.queries, self.keys))
        return changed(self, queries=queries, keys=keys)

    def edges(self, ids: torch.Tensor, mask: torch.Tensor, n_heads: int) -> torch.Tensor:
        """Return (prompt, 1 or head, query, key) bool, true where attention is removed."""
        n = ids.shape[1]
        key = select_positions(self.keys, ids, mask)
        if self.queries is None:
            place = torch.arange(n, device=ids.device, dtype=torch.int64)
            cut = key[:, None, :] & (place[:, None] > place[None, :])
        else:
            cut = select_positions(self.queries, ids, mask)[:, :, None] & key[:, None, :]
        cut = cut[:, None]
        if self.heads is None:
            return cut
        chosen = torch.zeros(n_heads, dtype=torch.bool, device=ids.device)
        chosen[list(self.heads)] = True
        return cut & chosen[None, :, None, None]

    def __str__(self) -> str:
        seen = "all later" if self.queries is None else in_words(self.queries)
        where = "".join(
            f", {name} {numbered(sorted(chosen))}" for name, chosen in (("blocks", self.blocks), ("heads", self.heads))
            if chosen is not None
        )  # fmt: skip
        return f"knock_out(keys {in_words(self.keys)}, queries {seen}{where})"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {
            "op": "knock_out", "queries": describe(self.queries), "keys": describe(self.keys),
            "blocks": list(self.blocks) if self.blocks is not None else None,
            "heads": list(self.heads) if self.heads is not None else None,
        }  # fmt: skip


@checked(heads=several(count(), 1))
def knock_out(
    keys: Positions,
    queries: Positions = None,
    *,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> KnockOut:
    """Hide the positions ``keys`` from the positions ``queries`` (None: from all later positions).

    Parameters
    ----------
    keys, queries : Positions
        Positions that are hidden, and from which they are hidden.
    blocks, heads : sequence of int, optional
        Window of blocks, and heads; None means all.

    Notes
    -----
    Hiding a set of keys from all later queries in all blocks and heads, with ``position_ids`` that leave them out,
    equals deleting those tokens (tested).  Sliding windows count by ``position_ids`` then, so that hidden tokens do not
    fill them; windows that cannot be moved (chunks, or local attention that transformers' attention functions do not
    show) and ALiBi refuse ``position_ids`` where that would matter.  Without ``position_ids`` a hidden token keeps its
    place in a window.  A query that would see nothing at all is an error, and so is a block that hides nothing (linear
    attention, a state space).

    Examples
    --------
    >>> import tokinterp as ti
    >>> ti.edits.knock_out([1, 2], blocks=range(4)).blocks
    (0, 1, 2, 3)
    """
    return KnockOut(
        queries, keys, tuple(blocks) if blocks is not None else None, tuple(heads) if heads is not None else None
    )
