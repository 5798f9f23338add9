"""Who is among the k nearest neighbours of whom, with exact duplicates, and what follows: overlap, ranks, graphs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.neighbours import Neighbours


class Lists(NamedTuple):
    """Neighbours of all points of clouds of the same points, copies of a point counted as points.

    Attributes
    ----------
    groups : torch.Tensor
        (cloud, point, 1 + k) int64: first the point's own group of equal points, then those of its nearest distinct
        neighbours, each named by its first member; n (one past the last point) where there is none.
    counts : torch.Tensor
        (cloud, point, 1 + k) int64 members of each group, the point itself not counted; 0 where there is none.
    first : torch.Tensor
        (cloud, point) int64 first member of the group of each point.
    mask : torch.Tensor
        (point,) bool, which points take part.
    """

    groups: Tensor
    counts: Tensor
    first: Tensor
    mask: Tensor


def neighbour_lists(indices: Tensor, first: Tensor, mask: Tensor) -> Lists:
    """Extend tables of distinct points to all points.

    Parameters
    ----------
    indices : torch.Tensor
        (cloud, point, k) int64 neighbours of the distinct points, -1 where there is none (`Neighbours.indices`).
    first : torch.Tensor
        (cloud, point) int64 first point equal to each (`Neighbours.first`).
    mask : torch.Tensor
        (point,) bool points that take part, the same in all clouds.
    """
    clouds, n, k = indices.shape
    present = torch.where(mask, first, n)
    size = torch.zeros(clouds, n + 1, dtype=torch.int64, device=indices.device)
    size.scatter_add_(1, present, torch.ones_like(present))
    size[:, n] = 0
    near = indices.gather(1, first[..., None].expand(-1, -1, k))
    groups = torch.cat([present[..., None], torch.where(near < 0, n, near)], -1)
    counts = size.gather(1, groups.flatten(1)).view_as(groups)
    counts[..., 0] = (counts[..., 0] - 1).clamp(min=0)
    return Lists(groups, counts, first, mask)


def membership(lists: Lists, k: int, rows: slice = slice(None)) -> Tensor:
    """Return (cloud, row, point) float32: the probability that a point is among the k nearest of a row's point.

    It is 1 for those nearer than the k-th, 0 for those farther, and k-th places are shared evenly among copies of one
    point, whose order is arbitrary: the mean over all orders.  Each row sums to k.  Neighbours at equal distance that
    are not copies are in the order of their place.

    Examples
    --------
    >>> from tokinterp.kernels.neighbours import nearest
    >>> near = nearest(torch.tensor([[0.0], [1.0], [1.0], [3.0]]), 1)
    >>> membership(neighbour_lists(near.indices, near.first, torch.ones(4, dtype=torch.bool)), 1)[0].tolist()
    [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]]
    """
    groups, counts = lists.groups[:, rows], lists.counts[:, rows]
    clouds, _, n = len(groups), groups.shape[1], lists.first.shape[1]
    before = counts.cumsum(-1) - counts
    share = torch.minimum((k - before).clamp(min=0), counts).float() / counts.clamp(min=1).float()
    table = torch.zeros(clouds, groups.shape[1], n + 1, device=groups.device, dtype=torch.float32)
    table.scatter_(2, groups, share)
    table = table[..., :n]
    looks = table.device.type == "cpu"  # elsewhere looking would wait
    if not looks or bool((lists.counts[..., 0] > 0).any()):
        table = table.gather(2, lists.first[:, None].expand(-1, groups.shape[1], -1))
        here = torch.arange(n, device=table.device, dtype=torch.int64)
        table = table.masked_fill(here[rows, None] == here, 0.0)
    if looks and bool(lists.mask.all()):
        return table
    return table * (lists.mask[rows, None] & lists.mask)


def rank_rows(points: Tensor, first: Tensor, mask: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return (row, point) float64: exact rank of each point by its distance from a row's point, 1 the nearest.

    The rank is one plus the number of nearer points plus half the number of others at the same distance; copies of a
    point are at exactly the same distance.  Zero for the point itself and for points outside the mask.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim) float64, centred.
    first : torch.Tensor
        (point,) int64 first point equal to each.
    mask : torch.Tensor
        (point,) bool.
    rows : slice
        Which points to rank from.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [1.0], [3.0]]).double()
    >>> rank_rows(x, torch.tensor([0, 1, 1, 3]), torch.ones(4, dtype=torch.bool)).tolist()
    [[0.0, 1.5, 1.5, 3.0], [2.0, 0.0, 1.0, 3.0], [2.0, 1.0, 0.0, 3.0], [3.0, 1.5, 1.5, 0.0]]
    """
    n = len(points)
    here = torch.arange(n, device=points.device, dtype=torch.int64)
    norms = points.square().sum(1)
    squared = (norms[rows, None] + norms).sub_(2 * points[rows] @ points.T)
    looks = points.device.type == "cpu"  # elsewhere looking would wait
    if not looks or bool((first != here).any()):
        squared = squared.gather(1, first.expand(len(squared), -1))  # bit for bit the same for copies
        squared = squared.clamp_(min=0).masked_fill_(first[rows, None] == first, 0.0)
    start = range(n)[rows].start
    squared.diagonal(start).fill_(torch.inf)
    left_out = ~mask
    everyone = looks and not bool(left_out.any())
    if not everyone:
        squared.masked_fill_(left_out, torch.inf)
    if looks:  # numpy sorts a row of distances in a third of torch's time; ties are settled below
        order = torch.from_numpy(squared.numpy().argsort(axis=1))
        value = squared.gather(1, order)
    else:
        value, order = squared.sort(1)
    rank = torch.arange(1, n + 1, device=points.device, dtype=torch.float64).expand_as(value)
    others = max(1, int(mask.sum()) - 1) if looks else n  # those left out, at the end of each row, are no ties
    if not looks or bool((value[:, 1:others] == value[:, : others - 1]).any()):
        place = here.expand_as(value)
        fresh = torch.ones_like(value, dtype=torch.bool)
        fresh[:, 1:] = (value[:, 1:] != value[:, :-1]) | value[:, 1:].isinf()
        low = torch.where(fresh, place, 0).cummax(1).values
        final = torch.ones_like(fresh)
        final[:, :-1] = fresh[:, 1:]
        high = torch.where(final, place, n).flip(1).cummin(1).values.flip(1)
        rank = (low + high).double() / 2 + 1
    rank = torch.empty_like(value).scatter_(1, order, rank)
    rank.diagonal(start).fill_(0.0)
    return rank if everyone else rank.masked_fill_(left_out | left_out[rows, None], 0.0)


