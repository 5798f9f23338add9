"""How much each part of a sum of vectors brings it about: shares by nearness, of all heads and keys without a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FLOOR = 1e-5
"""Least nearness of a part, as published."""
NUMBERS = {"cpu": 2**20}
"""Coordinates worked on at once, by kind of device: what a cache holds; 2**26 elsewhere."""


def nearness(total: Tensor, part: Tensor, norm: int) -> Tensor:
    """Return (...,) how much less of a sum is left without a part: max(||y|| - ||y - z||, 1e-5).

    Parameters
    ----------
    total, part : torch.Tensor
        (..., d) the sum y and a part z.
    norm : {1, 2}
        Of the vectors.

    Notes
    -----
    Written so that nothing cancels: the two norms differ by far less than they are.

    Examples
    --------
    >>> nearness(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 1.0], [0.5, 0.5]]), 1).tolist()
    [2.0, 1.0]
    """
    if norm == 1:
        side = torch.where(total < 0, -part, part)  # along the sum, coordinate by coordinate
        return torch.minimum(side, 2 * total.abs() - side).sum(-1).clamp_min(FLOOR)
    gain = (part * (2 * total - part)).sum(-1)
    return (gain / (_length(total) + _length(total - part)).clamp_min(1e-30)).clamp_min(FLOOR)


def head_nearness(total: Tensor, pattern: Tensor, written: Tensor, norm: int) -> Tensor:
    """Return (prompt, head, query, key) the nearness of what every head takes from every key; 0 for later keys.

    Parameters
    ----------
    total : torch.Tensor
        (prompt, query, d) what the parts are of.
    pattern : torch.Tensor
        (prompt, head, query, key) weights.
    written : torch.Tensor
        (prompt, head, key, d) what each head would write of each key.
    norm : {1, 2}
        Of the vectors.

    Notes
    -----
    The parts, (prompt, head, query, key, d), are made a few queries at a time; with norm 2 not at all.
    """
    n = pattern.shape[-1]
    causal = torch.ones(n, n, dtype=torch.bool, device=pattern.device).tril()
    if norm == 2:
        along = torch.einsum("pqd,phkd->phqk", total, written)
        gain = pattern * (2 * along - pattern * written.square().sum(-1)[:, :, None])
        size = _length(total)[:, None, :, None]
        left = (size.square() - gain).clamp_min(0).sqrt()
        return (gain / (size + left).clamp_min(1e-30)).clamp_min(FLOOR).masked_fill(~causal, 0)
    heads = pattern.shape[1]
    out, flat, rows = torch.zeros_like(pattern), pattern.flatten(0, 1), written.flatten(0, 1)
    flat_out = out.view(-1, n, n)
    for pairs, start, stop in _pieces(len(flat), n, total.shape[-1], total.device.type):
        of = torch.arange(pairs.start, pairs.stop, dtype=torch.int64, device=total.device) // heads
        y = total[of, start:stop, None]
        left = torch.addcmul(y, flat[pairs, start:stop, :stop, None], rows[pairs, None, :stop], value=-1).abs_()
        flat_out[pairs, start:stop, :stop] = torch.sub(y.abs(), left, out=left).sum(-1)
    return out.clamp_min(FLOOR).masked_fill(~causal, 0)


def pruned(shares: Tensor, threshold: float) -> Tensor:
    """Return (..., part) shares without those that are not above a threshold, the rest summing to one again.

    Where none is above it there is no share at all: zeros.

    Examples
    --------
    >>> [round(float(x), 4) for x in pruned(torch.tensor([0.05, 0.15, 0.8]), 0.1)]
    [0.0, 0.1579, 0.8421]
    >>> pruned(torch.tensor([0.05, 0.05]), 0.1).tolist()
    [0.0, 0.0]
    """
    kept = torch.where(shares <= threshold, 0, shares)  # NaN stays
    total = kept.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, kept / total.clamp_min(1e-30))


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _pieces(pairs: int, n: int, width: int, device: str) -> Iterator[tuple[slice, int, int]]:
    """Yield pairs of prompt and head, and the queries of them, that are worked on at once."""
    budget = NUMBERS.get(device, 2**26)
    rows = max(1, min(n, budget // (n * width)))
    step = max(1, budget // (rows * n * width))
    for first in range(0, pairs, step):
        for start in range(0, n, rows):
            yield slice(first, min(first + step, pairs)), start, min(start + rows, n)
