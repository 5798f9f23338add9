"""Exact duplicates inside many clouds of points at once."""

from __future__ import annotations

import torch
from torch import Tensor


def first_of_kind(points: Tensor, mask: Tensor | None = None, *, memory: int = 2**30) -> Tensor:
    """Return for every point the place of the first point of its cloud that is equal to it in every coordinate.

    Rows are compared by 64-bit hashes, of 16 coordinates at first and of all of them where these agree, and every
    pair found is then checked coordinate by coordinate.  Zero and minus zero are equal; NaN equals nothing.

    Parameters
    ----------
    points : torch.Tensor
        (cloud, point, dim) of any floating dtype.
    mask : torch.Tensor, optional
        (cloud, point) bool; points outside it are their own first.
    memory : int
        Bound on working memory.

    Returns
    -------
    torch.Tensor
        (cloud, point) int64.

    Examples
    --------
    >>> import torch
    >>> first_of_kind(torch.tensor([[[1.0, 2.0], [0.0, 5.0], [1.0, 2.0]]])).tolist()
    [[0, 1, 0]]
    """
    n_clouds, n, dim = points.shape
    itself = torch.arange(n, device=points.device, dtype=torch.int64).expand(n_clouds, n)
    if mask is None:
        mask = torch.ones_like(itself, dtype=torch.bool)
    some = torch.linspace(0, dim - 1, min(dim, 16), device=points.device, dtype=torch.float32).round().long()
    keys = _hash(points[..., some])
    first = _group(keys, mask)
    copies = first != itself
    if not bool(copies.any()):
        return first
    members = copies.clone()
    cloud, point = copies.nonzero(as_tuple=True)
    members[cloud, first[cloud, point]] = True  # the firsts themselves
    cloud, point = members.nonzero(as_tuple=True)
    rows = max(1, memory // (40 * dim))
    pieces = zip(cloud.split(rows), point.split(rows), strict=True)
    keys[cloud, point] = torch.cat([_hash(points[c, p]) for c, p in pieces])
    first = _group(keys, mask)
    cloud, point = (first != itself).nonzero(as_tuple=True)
    for c, p in zip(cloud.split(rows), point.split(rows), strict=True):
        other = first[c, p]
        same = (points[c, p] == points[c, other]).all(-1)
        first[c, p] = torch.where(same, other, p)
    return first


def _hash(rows: Tensor) -> Tensor:
    """Return (...,) int64 hashes of rows (..., dim) by their bits; integer arithmetic, so equal rows agree."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    bits = (rows + 0.0).contiguous().view(integer).long()  # + 0.0 makes zero of minus zero
    if integer is torch.int64:  # the last bits of small whole numbers are zero, and so would be those of all hashes
        bits = bits ^ (bits >> 32)
    weights = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=torch.int64) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):  # splitmix64
        weights = (weights ^ (weights >> shift)) * factor
    return (bits * (weights | 1)).sum(-1)


def _group(keys: Tensor, mask: Tensor) -> Tensor:
    """Return (cloud, point) the place of the first masked point with the same key."""
    keys = keys.masked_fill(~mask, torch.iinfo(torch.int64).max)
    keys, order = keys.sort(dim=1, stable=True)
    use = mask.gather(1, order)
    place = torch.arange(keys.shape[1], device=keys.device, dtype=torch.int64).expand_as(keys)
    start = torch.ones_like(use)
    start[:, 1:] = (keys[:, 1:] != keys[:, :-1]) | ~use[:, 1:] | ~use[:, :-1]
    head = torch.where(start, place, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, order.gather(1, head))
