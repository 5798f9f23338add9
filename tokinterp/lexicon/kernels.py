"""Which row of a matrix a vector is closest to, and which of two classes its neighbours belong to."""

from __future__ import annotations

import torch
from torch import Tensor


def target_ranks(points: Tensor, matrix: Tensor, target: Tensor, memory: int = 2**28) -> tuple[Tensor, Tensor]:
    """Return how many rows of a matrix are as close to each point as the row of its target, by product and by cosine.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim).
    matrix : torch.Tensor
        (row, dim).
    target : torch.Tensor
        (point,) int64 row.
    memory : int
        Bound on working memory.

    Returns
    -------
    dot, cosine : torch.Tensor
        (point,) int64 number of other rows at least as close, 0 where the target is the closest of all; ties count
        against it.  -1 where a value is not finite, and by cosine for a target of zeros.

    Examples
    --------
    >>> matrix = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    >>> dot, cosine = target_ranks(torch.tensor([[1.0, 0.0]]), matrix, torch.tensor([0]))
    >>> int(dot), int(cosine)
    (1, 0)
    """
    rows = matrix.float()
    length = rows.norm(dim=-1)
    dot = torch.empty(len(points), dtype=torch.int64, device=points.device)
    cosine = torch.empty_like(dot)
    size = max(1, memory // (16 * len(rows)))
    for a in range(0, len(points), size):
        x, t = points[a : a + size].float(), target[a : a + size, None]
        product = x @ rows.T
        fine = product.isfinite().all(-1)
        dot[a : a + size] = torch.where(fine, (product >= product.gather(1, t)).sum(-1) - 1, -1)
        product /= length
        known = product.gather(1, t)
        count = (product >= known).sum(-1) - 1  # a row of zeros is NaN and close to nothing
        cosine[a : a + size] = torch.where(fine & known[:, 0].isfinite(), count, -1)
    return dot, cosine


def neighbour_votes(points: Tensor, labels: Tensor, fold: Tensor, k: int, memory: int = 2**29) -> Tensor:
    """Return the share of the k nearest points of other folds that have label 1.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim); centred in float64, products in float32.
    labels : torch.Tensor
        (point,) 0 or 1.
    fold : torch.Tensor
        (point,) int64; points of the same fold are never each other's neighbours.
    k : int
        Neighbours.
    memory : int
        Bound on working memory.

    Returns
    -------
    torch.Tensor
        (point,) float64, NaN where other folds have fewer than k points or the point is not finite.  Equal distances
        at rank k: whichever the sort puts first.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    >>> neighbour_votes(line, torch.tensor([1, 0, 1, 0]), torch.arange(4), 1).tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    fine = points.isfinite().all(-1)
    x = (points.double() - points[fine].double().mean(0)).float()
    square = x.pow(2).sum(-1)
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    size = max(1, memory // (16 * len(x)))
    for a in range(0, len(x), size):
        far = square - 2 * x[a : a + size] @ x.T
        far = far.masked_fill((fold[a : a + size, None] == fold) | ~fine, torch.inf)
        near, index = far.topk(min(k, len(x)), largest=False)
        share = labels[index].double().mean(-1)
        enough = near[:, -1].isfinite() & (near.shape[1] == k) & fine[a : a + size]
        out[a : a + size] = torch.where(enough, share, torch.nan)
    return out
