"""Who is among the k nearest of whom, with copies, against all orders and against sorting."""

from itertools import permutations

import numpy as np
import pytest
import torch

from tokinterp.geometry.kernels.membership import (
    graph_numbers,
    membership,
    neighbour_lists,
    rank_rows,
    sum_over_neighbours,
)
from tokinterp.kernels.neighbours import nearest

EVERY = torch.ones(7, dtype=torch.bool)
COPIES = torch.tensor([[0.0], [0.0], [1.1], [1.1], [1.1], [2.5], [4.2]])


def lists(points, k, mask=EVERY):
    near = nearest(points, k, None if bool(mask.all()) else mask[None])
    return neighbour_lists(near.indices, near.first, mask)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_membership_is_the_mean_over_all_orders_of_copies(k):
    found = membership(lists(COPIES, k), k)[0]
    expected = torch.zeros(7, 7)
    orders = list(permutations(range(7)))[::37]  # of equal distances the order is that of the permutation
    distance = (COPIES - COPIES.T).abs()
    for order in orders:
        place = torch.tensor(np.argsort(order))
        for i in range(7):
            others = sorted((j for j in range(7) if j != i), key=lambda j: (round(float(distance[i, j]), 6), place[j]))
            expected[i, others[:k]] += 1 / len(orders)
    torch.testing.assert_close(found.sum(1), torch.full((7,), float(k)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.12)


def test_rows_can_be_taken_some_at_a_time_and_left_out_points_have_none():
    mask = EVERY.clone()
    mask[2] = False
    near = nearest(COPIES[mask], 2)
    whole = membership(lists(COPIES, 2), 2)
    assert torch.equal(membership(lists(COPIES, 2), 2, slice(2, 5)), whole[:, 2:5])
    first = torch.tensor([[0, 0, 2, 3, 3, 5, 6]])
    back = torch.tensor([0, 1, 3, 4, 5, 6])
    indices = torch.full((1, 7, 2), -1)
    indices[0, back] = torch.where(near.indices[0] < 0, -1, back[near.indices[0]])
    part = membership(neighbour_lists(indices, first, mask), 2)[0]
    assert float(part[2].abs().sum() + part[:, 2].abs().sum()) == 0
    torch.testing.assert_close(part[back][:, back], membership(lists(COPIES[mask], 2, EVERY[:6]), 2)[0])


def test_ranks_are_those_of_sorting_with_ties_at_their_mean():
    x = COPIES.double()
    first = torch.tensor([0, 0, 2, 2, 2, 5, 6])
    ranks = rank_rows(x, first, EVERY)
    distance = (x - x.T).abs()
    for i in range(7):
        for j in range(7):
            others = [k for k in range(7) if k not in (i, j)]
            nearer = sum(bool(distance[i, k] < distance[i, j] - 1e-9) for k in others)
            equal = sum(bool((distance[i, k] - distance[i, j]).abs() <= 1e-9) for k in others)
            assert float(ranks[i, j]) == (0 if i == j else 1 + nearer + equal / 2)
    mask = EVERY.clone()
    mask[5] = False
    some = rank_rows(x, first, mask, slice(4, 7))
    assert float(some[1].abs().sum()) == 0
    assert some[0].tolist() == [3.5, 3.5, 1.5, 1.5, 0, 0, 5]


@pytest.mark.parametrize("left_out", [False, True])
def test_the_two_farthest_share_their_ranks(left_out):
    """No others are at equal distances, and no point is a copy of another."""
    points = torch.tensor([[0.0], [1.0], [-1.0], [0.25]]).double()
    ranks = rank_rows(points, torch.arange(4), torch.tensor([True, True, True, not left_out]))
    assert ranks[0].tolist() == ([0, 1.5, 1.5, 0] if left_out else [0, 2.5, 2.5, 1])


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("left_out", [None, 4])
def test_sums_over_neighbours_are_those_of_the_membership(copies, left_out):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(2, 9, 3, generator=draw)
    if copies:
        points[1, 6:] = points[1, 1]
    mask = torch.ones(9, dtype=torch.bool)
    if left_out is not None:
        mask[left_out] = False
    near = nearest(points, 3, mask.expand(2, -1))
    found = neighbour_lists(near.indices, near.first, mask)
    values = torch.randn(4, 9, 9, generator=draw, dtype=torch.float64)
    for k, rows in ((1, slice(None)), (3, slice(2, 7))):
        wanted = torch.einsum("crp,orp->co", membership(found, k, rows).double(), values[:, rows])
        torch.testing.assert_close(sum_over_neighbours(found, k, values[:, rows], rows), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", [2**28, 1])
def test_graph_numbers_are_those_of_loops(memory):
    points = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0))
    k = 4
    near = nearest(points, k)
    found = graph_numbers(near, k, memory)
    to = [set(row) for row in near.indices[0].tolist()]
    arrows = [(i, j) for i in range(40) for j in to[i]]
    paths = [(i, m) for i, j in arrows for m in to[j] if m != i]
    degree = np.array([sum(i in t for t in to) for i in range(40)])
    assert found.in_degree[0].tolist() == degree.tolist()
    assert float(found.reciprocity) == pytest.approx(sum(i in to[j] for i, j in arrows) / len(arrows))
    assert float(found.transitivity) == pytest.approx(sum(m in to[i] for i, m in paths) / len(paths))
    assert float(found.skewness) == pytest.approx(((degree - k) ** 3).mean() / degree.std() ** 3)
    assert int(found.largest) == degree.max()
    assert float(found.orphans) == pytest.approx((degree == 0).mean())


def test_a_cloud_of_too_few_points_has_no_graph():
    found = graph_numbers(nearest(COPIES[None, :3], 2), 2)  # two distinct points
    assert bool(found.reciprocity.isnan())
    assert int(found.largest) == -1
