"""The model run over prompts, batch by batch: one batch, or all of them, longest prompts first."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ..files.bars import progress_bar
from ..settings import checked, count, instance, several, string
from ..text.prompts import Prompts
from .batch import Batch
from .edits.ready import ready_edits
from .sites import Site, sites_of

if TYPE_CHECKING:
    from ..models.base import Model
    from .edits import Edit
    from .measurement import Measurement

T = TypeVar("T")


@checked(
    numbers=several(count(), 1), sites=instance("Site") | string | several(instance("Site") | string),
    streaming=several(instance("Measurement")),
)  # fmt: skip
def capture(
    model: Model, prompts: Prompts | Sequence[str], numbers: Sequence[int] | None = None,
    sites: Sequence[Site | str] | Site | str | None = None, edits: Sequence[Edit] = (), *,
    streaming: Sequence[Measurement] = (), consume: Callable[[Batch, Site, torch.Tensor], None] | None = None,
) -> Batch:  # fmt: skip
    """Run some prompts as one batch and return it with the activations of the sites.

    Parameters
    ----------
    model, prompts
        What to run, and on what: prompts, or texts.
    numbers : sequence of int, optional
        Which prompts, by their place in the input; all by default.
    sites : sequence of Site or str, optional
        What to keep: sites, or their names, ``"mlp_out.2"``, or ``"resid"`` at all layers, which is the default.
    edits : sequence of Edit
        What to change during the pass; numbered positions that only longer prompts have are passed over.
    streaming : sequence of Measurement
        Each looks at its sites as the pass reaches them; what only they need is not kept.
    consume : callable, optional
        Shown each site as the pass reaches it, with the batch; none is kept then.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> batch = ti.capture(model, prompts, [0, 1], ti.resid([0, 3]))
    >>> tuple(batch.rows(3).shape) == (sum(prompts.lengths), model.info.d_model)
    True
    """
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model, progress=False)
    numbers = range(len(prompts)) if numbers is None else [int(n) for n in numbers]
    sites = sites_of(sites, model.info)
    with torch.no_grad():
        ids, mask, special = (torch.from_numpy(a).to(model.device) for a in prompts.padded(numbers))
        ready, places = ready_edits(edits, model, prompts, numbers, ids, mask)
        lengths = [prompts.lengths[n] for n in numbers]
        starts = prompts.starts[list(numbers)].tolist()
        batch = Batch(ids, mask, list(numbers), lengths, starts, special, {}, model)
        if consume is not None:
            model.run(ids, sorted(sites), mask=mask, edits=ready, position_ids=places, consume=partial(consume, batch))
            return batch
        if not streaming:
            batch.activations = model.run(ids, sites, mask=mask, edits=ready, position_ids=places)
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
        model.run(ids, sorted(wanted), mask=mask, edits=ready, position_ids=places, consume=take)
        return batch


def nonfinite_layer(batch: Batch) -> torch.Tensor:
    """Return (prompt,) the first layer or block + 1 with NaN or infinite values on real tokens, -1 where none.

    One number per batch is read back from the device when everything is finite.
    """
    found = [*batch.activations.items(), *((s, a) for (_, s), a in batch.looks.items())]
    found.sort(key=lambda pair: pair[0].depth)
    if not found:
        return torch.full((len(batch),), -1, dtype=torch.int64, device="cpu")
    bad = []
    for site, a in found:
        if a is not batch.activations.get(site):  # a look, of any shape
            bad.append(~torch.isfinite(a.flatten(1).double().sum(1)))
            continue
        if site.name == "pattern":
            sums = a.float().sum((1, 3))
        else:
            sums = a.float().abs().amax(-1) if a.dtype != torch.float64 else a.abs().amax(-1)
        bad.append((~torch.isfinite(sums) & batch.mask).any(1))
    table = torch.stack(bad)
    if not bool(table.any()):
        return torch.full((len(batch),), -1, dtype=torch.int64, device="cpu")
    first = table.float().argmax(0).cpu()
    layers = torch.tensor([s.at + (s.name != "resid") for s, _ in found], dtype=torch.int64, device="cpu")
    return torch.where(table.any(0).cpu(), layers[first], -1)


class AllNonfiniteError(ValueError):
    """Every prompt gives NaN or infinite activations."""


def report_nonfinite(left_out: Mapping[int, int], n: int, model: Model, where: str = "") -> None:
    """Name the prompts that were left out, each with the layer from which on it is not finite; refuse a result of none.

    Raises
    ------
    AllNonfiniteError
        If all ``n`` prompts were left out.
    """
    if not left_out:
        return
    number, layer = next(iter(left_out.items()))
    first = f"prompt {number}: from layer {layer} on"
    if len(left_out) == n:
        dtype = model.info.dtype
        other = "" if dtype == "float32" else f", or load the model with dtype='float32' instead of {dtype!r}"
        raise AllNonfiniteError(
            f"all {n} prompts give NaN or infinite activations ({first}): look at the weights and edits{other}"
        )
    logging.getLogger("tokinterp").warning(
        "%d of %d prompts give NaN or infinite activations and are left out (%s)%s", len(left_out), n, first, where
    )


def comfortable_tokens(
    model: Model, lengths: np.ndarray, sites: Collection[Site], passing: Collection[Site] = ()
) -> int:
    """Return a batch size whose captured activations and logits stay within a fraction of the memory.

    Parameters
    ----------
    model : Model
        What is run.
    lengths : numpy.ndarray
        (prompt,) tokens.
    sites, passing : collection of Site
        What is kept of a pass, and what is looked at one by one and let go.
    """
    info, longest, sites = model.info, int(lengths.max()), {*sites}
    if passing := {*passing} - sites:  # one at a time, and what is made of it
        heaviest = max(passing, key=lambda s: s.name == "pattern")
        sites |= {Site(heaviest.name, n) for n in range(min(4, info.n_layers))}
    numbers = sum(info.n_heads * longest if s.name == "pattern" else info.d_model for s in sites) + 24 * info.d_model
    per_token = numbers * (2 if info.dtype in ("bfloat16", "float16") else 4)
    device = model.device
    budget = torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 2**29
    cap = 65536 if device.type == "cuda" else 4096
    return int(max(longest, min(cap, budget // per_token)))


def smaller_batches(batch_tokens: int, longest: int) -> int:
    """Return the size of the batches after a device has run out of memory: half of what it was.

    Raises
    ------
    torch.OutOfMemoryError
        If the longest prompt alone is too much.
    """
    if batch_tokens <= longest:
        raise torch.OutOfMemoryError(
            f"the GPU has too little memory for one prompt of {longest} tokens: use shorter prompts (max_tokens=), "
            "fewer layers, or dtype='bfloat16'"
        )
    torch.cuda.empty_cache()
    half = max(longest, batch_tokens // 2)
    tqdm.write(f"out of memory: batches of {half} tokens from here on", file=sys.stderr)
    return half


class Stream:
    """Batches over all prompts, longest first, of those with finite activations; made by :func:`stream`.

    Attributes
    ----------
    read : int
        Prompts read so far in this order, those left out counted, the present batch too: where another stream can
        start.
    left_out : dict of int to int
        Number of each prompt with NaN or infinite activations, and the first layer that has them.
    batch_tokens : int
        Padded tokens in a batch; halved when a GPU runs out of memory.
    """

    def __init__(
        self, model: Model, prompts: Prompts, sites: Sequence[Site], edits: Sequence[Edit], batch_tokens: int | None,
        start: int, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.sites, self.edits = model, prompts, list(sites), edits
        self.lengths = np.asarray(prompts.lengths)
        self.batch_tokens = batch_tokens or (comfortable_tokens(model, self.lengths, sites) if len(prompts) else 1)
        self.read, self.progress, self.left_out = start, progress, dict[int, int]()

    def __iter__(self) -> Iterator[Batch]:
        return self.each(lambda batch: batch)

    def each(self, function: Callable[[Batch], T], report: bool = True) -> Iterator[T]:
        """Yield what a function makes of each batch; without ``report`` nothing is said of prompts left out.

        Where memory runs out the function is called again on half of the prompts, so that it must keep nothing itself.
        """
        ordered = -np.sort(-self.lengths)  # as batches come
        before = int(ordered[: self.read].sum())
        with progress_bar(self.progress, int(ordered.sum()), initial=before, unit="tok") as bar:
            while self.read < len(self.prompts):
                for numbers in self.prompts.batches(self.batch_tokens, start=self.read, model=self.model):
                    made: list[T] | None = None
                    with suppress(torch.OutOfMemoryError):  # the batch is freed only outside, where the traceback ends
                        made = self._made(function, numbers)
                    if made is None:
                        self.batch_tokens = smaller_batches(self.batch_tokens, int(self.lengths.max()))
                        break
                    self.read += len(numbers)
                    bar.update(int(self.lengths[numbers].sum()))
                    yield from made
        if report:
            report_nonfinite(self.left_out, len(self.prompts), self.model)

    def _made(self, function: Callable[[Batch], T], numbers: list[int]) -> list[T]:
        """Return what a function makes of the finite prompts among some; nothing where there are none."""
        batch = capture(self.model, self.prompts, numbers, self.sites, self.edits)
        layer = nonfinite_layer(batch).tolist()
        good = [i for i, at in enumerate(layer) if at < 0]
        batch = batch if len(good) == len(batch) else batch.select(good)
        with torch.no_grad():
            found = [function(batch)] if len(batch) else []
        self.left_out |= {n: at for n, at in zip(numbers, layer, strict=True) if at >= 0}
        return found


@checked(sites=several(instance("Site")), start=count())
def stream(
    model: Model, prompts: Prompts, sites: Sequence[Site], *, edits: Sequence[Edit] = (),
    batch_tokens: int | None = None, start: int = 0, progress: bool = False,
) -> Stream:  # fmt: skip
    """Return batches over all prompts, longest first; a batch that a GPU has no room for is halved and run again.

    Prompts with NaN or infinite activations are left out, with a warning at the end.

    Parameters
    ----------
    model, prompts, sites, edits
        See `capture`.
    batch_tokens : int, optional
        Padded tokens in a batch; by default what fits comfortably.
    start : int
        The first prompts in this order are passed over: those of the batches that were read before.
    progress : bool
        Show a bar with tokens per second and the time left.

    Raises
    ------
    ValueError
        At the end, if every prompt gives NaN or infinite activations.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> sorted(n for batch in ti.stream(model, prompts, ti.resid([0]), batch_tokens=8) for n in batch.numbers)
    [0, 1]
    """
    return Stream(model, prompts, sites, edits, batch_tokens, start, progress)
