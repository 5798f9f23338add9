"""Edits of a run made ready for one batch of it: marks and flags placed, values taken from donors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import KnockOut, Patch, Renumber, SiteEdit
from .positions import fitting, flags_of, of_run, placed, select_positions

if TYPE_CHECKING:
    from ...models.base import Model
    from ...text.prompts import Prompts
    from ..sites import Site
    from . import Edit

NAMES = ("positions", "source", "queries", "keys")


def ready_edits(
    edits: Sequence[Edit], model: Model, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[Edit], torch.Tensor | None]:
    """Return edits of a run as they are for one batch of it, and the places of its tokens if they are other ones.

    Parameters
    ----------
    edits, model, whole
        Of the run.
    numbers : sequence of int
        Of the prompts of the batch.
    ids, mask : torch.Tensor
        (prompt, position) of the batch.
    """
    if not edits:
        return [], None
    longest = max(whole.lengths)
    ready: list[SiteEdit | KnockOut] = []
    places: torch.Tensor | None = None
    for e in edits:
        if isinstance(e, Renumber):
            places = e.of_batch(whole, numbers, mask)
            continue
        ready.append(_placed(e, whole, numbers, mask))
    taken = _taken([e for e in ready if isinstance(e, Patch)], model, whole, numbers, ids, mask)
    return [next(taken) if isinstance(e, Patch) else e.fit(ids.shape[1], longest) for e in ready], places


def _placed(edit: Any, whole: Prompts, numbers: Sequence[int], mask: torch.Tensor) -> Any:
    """Return an edit with its flags and marks as bool tensors; what a donor gives is placed in the donor."""
    found = {n: placed(p, whole, numbers, mask) for n in NAMES if n != "source" and of_run(p := getattr(edit, n, None))}
    return replace(edit, **found) if found else edit


def check_places(edits: Sequence[Edit], whole: Prompts) -> None:
    """Refuse, before a run, flags and marks that are not of its tokens, and donors that lack what is asked of them."""
    if len(moved := [e for e in edits if isinstance(e, Renumber)]) > 1:
        raise ValueError(f"edits: {len(moved)} of them renumber the tokens, which have one place each: give one")
    looked: set[tuple[int, ...]] = set()
    for e in edits:
        if isinstance(e, Renumber):
            e.check_tokens(whole)
            continue
        giver = e.prompts if isinstance(e, Patch) and e.prompts is not None else whole
        for name in NAMES:
            given: Any = getattr(e, name, None)
            if of_run(given):
                try:
                    flags_of(given, giver if name == "source" else whole)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}, in {e}") from None
            if isinstance(given, torch.Tensor) and given.dtype == torch.bool and given.ndim > 1:
                raise ValueError(
                    f"{name} given as a mask {tuple(given.shape)} fit one batch only: give numbers, a slice, or a "
                    "function of (ids, mask)"
                )
        alike = (id(getattr(e, "positions", 0)), id(getattr(e, "donor", 0)), id(getattr(e, "source", 0)), id(giver))
        if alike in looked or not (isinstance(e, Patch) or (isinstance(e, SiteEdit) and e.op == "fill")):
            continue
        looked.add(alike)
        for numbers in whole.batches(2**16):
            ids, mask, _ = map(torch.from_numpy, whole.padded(numbers))
            here = _placed(e, whole, numbers, mask)
            if isinstance(e, Patch):
                donor_places(here, whole, numbers, ids, mask)
            else:
                e.check_slots(select_positions(fitting(here.positions, ids.shape[1], max(whole.lengths)), ids, mask))


def donor_places(
    edit: Patch, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (value,) row and position of each patched value in a batch, and donor and position it comes from.

    Raises
    ------
    ValueError
        If a donor does not have the places that are asked of it.
    """
    givers = whole if edit.prompts is None else edit.prompts
    longest, lengths = max(givers.lengths), np.asarray(givers.lengths)
    donors = edit.donors(len(whole), len(givers))[list(numbers)]
    giver = torch.from_numpy(donors).to(ids.device)
    where = select_positions(fitting(edit.positions, ids.shape[1], max(whole.lengths)), ids, mask)
    where = where & (giver >= 0)[:, None]
    row, position = where.nonzero(as_tuple=True)
    if edit.source is None:
        length = torch.from_numpy(lengths).to(ids.device)[giver[row]]
        if bool((short := position >= length).any()):
            n = int(row[short][0])
            raise ValueError(
                f"{edit}: prompt {numbers[n]} is patched at position {int(position[short][0])}, but its donor "
                f"{donors[n]} has {lengths[donors[n]]} tokens: say with source= where in the donor"
            )
        return row, position, giver[row], position
    found, which = np.unique(donors[donors >= 0], return_inverse=True)
    if not len(found):
        return row, position, giver[row], position
    d_ids, d_mask, _ = (torch.from_numpy(a).to(ids.device) for a in givers.padded(found.tolist()))
    source = placed(edit.source, givers, found.tolist(), d_mask)
    chosen = select_positions(fitting(source, d_ids.shape[1], longest), d_ids, d_mask)
    given = torch.zeros(len(ids), chosen.shape[1], dtype=torch.bool, device=ids.device)
    given[giver >= 0] = chosen[torch.from_numpy(which).to(ids.device)]
    counts = torch.stack([where.sum(1), given.sum(1)])
    if bool((off := (counts[0] != counts[1]) & (giver >= 0)).any()):
        n = int(off.nonzero()[0])
        raise ValueError(
            f"{edit}: prompt {numbers[n]} has {int(counts[0, n])} positions to patch, but its donor {donors[n]} gives "
            f"{int(counts[1, n])}: choose as many in both"
        )
    return row, position, giver[row], given.nonzero(as_tuple=True)[1]


