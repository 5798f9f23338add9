"""How evenly tokens are used: closed forms."""

import numpy as np
import pytest

from tokinterp.tokenizers.counting import average_rank, divergence, renyi_efficiency, renyi_entropy


def test_even_use_is_the_most():
    even = np.array([4, 4, 4, 4, 0])
    for alpha in (0.5, 1, 2.5):
        assert renyi_entropy(even, alpha) == pytest.approx(np.log(4))
        assert renyi_efficiency(even, alpha) == pytest.approx(1)
    assert average_rank(even) == 1.5
    assert np.isnan(renyi_efficiency(np.array([3, 0])))


def test_entropy_of_two_types():
    p = np.array([0.8, 0.2])
    assert renyi_entropy(np.array([8, 2]), 2) == pytest.approx(-np.log(0.68))
    assert renyi_entropy(np.array([8, 2]), 1) == pytest.approx(-(p * np.log(p)).sum())
    assert average_rank(np.array([2, 8])) == pytest.approx(0.2)


def test_divergence_is_that_of_scipy():
    from scipy.spatial.distance import jensenshannon

    a, b = np.array([5, 1, 0, 3]), np.array([1, 0, 7, 2])
    assert divergence(a, b) == pytest.approx(jensenshannon(a / a.sum(), b / b.sum(), base=2) ** 2)
    assert np.isnan(divergence(a, 0 * b))
