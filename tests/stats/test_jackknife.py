"""Jackknife intervals: exact for means, literal leaving out, and what augmented readings are expected to give."""

import numpy as np
import pytest
import torch
from scipy import stats

import tokinterp as ti
from tokinterp.geometry.augmentation import reading_numbers, without
from tokinterp.geometry.kernels import entropy
from tokinterp.stats.jackknife import jackknife_error, jackknife_interval, left_out


@pytest.mark.parametrize("n", [2, 19, 20, 21, 39, 45, 400])
def test_groups_are_disjoint_and_equal(n):
    out = left_out(n, 20, seed=3)
    assert len(out) >= min(n, 20)
    assert out.shape[1] == max(1, n // 20)
    assert len(np.unique(out)) == out.size <= n < out.size + out.shape[1]
    assert not np.array_equal(out, left_out(n, 20, seed=4)) or n == 2


def test_each_prompt_alone_gives_the_textbook_error_of_a_mean():
    x = np.random.default_rng(0).gamma(2, size=(30, 3))
    parts = np.stack([np.delete(x, i, 0).mean(0) for i in range(30)])
    np.testing.assert_allclose(jackknife_error(parts, 1, 30), x.std(0, ddof=1) / 30**0.5)
    low, high = jackknife_interval(x.mean(0), parts, 1, 30)
    found = stats.t.interval(0.95, 29, x.mean(0), x.std(0, ddof=1) / 30**0.5)
    np.testing.assert_allclose((low, high), found, rtol=1e-5)


def test_no_interval_of_two_groups():
    parts = np.array([[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]])
    assert np.isnan(jackknife_interval(parts.mean(0), parts[:2], 1, 2)).all()
    assert np.isfinite(jackknife_interval(parts.mean(0), parts, 1, 3)).all()


def test_the_interval_covers():
    rng, n = np.random.default_rng(0), 23
    for make, middle, least in (
        (rng.standard_normal, 0.0, 0.94),
        (lambda s: rng.lognormal(0, 0.5, s), np.exp(1 / 8), 0.9),
    ):
        x, out = make((n, 4000)), left_out(n, 10)
        parts = np.array([np.delete(x, o, 0).mean(0) for o in out])
        low, high = jackknife_interval(x.mean(0), parts, out.shape[1], n)
        assert least < ((low <= middle) & (middle <= high)).mean() < 0.975


@pytest.mark.slow
def test_groups_that_leave_a_remainder_give_its_variance_on_average():
    rng, n, found = np.random.default_rng(0), 23, []
    for _ in range(4000):
        x = rng.standard_normal(n)
        out = left_out(n, 10, int(rng.integers(10**6)))
        assert out.shape == (11, 2)
        found.append(jackknife_error(np.array([np.delete(x, o).mean() for o in out]), 2, n) ** 2)
    assert np.mean(found) == pytest.approx(1 / n, rel=0.03)


# -- augmented readings ---------------------------------------------------------------------------------------
METRICS = ("infonce", "lidar", "dime")


def readings(rng, n, d=12):
    """Two readings of prompts that differ more in some directions than in others."""
    prompt = rng.standard_normal((n, d)) * np.linspace(1.5, 0.2, d)
    return torch.from_numpy(prompt + 0.6 * rng.standard_normal((2, n, d)))


def numbers(x, orders):
    return reading_numbers(x, orders, METRICS, 0.1, 1e-2)


def test_prompts_left_out_are_left_out_literally():
    rng = np.random.default_rng(0)
    x, orders = readings(rng, 12), np.stack([rng.permutation(12) for _ in range(3)])
    less, pairs = without(x, orders, np.array([4, 7]))
    kept = [i for i in range(12) if i not in (4, 7)]
    assert torch.equal(less, x[:, kept])
    for order, found in zip(orders, pairs, strict=True):
        assert sorted(found) == list(range(10))
        for i, partner in enumerate(found):
            at = order[kept[i]]
            while at in (4, 7):
                at = order[at]
            assert kept[partner] == at
    values = numbers(less, pairs)
    assert values["infonce_loss"] == pytest.approx(float(entropy.infonce(x[0, kept], x[1, kept])))
    assert values["lidar"] == pytest.approx(float(entropy.lidar(x[:, kept].transpose(0, 1), 1e-2)))
    assert values["lidar_share"] == pytest.approx(values["lidar"] / 9)


@pytest.mark.slow
def test_intervals_cover_the_expected_value_where_a_bootstrap_leaves_it():
    n, runs, groups = 30, 60, 10
    values, inside, drawn = [], [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x, orders = readings(rng, n), np.stack([rng.permutation(n) for _ in range(2)])
        out = left_out(n, groups, seed)
        whole = numbers(x, orders)
        parts = [numbers(*without(x, orders, o)) for o in out]
        values.append(list(whole.values()))
        inside.append([jackknife_interval(v, np.array([p[k] for p in parts]), 3, n) for k, v in whole.items()])
        drawn.append([numbers(x[:, torch.from_numpy(rng.integers(n, size=n))], orders)[k] for k in whole])
    mean, sd = np.mean(values, 0), np.std(values, 0, ddof=1)
    low, high = np.transpose(inside, (2, 0, 1))
    cover = ((low <= mean) & (mean <= high)).mean(0)
    assert (cover >= 0.88).all(), cover
    width = (high - low).mean(0) / 2 / stats.t.ppf(0.975, groups - 1)
    assert (width < 2.2 * sd).all(), width / sd  # wide, as Efron and Stein say, but not by any amount
    assert (np.abs(np.mean(drawn, 0) - mean) > sd).all(), "draws with replacement would have done"


@pytest.mark.slow
def test_intervals_of_a_model():
    texts = [t.text[:120] for t in ti.bundled_texts("story")[:8]]
    model = ti.load_model()
    options = {"q": 2, "layers": [1, 8], "draws": 3, "progress": False, "published": "skean2025"}
    ds = ti.geometry.augmentation_metrics(model, texts, **options)
    plain = ti.geometry.augmentation_metrics(model, texts, groups=0, **options)
    names = [n for n in plain.data_vars if n != "n_prompts"]
    assert len(names) == 7
    assert {f"{n}_interval" for n in names} == set(ds.data_vars) - set(plain.data_vars)
    for name in names:
        low, high = ds[f"{name}_interval"].values
        assert (low < ds[name]).all()
        np.testing.assert_allclose((low + high) / 2, ds[name])
        np.testing.assert_array_equal(ds[name], plain[name])
    narrow = ti.geometry.augmentation_metrics(model, texts, level=0.5, **options)
    assert (narrow["lidar_interval"].sel(bound="lower") > ds["lidar_interval"].sel(bound="lower")).all()
    for wrong in ({"groups": 1}, {"level": 1.0}):
        with pytest.raises(ValueError, match=r"groups=1|level"):
            ti.geometry.augmentation_metrics(model, texts, **options, **wrong)