@dataclass
class _Asked:
    """What one patch asks of its donors in a batch, and what it was given."""

    edit: Patch
    row: torch.Tensor
    position: torch.Tensor
    donor: torch.Tensor
    source: torch.Tensor
    value: torch.Tensor | None = None

    def take(self, found: torch.Tensor, givers: torch.Tensor, shape: torch.Size) -> None:
        """Take what donors have at the site, (donor, position, d)."""
        if self.value is None:
            self.value = found.new_zeros((*shape, found.shape[-1]))
        at = (self.donor[:, None] == givers).nonzero()  # (value here, 2): which value, which of these donors
        self.value[self.row[at[:, 0]], self.position[at[:, 0]]] = found[at[:, 1], self.source[at[:, 0]]]


def _taken(
    patches: Sequence[Patch], model: Model, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor,
    mask: torch.Tensor,
) -> Iterator[SiteEdit]:  # fmt: skip
    """Run the donors of a batch once, as they are, as far as the deepest site, and yield edits that put values in."""
    asked = [_Asked(e, *donor_places(e, whole, numbers, ids, mask)) for e in patches]
    for givers in {id(e.prompts): e.prompts or whole for e in patches}.values():
        mine = [a for a in asked if (a.edit.prompts or whole) is givers]
        sites = sorted({a.edit.site for a in mine})
        chosen = np.unique(torch.cat([a.donor for a in mine]).cpu().numpy())
        some = givers[chosen]
        for places in some.batches(max(ids.numel(), *some.lengths, 1), model=model) if len(chosen) else ():
            d_ids, d_mask, _ = (torch.from_numpy(a).to(ids.device) for a in some.padded(places))
            here = torch.from_numpy(chosen[places]).to(ids.device)

            def take(site: Site, value: torch.Tensor, here: torch.Tensor = here, mine: list[_Asked] = mine) -> None:
                for a in mine:
                    if a.edit.site == site:
                        a.take(value, here, ids.shape)

            model.run(d_ids, sites, mask=d_mask, consume=take)
    for a in asked:
        where = torch.zeros_like(mask)
        where[a.row, a.position] = True
        if a.value is None:  # nothing is patched in this batch
            yield SiteEdit(a.edit.site, "zero", where)
        else:
            yield SiteEdit(a.edit.site, "replace", where, a.value)
