"""Streamed moments equal those of the whole data; the numbers of a spectrum are what they say."""

import itertools
import json
import runpy

import numpy as np
import pytest
import torch
from conftest import ROOT
from golden.llm_microscope import clouds
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.geometry.kernels import spectrum
from tokinterp.kernels import moments

torch.set_num_threads(1)
GOLDEN = ROOT / "tests" / "golden" / "participation_ratio.json"


def of(x, shift=None, parts=1):
    """Moments of the rows of a float64 array about a shift, in some pieces."""
    x = torch.as_tensor(np.asarray(x))
    shift = torch.zeros(x.shape[1], dtype=torch.float64) if shift is None else torch.as_tensor(shift)
    m = moments.empty(shift)
    for piece in x.chunk(parts):
        moments.accumulate(m, piece - shift)
    return m


def direct(x):
    y = x - x.mean(0)
    return y.T @ y, ((y**2).sum(1) ** 2).sum()


def cloud(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_split_and_any_shifts_merge_to_the_whole(data):
    n, d = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 6))
    x = cloud(n, d, data.draw(st.integers(0, 99)))
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    shifts = np.array(data.draw(st.lists(st.floats(-50, 50), min_size=4 * d, max_size=4 * d))).reshape(4, d)
    whole = None
    for label in data.draw(st.permutations(range(4))):
        if (labels == label).any():
            part = of(x[labels == label], shifts[label])
            whole = part if whole is None else moments.merge(whole, part)
    found = moments.central(whole)
    scatter, fourth = direct(x)
    size = np.abs(shifts).max() + 1  # rounding grows with the distance of the shift from the data
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-12 * size)
    np.testing.assert_allclose(found.scatter, scatter, atol=1e-11 * n * size**2)
    np.testing.assert_allclose(found.fourth, fourth, atol=1e-10 * n * size**4)
    assert int(found.count) == n


def test_moving_the_shift_there_and_back_changes_nothing():
    m = of(cloud(20, 4), np.array([1.0, -2, 3, 0]))
    back = moments.rebase(moments.rebase(m, torch.tensor([5.0, 5, -7, 1])), m.shift)
    for name, a, b in zip(m._fields, m, back, strict=True):
        a, b = (moments.mirrored(t) if name == "second" else t for t in (a, b))
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-9, err_msg=name)


def test_stacked_clouds_equal_each_alone():
    one, two = of(cloud(9, 3, 1)), of(cloud(7, 3, 2))
    stacked = moments.Moments(*(torch.stack(pair) for pair in zip(one, two, strict=True)))
    both = moments.central(moments.rebase(stacked, torch.ones(2, 3)))
    for k, m in enumerate((one, two)):
        alone = moments.central(m)
        for a, b in zip(alone, both, strict=True):
            np.testing.assert_allclose(b[k], a, atol=1e-9)


def test_panels_and_blocks_give_the_same_matrix(monkeypatch):
    x = cloud(50, 11)
    whole = moments.central(of(x))
    monkeypatch.setattr(moments, "PANEL", 4)
    monkeypatch.setattr(moments, "BLOCK_ROWS", 7)
    pieces = moments.central(of(x))
    np.testing.assert_allclose(pieces.scatter, whole.scatter, atol=1e-10)
    np.testing.assert_allclose(pieces.fourth, whole.fourth)


def test_two_triangles_share_the_memory_of_one_matrix():
    x, y = cloud(20, 5, 1), cloud(30, 5, 2)
    packed = torch.zeros(6, 5, dtype=torch.float64)
    for data, second in zip((x, y), moments.two_triangles(packed), strict=True):
        m = moments.empty(torch.zeros(5), second)
        moments.accumulate(m, torch.from_numpy(data))
    both = [moments.mirrored(t) for t in moments.two_triangles(packed)]
    for data, found in zip((x, y), both, strict=True):
        np.testing.assert_allclose(found, data.T @ data)
    again = moments.two_triangles(moments.packed_triangles(*both))
    assert all(torch.equal(moments.mirrored(a), b) for a, b in zip(again, both, strict=True))


