"""Exact nearest neighbours inside many clouds of points at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import TOLERANCE, candidates, close, error, measure, refine
from .duplicates import first_of_kind
from .state import neutral

_SPARE = 8  # candidates kept beyond k, so that rounding cannot push a true neighbour out of the list
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # compute capabilities with at least half-rate float64


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of every point of every cloud, without exact duplicates.

    Attributes
    ----------
    distances : torch.Tensor
        (cloud, point, k) float64, ascending.  NaN for a point that takes no part (padding, or a copy of an
        earlier point) and for a whole cloud that holds a NaN or an infinity; inf where a cloud has fewer than
        k + 1 distinct points.
    indices : torch.Tensor
        (cloud, point, k) int64 place of the neighbour among the points as they were given; -1 where there is none.
    first : torch.Tensor
        (cloud, point) int64 place of the first point equal to this one: the way back from distinct points to all.
    valid : torch.Tensor
        (cloud, point) bool, true on the points that take part: given by the mask and first of their kind.
    n_points, n_unique : torch.Tensor
        (cloud,) int64 points given by the mask, and distinct ones among them.
    n_redone : torch.Tensor
        (cloud,) int64 rows whose neighbours could not be certified from the fast products and were searched again.
    finite : torch.Tensor
        (cloud,) bool, false where a point holds a NaN or an infinity.
    """

    distances: Tensor
    indices: Tensor
    first: Tensor
    valid: Tensor
    n_points: Tensor
    n_unique: Tensor
    n_redone: Tensor
    finite: Tensor


