"""The model run over prompts, batch by batch: one batch, or all of them, longest prompts first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..settings import checked, count, instance, several
from .batch import Batch

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
        longest = max(prompts.lengths) if edits else 0
        fitting = [e.fit(ids.shape[1], longest) for e in edits]
        lengths = [prompts.lengths[n] for n in numbers]
        batch = Batch(ids, mask, [int(n) for n in names or numbers], lengths, special, {}, model)
        if not streaming:
            batch.activations = model.run(ids, sites, mask=mask, edits=fitting)
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
        model.run(ids, sorted(wanted), mask=mask, edits=fitting, consume=take)
        return batch


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
