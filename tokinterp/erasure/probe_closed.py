"""Probes in closed form: moments of the states and sums per class, streamed, then ridge regression or LDA."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from ..fitted import Tensors
from ..kernels import probes as kernel
from ..kernels.moments import BLOCK_ROWS
from ..run.checkpoint import Checkpoint, State
from .probe_states import Batches, provisional, usual_scale

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..models.base import Model
    from ..text.prompts import Prompts

SOLVERS = {"ridge": kernel.ridge, "lda": kernel.shrunk_lda}


@torch.no_grad()
def fit_closed(
    model: Model, prompts: Prompts, targets: torch.Tensor, layers: list[int], offsets: list[int], n_classes: int, *,
    bos: bool, method: str, shrinkage: float, batch_tokens: int, keep: Checkpoint, begin: State | None, bar: tqdm,
) -> dict[int, Tensors]:  # fmt: skip
    """Stream the moments of a group of layers and solve for the weights of all offsets.

    Parameters
    ----------
    model, prompts, layers, offsets
        What is read, and what is fitted.
    targets : torch.Tensor
        (offset, token) int64 class of every token, -1 where there is none.
    n_classes : int
        Rows of the weights.
    bos : bool
        Whether special tokens take part.
    method, shrinkage
        Name in ``SOLVERS``, and its parameter.
    batch_tokens : int
        Padded tokens per batch.
    keep : Checkpoint
        Keeps the sums now and then.
    begin : (notes, tensors), optional
        Sums to go on with.
    bar
        Told the tokens of every batch.
    """
    d, device = model.info.d_model, model.device

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    sums: Tensors = {"n": torch.zeros((), dtype=torch.int64, device=device)}
    sums["counts"] = torch.zeros(len(offsets), n_classes, dtype=torch.int64, device=device)
    for n in layers:
        sums |= {f"gram.{n}": zeros(d, d), f"total.{n}": zeros(d), f"classes.{n}": zeros(len(offsets), n_classes, d)}

    def after_batch(n_tokens: int) -> None:
        bar.update(n_tokens)
        notes = {
            "group": layers,
            "batch_tokens": batch_tokens,
            "read": batches.read,
            "left_out": [*batches.left_out.items()],
        }
        keep.step(f"after {batches.read} of {len(prompts)} prompts", partial(_state, notes, sums))

    batches = Batches(model, prompts, layers, batch_tokens, after_batch)
    if begin is not None:
        sums = {k: v.to(device) for k, v in begin[1].items()}
        batches.read, batches.left_out = begin[0]["read"], dict(begin[0]["left_out"])
    for batch, place in batches:
        kept = torch.ones_like(batch.tokens.special) if bos else ~batch.tokens.special
        goals = targets[:, place]
        sums["n"] += kept.sum()
        for layer in layers:
            x = batch.rows(layer).float()
            if f"first.{layer}" not in sums:
                sums[f"first.{layer}"] = torch.stack(provisional(x[kept] if bool(kept.any()) else x))
            mean, scale = sums[f"first.{layer}"]
            x = (x - mean) / scale
            y, x = x[kept], x.double()
            for block in y.split(BLOCK_ROWS):
                sums[f"gram.{layer}"] += (block.T @ block).double()
            sums[f"total.{layer}"] += y.double().sum(0)
            for o, goal in enumerate(goals):
                rows = goal >= 0
                sums[f"classes.{layer}"][o].index_add_(0, goal[rows], x[rows])
        for o, goal in enumerate(goals):
            sums["counts"][o] += torch.bincount(goal[goal >= 0], minlength=n_classes)
    return {layer: _solve(sums, layer, offsets, method, shrinkage) for layer in layers}


def _state(notes: dict[str, object], sums: Tensors) -> State:
    return notes, sums


def _solve(sums: Tensors, layer: int, offsets: list[int], method: str, shrinkage: float) -> Tensors:
    """Return the probes of a layer, and let go of its sums."""
    count, counts = int(sums["n"]), sums["counts"]
    mean = sums[f"total.{layer}"] / count
    scatter = sums.pop(f"gram.{layer}") / count - torch.outer(mean, mean)
    scale = usual_scale(scatter.diagonal())
    centred = sums.pop(f"classes.{layer}").sub_(counts[..., None] * mean).div_(scale)
    before, factor = sums[f"first.{layer}"]
    out = {"mean": (before + factor * mean.float()).cpu(), "scale": (factor * scale.float()).cpu()}
    for o, offset in enumerate(offsets):
        found = SOLVERS[method](scatter / torch.outer(scale, scale), centred[o], counts[o], shrinkage)
        out[f"weight.{offset}"], out[f"bias.{offset}"] = (t.float().cpu() for t in found)
    return out