def sum_over_neighbours(lists: Lists, k: int, values: Tensor, rows: slice = slice(None)) -> Tensor:
    """Return (cloud, other) float64: values of the k nearest neighbours in each cloud, added up.

    Parameters
    ----------
    lists : Lists
        Neighbours.
    k : int
        How many.
    values : torch.Tensor
        (other, row, point) float64 of the points as the points of these rows see them.
    rows : slice
        Which points.

    Examples
    --------
    >>> from tokinterp.kernels.neighbours import nearest
    >>> near = nearest(torch.tensor([[0.0], [1.0], [1.0], [3.0]]), 1)
    >>> lists = neighbour_lists(near.indices, near.first, torch.ones(4, dtype=torch.bool))
    >>> sum_over_neighbours(lists, 1, torch.eye(4).roll(1, 1)[None].double()).tolist()  # of each the next one
    [[1.5]]
    """
    total = values.new_zeros(len(lists.groups), len(values))
    looks = values.device.type == "cpu"  # elsewhere looking would wait
    copies = (lists.counts[..., 0] > 0).any(1)
    for cloud in range(len(total)):
        if looks and not bool(copies[cloud]):  # no copies: each of the nearest counts once
            near = lists.groups[cloud, rows, 1 : k + 1]
            there = near < values.shape[2]
            found = values.gather(2, near.clamp(max=values.shape[2] - 1).expand(len(values), -1, -1))
            total[cloud] = (found * there).sum((1, 2))
        else:
            part = slice(cloud, cloud + 1)
            one = Lists(lists.groups[part], lists.counts[part], lists.first[part], lists.mask)
            total[cloud] = values.flatten(1) @ membership(one, k, rows).double().flatten()
    return total