def test_rows_not_kept_take_no_part():
    x, keep = torch.from_numpy(cloud(20, 3)), torch.arange(20) % 3 > 0
    m = moments.empty(torch.zeros(3))
    moments.accumulate(m, x, keep)
    for a, b in zip(moments.central(m), moments.central(of(x[keep])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_float32_products_keep_the_digits_of_float64(offset):
    x = torch.randn(20000, 24, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 2, 24)
    x[:, 5] += offset
    m = moments.empty(x[:100].mean(0))
    moments.accumulate(m, x - m.shift.float())
    scatter, _ = direct(x.double().numpy())
    assert np.abs(moments.central(m).scatter.numpy() - scatter).max() < 1e-6 * scatter.max()
    unshifted = moments.empty(torch.zeros(24))
    moments.accumulate(unshifted, x)
    if offset:  # what the shift is there for
        assert np.abs(moments.central(unshifted).scatter.numpy() - scatter).max() > 1e-4 * scatter.max()


def test_planted_spectrum_is_found():
    rng = np.random.default_rng(0)
    planted = np.array([9.0, 9, 9, 9, 1, 1, 1, 1, 0, 0])
    u, _ = np.linalg.qr(rng.standard_normal((60, 11)))
    u -= u.mean(0)  # centred and orthonormal again: the spectrum is exact
    u, _ = np.linalg.qr(u)
    v, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    x = 5 + u[:, :10] @ np.diag(np.sqrt(planted * 59)) @ v
    values = spectrum.eigenvalues(moments.central(of(x)).scatter, torch.tensor(60))
    np.testing.assert_allclose(values, planted, atol=1e-9)
    assert float(spectrum.anisotropy(values)) == pytest.approx(9 / 40)
    assert float(spectrum.participation_ratio(values)) == pytest.approx(1600 / 328)
    np.testing.assert_array_equal(spectrum.components_for(values, (0.2, 0.9, 0.95, 0.975)), [1, 4, 6, 7])


@given(st.integers(1, 12), st.floats(1e-6, 1e6))
def test_equal_eigenvalues_are_counted(k, size):
    values = torch.tensor([size] * k + [0.0] * 3, dtype=torch.float64)
    for number in (
        spectrum.participation_ratio(values),
        spectrum.effective_rank(values),
        spectrum.effective_rank(values, of="variance"),
        spectrum.components_for(values, [1 - 1e-9])[0],
    ):
        assert float(number) == pytest.approx(k)


def test_unequal_eigenvalues_count_for_less_by_variance_than_by_singular_values():
    values = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    q = np.array([2, 1, 0.5]) / 3.5
    assert float(spectrum.effective_rank(values)) == pytest.approx(np.exp(-(q * np.log(q)).sum()))
    assert float(spectrum.effective_rank(values, of="variance")) < float(spectrum.effective_rank(values))


def test_no_eigenvalue_lies_beyond_the_possible_rank():
    found = moments.central(of(cloud(6, 30)))
    values = spectrum.eigenvalues(found.scatter, found.count)
    assert int((values > 0).sum()) == 5
    assert int((spectrum.eigenvalues(found.scatter, found.count, noise=values[2]) > 0).sum()) == 2


def test_no_variance_has_no_shares():
    values = spectrum.eigenvalues(moments.central(of(np.ones((5, 3)))).scatter, torch.tensor(5))
    assert float(values.sum()) == 0
    for number in (
        spectrum.anisotropy(values), spectrum.participation_ratio(values), spectrum.effective_rank(values),
        spectrum.components_for(values, (0.9,)),
    ):  # fmt: skip
        assert bool(number.isnan().all())
    assert bool(spectrum.eigenvalues(torch.zeros(2, 2), torch.tensor(1)).isnan().all())


def test_unbiased_traces_are_the_averages_over_four_different_rows():
    x = cloud(6, 3)
    quadruples = [x[list(p)] for p in itertools.permutations(range(6), 4)]
    above = np.mean([((a - b) ** 2).sum() * ((c - d) ** 2).sum() / 4 for a, b, c, d in quadruples])
    below = np.mean([((a - b) @ (c - d)) ** 2 / 4 for a, b, c, d in quadruples])
    found = spectrum.unbiased_traces(moments.central(of(x, np.array([3.0, 1, -9]))))
    assert [float(f) for f in found] == pytest.approx([above, below])


def test_participation_ratio_equals_the_authors_package():
    rows = runpy.run_path(str(GOLDEN.with_name("make_participation_ratio.py")))["rows"]
    for case in json.loads(GOLDEN.read_text())["cases"]:
        x = rows(case["seed"], case["n"], case["d"])
        found = moments.central(of(x))
        values = spectrum.eigenvalues(found.scatter, found.count)
        assert float(spectrum.participation_ratio(values)) == pytest.approx(case["naive"], rel=1e-9)
        assert float(spectrum.unbiased_participation_ratio(found)) == pytest.approx(case["row"], rel=1e-8)


def test_anisotropy_is_that_of_the_authors_function():
    for case in json.loads((GOLDEN.parent / "llm_microscope.json").read_text(encoding="utf-8"))["linear"]:
        found = moments.central(of(clouds(case["seed"], case["n"], case["d"])[0]))
        values = spectrum.eigenvalues(found.scatter, found.count)
        assert float(spectrum.anisotropy(values)) == pytest.approx(case["anisotropy"], rel=1e-10)


def test_correction_removes_the_bias_of_few_rows():
    rng = np.random.default_rng(3)
    d, n = 40, 60
    plug_in, unbiased = [], []
    for _ in range(50):
        found = moments.central(of(rng.standard_normal((n, d))))
        plug_in.append(float(spectrum.participation_ratio(spectrum.eigenvalues(found.scatter, found.count))))
        unbiased.append(float(spectrum.unbiased_participation_ratio(found)))
    assert 1 / np.mean(plug_in) == pytest.approx(1 / d + 1 / n, rel=0.05)
    assert np.mean(unbiased) == pytest.approx(d, abs=4 * np.std(unbiased) / np.sqrt(50))


def test_three_rows_have_no_unbiased_ratio():
    assert bool(spectrum.unbiased_participation_ratio(moments.central(of(cloud(3, 5)))).isnan())


def test_mean_cosine_is_that_of_all_pairs():
    x = cloud(9, 4)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = u @ u.T
    total, n = torch.from_numpy(u.sum(0)), torch.tensor(9)
    assert float(spectrum.mean_cosine(total, n, diagonal=True)) == pytest.approx(cosines.mean())
    assert float(spectrum.mean_cosine(total, n)) == pytest.approx(cosines[~np.eye(9, dtype=bool)].mean())
    assert bool(spectrum.mean_cosine(total, torch.tensor(1)).isnan())
