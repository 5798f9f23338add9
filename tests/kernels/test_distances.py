"""Distances from products stay within their bound; exact ones are those of differences; the order is certified."""

import pytest
import torch

from tokinterp.kernels.distances import candidates, close, error, measure, smallest


def clouds(n=60, dim=7, far=0.0):
    return torch.randn(2, n, dim, generator=torch.Generator().manual_seed(0)) + far


def true_squares(points):
    d = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return d + torch.diag(torch.full((d.shape[1],), torch.inf))


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [2**30, 5000])
def test_products_err_by_no_more_than_their_bound(products, memory):
    points = clouds(far=30.0)
    squared, order, norms = candidates(points, None, torch.tensor([60, 60]), 12, products, memory)
    own, part = error(norms, points.shape[-1], products)
    exact = true_squares(points).gather(2, order)
    assert bool(((squared - exact).abs() <= own[..., None] + part * exact).all())
    assert bool((squared.diff() >= 0).all())
    centred = points.double() - points.double().mean(1, keepdim=True)
    torch.testing.assert_close(norms, centred.square().sum(-1))


def test_points_outside_the_mask_are_nobodys_candidates():
    points, valid = clouds(), torch.rand(2, 60, generator=torch.Generator().manual_seed(1)) < 0.6
    squared, order, _ = candidates(points, valid, valid.sum(1), 5, torch.float64, 2**30)
    rows = order[valid]
    cloud = valid.nonzero()[:, 0]
    assert bool(valid[cloud[:, None], rows].all())
    exact = true_squares(points).masked_fill(~valid[:, None], torch.inf).sort(-1).values[..., :5]
    torch.testing.assert_close(squared[valid], exact[valid])


def test_exact_distances_are_those_of_differences_and_ties_go_by_place():
    points = clouds().round()  # many ties
    cloud, point = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 59])
    for memory in (2**30, 3000):
        squared, order = measure(points, None, cloud, point, None, 8, memory)
        every = true_squares(points)[cloud, point]
        expected, by = every.sort(dim=-1, stable=True)
        torch.testing.assert_close(squared, expected[:, :8])
        assert torch.equal(order, by[:, :8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_are_those_of_a_whole_sort(dtype):
    rows = torch.rand(2, 30, 50, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows[0, :, 7] = rows[0, :, 9]  # ties
    values, places = smallest(rows, 6)
    torch.testing.assert_close(values, rows.sort(-1).values[..., :6], rtol=0, atol=0)
    assert torch.equal(rows.gather(-1, places), values)


def test_order_is_open_where_the_error_reaches_the_next():
    squared = torch.tensor([[[1.0, 1.1, 2.0, torch.inf]]])
    assert close(squared, torch.tensor([[0.06]]), 0.0).tolist() == [[[True, False, False]]]
    assert close(squared, torch.tensor([[0.04]]), 0.0).tolist() == [[[False, False, False]]]
    assert close(squared, torch.tensor([[0.0]]), 0.06).tolist() == [[[True, False, False]]]
