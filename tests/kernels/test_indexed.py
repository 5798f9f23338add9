"""What an index finds is measured exactly; what it misses is known only beside an exact search."""

import builtins

import numpy as np
import pytest
import torch
from brute import brute, gauss
from peaks import peak

from tokinterp.kernels.indexed import faiss_nearest

USABLE = torch.ones(600, dtype=torch.bool)


def test_a_flat_index_finds_what_brute_force_finds(extras):
    x = gauss(600, 20) + 50
    found = faiss_nearest(x, torch.arange(0, 600, 5), 7, USABLE, "faiss", 2**24)
    distance, index = brute(x, 7)
    np.testing.assert_array_equal(found.indices, index[::5])
    np.testing.assert_allclose(found.distances, distance[::5], rtol=1e-12)


def test_cells_miss_some_and_their_distances_are_still_distances(extras):
    x = gauss(600, 20)
    rows = torch.arange(600)
    found = faiss_nearest(x, rows, 7, USABLE, "faiss-ivf", 2**24)
    distance, _ = brute(x, 7)
    hit = (found.distances.numpy() <= distance[:, -1:]).mean()
    assert 0.5 < hit < 1
    d = (x.double()[rows[:, None]] - x.double()[found.indices]).square().sum(-1).sqrt()
    np.testing.assert_allclose(found.distances, d, rtol=1e-12)
    assert (found.indices != rows[:, None]).all()


def test_points_that_are_not_usable_are_not_in_the_index(extras):
    x = gauss(600, 20)
    usable = USABLE.clone()
    usable[100:] = False
    found = faiss_nearest(x, torch.tensor([0, 300]), 99, usable, "faiss", 2**24)
    assert found.indices.max() < 100
    assert found.indices[0, -1] >= 0
    assert faiss_nearest(x, torch.tensor([0]), 120, usable, "faiss", 2**24).indices[0, 99:].tolist() == [-1] * 21


def test_an_index_larger_than_the_memory_is_refused(extras):
    with pytest.raises(ValueError, match=r"memory=70000: an index of 600 points of 20 coordinates takes 72000"):
        faiss_nearest(gauss(600, 20), torch.arange(3), 3, USABLE, "faiss", 70_000)


def test_without_faiss_the_way_out_is_named(monkeypatch):
    real = builtins.__import__

    def none(name, *rest):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ImportError, match=r"pip install 'tokinterp\[faiss\]', or take method='exact'"):
        faiss_nearest(gauss(600, 20), torch.arange(3), 3, USABLE, "faiss", 2**24)


@pytest.mark.parametrize("method", ["faiss", "faiss-ivf"])
def test_beside_the_index_some_points_at_a_time_are_in_memory(extras, method):
    n, dim = 3000, 64
    x, usable = gauss(n, dim), torch.ones(n, dtype=torch.bool)
    most = peak(lambda: faiss_nearest(x, torch.arange(3), 3, usable, method, 6 * n * dim))
    assert most < 2 * n * dim
