"""How the stream at one layer moves that of a later one: products of vectors with Jacobians, summed as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..run.sites import resid

if TYPE_CHECKING:
    from .base import Model


def jacobians(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, layers: Sequence[int], to: int, valid: torch.Tensor
) -> torch.Tensor:
    """Return (layer, d, d) float64 sums over prompts of how the stream at each layer moves that at a later one.

    Row i of a prompt is the mean over valid sources t of the sum over valid targets t' of d h_to[t', i] / d h_layer[t];
    a later source moves no earlier target.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.
    ids, mask : torch.Tensor
        (prompt, position) of a batch.
    layers, to
        Layers of the sources, and the later one of the targets.
    valid : torch.Tensor
        (prompt, position) bool, which positions are sources and targets; a prompt without any adds nothing.

    Notes
    -----
    One forward pass, and one backward pass for each of the d coordinates, which serves all prompts and layers at once.
    """
    sites = resid([*layers, to])
    found = model.run(ids, sites, mask=mask, graph=True)
    sources, target = [found[s] for s in sites[:-1]], found[sites[-1]]
    share = (valid / valid.sum(1, keepdim=True).clamp(min=1)).double()[..., None]
    width = target.shape[-1]
    out = torch.zeros(len(sources), width, width, dtype=torch.float64, device=valid.device)
    with torch.enable_grad():
        sums = target.masked_fill(~valid[..., None].to(target.device), 0).sum((0, 1)).unbind()
    for i in range(width):
        moved = torch.autograd.grad(sums[i], sources, retain_graph=i + 1 < width)
        for n, g in enumerate(moved):
            out[n, i] = (g.double().to(share.device) * share).sum((0, 1))
    return out
