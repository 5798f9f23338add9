"""The model run over prompts, batch by batch: one batch, or all of them, longest prompts first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..settings import checked, count, instance, several
from .batch import Batch
from .edits import Patch, SiteEdit
from .positions import fitting, is_flags, placed, select_positions

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts
    from .edits import Edit
    from .measurement import Measurement
    from .sites import Site


@checked(numbers=several(count(), 1), sites=several(instance("Site")), streaming=several(instance("Measurement")))
def capture(
    model: Model, prompts: Prompts, numbers: Sequence[int], sites: Sequence[Site], edits: Sequence[Edit] = (), *,
    streaming: Sequence[Measurement] = (), names: Sequence[int] | None = None,
    whole: Prompts | None = None,
) -> Batch:  # fmt: skip
    """Run some prompts as one batch and return it with the activations of the sites.

    Parameters
    ----------
    model, prompts
        What to run, and on what.
    numbers : sequence of int
        Which prompts, by their place in the input.
    sites : sequence of Site
        What to keep.
    edits : sequence of Edit
        What to change during the pass; numbered positions that only longer prompts have are passed over.
    streaming : sequence of Measurement
        Each looks at its sites as the pass reaches them; what only they need is not kept.
    names : sequence of int, optional
        Numbers of the prompts in a larger whole, where ``prompts`` is a part of it.
    whole : Prompts, optional
        That larger whole, which edits may refer to.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> batch = ti.capture(model, prompts, [0, 1], ti.resid([0, 3]))
    >>> tuple(batch.rows(3).shape) == (sum(prompts.lengths), model.info.d_model)
    True
    """
    with torch.no_grad():
        ids, mask, special = (torch.from_numpy(a).to(model.device) for a in prompts.padded(numbers))
        ready = ready_edits(edits, model, whole or prompts, (names if whole else None) or numbers, ids, mask)
        lengths = [prompts.lengths[n] for n in numbers]
        batch = Batch(ids, mask, [int(n) for n in names or numbers], lengths, special, {}, model)
        if not streaming:
            batch.activations = model.run(ids, sites, mask=mask, edits=ready)
            return batch
        watched = {id(m): (m, set(m.sites(model.info))) for m in streaming}
        kept = set(sites)

        def take(site: Site, value: torch.Tensor) -> None:
            if site in kept:
                batch.activations[site] = value
            for key, (m, own) in watched.items():
                if site in own:
                    batch.looks[key, site] = m.look(batch, site, value)

        wanted = kept.union(*(own for _, own in watched.values()))
        model.run(ids, sorted(wanted), mask=mask, edits=ready, consume=take)
        return batch


def ready_edits(
    edits: Sequence[Edit], model: Model, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> list[Edit]:
    """Return edits of a run as they are for one batch of it: numbers, flags and donors worked out.

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
        return []
    longest = max(whole.lengths)

    out: list[Edit] = []
    for e in edits:
        names = ("positions",) if isinstance(e, SiteEdit) else ("queries", "keys")
        if any(is_flags(getattr(e, name)) for name in names):
            e = replace(e, **{name: placed(getattr(e, name), whole, numbers, mask) for name in names})
        out.append(_patched(e, model, whole, numbers, ids, mask) if isinstance(e, Patch) else
                   e.fit(ids.shape[1], longest))  # fmt: skip
    return out


def check_places(edits: Sequence[Edit], whole: Prompts) -> None:
    """Refuse, before a run, flags that are not of its tokens, and donors that lack what is asked of them."""
    for e in edits:
        for name in ("positions", "source", "queries", "keys"):
            given: Any = getattr(e, name, None)
            if is_flags(given) and len(given) != whole.n_tokens:
                raise ValueError(f"{name}: {len(given)} flags for {whole.n_tokens} tokens of all prompts, in {e}")
            if isinstance(given, torch.Tensor) and given.dtype == torch.bool and given.ndim > 1:
                raise ValueError(
                    f"{name} given as a mask {tuple(given.shape)} fit one batch only: give numbers, a slice, or a "
                    "function of (ids, mask)"
                )
        if not isinstance(e, Patch):
            continue
        for numbers in whole.batches(2**16):
            ids, mask, _ = map(torch.from_numpy, whole.padded(numbers))
            here = replace(e, positions=placed(e.positions, whole, numbers, mask))
            donor_places(here, whole, numbers, ids, mask)


def donor_places(
    edit: Patch, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (value,) row and position of each patched value in a batch, and donor and position it comes from.

    Raises
    ------
    ValueError
        If a donor does not have the places that are asked of it.
    """
    longest, lengths = max(whole.lengths), np.asarray(whole.lengths)
    donors = edit.donors(len(whole))[list(numbers)]
    giver = torch.from_numpy(donors).to(ids.device)
    where = select_positions(fitting(edit.positions, ids.shape[1], longest), ids, mask) & (giver >= 0)[:, None]
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
    d_ids, d_mask, _ = (torch.from_numpy(a).to(ids.device) for a in whole.padded(found.tolist()))
    source = placed(edit.source, whole, found.tolist(), d_mask)
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


def _patched(
    edit: Patch, model: Model, whole: Prompts, numbers: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
) -> SiteEdit:
    """Run the donors of a batch, as they are, as far as the site, and return the edit that puts their values in."""
    row, position, donor, source = donor_places(edit, whole, numbers, ids, mask)
    where = torch.zeros_like(mask)
    where[row, position] = True
    givers = np.unique(donor.cpu().numpy())
    value: torch.Tensor | None = None
    some = whole[givers]
    for places in some.batches(max(ids.numel(), *some.lengths, 1), model=model) if len(givers) else ():
        d_ids, d_mask, _ = (torch.from_numpy(a).to(ids.device) for a in some.padded(places))
        found = model.run(d_ids, [edit.site], mask=d_mask)[edit.site]
        value = found.new_zeros((*ids.shape, found.shape[-1])) if value is None else value
        here = torch.from_numpy(givers[places]).to(ids.device)
        at = (donor[:, None] == here).nonzero()  # (value here, 2): which value, which of these donors
        value[row[at[:, 0]], position[at[:, 0]]] = found[at[:, 1], source[at[:, 0]]]
    if value is None:  # nothing is patched in this batch
        return SiteEdit(edit.site, "zero", where)
    return SiteEdit(edit.site, "replace", where, value)


@checked(sites=several(instance("Site")))
def stream(
    model: Model, prompts: Prompts, sites: Sequence[Site], *, batch_tokens: int = 8192, edits: Sequence[Edit] = (),
    start: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Yield batches over all prompts, longest first, each of at most ``batch_tokens`` padded tokens.

    The first ``start`` prompts in this order are passed over: those of the batches that were read before.
    """
    for numbers in prompts.batches(batch_tokens, start=start, model=model):
        yield capture(model, prompts, numbers, sites, edits)