class Graph(NamedTuple):
    """Numbers of the graph of distinct points with an arrow from each to its k nearest neighbours, each (cloud,).

    Attributes
    ----------
    reciprocity : torch.Tensor
        float64 share of arrows whose opposite is there too.
    transitivity : torch.Tensor
        float64 share of paths i -> j -> m with three different ends for which there is an arrow i -> m; NaN for k = 1,
        where the one arrow of i leads to j.
    skewness : torch.Tensor
        float64 third standardised moment of the in-degree (Radovanovic et al. 2010); NaN where all are equal.
    largest : torch.Tensor
        int64 largest in-degree.
    orphans : torch.Tensor
        float64 share of points that are among the neighbours of no other ("anti-hubs").
    in_degree : torch.Tensor
        (cloud, point) int64 how many have this point among their k nearest; -1 for points that take no part.
    """

    reciprocity: Tensor
    transitivity: Tensor
    skewness: Tensor
    largest: Tensor
    orphans: Tensor
    in_degree: Tensor


def graph_numbers(near: Neighbours, k: int, memory: int = 2**28) -> Graph:
    """Return reciprocity, transitivity and hubness of the k-nearest-neighbour graph of every cloud.

    Parameters
    ----------
    near : Neighbours
        Table of at least k ranks.
    k : int
        Neighbours; clouds with no more than k distinct points have NaN.
    memory : int
        Working memory.

    Examples
    --------
    >>> from tokinterp.kernels.neighbours import nearest
    >>> line = torch.tensor([[0.0], [1.0], [1.9], [5.0]])
    >>> found = graph_numbers(nearest(line, 1), 1)
    >>> found.reciprocity.tolist(), found.in_degree.tolist()  # 0 -> 1 <-> 1.9 <- 5
    ([0.5], [[0, 2, 2, 0]])
    """
    clouds, n, _ = near.indices.shape
    valid = near.valid & near.finite[:, None]
    enough = near.finite & (near.n_unique > k)
    to = torch.where((valid & enough[:, None])[..., None], near.indices[..., :k], n)  # n: a place that leads nowhere
    degree = torch.zeros(clouds, n + 1, dtype=torch.int64, device=to.device)
    degree.scatter_add_(1, to.flatten(1), torch.ones_like(to.flatten(1)))
    degree = degree[:, :n]
    mutual = torch.zeros(clouds, dtype=torch.int64, device=to.device)
    closed, paths = mutual.clone(), mutual.clone()
    step = max(1, memory // (clouds * (n + 24 * k * k)))
    padded = torch.cat([to, torch.full_like(to[:, :1], n)], 1)  # (cloud, n + 1, k)
    for start in range(0, n, step):
        mine = to[:, start : start + step]  # (cloud, row, k)
        onward = padded.gather(1, mine.flatten(1)[..., None].expand(-1, -1, k)).view(*mine.shape, k)
        own = torch.arange(start, start + mine.shape[1], device=to.device, dtype=torch.int64)[None, :, None, None]
        back = onward == own
        mutual += back.sum((1, 2, 3))
        known = torch.zeros(clouds, mine.shape[1], n + 1, dtype=torch.bool, device=to.device)
        known.scatter_(2, mine, True)
        known[..., n] = False
        path = (onward < n) & ~back
        closed += (known.gather(2, onward.flatten(2)).view_as(onward) & path).sum((1, 2, 3))
        paths += path.sum((1, 2, 3))
    arrows = (to < n).sum((1, 2)).double()
    count = valid.sum(1).double()
    deviation = torch.where(valid, degree - (arrows / count)[:, None], 0.0)
    second, third = deviation.square().sum(1) / count, deviation.pow(3).sum(1) / count
    nan = torch.full_like(count, torch.nan)
    return Graph(
        torch.where(enough, mutual / arrows, nan),
        torch.where(enough & (paths > 0) & (k > 1), closed.float() / paths.float(), nan),
        torch.where(enough & (second > 0), third / second.pow(1.5), nan),
        torch.where(enough, degree.amax(1), -1),
        torch.where(enough, (valid & (degree == 0)).sum(1) / count, nan),
        torch.where(valid & enough[:, None], degree, -1),
    )
