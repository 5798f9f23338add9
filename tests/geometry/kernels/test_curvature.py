"""Angles of known paths, and what has none."""

import math

import numpy as np
import torch

from tokinterp.geometry.kernels.curvature import between, nanmean, position_curvature, turning


def test_angles_are_those_of_the_arc_cosine():
    a, b = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0)).double()
    cosine = torch.nn.functional.cosine_similarity(a, b)
    torch.testing.assert_close(turning(a, b).double(), cosine.arccos(), rtol=1e-5, atol=1e-5)


def test_small_angles_keep_their_digits():
    turn = 1e-5
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([math.cos(turn), math.sin(turn)])
    np.testing.assert_allclose(float(between(a, b)), turn, rtol=1e-3)
    np.testing.assert_allclose(math.pi - float(between(a, -b)), turn, rtol=0.1)


def test_a_polygon_turns_by_its_angle_at_each_inner_position():
    angle = 2 * math.pi / 8 * torch.arange(6)
    path = torch.stack([angle.cos(), angle.sin()], -1)[None]
    keep = torch.ones(1, 6, dtype=torch.bool)
    found = position_curvature(path, keep)[0]
    assert found.isnan().tolist() == [True, False, False, False, False, True]
    torch.testing.assert_close(found[1:-1], torch.full((4,), math.pi / 4), rtol=1e-5, atol=1e-6)
    keep[0, 2] = False
    assert position_curvature(path, keep)[0].isnan().tolist() == [True, True, True, True, False, True]
    assert position_curvature(path[:, :2], keep[:, :2]).isnan().all()


def test_a_step_of_no_length_has_no_angle():
    still = torch.tensor([[[0.0, 0], [1, 0], [1, 0], [2, 0]]])
    assert position_curvature(still, torch.ones(1, 4, dtype=torch.bool)).isnan().all()


def test_means_leave_nan_out():
    mean, number = nanmean(torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3]))
    assert number.tolist() == [2, 0]
    assert float(mean[0]) == 2
    assert mean.dtype == torch.float64
    assert bool(mean[1].isnan())
