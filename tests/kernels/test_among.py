"""Neighbours among very many points are those of brute force, whatever fits into memory and whoever is barred."""

import numpy as np
import pytest
import torch
from brute import brute, gauss

from tokinterp.kernels import among
from tokinterp.kernels.among import measured, nearest_among

SMALL = 1_000_000


def all_of(x):
    return torch.ones(len(x), dtype=torch.bool)


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "dim", "k", "memory"), [(700, 40, 9, SMALL), (60, 5, 59, 2**30), (300, 64, 30, 2**22)])
def test_equals_brute_force_in_blocks(device, n, dim, k, memory, products):
    x, rows = gauss(n, dim) + 3, torch.randperm(n, generator=torch.Generator().manual_seed(1))[: n // 2]
    found = nearest_among(x, rows, k, all_of(x), products=products, memory=memory, device=device)
    distance, index = brute(x, k)
    np.testing.assert_array_equal(found.indices, index[rows])
    np.testing.assert_allclose(found.distances, distance[rows], rtol=1e-12)


def test_the_blocks_stay_within_the_memory(monkeypatch):
    sizes, search = [], among._Search
    kept = search.__init__
    monkeypatch.setattr(search, "__init__", lambda self, *a: (kept(self, *a), sizes.append((self.tall, self.wide)))[0])
    x = gauss(3000, 32)
    nearest_among(x, torch.arange(3000), 3, all_of(x), memory=SMALL)
    tall, wide = sizes[0]
    assert tall < 3000 > wide
    assert 24 * 32 * (tall + wide) + 32 * tall * wide <= SMALL


@pytest.mark.parametrize("offset", [1000.0, 30000.0])
def test_what_float32_cannot_decide_is_searched_again(device, offset):
    """Points 1e-4 apart around two far places: the certificate of float32 fails, and the answer is exact still."""
    x = gauss(200, 16) * 1e-4
    x[::2, 3] += offset
    found = nearest_among(x, torch.arange(200), 6, all_of(x), products=torch.float32, device=device)
    assert found.n_redone > 100
    np.testing.assert_array_equal(found.indices, brute(x, 6)[1])


def test_equal_distances_are_in_the_order_of_their_places():
    x = torch.arange(64, dtype=torch.float32)[:, None] % 4 * torch.ones(3)  # four places, sixteen copies each
    found = nearest_among(x, torch.arange(64), 20, all_of(x), memory=SMALL)
    np.testing.assert_array_equal(found.indices, brute(x, 20)[1])
    assert found.n_redone == 64


def test_points_that_are_barred_or_not_usable_are_no_neighbours():
    x = gauss(90, 6)
    usable = torch.arange(90) % 7 != 0
    x[0] = torch.nan
    side = torch.arange(90) % 3
    rows = torch.tensor([1, 8, 30, 31])

    def barred(some, part):
        return side[rows[some], None] == side[part]

    found = nearest_among(x, rows, 12, usable, barred, memory=SMALL)
    d = (x.double()[rows, None] - x.double()).square().sum(-1).sqrt()
    d[(side[rows, None] == side) | ~usable] = torch.inf
    want = d.sort(1)
    np.testing.assert_array_equal(found.indices, want.indices[:, :12])
    np.testing.assert_allclose(found.distances, want.values[:, :12], rtol=1e-12)


def test_too_few_points_leave_gaps():
    x = gauss(5, 2)
    found = nearest_among(x, torch.arange(5), 4, torch.tensor([True, True, False, True, False]))
    assert (found.indices[0, 2:] == -1).all()
    assert found.distances[0, 2:].isinf().all()
    assert found.indices[2].tolist()[3] == -1
    assert found.distances[2, :3].isfinite().all()
    assert nearest_among(x, torch.arange(0), 4, all_of(x)).indices.shape == (0, 4)


def test_a_memory_without_room_is_refused():
    x = gauss(400, 512)
    with pytest.raises(ValueError, match=r"memory=20000 holds no block of 512 coordinates: give at least 6291456"):
        nearest_among(x, torch.arange(400), 3, all_of(x), memory=20_000)
    assert nearest_among(x, torch.arange(3), 3, all_of(x), memory=6291456).distances.isfinite().all()


def test_half_precision_points_are_measured_as_they_are():
    x = gauss(80, 12).half()
    found = nearest_among(x, torch.arange(80), 5, all_of(x))
    np.testing.assert_allclose(found.distances, brute(x, 5)[0], rtol=1e-12)


def test_measured_candidates_are_sorted_by_distance_and_place():
    x = torch.tensor([[0.0], [2.0], [-2.0], [1.0]])
    found = measured(x, torch.tensor([0]), torch.tensor([[3, 2, -1, 1]]), 3, 2**20)
    assert found[1].tolist() == [[3, 1, 2]]
    assert found[0].tolist() == [[1.0, 2.0, 2.0]]


@pytest.mark.parametrize("size", [1e20, 1e-23])
def test_what_float32_cannot_hold_is_searched_again(device, size):
    """Squares beyond its range are inf or zero: no neighbour may be lacking, and none be another."""
    x = gauss(80, 16) * size
    x[::2] *= 1e-4 if size > 1 else 1
    found = nearest_among(x, torch.arange(80), 6, all_of(x), products=torch.float32, device=device)
    distance, index = brute(x, 6)
    np.testing.assert_array_equal(found.indices, index)
    np.testing.assert_allclose(found.distances, distance, rtol=1e-12)
    assert found.n_redone == 80