def nearest(
    points: Tensor,
    k: int,
    mask: Tensor | None = None,
    *,
    ranks: Iterable[int] | None = None,
    products: torch.dtype | None = None,
    memory: int = 2**30,
) -> Neighbours:
    """Find the k nearest neighbours (Euclidean) of every distinct point of every cloud.

    Exact duplicates are removed first, since zero distances break every estimator that is built on neighbours.
    Each cloud is centred in float64 (distances stay, the digits lost to a common offset come back), candidates
    come from matrix products, and each row carries a certificate.  Where the products do not decide the order,
    or do not give a squared distance to a relative 1e-9, the candidates are measured again by explicit float64
    differences and sorted by (distance, index); where they do not even decide who is a candidate, the row is
    compared with all points.

    Parameters
    ----------
    points : torch.Tensor
        (cloud, point, dim) or (point, dim); float64, float32, float16 or bfloat16.
    k : int
        Neighbours per point, at most the number of points minus one.
    mask : torch.Tensor, optional
        (cloud, point) bool, true on the points that count; all of them by default.
    ranks : iterable of int, optional
        Ranks (1 is the nearest) whose neighbours and distances are needed exactly; all by default.  The others may then
        be as the products gave them: distances to about six digits, and neighbours that these cannot tell apart in
        either order.  Saves half of the time for many coordinates on a CPU, and nothing elsewhere.
    products : torch.dtype, optional
        float64 or float32 (never TF32).  By default float64 on GPUs that are fast at it and float32 on the others; on a
        CPU float32 where it pays, for few ``ranks`` of many points with many coordinates.
    memory : int
        Bound on working memory.  On top of it come the result and, of one cloud, some coordinates in float64: 16 MB or
        256 of them on a CPU, all of them on a GPU.

    Returns
    -------
    Neighbours
        Distances, places, and what was removed or done again; one cloud where ``points`` had two axes.

    Raises
    ------
    ValueError
        If k is not between 1 and the number of points minus one, a shape or dtype does not fit, or the device has
        no float64.

    References
    ----------
    The error bound of the products is the probabilistic one of Higham and Mary (2019), SIAM J. Sci. Comput.
    41(5), theorem 2.4, with lambda = 8.

    Examples
    --------
    >>> import torch
    >>> line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [7.0, 0.0]])
    >>> near = nearest(line, 2)
    >>> near.distances[0, 0].tolist(), near.indices[0, 0].tolist()
    ([1.0, 3.0], [1, 3])
    >>> near.first[0].tolist(), int(near.n_unique)
    ([0, 1, 1, 3, 4], 4)
    """
    points, mask = _check(points, k, mask, products)
    n_clouds, n, dim = points.shape
    device = points.device
    exactly = sorted({int(r) for r in ranks}) if ranks is not None else list(range(1, k + 1))
    if not exactly or not 1 <= exactly[0] <= exactly[-1] <= k:
        raise ValueError(f"ranks {exactly}: take ranks from 1 to k = {k}")
    products = products or _default_products(points, len(exactly))
    first = first_of_kind(points, mask, memory=memory)
    valid = mask & (first == torch.arange(n, device=device, dtype=torch.int64))
    distances = torch.full((n_clouds, n, k), torch.nan, dtype=torch.float64, device=device)
    indices = torch.full((n_clouds, n, k), -1, dtype=torch.int64, device=device)
    n_redone = torch.zeros(n_clouds, dtype=torch.int64, device=device)
    finite = torch.ones(n_clouds, dtype=torch.bool, device=device)

    if device.type == "cpu":  # cloud by cloud, without padding: a cloud's numbers never depend on its neighbours
        for g in range(n_clouds):
            place = valid[g].nonzero().squeeze(1)
            if len(place) < 2:
                finite[g] = points[g, place].isfinite().all()
                distances[g, place] = torch.inf if finite[g] else torch.nan
                continue
            everyone = len(place) == n
            cloud = points[g] if everyone else points[g, place]
            squared, order, redone, whole = _search(cloud[None], None, k, exactly, products, memory)
            n_redone[g], finite[g] = redone[0], whole[0]
            if not whole[0]:
                continue
            if everyone:
                distances[g], indices[g] = squared[0].sqrt_(), order[0]
            else:
                distances[g, place] = squared[0].sqrt_()
                indices[g, place] = torch.where(order[0] < 0, -1, place[order[0]])
    else:
        size = max(1, memory // (n * (16 * n + 12 * dim + 64 * k)))
        for g in range(0, n_clouds, size):
            part = slice(g, g + size)
            squared, order, redone, whole = _search(points[part], valid[part], k, exactly, products, memory)
            use = (valid[part] & whole[:, None])[..., None]
            distances[part] = squared.sqrt().masked_fill(~use, torch.nan)
            indices[part] = order.masked_fill(~use, -1)
            n_redone[part], finite[part] = redone, whole
    return Neighbours(distances, indices, first, valid, mask.sum(1), valid.sum(1), n_redone, finite)


def _check(points: Tensor, k: int, mask: Tensor | None, products: torch.dtype | None) -> tuple[Tensor, Tensor]:
    points = points.detach()
    if points.ndim == 2:
        points, mask = points[None], mask[None] if mask is not None and mask.ndim == 1 else mask
    if points.ndim != 3 or not points.is_floating_point():
        raise ValueError(f"points of shape {tuple(points.shape)} and {points.dtype}: give floats (cloud, point, dim)")
    if mask is None:
        mask = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if mask.shape != points.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask of shape {tuple(mask.shape)} and {mask.dtype}: give bool {tuple(points.shape[:2])}")
    n = points.shape[1]
    if not 1 <= k < n:
        raise ValueError(f"k = {k} neighbours asked of clouds of {n} points: take k between 1 and {n - 1}")
    if products not in (None, torch.float32, torch.float64):
        raise ValueError(f"products = {products}: take torch.float64 or torch.float32")
    if points.device.type == "mps":
        raise ValueError("device mps has no float64: move the points to the CPU")
    return points, mask


def _default_products(points: Tensor, n_ranks: int) -> torch.dtype:
    _, n, dim = points.shape
    if points.device.type == "cpu":
        least = 64 if torch.get_num_threads() == 1 else 512  # for one thread float32 pays earlier
        return torch.float32 if dim >= least and n >= max(256, 32 * n_ranks) else torch.float64
    if points.device.type == "cuda" and torch.cuda.get_device_capability(points.device) not in _FAST_FLOAT64:
        return torch.float32
    return torch.float64


def _search(
    points: Tensor, valid: Tensor | None, k: int, ranks: list[int], products: torch.dtype, memory: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squared distances and places (cloud, point, k), rows done again, finiteness; no duplicates please."""
    n_clouds, n, dim = points.shape
    count = torch.full((n_clouds,), n, device=points.device, dtype=torch.int64) if valid is None else valid.sum(1)
    near = min(k, n - 1)
    wide = min(k + _SPARE, n - 1)
    with neutral():
        squared, order, norms = candidates(points, valid, count, wide, products, memory)
    finite = norms.isfinite().all(1)

    own, part = error(norms, dim, products)
    takes_part = finite[:, None] if valid is None else valid & finite[:, None]
    clear = squared[..., -1] * (1 - part) > squared[..., near - 1] * (1 + part) + 2 * own
    enough = (count <= wide + 1)[:, None] | clear
    if products is torch.float32 and points.device.type == "cpu":
        exact = refine(points, squared, order, norms, [min(r, near) for r in ranks])
    else:
        exact = (squared[..., 0] * (TOLERANCE - part) >= own) & ~close(squared, own, part)[..., :near].any(-1)
    again = takes_part & enough & ~exact
    redo = takes_part & ~enough
    n_redone = redo.sum(1)

    if products is torch.float32 and bool(redo.any()):
        some = redo.any(1)
        twice = _search(points[some], None if valid is None else valid[some], k, ranks, torch.float64, memory)
        squared[some, :, :near], order[some, :, :near] = twice[0][..., :near], twice[1][..., :near]
        again, redo = again & ~some[:, None], torch.zeros_like(redo)
    cloud, point = again.nonzero(as_tuple=True)
    places = order[cloud, point].sort(-1).values
    squared[cloud, point], order[cloud, point] = measure(points, valid, cloud, point, places, wide, memory)
    cloud, point = redo.nonzero(as_tuple=True)
    squared[cloud, point], order[cloud, point] = measure(points, valid, cloud, point, None, wide, memory)
    squared, order = squared[..., :near], order[..., :near]
    if near < k:
        squared = torch.nn.functional.pad(squared, (0, k - near), value=torch.inf)
        order = torch.nn.functional.pad(order, (0, k - near), value=-1)
    if valid is not None:
        order = order.masked_fill(squared.isinf(), -1)
    return squared, order, n_redone, finite
