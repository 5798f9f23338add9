"""The LLM-Microscope dimension: right without duplicates, inflated by them exactly as described."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from golden.llm_microscope import paired

from tokinterp.geometry.kernels.airi import airi_twonn

torch.set_num_threads(1)
FOUND = json.loads((ROOT / "tests" / "golden" / "llm_microscope.json").read_text(encoding="utf-8"))


def cloud(share, seed, n=2048, d=10):
    """n points of a d-dimensional Gaussian, of which a share coincide with others in pairs."""
    return torch.from_numpy(paired(share, seed, n, d))


# specs of the defect, measured with the released code: share of points with a coincident one -> estimate
@pytest.mark.parametrize(("share", "published"), [(0, 9.3), (0.01, 11.0), (0.02, 11.5), (0.1, 19.4), (0.4, 59.7)])
def test_duplicates_inflate_the_released_estimate(share, published):
    found = np.mean([float(airi_twonn(cloud(share, seed))) for seed in range(6)])
    assert found == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize("share", [0, 0.1, 0.4])
def test_counting_only_the_points_on_the_line_repairs_it(share):
    found = np.mean([float(airi_twonn(cloud(share, seed), keep_duplicates=False)) for seed in range(6)])
    assert found == pytest.approx(9.5, abs=0.8)


@pytest.mark.parametrize("case", FOUND["dimension"], ids=lambda c: f"{c['share']} coincide")
def test_equals_the_authors_function(case):
    x = cloud(case["share"], case["seed"], case["n"])
    wanted = pytest.approx(case["dimension"], rel=1e-6)  # their F is float32
    assert float(airi_twonn(x, block=77)) == wanted


def test_shift_scale_and_rotation_change_nothing():
    x = cloud(0, 1, n=400)
    q = torch.linalg.qr(cloud(0, 2, n=10))[0]
    assert float(airi_twonn(7 * x @ q + 3)) == pytest.approx(float(airi_twonn(x)), rel=1e-9)


def test_bad_clouds():
    assert airi_twonn(torch.ones(50, 4)).isnan()
    with pytest.raises(ValueError, match="at least 3 points"):
        airi_twonn(torch.ones(2, 4))
    with pytest.raises(ValueError, match="reduction=0"):
        airi_twonn(torch.randn(9, 4), reduction=0)
