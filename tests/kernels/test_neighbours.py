"""Exact nearest neighbours: brute force in float64 is the reference, whatever the cloud looks like."""

import numpy as np
import pytest
import torch
from brute import brute, gauss
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.kernels import duplicates, neighbours
from tokinterp.kernels.distances import candidates, smallest
from tokinterp.kernels.neighbours import first_of_kind, nearest


@pytest.mark.parametrize("products", [torch.float32, torch.float64, None])
@pytest.mark.parametrize(("n", "dim", "k"), [(40, 3, 5), (120, 64, 16), (65, 7, 64)])
def test_equals_brute_force(device, n, dim, k, products):
    x = gauss(n, dim).to(device)
    near = nearest(x, k, products=products)
    distance, index = brute(x.cpu(), k)
    assert np.array_equal(near.indices[0].cpu(), index)
    np.testing.assert_allclose(near.distances[0].cpu(), distance, rtol=1e-9)
    assert near.distances.dtype == torch.float64


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [100.0, 1000.0, 2000.0])
def test_a_rogue_channel_changes_nothing(device, offset, products):
    """One channel far from zero for every token: without centring float32 products lose the neighbours."""
    x = gauss(300, 128)
    x[:, 5] += offset
    near = nearest(x.to(device), 8, products=products)
    distance, index = brute(x, 8)
    assert np.array_equal(near.indices[0].cpu(), index)
    np.testing.assert_allclose(near.distances[0].cpu(), distance, rtol=1e-9)


def test_rows_that_float32_cannot_decide_are_redone(device):
    """Points 1e-5 apart beside one at a million: the certificate fails, and the answer is exact all the same."""
    x = gauss(100, 16) * 1e-5
    x[0] = 1e6
    near = nearest(x.to(device), 6, products=torch.float32)
    assert int(near.n_redone) > 50
    assert np.array_equal(near.indices[0].cpu(), brute(x, 6)[1])


def test_clouds_of_a_batch_do_not_touch(device):
    sizes, x = (30, 12, 50), torch.full((3, 50, 9), 7.0)
    mask = torch.zeros(3, 50, dtype=torch.bool)
    for g, n in enumerate(sizes):
        x[g, :n], mask[g, :n] = gauss(n, 9, seed=g), True
    x[1, 20:] = torch.nan  # padding may hold anything
    near = nearest(x.to(device), 10, mask.to(device))
    for g, n in enumerate(sizes):
        distance, index = brute(x[g, :n], 10)
        assert np.array_equal(near.indices[g, :n].cpu(), index)
        np.testing.assert_allclose(near.distances[g, :n].cpu(), distance, rtol=1e-9)
        assert near.distances[g, n:].isnan().all()
        assert not near.valid[g, n:].any()
    assert near.n_points.tolist() == list(sizes)


def test_duplicates_leave_and_the_way_back_is_kept(device):
    x = gauss(40, 6)
    x[10:20] = x[3]
    x[30] = x[31]
    near = nearest(x.to(device), 5)
    keep = [i for i in range(40) if i not in (*range(10, 20), 31)]
    distance, index = brute(x[keep], 5)
    assert int(near.n_unique) == 29
    assert near.valid[0].nonzero().squeeze(1).tolist() == keep
    np.testing.assert_allclose(near.distances[0, keep].cpu(), distance, rtol=1e-9)
    assert np.array_equal(near.indices[0, keep].cpu(), np.asarray(keep)[index])
    assert near.first[0, 10:20].tolist() == [3] * 10
    assert near.first[0, 31] == 30
    assert near.distances[0, 15].isnan().all()


def test_only_exact_copies_are_duplicates(device):
    x = gauss(20, 4)
    x[7] = x[6]
    x[8] = x[6]
    x[8, 0] = torch.nextafter(x[6, 0], torch.tensor(torch.inf))
    assert first_of_kind(x[None].to(device))[0, 6:9].tolist() == [6, 6, 8]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 3))
def test_first_of_kind(values, seed):
    rows = gauss(6, 3, seed)[values]
    wanted = [values.index(v) for v in values]
    assert first_of_kind(rows[None])[0].tolist() == wanted


