"""Cosines between the vectors of a cloud: at a distance in the text, above a threshold, angles between neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.state import neutral
from .curvature import between

ROWS = 512  # of the matrix of cosines at a time


def unit_rows(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 rows of length 1 (zero where there is no direction or ``keep`` is false), and which have one.

    Parameters
    ----------
    x : torch.Tensor
        (..., row, d).
    keep : torch.Tensor
        (..., row) bool.

    Examples
    --------
    >>> unit, directed = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([True, True]))
    >>> [round(v, 3) for v in unit[0].tolist()], directed.tolist()
    ([0.6, 0.8], [True, False])
    """
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1)
    directed = keep & (length > 0) & length.isfinite()
    return torch.where(directed[..., None], x / torch.where(directed, length, 1.0)[..., None], 0.0), directed


def lagged_cosine(unit: Tensor, directed: Tensor, lags: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (cloud, lag) float64 mean cosine of rows so many places apart, and int64 the number of pairs.

    Parameters
    ----------
    unit, directed : torch.Tensor
        (cloud, row, d) and (cloud, row) of `unit_rows`, in the order of the text.
    lags : sequence of int
        Distances, 1 for adjacent tokens.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    >>> lagged_cosine(x, torch.ones(1, 3, dtype=torch.bool), (1, 2))[0].tolist()
    [[0.0, 1.0]]
    """
    means, counts = [], []
    for lag in lags:
        both = directed[:, lag:] & directed[:, :-lag]
        total = (unit[:, lag:] * unit[:, :-lag]).sum(-1).sum(1, dtype=torch.float64)
        means.append(total / both.sum(1))
        counts.append(both.sum(1))
    return torch.stack(means, 1), torch.stack(counts, 1)


def close_pairs(unit: Tensor, directed: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return (cloud, threshold) float64 share of pairs of different rows with a cosine above each threshold.

    Parameters
    ----------
    unit, directed : torch.Tensor
        (cloud, row, d) and (cloud, row) of `unit_rows`.
    thresholds : sequence of float
        Cosines below 1.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    >>> close_pairs(x, torch.ones(1, 3, dtype=torch.bool), (0.9,)).tolist()  # one of three
    [[0.3333333333333333]]
    """
    clouds, n, _ = unit.shape
    found = torch.zeros(clouds, len(thresholds), dtype=torch.int64, device=unit.device)
    for start in range(0, n if thresholds else 0, ROWS):
        with neutral():
            cosine = unit[:, start : start + ROWS] @ unit[:, start:].mT
        pair = directed[:, start : start + ROWS, None] & directed[:, None, start:]
        cosine = torch.where(pair.triu(1), cosine, -2.0)
        for i, threshold in enumerate(thresholds):
            found[:, i] += (cosine > threshold).sum((1, 2))
    number = directed.sum(1).double()
    return found / (number * (number - 1) / 2)[:, None]  # 0 / 0 is NaN: no pair


def redundancy(unit: Tensor, directed: Tensor, norm: Tensor, pivots: int, margin: float) -> dict[str, Tensor]:
    """Return (cloud,) float64 how much the rows of each cloud say again of what others say.

    Parameters
    ----------
    unit, directed : torch.Tensor
        (cloud, row, d) and (cloud, row) of `unit_rows`, in the order of the text.
    norm : torch.Tensor
        (cloud, row) length of each row; the longest are the pivots.
    pivots : int
        Number of them.
    margin : float
        Cosine above which a row adds to the energy, and below which it takes from it.

    Returns
    -------
    dict of str to torch.Tensor
        ``energy``, ``pivot_cosine``, ``pivot_cosine_even``, ``maxsim``, ``maxsim_mean``, ``maxsim_spread`` and
        ``maxsim_spread_null`` of `tokinterp.geometry.CosineSimilarity`; NaN where there are too few rows.

    Examples
    --------
    >>> x = torch.eye(2).repeat(1, 2, 1)  # two directions, and both once more
    >>> found = redundancy(x, torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 4), 2, 0.5)
    >>> float(found["maxsim"]), float(found["maxsim_mean"])
    (1.0, 0.5)
    """
    n, number, place = unit.shape[1], directed.sum(1, keepdim=True), directed.cumsum(1) - 1
    every = torch.arange(len(unit), device=unit.device, dtype=torch.int64)[:, None]
    longest = norm.double().masked_fill(~directed, -1).topk(min(pivots, n), dim=1).indices
    step = torch.arange(min(pivots, n), device=unit.device, dtype=torch.int64)
    wanted = ((2 * step + 1) * number) // (2 * len(step))  # the middles of as many parts
    even = (directed[:, None] & (place[:, None] == wanted[..., None])).double().argmax(2)
    first = directed & (place < number // 2)
    then = directed & ~first
    energy, total, best, at = [], [], [], []
    for start in range(0, n, ROWS):
        with neutral():
            cosine = unit[:, start : start + ROWS] @ unit.mT
        rows = torch.arange(start, min(start + ROWS, n), device=unit.device, dtype=torch.int64)
        other = directed[:, None] & (rows[:, None] != torch.arange(n, device=unit.device, dtype=torch.int64))
        energy.append((torch.nn.functional.elu(cosine - margin) * other).sum(2, dtype=torch.float64))
        total.append((cosine * first[:, None]).sum(2, dtype=torch.float64))
        nearest = cosine.masked_fill(~first[:, None], -2).max(2)
        best.append(nearest.values.double())
        at.append(nearest.indices)
    out = {"energy": _mean(torch.cat(energy, 1) / (number - 1), directed & (number > 1))}
    for name, chosen in (("pivot_cosine", longest), ("pivot_cosine_even", even)):
        rest = directed.clone()
        rest[every, chosen] = False
        out[name] = _mean(
            (unit @ unit[every, chosen].mT).masked_fill(~directed[every, chosen][:, None], -2).amax(2), rest
        )
    n_first, n_then = first.sum(1).double(), then.sum(1).double()
    out["maxsim"] = _mean(torch.cat(best, 1), then & (n_first > 0)[:, None])
    out["maxsim_mean"] = _mean(torch.cat(total, 1) / n_first[:, None], then & (n_first > 0)[:, None])
    found = torch.zeros(unit.shape[:2], dtype=torch.float64, device=unit.device)
    found.scatter_add_(1, torch.cat(at, 1), then.double())
    out["maxsim_spread"] = n_then**2 / found.square().sum(1) / n_first
    out["maxsim_spread_null"] = 1 / (1 / n_then + (1 - 1 / n_then) / n_first) / n_first
    return {k: v.masked_fill(n_first == 0, torch.nan) for k, v in out.items()}


def _mean(value: Tensor, mask: Tensor) -> Tensor:
    """Return (cloud,) float64 mean over the rows of a mask; 0 / 0 is NaN."""
    return torch.where(mask, value, 0.0).sum(1, dtype=torch.float64) / mask.sum(1)


def neighbour_angles(points: Tensor, indices: Tensor) -> Tensor:
    """Return (cloud, point) float64 angle at each point between the directions of its two nearest neighbours.

    Parameters
    ----------
    points : torch.Tensor
        (cloud, point, d).
    indices : torch.Tensor
        (cloud, point, k) neighbours, at least two (`Neighbours.indices`).

    Returns
    -------
    torch.Tensor
        In degrees, 0 to 180; NaN for a point that takes no part or has fewer than two neighbours.

    References
    ----------
    Viswanathan et al. 2025, arXiv 2501.10573, appendix on angles.

    Examples
    --------
    >>> from tokinterp.kernels.neighbours import nearest
    >>> x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.1], [9.0, 9.0]]])
    >>> round(float(neighbour_angles(x, nearest(x, 2).indices)[0, 0]), 3)
    90.0
    """
    width = points.shape[1]
    two = indices[:, :width, :2]
    use = (two >= 0).all(-1) & (two < width).all(-1)
    place = two.clamp(0, width - 1)
    directions = []
    for j in range(2):
        there = points.gather(1, place[..., j, None].expand_as(points))
        step = there.double() - points.double()
        directions.append(step / torch.linalg.vector_norm(step, dim=-1, keepdim=True))
    a, b = directions
    return torch.where(use, between(a, b).rad2deg(), torch.nan)
