"""Dimension from neighbour distances: what is left out where, and that the unbiased form is unbiased."""

import math

import pytest
import torch

from tokinterp.geometry.kernels.gride import gride, local_dimension, mle


def test_outlying_ratios_are_left_out_of_the_estimate_alone():
    g = torch.Generator().manual_seed(0)
    ratio = torch.rand(200, generator=g, dtype=torch.float64).clamp_min(0.05) ** (-1 / 4)
    ratio[7], ratio[11] = 1e6, 1.0  # an outlier and a tie
    near = torch.rand(200, generator=g, dtype=torch.float64) + 1
    found = gride(torch.stack([near, near * ratio], -1)[None], torch.ones(1, 200, dtype=torch.bool), (2,))
    fair = torch.ones(200, dtype=torch.bool)
    fair[[7, 11]] = False
    dimension = (198 - 1) / float(ratio[fair].log().sum())
    assert float(found.dimension) == pytest.approx(dimension)
    assert float(found.error) == pytest.approx(dimension / math.sqrt(199))  # the information of the outlier counts
    assert int(found.n_tied) == 1
    assert int(found.n_cut) == 1
    assert float(found.distance) == pytest.approx(float((near + near * ratio).mean() / 2))


@pytest.mark.parametrize("k", [4, 10])
def test_unbiased_is_unbiased_and_the_other_is_too_large(k):
    u = torch.rand(40_000, k - 1, generator=torch.Generator().manual_seed(k), dtype=torch.float64).sort(1).values
    near = torch.cat([u, torch.ones(len(u), 1)], 1) ** (1 / 3)  # volumes of three-dimensional balls, the last one 1
    assert float(local_dimension(near, k, unbiased=True).mean()) == pytest.approx(3, rel=0.02)
    assert float(local_dimension(near, k).mean()) == pytest.approx(3 * (k - 1) / (k - 2), rel=0.02)
    valid = torch.ones(1, len(u), dtype=torch.bool)
    assert float(mle(near[None], valid, k)) == pytest.approx(3, rel=0.02)  # the harmonic mean of the biased ones
    assert float(mle(near[None], valid, k, average="arithmetic", unbiased=True)) == pytest.approx(3, rel=0.02)
