"""States that are equal up to rounding: the same state in exact arithmetic, another in the last digits."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = 4
LAGS = (1, 2)
ROOM = 2**26  # values of rows that are compared at a time


def rounding(points: Tensor, computed: torch.dtype) -> Tensor:
    """Return (...,) the distance below which rows (..., d) are equal up to the rounding of a model's arithmetic.

    64 units in the last place of float32 (or float64) times the length of the row.  States that exact arithmetic makes
    equal (a token repeated from the first position on) lie within 7 in the models that were looked at; the nearest
    states of different tokens 16,000 apart and more.  In 16 bits equal states mostly come out equal in every bit, and
    different ones are as little as 0.4 units apart: an eighth of a unit there.

    Examples
    --------
    >>> float(rounding(torch.tensor([3.0, 4.0]), torch.float32)) / 5 / torch.finfo(torch.float32).eps
    64.0
    """
    eps = torch.finfo(computed).eps
    unit = eps / 8 if computed in (torch.float16, torch.bfloat16) else 64 * eps
    return torch.linalg.vector_norm(points.float(), dim=-1) * unit


def settle(points: Tensor, mask: Tensor, computed: torch.dtype) -> Tensor:
    """Return clouds in which points that are equal up to rounding are equal in every bit, the first of them.

    What is built on clouds, directions and steps then meets exact duplicates, which it knows how to treat, instead of
    rounding noise, which looks like a cloud of its own (a repeated token had a dimension of 17 to 34).

    Parameters
    ----------
    points : torch.Tensor
        (cloud, point, d).
    mask : torch.Tensor
        (cloud, point) bool, the points that count.
    computed : torch.dtype
        In which the model computed them.

    Returns
    -------
    torch.Tensor
        ``points`` itself where nothing had to be changed.

    Notes
    -----
    Pairs are found next to each other along four random directions (a pass over the points and a sort), and measured;
    equality is passed on from pair to pair.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0], [5.0, 5.0], [1.0000001, 2.0]]])
    >>> settle(x, torch.ones(1, 3, dtype=torch.bool), torch.float32)[0, 2].tolist()
    [1.0, 2.0]
    """
    clouds, n, d = points.shape
    if n < 2:
        return points
    near = rounding(points, computed)
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(d, DIRECTIONS, generator=generator, dtype=torch.float32, device="cpu").to(points.device)
    along = points.float() @ (axes / torch.linalg.vector_norm(axes, dim=0))
    along, order = along.masked_fill(~mask[..., None], torch.inf).sort(dim=1, stable=True)
    found = []
    for lag in (g for g in LAGS if g < n):
        gap = along[:, lag:] - along[:, :-lag]  # NaN between two infinities, which is not small
        cloud, place, axis = (gap <= 2 * near.gather(1, order[:, lag:].flatten(1)).view_as(gap)).nonzero(as_tuple=True)
        found.append(torch.stack([cloud, order[cloud, place, axis], order[cloud, place + lag, axis]]))
    cloud, a, b = torch.cat(found, 1)
    apart = torch.cat(
        [torch.zeros(0, dtype=torch.float64, device=points.device)]
        + [
            torch.linalg.vector_norm(points[c, i].double() - points[c, j].double(), dim=-1)
            for c, i, j in zip(*(x.split(max(1, ROOM // d)) for x in (cloud, a, b)), strict=True)
        ]
    )
    same = apart <= (near[cloud, a] + near[cloud, b]) / 2
    unsettled = torch.zeros(clouds, dtype=torch.bool, device=points.device)
    unsettled[cloud[same & (apart > 0)]] = True
    same &= unsettled[cloud]
    if not bool(same.any()):
        return points
    first = _first(cloud[same] * n + a[same], cloud[same] * n + b[same], clouds * n)
    return points.reshape(-1, d)[first].view_as(points)


def _first(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Return (n,) the smallest number that each number is joined to by pairs (a, b)."""
    first = torch.arange(n, device=a.device, dtype=torch.int64)
    while True:
        low = torch.minimum(first[a], first[b])
        joined = first.clone()
        for ends in (a, b, first[a], first[b]):
            joined.scatter_reduce_(0, ends, low, "amin")
        joined = joined[joined]
        if torch.equal(joined, first):
            return first
        first = joined
