"""The TwoNN variant of the LLM-Microscope toolkit, its handling of duplicates included."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 1e-8


def airi_twonn(points: Tensor, reduction: int = 5, keep_duplicates: bool = True, block: int = 1024) -> Tensor:
    """Estimate the intrinsic dimension of a cloud as the released code of LLM-Microscope does.

    Float64, centred, divided by the mean norm of the rows; mu = r_2 / r_1 of every point; the smallest fifth of the mu
    above 1 + 1e-8, and d = sum(x y) / sum(x^2) with x = log mu and y = -log(1 - F), a line through the origin.

    Parameters
    ----------
    points : torch.Tensor
        (point, d) one cloud.
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
    points = points.double()
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


def _two_nearest(x: Tensor, start: int, stop: int) -> Tensor:
    """Return (row, 2) distances of rows start..stop to their two nearest other points, exact for coincident ones."""
    far = torch.cdist(x[start:stop], x, compute_mode="donot_use_mm_for_euclid_dist")
    here = torch.arange(start, stop, device=x.device, dtype=torch.int64)
    far[here - start, here] = torch.inf
    return far.topk(2, largest=False).values
