"""Results of functions that walk through prompts once or more: what is finished is kept, and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
import xarray as xr

from ..results import stores
from ..results.dataset import check
from ..results.stamp import stamped
from ..settings import checked
from ..settings.describe import describe
from .checkpoint import EVERY, Checkpoint
from .engine import store_path
from .facts import fit_facts
from .signals import at_once
from .stream import stream

if TYPE_CHECKING:
    from ..fitted import Tensors
    from ..models.base import Model
    from ..text.prompts import Prompts
    from .batch import Batch
    from .edits import Edit
    from .sites import Site

OfBatch = Callable[["Batch"], Mapping[str, torch.Tensor]]


class Keeping(TypedDict, total=False):
    """How what a function finishes is kept.

    Attributes
    ----------
    store : path, optional
        Where the result is kept: a zarr folder, or LENS.safetensors for what was fitted.  Meanwhile what is finished is
        kept in ``STORE.partial``: the same call goes on after a crash or Ctrl-C and ends in the same numbers.  A
        finished result is read.
    checkpoint_every : float
        Seconds between two saved states, at least ten times as long as saving takes; 60 by default, 0 saves every step.
    progress : bool
        Show a bar; a fit does by default.
    """

    store: str | Path | None
    checkpoint_every: float
    progress: bool


class Walk(Keeping, total=False):
    """How a function walks through its prompts: `Keeping`, and

    Attributes
    ----------
    batch_tokens : int, optional
        Padded tokens in a batch; by default what fits comfortably.
    """

    batch_tokens: int | None


class Walker:
    """Walks through prompts for one result; each walk is a stage of it, which is kept when it is complete."""

    def __init__(self, model: Model, keep: Checkpoint, batch_tokens: int | None = None, progress: bool = False) -> None:
        self.model, self.keep, self.batch_tokens, self.progress = model, keep, batch_tokens, progress
        self.stages = 0

    def rows(
        self, prompts: Prompts, sites: Iterable[Site], function: OfBatch, edits: Sequence[Edit] = ()
    ) -> dict[str, np.ndarray]:
        """Return (prompt, ...) what a function makes of each prompt, in their order.

        Parameters
        ----------
        prompts, sites, edits
            What is run, captured and changed.
        function : callable
            Of a batch; returns tensors (prompt, ...) by name, and keeps nothing itself: where memory runs out it is
            called again.

        Returns
        -------
        dict of str to numpy.ndarray
            NaN, of whole numbers -1, for prompts with NaN or infinite activations.
        """

        def take(held: Tensors, numbers: list[int], found: Mapping[str, torch.Tensor]) -> None:
            for name, value in found.items():
                value = value.float() if value.dtype == torch.bfloat16 else value  # which numpy does not know
                if name not in held:
                    missing = torch.nan if value.is_floating_point() else -1
                    shape = (len(prompts), *value.shape[1:])
                    held[name] = torch.full(shape, missing, dtype=value.dtype, device="cpu")
                held[name][numbers] = value.detach().cpu()

        return {k: v.numpy() for k, v in self._stage(prompts, sites, function, edits, take).items()}

    def sums(
        self, prompts: Prompts, sites: Iterable[Site], function: OfBatch, edits: Sequence[Edit] = ()
    ) -> dict[str, torch.Tensor]:
        """Return float64 sums over all batches of what a function makes of each, on the device."""

        def take(held: Tensors, _: list[int], found: Mapping[str, torch.Tensor]) -> None:
            for name, value in found.items():
                value = value.double()
                held[name] = value + held[name].to(value.device) if name in held else value

        found = self._stage(prompts, sites, function, edits, take)
        return {k: v.to(self.model.device) for k, v in found.items()}

    def _stage(
        self, prompts: Prompts, sites: Iterable[Site], function: OfBatch, edits: Sequence[Edit],
        take: Callable[[Tensors, list[int], Mapping[str, torch.Tensor]], None],
    ) -> Tensors:  # fmt: skip
        """Return what one walk adds up to, from what was kept on."""
        stage, self.stages, keep = self.stages, self.stages + 1, self.keep
        file = f"stage-{stage}.safetensors"
        if keep.path is not None and (keep.partial / file).is_file():
            return keep.load_part(file)[1]
        options = {"edits": edits, "batch_tokens": self.batch_tokens, "progress": self.progress}
        source, held = stream(self.model, prompts, list(sites), **options), dict[str, torch.Tensor]()
        begin = keep.state()
        if begin is not None and begin[0]["stage"] == stage:
            source.read, source.left_out = begin[0]["read"], dict(begin[0]["left_out"])
            held = {k: v.clone() for k, v in begin[1].items()}

        def state() -> tuple[dict[str, Any], Tensors]:
            return {"stage": stage, "read": source.read, "left_out": [*source.left_out.items()]}, held

        for numbers, found in source.each(lambda batch: (batch.numbers, function(batch))):
            take(held, numbers, found)
            keep.step(f"after {source.read} of {len(prompts)} prompts", state)
        if keep.path is not None:
            keep.save_part(file, held, {}, finite=False)
        return held


def kept_result(
    store: str | Path | None, facts: Mapping[str, Any], make: Callable[[Checkpoint], xr.Dataset], every: float = EVERY
) -> xr.Dataset:
    """Return a finished result, or make it and keep it.

    Parameters
    ----------
    store : path, optional
        zarr folder for the result.
    facts : mapping
        All that decides the numbers.
    make : callable
        Makes the result; is given the `Checkpoint` that keeps what is finished on the way.
    every : float
        Seconds between two saved states.

    Raises
    ------
    ValueError
        If the store belongs to something else (names what differs).
    """
    path = None if store is None else store_path(store)
    with Checkpoint(path, dict(facts), every) as keep:
        if keep.finished:
            assert keep.path is not None
            found = stores.read(keep.path).to_dataset()
            keep.belongs(json.loads(found.attrs.get("facts", "{}")))
            return found
        ds = make(keep)
        ds = ds.assign_attrs(keep.made())
        check(ds)
        if keep.path is None:
            return ds
        ds.attrs["facts"] = json.dumps(dict(facts), sort_keys=True)
        keep.finish(partial(stores.write, ds))
        return ds


@at_once()
@checked()
def walked(
    name: str, model: Model, prompts: Prompts, settings: Mapping[str, Any], make: Callable[[Walker], xr.Dataset],
    seed: int = 0, **walk: Unpack[Walk],
) -> xr.Dataset:  # fmt: skip
    """Return what a function makes of prompts, with its provenance.

    Parameters
    ----------
    name, model, prompts, settings, seed
        See `tokinterp.results.stamp.stamped`.
    make : callable
        Makes the labelled result with a `Walker`.
    **walk
        See `Walk`.

    Raises
    ------
    ValueError
        For a store of something else; if every prompt gives NaN or infinite activations.
    KeyboardInterrupt
        After Ctrl-C or another signal, once the batch in progress has been finished and kept.
    """
    facts = {**fit_facts(model, prompts), "function": name, "settings": describe(dict(settings)), "seed": seed}

    def whole(keep: Checkpoint) -> xr.Dataset:
        walker = Walker(model, keep, walk.get("batch_tokens"), walk.get("progress", False))
        return stamped(make(walker), name, model, prompts, settings, seed)

    return kept_result(walk.get("store"), facts, whole, walk.get("checkpoint_every", EVERY))
