"""Paired tests of the filler experiments."""

import numpy as np
import pytest

from tokinterp.stats.resample import mean_interval
from tokinterp.stats.tests import binomial, sign_test, spearman


def test_paired_tests():
    assert binomial(10, 0) == 2 / 2**10
    assert sign_test(np.array([1, 1, 0, np.nan, -1.0])) == 1.0
    assert spearman(np.arange(5), np.array([1, 4, 9, 16, 25])) == pytest.approx(1)
    assert spearman(np.arange(4), np.array([2, 1, 1, 0])) == pytest.approx(-0.9486833)
    assert np.isnan(spearman(np.arange(4), np.ones(4)))
    rng = np.random.default_rng(0)
    inside = [np.prod(mean_interval(rng.normal(size=40), n_boot=400, seed=s) * [-1, 1] > 0) for s in range(60)]
    assert np.mean(inside) > 0.8
