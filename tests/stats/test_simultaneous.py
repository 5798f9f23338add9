"""Intervals that hold together do, and are no wider than that takes; parts of a ratio stand for it."""

import numpy as np
import pytest
from scipy import stats

from tokinterp.stats import resample as r
from tokinterp.stats.simultaneous import ratio_parts, simultaneous_band, simultaneous_interval


@pytest.mark.parametrize("n", [4, 12, 40])
@pytest.mark.parametrize("alike", [0.0, 0.8])
@pytest.mark.slow
def test_simultaneous_intervals_cover_all_columns_at_once(n, alike):
    rng, times, columns = np.random.default_rng(n), 300, 40
    hits, single = 0, 0
    for seed in range(times):
        x = alike**0.5 * rng.standard_normal((n, 1)) + (1 - alike) ** 0.5 * rng.standard_normal((n, columns))
        low, high = simultaneous_interval(x, seed=seed, n_boot=300)
        hits += bool(((low <= 0) & (high >= 0)).all())
        half = stats.t.ppf(0.975, n - 1) * x.std(0, ddof=1) / n**0.5
        single += bool((np.abs(x.mean(0)) <= half).all())
    assert hits / times > 0.915
    assert single / times < 0.87


def test_simultaneous_intervals_are_narrower_where_columns_go_together():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 1))
    same, apart = base + 0.01 * rng.standard_normal((60, 100)), rng.standard_normal((60, 100))
    width = [np.mean(np.subtract(*simultaneous_interval(x)[::-1])) / x.std() for x in (same, apart)]
    assert width[0] < 0.7 * width[1]
    one = simultaneous_interval(base[:, 0])
    usual = stats.t.interval(0.95, 59, base.mean(), stats.sem(base[:, 0]))
    np.testing.assert_allclose(one, usual, atol=0.03 * (usual[1] - usual[0]))


def test_simultaneous_intervals_leave_out_constants_and_count_groups():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    low, high = simultaneous_interval(np.concatenate([x, np.ones((40, 1))], 1), seed=1)
    assert np.isnan([low[3], high[3]]).all()
    np.testing.assert_allclose((low[:3], high[:3]), simultaneous_interval(x, seed=1))
    twice = simultaneous_interval(np.repeat(x, 5, 0), np.repeat(np.arange(40), 5), seed=1)
    np.testing.assert_allclose(twice, simultaneous_interval(x, seed=1))


def test_simultaneous_intervals_of_few_values_of_many_groups_are_those_of_all_columns():
    """Nine values a column of forty groups, too few to draw: Student's intervals, at the level of twenty columns."""
    rng = np.random.default_rng(0)
    x = np.full((40, 20), np.nan)
    for column in x.T:
        column[rng.permutation(40)[:9]] = rng.standard_normal(9)
    width = np.diff(simultaneous_interval(x), axis=0)[0]
    wide = 2 * stats.t.isf(0.025 / 20, 8) * np.nanstd(x, axis=0, ddof=1) / 3
    np.testing.assert_allclose(width, wide, rtol=0.07)


def test_parts_of_a_ratio_stand_for_it():
    rng = np.random.default_rng(0)
    below = rng.integers(5, 60, (40, 2)).astype(float)
    below[:3, 1] = 0
    above = rng.binomial(below.astype(int), 0.3).astype(float)
    parts = ratio_parts(above, below)
    np.testing.assert_allclose(np.nanmean(parts, 0), above.sum(0) / below.sum(0))
    assert np.isnan(parts).sum(0).tolist() == [0, 3]
    for column in range(2):
        one = simultaneous_interval(parts[:, column])
        whole = r.ratio_interval(above[:, column], below[:, column], n_boot=4000)
        np.testing.assert_allclose(one, whole, atol=0.1 * (whole[1] - whole[0]))


@pytest.mark.slow
def test_the_best_of_columns_without_effect_seldom_excludes_the_null():
    """Ratios of sums of unequal documents, the best of 9: its interval is that of the band, not of a column alone."""
    rng, times, both = np.random.default_rng(1), 250, np.zeros(2)
    for seed in range(times):
        below = np.repeat(rng.integers(10, 80, (30, 1)), 9, 1)
        above = rng.binomial(below, 0.4)
        best = int((above.sum(0) / below.sum(0)).argmax())
        band = simultaneous_band(ratio_parts(above, below)[:, None], n_boot=300, seed=seed)
        assert band.shape == (2, 1, 9)
        alone = r.ratio_interval(above[:, best], below[:, best], n_boot=300, seed=seed)
        both += [band[0, 0, best] > 0.4, alone[0] > 0.4]
    assert both[0] / times < 0.06
    assert both[1] / times > 0.12


def test_simultaneous_intervals_of_skewed_columns_hold_together():
    rng, times = np.random.default_rng(0), 60
    for columns, sign in ((64, 1), (8, -1)):
        hits = []
        for seed in range(times):
            low, high = simultaneous_interval(sign * rng.lognormal(0, 1, (20, columns)), seed=seed, n_boot=400)
            hits.append(((low <= sign * np.exp(0.5)) & (high >= sign * np.exp(0.5))).all())
        assert np.mean(hits) > 0.87


def test_intervals_that_hold_together_are_as_wide_as_they_have_to_be():
    """One column: Student's interval. Forty: all of them hold in 95 % of the samples, the plain ones in few."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=(15, 1))
    wide = stats.t.ppf(0.975, 14) * one.std(ddof=1) / np.sqrt(15)
    low, high = simultaneous_interval(one, n_boot=20_000)[:, 0]
    np.testing.assert_allclose([low, high], [one.mean() - wide, one.mean() + wide], rtol=0.05)
    samples = rng.normal(size=(120, 15, 40))
    together = [np.prod(simultaneous_interval(x, n_boot=400, seed=s) * [[-1], [1]] > 0) for s, x in enumerate(samples)]
    assert np.mean(together) > 0.87
    assert np.mean([np.prod(r.mean_interval(x, n_boot=200) * [[-1], [1]] > 0) for x in samples[:30]]) < 0.4
    holes = samples[0].copy()
    holes[3:, 5] = holes[2:, 6] = np.nan
    found = simultaneous_interval(holes)
    assert np.isfinite(found[:, 5]).all()
    assert np.isnan(found[:, 6]).all()
    few = simultaneous_interval(samples[0, :5])
    wide = stats.t.isf(0.025 / 40, 4) * samples[0, :5, 0].std(ddof=1) / np.sqrt(5)
    assert float(few[1, 0] - few[0, 0]) == pytest.approx(2 * wide)
