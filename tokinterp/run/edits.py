"""What can be changed during a pass: values at a site, and edges of the attention graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from numbers import Integral
from typing import Any

import torch

from ..settings import checked, count, instance, one_of, refuse, several, short
from ..settings.describe import describe, numbered
from .sites import Site

Positions = int | slice | Sequence[int] | torch.Tensor | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
"""Which positions: a number or a list of numbers (the same in every prompt; a shorter prompt goes without), a slice (of
each prompt's own tokens: ``slice(-1, None)`` is its last), a bool tensor (prompt, position), a function of (ids, mask)
that returns such a tensor, or None for all."""

OPS = ("replace", "add", "zero", "mean")


@checked(op=one_of(*OPS), value=instance("Tensor"))
@dataclass(frozen=True, eq=False)
class SiteEdit:
    """Change the activations of a site at some positions.

    Use the functions :func:`replace`, :func:`add`, :func:`zero` and :func:`mean_ablate` to make one.

    Attributes
    ----------
    site : Site
        Any site but ``pattern``.
    op : str
        ``replace``, ``add``, ``zero`` or ``mean``.
    positions : Positions
        Where; padding is never changed.
    value : torch.Tensor or None
        (d_model,), (position, d_model) or (prompt, position, d_model): anything that broadcasts to the activations.
    """

    site: Site
    op: str
    positions: Positions = None
    value: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.site.name == "pattern":
            refuse("site", self.site, "pattern cannot be edited as a site: use knock_out(queries, keys, blocks, heads)")
        if self.op in ("replace", "add") and self.value is None:
            raise ValueError(f"value=None: {self.op} at {self.site.name} {self.site.at} needs a value")

    def check(self, width: int, d_site: int | None, prompts: int | None = None) -> None:
        """Raise ValueError if the value does not fit prompts of so many positions, or a site of known width."""
        if self.value is None:
            return
        shape = tuple(self.value.shape)
        d_site = shape[-1] if d_site is None and shape else d_site
        fits = 1 <= len(shape) <= 3 and shape[-1] == d_site
        fits &= len(shape) < 2 or shape[-2] in (1, width)
        fits &= len(shape) < 3 or shape[0] in (1, prompts)
        if not fits:
            raise ValueError(
                f"{self.op} at {self.site.name} {self.site.at}: the value has shape {shape}, but the site has width "
                f"{d_site} and the prompts up to {width} positions: give ({d_site},) or (position, {d_site})"
            )

    def fit(self, width: int, longest: int) -> SiteEdit:
        """Return the edit for a batch that is ``width`` wide, of prompts of which the longest is ``longest``."""
        value = self.value
        if value is not None and value.ndim > 1 and value.shape[-2] == longest:
            value = value[..., :width, :]
        return changed(self, positions=_fit(self.positions, width, longest), value=value)

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> SiteEdit:
        """Return the edit with its positions worked out for a batch, as a bool tensor."""
        return changed(self, positions=select_positions(self.positions, ids, mask))

    def apply(self, activations: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the changed activations (prompt, position, d_model)."""
        where = select_positions(self.positions, ids, mask).to(activations.device)[..., None]
        if self.op == "zero":
            return activations.masked_fill(where, 0)
        if self.op == "mean" and self.value is None:
            real = mask.to(activations.device)[..., None]
            total = activations.double().masked_fill(~real, 0).sum(1, keepdim=True)
            new = (total / real.sum(1, keepdim=True)).to(activations.dtype)
        else:
            assert self.value is not None
            new = self.value.to(device=activations.device, dtype=activations.dtype)
            if self.op == "add":
                new = activations + new
        return torch.where(where, new, activations)

    def __str__(self) -> str:
        where = "" if self.positions is None else f", positions {_words(self.positions)}"
        return f"{self.op}({self.site.name} {self.site.at}{where})"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {
            "op": self.op, "site": self.site.name, "at": self.site.at,
            "positions": describe(self.positions), "value": describe(self.value),
        }  # fmt: skip


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
        return changed(self, queries=_fit(self.queries, width, longest), keys=_fit(self.keys, width, longest))

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> KnockOut:
        """Return the edit with its positions worked out for a batch, as bool tensors."""
        queries = None if self.queries is None else select_positions(self.queries, ids, mask)
        return changed(self, queries=queries, keys=select_positions(self.keys, ids, mask))

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
        seen = "all later" if self.queries is None else _words(self.queries)
        where = "".join(
            f", {name} {numbered(sorted(chosen))}" for name, chosen in (("blocks", self.blocks), ("heads", self.heads))
            if chosen is not None
        )  # fmt: skip
        return f"knock_out(keys {_words(self.keys)}, queries {seen}{where})"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {
            "op": "knock_out", "queries": describe(self.queries), "keys": describe(self.keys),
            "blocks": list(self.blocks) if self.blocks is not None else None,
            "heads": list(self.heads) if self.heads is not None else None,
        }  # fmt: skip


Edit = SiteEdit | KnockOut


def _words(positions: Positions) -> str:
    """Return positions in a few words."""
    if isinstance(positions, slice):
        return ":".join("" if v is None else str(v) for v in (positions.start, positions.stop, positions.step))
    if positions is None or callable(positions):
        return "all" if positions is None else f"by {getattr(positions, '__name__', 'a function')}"
    if isinstance(positions, torch.Tensor):
        if positions.dtype == torch.bool:
            return f"by a mask {tuple(positions.shape)}"
        positions = positions.reshape(-1).tolist()
    numbers = [positions] if isinstance(positions, Integral) else list(positions)  # type: ignore[arg-type]
    return numbered(map(int, numbers)) if len(numbers) <= 20 else f"{len(numbers)} places"


@checked(value=instance("Tensor"))
def replace(site: Site, value: torch.Tensor, positions: Positions = None) -> SiteEdit:
    """Put ``value`` in the place of the activations of a site.

    Examples
    --------
    >>> import torch, tokinterp as ti
    >>> edit = ti.edits.replace(ti.Site("resid", 2), torch.zeros(64), positions=[3])
    >>> edit.op
    'replace'
    """
    return SiteEdit(site, "replace", positions, value)


@checked(value=instance("Tensor"))
def add(site: Site, value: torch.Tensor, positions: Positions = None) -> SiteEdit:
    """Add ``value`` to the activations of a site."""
    return SiteEdit(site, "add", positions, value)


@checked()
def zero(site: Site, positions: Positions = None) -> SiteEdit:
    """Set the activations of a site to zero."""
    return SiteEdit(site, "zero", positions)


@checked()
def mean_ablate(site: Site, positions: Positions = None, mean: torch.Tensor | None = None) -> SiteEdit:
    """Put a mean in the place of the activations of a site.

    Parameters
    ----------
    site : Site
        Where.
    positions : Positions
        Which positions; None means all.
    mean : torch.Tensor, optional
        (d_model,) or (position, d_model), for example a mean over a corpus.  Without it each prompt's own mean over
        its real positions is used, so that the result does not depend on the other prompts of a batch.
    """
    return SiteEdit(site, "mean", positions, mean)


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


@checked(ids=instance("Tensor"), mask=instance("Tensor"))
def select_positions(positions: Positions, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (prompt, position) bool, true at the chosen real positions.

    Raises
    ------
    ValueError
        If a position lies outside the batch or a mask has another shape than the ids.
    """
    if positions is None:
        return mask
    n = ids.shape[1]
    if callable(positions):
        chosen = positions(ids, mask)
        if not isinstance(chosen, torch.Tensor):
            refuse("positions", positions, f"it returns {short(chosen)}, not a bool tensor (prompt, position)")
    elif isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
        chosen = positions
    elif isinstance(positions, slice):
        chosen = _own_slice(positions, mask)
    else:
        places = _fit(positions, n, n)
        chosen = torch.zeros_like(mask)
        chosen[:, places] = True
    if chosen.shape != mask.shape or chosen.dtype != torch.bool:
        raise ValueError(
            f"positions={short(positions)}: positions to edit are {chosen.dtype} {tuple(chosen.shape)}: "
            f"a bool tensor {tuple(mask.shape)} (prompt, position) is needed"
        )
    return chosen.to(mask.device) & mask


def _own_slice(positions: slice, mask: torch.Tensor) -> torch.Tensor:
    """Return (prompt, position) bool, true on the slice of each prompt's own tokens, whatever the padding."""
    step = 1 if positions.step is None else int(positions.step)
    if step < 1:
        refuse("positions", positions, "the step must be at least 1")
    lengths = mask.sum(1)

    def bound(value: int | None, default: torch.Tensor) -> torch.Tensor:
        if value is None:
            return default
        return (lengths + value).clamp_min(0) if value < 0 else torch.full_like(lengths, value)

    start, stop = bound(positions.start, torch.zeros_like(lengths))[:, None], bound(positions.stop, lengths)[:, None]
    place = torch.arange(mask.shape[1], device=mask.device, dtype=torch.int64)
    return (place >= start) & (place < stop) & ((place - start) % step == 0)


def _fit(positions: Any, width: int, longest: int) -> Any:
    """Return numbered positions without those beyond the batch; other kinds are returned as they are.

    Raises
    ------
    ValueError
        If a number lies beyond the longest of all prompts, or below 0.
    """
    if positions is None or isinstance(positions, slice) or callable(positions):
        return positions
    if isinstance(positions, torch.Tensor):
        if positions.dtype == torch.bool:
            return positions
        positions = positions.reshape(-1).tolist()
    places = [int(positions)] if isinstance(positions, Integral) else [int(p) for p in positions]
    bad = [p for p in places if not 0 <= p < longest]
    if bad:
        raise ValueError(f"positions={bad} to edit: the longest prompt has positions 0 to {longest - 1}")
    return [p for p in places if p < width]
