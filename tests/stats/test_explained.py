"""Shares explained, by unit, and bands over layers."""

import numpy as np
import pytest

from tokinterp.stats.explained import explained_band, share_explained


def test_shares_are_drawn_by_unit():
    rng = np.random.default_rng(0)
    total, unit = rng.uniform(1, 2, 40), np.repeat(np.arange(10), 4)
    error = total * (0.1 + 0.05 * unit)  # units differ, rows of a unit do not
    value, low, high = share_explained(error, total, unit)
    assert value == pytest.approx(1 - error.sum() / total.sum())
    apart = share_explained(error, total, np.arange(40))
    assert high - low > 1.7 * (apart[2] - apart[1]), "ten units, not forty rows"
    both = [np.add.reduceat(x, np.arange(0, 40, 4)) for x in (error, total)]
    np.testing.assert_allclose([value, low, high], share_explained(*both, np.arange(10)))
    assert np.isnan(share_explained(error[:8], total[:8], unit[:8])[1:]).all()


@pytest.mark.slow
def test_the_best_layer_of_probes_that_explain_nothing_seldom_explains_something():
    """Units of several rows; the layers of one place belong together, those of another place do not count."""
    rng, times, wrong = np.random.default_rng(0), 200, np.zeros(2)
    unit = np.repeat(np.arange(36), 3)
    for seed in range(times):
        total = rng.uniform(1, 3, (108, 1, 1)) * np.ones((1, 2, 9))
        error = total * (1 + 0.3 * rng.normal(size=total.shape) + 0.3 * rng.normal(size=(36, 2, 9))[unit])
        value, low, _ = share_explained(error, total, unit, n_boot=300, seed=seed)
        band = explained_band(error, total, unit, n_boot=300, seed=seed)
        best = int(value[0].argmax())
        assert band[0, 0, best] < value[0, best] < band[1, 0, best]
        wrong += [band[0, 0, best] > 0, low[0, best] > 0]
    assert wrong[0] / times < 0.06
    assert wrong[1] / times > 0.12