def test_nan_stays_in_its_cloud(device):
    x = torch.stack([gauss(20, 4), gauss(20, 4, 1)])
    x[0, 3, 2] = torch.nan
    near = nearest(x.to(device), 3)
    assert near.finite.tolist() == [False, True]
    assert near.distances[0].isnan().all()
    assert np.array_equal(near.indices[1].cpu(), brute(x[1], 3)[1])


@pytest.mark.parametrize("products", [torch.float32, torch.float64])
def test_ties_go_by_index(device, products):
    """On a lattice most distances are equal, beyond any list of candidates."""
    x = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    near = nearest(x.to(device), 10, products=products)
    distance, index = brute(x, 10)
    assert int(near.n_redone) > 0
    assert np.array_equal(near.indices[0].cpu(), index)
    np.testing.assert_allclose(near.distances[0].cpu(), distance, rtol=1e-12)


@pytest.mark.parametrize("memory", [2**30, 2_000_000])
@pytest.mark.slow
def test_coordinates_in_parts_and_rows_in_strips(memory):
    """More coordinates than are taken at a time, and more points than fit into one strip."""
    x = gauss(900, 1200)
    near = nearest(x, 4, memory=memory)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = exact.fill_diagonal_(torch.inf).topk(4, largest=False)
    assert torch.equal(near.indices[0], index)
    torch.testing.assert_close(near.distances[0], distance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("shape", [(300, 90), (150, 20), (70, 600)])
def test_only_some_ranks(device, shape, threads, monkeypatch):
    """Those asked for are exact, also where float32 products leave many neighbours open; the rest is close."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = gauss(*shape)
    x[1:60] = x[0] + 1e-3 * x[1:60]  # crowded
    x[:, 0] += 200 * (torch.arange(len(x)) % 2)
    near = nearest(x.to(device), 32, ranks=(1, 2, 8, 32), products=torch.float32)
    distance, index = brute(x, 32)
    ranks = [0, 1, 7, 31]
    assert np.array_equal(near.indices[0, :, ranks].cpu(), index[:, ranks])
    np.testing.assert_allclose(near.distances[0, :, ranks].cpu(), distance[:, ranks], rtol=1e-9)
    np.testing.assert_allclose(near.distances[0].cpu(), distance, rtol=1e-3)


@pytest.mark.parametrize("ranks", [(), (0, 2), (2, 6)])
def test_impossible_ranks(ranks):
    with pytest.raises(ValueError, match="ranks"):
        nearest(gauss(20, 4), 5, ranks=ranks)


def test_smallest_of_rows_in_float32():
    """Ties at the last place and rows of infinities fall back to topk; everything else is that of a stable sort."""
    rows = gauss(3, 90, dtype=torch.float32)
    rows[1] = (4 * rows[1]).round()  # many ties
    for part in (rows[:1], rows[2:], rows):
        for wide in (1, 7, 89, 90):
            values, places = smallest(part[None], wide)
            expected, order = part.sort(dim=1, stable=True)
            assert torch.equal(values[0], expected[:, :wide])
            assert torch.equal(part.gather(1, places[0]), values[0])
            if len(part) == 1:
                assert torch.equal(places[0], order[:, :wide])
    infinite = torch.full((1, 2, 9), torch.inf)
    infinite[0, :, 4] = 1.0
    assert smallest(infinite, 3)[0].tolist() == [[[1.0, torch.inf, torch.inf]] * 2]


@pytest.mark.parametrize("n", [300, 1024])
def test_float32_products_are_the_default_where_they_pay(n, monkeypatch):
    """On one thread few ranks of many points take them; neighbours and distances are those of float64."""
    x = gauss(n, 64)
    seen = []
    monkeypatch.setattr(neighbours, "candidates", lambda *args: seen.append(args[4]) or candidates(*args))
    near, full = nearest(x, 9, ranks=[9]), nearest(x, 9, products=torch.float64)
    assert seen == [torch.float32, torch.float64]
    nine = [set(row) for row in near.indices[0].tolist()]
    assert nine == [set(row) for row in full.indices[0].tolist()]
    torch.testing.assert_close(near.distances[..., 8], full.distances[..., 8], rtol=1e-9, atol=0)


def test_zero_and_minus_zero_are_equal_and_hashes_are_checked(device, monkeypatch):
    x = gauss(9, 3)
    x[4:6, 1] = 0.0
    x[5] = x[4]
    x[5, 1] = -0.0
    assert first_of_kind(x[None].to(device))[0].tolist() == [0, 1, 2, 3, 4, 4, 6, 7, 8]
    monkeypatch.setattr(duplicates, "_hash", lambda rows: torch.zeros_like(rows[..., 0], dtype=torch.int64))
    assert first_of_kind(x[None].to(device))[0].tolist() == list(range(9))  # rows that differ are never merged


def test_memory_bound_changes_nothing():
    x = torch.stack([gauss(150, 40, s) for s in range(3)])
    free, tight = nearest(x, 9, products=torch.float32), nearest(x, 9, products=torch.float32, memory=40_000)
    assert torch.equal(free.indices, tight.indices)
    torch.testing.assert_close(free.distances, tight.distances, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x = gauss(60, 12, dtype=dtype)
    distance, index = brute(x.double(), 4)
    near = nearest(x, 4)
    np.testing.assert_allclose(near.distances[0], distance, rtol=1e-9)
    assert np.array_equal(near.indices[0], index)


@pytest.mark.parametrize("allowed", ["highest", "medium"])
def test_low_precision_products_are_not_used_and_stay_as_they_were(device, allowed, monkeypatch):
    x, before, seen, search = gauss(200, 64) + 3, torch.get_float32_matmul_precision(), [], neighbours.candidates

    def spy(*args):
        seen.extend([torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision])
        return search(*args)

    monkeypatch.setattr(neighbours, "candidates", spy)
    torch.set_float32_matmul_precision(allowed)
    try:
        found = nearest(x.to(device), 3, products=torch.float32)
        assert torch.get_float32_matmul_precision() == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == (allowed != "highest")
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee", "ieee"]
    assert int(found.n_redone) == 0
    assert np.array_equal(found.indices[0].cpu(), brute(x, 3)[1])


@pytest.mark.parametrize("k", [0, 20, 99])
def test_impossible_k(k):
    with pytest.raises(ValueError, match=rf"k\D*{k}"):
        nearest(gauss(20, 4), k)


def test_a_candidate_that_rounding_leaves_out_is_looked_for_again():
    """One point more than there are candidates, all as far as the products of float32 can tell."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = 11  # k = 1 has 9 candidates
        x = torch.from_numpy(np.eye(16)[:n] * (1 + 1e-8 * rng.permutation(n))[:, None])
        near = nearest(x, 1, products=torch.float32)
        apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        assert near.indices[0, :, 0].tolist() == apart.argmin(1).tolist()


def test_what_is_not_finite_outside_the_mask_does_not_count():
    x = torch.tensor([[[1.0, 2.0], [torch.nan, 0.0], [torch.inf, 1.0]], [[1.0, 2.0], [3.0, 2.0], [torch.nan, 0.0]]])
    for mask, finite in (
        ([[True, False, False], [True, True, False]], [True, True]),
        ([[True, True, False], [False, False, True]], [False, False]),
    ):
        near = nearest(x, 1, torch.tensor(mask))
        assert near.finite.tolist() == finite
    near = nearest(x, 1, torch.tensor([[True, False, False], [True, True, False]]))
    assert near.distances[0, 0].tolist() == [torch.inf]
    assert near.distances[1, :2].flatten().tolist() == [2, 2]


@pytest.mark.parametrize("size", [1e20, 1e-22])
def test_squares_that_float32_cannot_hold_decide_nothing(device, size):
    x = gauss(200, 16) * size
    x[::2] *= 1e-4 if size > 1 else 1
    near = nearest(x.to(device), 6, products=torch.float32)
    np.testing.assert_array_equal(near.indices[0].cpu(), brute(x, 6)[1])
    assert near.n_redone == 200
