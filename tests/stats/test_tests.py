"""Exact tests against enumeration, ranks and correlations against counting, false discovery against its definition."""

from itertools import product

import numpy as np
import pytest
from scipy import stats as peer

from tokinterp.stats.tests import binomial, false_discovery, pearson, ranks, sign_test, spearman


def enumerated(a, b):
    """Share of all outcomes of a + b fair coins that are no more likely than this one."""
    heads = np.array([sum(x) for x in product((0, 1), repeat=a + b)])
    count = np.bincount(heads, minlength=a + b + 1)
    return count[count <= count[a]].sum() / count.sum()


@pytest.mark.parametrize(("a", "b"), [(0, 1), (3, 1), (5, 0), (4, 4), (2, 7)])
def test_binomial_and_sign_test_by_enumeration(a, b):
    p = enumerated(a, b)
    assert binomial(a, b) == pytest.approx(p)
    differences = np.array([0.5] * a + [-2.0] * b + [0.0, 0.0, np.nan])  # neither zeros nor missing ones take part
    assert sign_test(differences) == pytest.approx(p)
    assert sign_test(-differences) == pytest.approx(p)


def test_nothing_to_test_is_nan():
    assert np.isnan(binomial(0, 0))
    assert np.isnan(sign_test(np.array([0.0, np.nan])))


def test_ranks_count_what_is_smaller_and_half_of_what_is_equal():
    x = np.array([3.0, 1.0, 1.0, 7.0, 3.0, 3.0])
    wanted = [(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]
    np.testing.assert_array_equal(ranks(x), wanted)


def test_correlations_by_their_sums():
    rng = np.random.default_rng(0)
    x, y = rng.gamma(1, size=(2, 40))
    x[3] = y[5] = np.nan
    x[7] = x[8]
    a, b = (v[np.isfinite(x * y)] for v in (x, y))
    for found, (u, v) in ((pearson(x, y), (a, b)), (spearman(x, y), (ranks(a), ranks(b)))):
        u, v = u - u.mean(), v - v.mean()
        assert found == pytest.approx((u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum()))
    assert np.isnan(pearson(a, np.ones(len(a))))
    assert np.isnan(pearson(a[:2], b[:2]))


def test_false_discovery_is_the_least_level_of_the_step_up_procedure():
    p = np.array([0.01, 0.8, np.nan, 0.04, 0.03, 0.011, 0.5])
    known = p[np.isfinite(p)]
    levels = np.arange(1, 2001) / 2000
    rejected = []
    for level in levels:  # the largest k with p_(k) <= level k / m; all up to it are rejected
        ordered = np.sort(known)
        passed = np.flatnonzero(ordered <= level * np.arange(1, len(known) + 1) / len(known))
        rejected.append(p <= (ordered[passed[-1]] if len(passed) else -1))
    first = np.array([levels[r.argmax()] if r.any() else 1.0 for r in np.array(rejected).T])
    found = false_discovery(p)
    assert np.isnan(found).tolist() == np.isnan(p).tolist()
    np.testing.assert_allclose(found[np.isfinite(p)], first[np.isfinite(p)], atol=1e-3)


@pytest.mark.parametrize(("a", "b"), [(5, 0), (0, 5), (3, 4), (9, 2), (1, 1)])
def test_binomial_counts_all_outcomes_that_are_no_likelier(a, b):
    n = a + b
    heads = np.array([sum(o) for o in product((0, 1), repeat=n)])
    likely = {k: (heads == k).mean() for k in range(n + 1)}
    assert binomial(a, b) == pytest.approx(sum(p for p in likely.values() if p <= likely[a] * (1 + 1e-9)))


def test_sign_test_leaves_zeros_and_nan_out():
    assert sign_test(np.array([1.0, 2, 0, 0, np.nan, 3, -1])) == pytest.approx(binomial(3, 1))
    assert np.isnan(sign_test(np.array([0.0, np.nan])))


def test_correlations_are_those_of_scipy_over_pairs_with_both_values():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40))
    y = (y + x).round(1)  # with ties
    x[3], y[7] = np.nan, np.inf
    ok = np.isfinite(x) & np.isfinite(y)
    assert pearson(x, y) == pytest.approx(peer.pearsonr(x[ok], y[ok])[0])
    assert spearman(x, y) == pytest.approx(peer.spearmanr(x[ok], y[ok])[0])
    np.testing.assert_array_equal(ranks(y[ok]), peer.rankdata(y[ok]))


def test_a_constant_and_few_pairs_have_no_correlation():
    x = np.arange(5.0)
    assert np.isnan(pearson(x, np.full(5, 0.1) + 1e-17 * x))
    assert np.isnan(pearson(x[:2], x[:2]))
    assert pearson(x, 1e9 + x) == pytest.approx(1)
    assert np.isnan(spearman(x, np.ones(5)))


def test_false_discovery_rates_are_those_of_the_definition():
    p = np.array([0.01, np.nan, 0.2, 0.03, 0.03])
    some = np.sort(p[np.isfinite(p)])
    expected = [min(len(some) * q / (k + 1) for k, q in enumerate(some) if q >= v) for v in p[np.isfinite(p)]]
    found = false_discovery(p)
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[np.isfinite(p)], np.minimum(expected, 1))
