"""The TwoNN variant of the LLM-Microscope toolkit, its handling of duplicates included."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.neighbours import Neighbours

SMALL = 1e-8


def airi_twonn(points: Tensor, reduction: int = 5, keep_duplicates: bool = True, block: int = 1024) -> Tensor:
    """Estimate the intrinsic dimension of a cloud as the released code of LLM-Microscope does.

    Float64, centred, divided by the mean norm of the rows; mu = r_2 / r_1 of every point; the smallest fifth of the mu
    above 1 + 1e-8, and d = sum(x y) / sum(x^2) with x = log mu and y = -log(1 - F), a line through the origin.

    Parameters
    ----------
    points : torch.Tensor
        (point, d) one cloud; a NumPy array does too, so that `tokinterp.geometry.PerCloud` can call it (with
        ``distinct=False``, which leaves the duplicates in).
    reduction : int
        One over the share of the points on the line.
    keep_duplicates : bool
        True is as released, and **wrong where points coincide**: the u points whose nearest neighbour is at distance 0
        are dropped from the line but keep their places in F = (u + i) / n, so the line starts at -log(1 - u / n) and
        is still forced through the origin. A cloud of dimension 10 with 1, 10 and 40 % such points gets 11.0, 19.4 and
        59.7 instead of 9.3. False counts only the points on the line, F = i / (n - u).
    block : int
        Rows of distances computed at once.

    Returns
    -------
    torch.Tensor
        () float64; NaN with fewer than two usable points.

    References
    ----------
    Razzhigaev et al. 2024, "The Shape of Learning", Findings of EACL (after Facco et al. 2017); released with
    arXiv 2502.15007.

    Examples
    --------
    >>> plane = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 9).triu()
    >>> bool(abs(airi_twonn(plane) - 2) < 0.4)
    True
    """
    points = torch.as_tensor(points, dtype=torch.float64, device=getattr(points, "device", "cpu"))
    if points.ndim != 2 or len(points) < 3:
        raise ValueError(f"points of shape {tuple(points.shape)}: give one cloud (point, d) of at least 3 points")
    if reduction < 1 or block < 1:
        raise ValueError(f"reduction={reduction}, block={block}: both are at least 1")
    x = points
    x = x - x.mean(0)
    x = x / torch.linalg.vector_norm(x, dim=1).mean()
    near = torch.cat([_two_nearest(x, a, min(a + block, len(x))) for a in range(0, len(x), block)])
    mu = torch.where(near[:, 0] < SMALL, -1.0, near[:, 1] / near[:, 0]).sort().values
    left = mu > 1 + SMALL
    u, n = int((~left).sum()), len(x)
    mu = mu[u:]
    first = torch.arange(1, len(mu) + 1, dtype=torch.float64, device=x.device)
    share = (u + first) / n if keep_duplicates else first / len(mu)
    take = len(mu) // reduction
    if take < 2:
        return x.new_tensor(torch.nan)
    log, height = mu[:take].log(), -torch.log1p(-share[:take])
    return (log * height).sum() / (log * log).sum()


def airi_from_neighbours(near: Neighbours, reduction: int = 5) -> Tensor:
    """Return `airi_twonn` of every cloud as released, duplicates counted, from a table of distinct neighbours.

    A point with copies has its nearest neighbour at distance 0; a point whose nearest neighbour has copies has
    r_2 = r_1.  Both are dropped from the line and keep their places in F.

    Parameters
    ----------
    near : Neighbours
        Of `tokinterp.kernels.neighbours.nearest`, at least two ranks.
    reduction : int
        One over the share of the points on the line.

    Returns
    -------
    torch.Tensor
        (cloud,) float64; NaN with fewer than two usable points, or where a point is not finite.

    Notes
    -----
    The released code also takes distances below 1e-8 of the mean norm for 0; here only equal points coincide.

    Examples
    --------
    >>> from tokinterp.kernels.neighbours import nearest
    >>> x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    >>> x[:30] = x[30:60]
    >>> torch.allclose(airi_from_neighbours(nearest(x, 2)), airi_twonn(x))
    True
    """
    if reduction < 1 or near.distances.shape[-1] < 2:
        raise ValueError(f"reduction={reduction}, {near.distances.shape[-1]} ranks: at least 1 and 2")
    place = torch.arange(near.first.shape[1], device=near.first.device, dtype=torch.int64)
    member = near.valid | (near.first != place)  # copies take part too
    copied = torch.zeros_like(near.first).scatter_add_(1, near.first, member.long()) > 1
    r, neighbour = near.distances[..., :2], near.indices[..., 0]
    mu = r[..., 1] / r[..., 0]
    left = near.valid & ~copied & ~(copied.gather(1, neighbour.clamp_min(0)) & (neighbour >= 0))
    left &= mu.isfinite() & (mu > 1 + SMALL) & near.finite[:, None]
    log, _ = torch.where(left, mu.log(), torch.inf).sort(1)
    kept, n = left.sum(1, keepdim=True), member.sum(1, keepdim=True)
    take = kept // reduction
    rank = torch.arange(1, log.shape[1] + 1, device=log.device, dtype=torch.int64)
    on = rank <= take
    log = torch.where(on, log, 0.0)
    height = -torch.log1p(-torch.where(on, (n - kept + rank).double() / n, 0.0))
    dimension = (log * height).sum(1) / log.square().sum(1)
    return torch.where(take[:, 0] >= 2, dimension, torch.nan)


def _two_nearest(x: Tensor, start: int, stop: int) -> Tensor:
    """Return (row, 2) distances of rows start..stop to their two nearest other points, exact for coincident ones."""
    far = torch.cdist(x[start:stop], x, compute_mode="donot_use_mm_for_euclid_dist")
    here = torch.arange(start, stop, device=x.device, dtype=torch.int64)
    far[here - start, here] = torch.inf
    return far.topk(2, largest=False).values
