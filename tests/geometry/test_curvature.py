"""Turning angles: known clouds have known curvature, and every number equals its literal formula."""

import itertools

import numpy as np
import pytest
import torch
from contract import assert_contract
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.curvature import Curvature
from tokinterp.geometry.kernels.curvature import position_curvature, turning


def angle(a, b):
    return np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def curvature_of(rows):
    x = torch.as_tensor(rows, dtype=torch.float32)[None]
    return np.degrees(position_curvature(x, torch.ones(1, x.shape[1], dtype=torch.bool))[0, 1:-1].numpy())


def test_known_paths():
    noise = np.random.default_rng(0).standard_normal((4000, 300))
    independent = curvature_of(noise)
    assert independent.mean() == pytest.approx(120, abs=float(4 * independent.std() / 36))
    walk = curvature_of(noise.cumsum(0))
    assert walk.mean() == pytest.approx(90, abs=float(4 * walk.std() / 36))
    line = curvature_of(np.arange(50)[:, None] * np.random.default_rng(1).standard_normal(30) + 3)
    assert np.abs(line).max() < 0.2
    back_and_forth = curvature_of(np.tile([[0.0, 0], [1, 2]], (10, 1)))
    assert back_and_forth == pytest.approx(180, abs=0.2)


def test_published_angle_ranks_the_other_way():
    """120 degrees becomes 60: independent points look straighter than a random walk."""
    noise = np.random.default_rng(0).standard_normal((500, 200))
    unsigned = [np.minimum(c, 180 - c).mean() for c in (curvature_of(noise), curvature_of(noise.cumsum(0)))]
    assert unsigned[0] == pytest.approx(60, abs=1)
    assert unsigned[0] < unsigned[1]
    assert curvature_of(noise).mean() > curvature_of(noise.cumsum(0)).mean()


def test_a_step_of_no_length_has_no_angle():
    rows = np.array([[0.0, 0], [1, 0], [1, 0], [1, 1], [2, 1]])
    assert np.isnan(curvature_of(rows)).tolist() == [True, True, False]
    assert bool(turning(torch.zeros(2), torch.ones(2)).isnan())


def test_every_number_equals_its_formula(device):
    model = StandIn(device=device)
    ds = model.measured(Curvature(exclude=("special",), tokens=None)).result()
    for n, length in enumerate(model.lengths):
        h = model.streams[n][:, 1:]  # without BOS
        one, rows = ds.sel(prompt=n), ds.isel(token=(ds["token_prompt"] == n).values)
        for layer in range(4):
            steps = np.diff(h[layer], axis=0)
            angles = [angle(a, b) for a, b in itertools.pairwise(steps)]
            assert int(one["n_angles"].sel(layer=layer)) == len(angles) == max(0, length - 3)
            found = float(one["curvature"].sel(layer=layer))
            if not angles:
                assert np.isnan(found)
                continue
            assert found == pytest.approx(np.mean(angles), abs=1e-5)
            unsigned = np.mean([min(a, np.pi - a) for a in angles])
            assert float(one["curvature_absolute"].sel(layer=layer)) == pytest.approx(unsigned, abs=1e-5)
            np.testing.assert_allclose(rows["token_curvature"].sel(layer=layer)[2:-1], angles, atol=1e-5)
        steps = np.diff(h, axis=0)
        for layer in (1, 2):
            bend = [angle(a, b) for a, b in zip(steps[layer - 1], steps[layer], strict=True)]
            assert float(one["depth_curvature"].sel(layer=layer)) == pytest.approx(np.mean(bend), abs=1e-5)
            np.testing.assert_allclose(rows["token_depth_curvature"].sel(layer=layer)[1:], bend, atol=1e-5)
        assert np.isnan(one["depth_curvature"].sel(layer=[0, 3])).all()
        norm = np.linalg.norm(h, axis=-1)
        expected = {
            "relative_step": (np.linalg.norm(steps, axis=-1) / norm[:-1]).mean(1),
            "norm_ratio": (norm[1:] / norm[:-1]).mean(1),
            "step_cosine": ((h[1:] * h[:-1]).sum(-1) / norm[1:] / norm[:-1]).mean(1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(one[name], values, atol=1e-5, err_msg=name)


def test_a_massive_row_takes_its_neighbours_with_it():
    model = StandIn(lengths=(20,))
    model.streams[0][:, 10] = 1e4
    ds = model.measured(Curvature()).result()
    assert (ds["n_angles"] == 20 - 3 - 3).all()
    whole = model.measured(Curvature(exclude=())).result()
    assert (whole["n_angles"] == 18).all()


@pytest.mark.parametrize("options", [{}, {"depth": False, "layers": [1, 3]}, {"layers": [2], "tokens": 2}])
def test_contract(options):
    ds = assert_contract(lambda: Curvature(**options), atol=1e-3)
    assert ("block" in ds.dims) == options.get("depth", True)
    assert ds.sizes["layer"] == len(options.get("layers", range(4)))
    assert 1 < float(ds["curvature"].mean()) < np.pi


def test_refusals():
    with pytest.raises(ValueError, match="an angle needs three"):
        ti.measure(tiny(), some_prompts([2, 2]), {"c": Curvature()}, progress=False)
    with pytest.raises(ValueError, match="tokens=-1"):
        Curvature(tokens=-1)


def test_small_angles_are_exact():
    """Of 1e-4 rad an arc cosine in float32 sees 3 of 4 digits less; equal steps have the angle 0."""
    from tokinterp.geometry.kernels.curvature import turning

    for angle in (0.0, 1e-4, 1e-2, 1.0, np.pi - 1e-3):
        a = torch.tensor([[2.0, 0.0, 0.0]])
        b = torch.tensor([[np.cos(angle), np.sin(angle), 0.0]], dtype=torch.float32) * 7
        assert float(turning(a, b)) == pytest.approx(angle, rel=1e-3, abs=1e-7)
    step = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    assert float(turning(step, 3 * step).max()) < 1e-6
    assert bool(turning(step, 0 * step).isnan().all())


def test_a_row_that_is_massive_at_one_of_three_layers_has_no_bend():
    model = StandIn((12,))
    model.streams[0][0][3] *= 1000  # before layer 1
    model.streams[0][3][4] *= 1000  # after layer 2
    ds = model.measured(Curvature(tokens=None)).result()
    bend = ds["token_depth_curvature"].values
    assert np.isnan(bend[3]).tolist() == [True, True, False, True]
    assert np.isnan(bend[4]).tolist() == [True, False, True, True]
    assert np.isnan(bend[6]).tolist() == [True, False, False, True]
    angles = ds["token_curvature"].values[:, 0]
    assert np.flatnonzero(np.isnan(angles)).tolist() == [0, 1, 2, 3, 4, 11]
