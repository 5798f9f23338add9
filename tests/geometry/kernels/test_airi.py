"""The LLM-Microscope dimension: right without duplicates, inflated by them exactly as described."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from contract import assert_contract
from golden.llm_microscope import paired
from standin import StandIn

import tokinterp as ti
from tokinterp.geometry.kernels.airi import airi_from_neighbours, airi_twonn
from tokinterp.kernels.neighbours import nearest

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
    assert float(airi_from_neighbours(nearest(x, 2))) == wanted


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


# -- from the table of neighbours, and by name ----------------------------------------------------------------------
@pytest.mark.parametrize("share", [0, 0.1, 0.4])
def test_table_of_distinct_neighbours_gives_the_same_number(share):
    x = torch.stack([cloud(share, seed, n=300) for seed in range(3)])
    x[1, 5:9] = x[1, 4]  # one point five times
    mask = torch.ones(3, 300, dtype=torch.bool)
    mask[2, 250:] = False
    found = airi_from_neighbours(nearest(x, 2, mask))
    wanted = [float(airi_twonn(one[keep])) for one, keep in zip(x, mask, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


def test_table_of_bad_clouds():
    x = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(0))
    x[0] = 1
    x[1, 3, 2] = torch.nan
    found = airi_from_neighbours(nearest(x, 2))
    assert found.isnan().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="1 ranks"):
        airi_from_neighbours(nearest(x, 1))


def test_measured_by_name_and_by_per_cloud():
    model = StandIn((90, 120), n_layers=1)
    model.streams[0][1][40:60] = model.streams[0][1][20:40]
    ask = {"scales": (2,), "k": 4, "twonn": "airi"}
    for exclude, begin in ((("special",), 1), ((), 0)):
        ds = model.measured(ti.geometry.IntrinsicDimension(**ask, exclude=exclude)).result()
        own = model.measured(ti.geometry.PerCloud(airi_twonn, name="airi", distinct=False, exclude=exclude)).result()
        for n in range(2):
            for layer in range(2):
                x = torch.from_numpy(model.streams[n][layer][begin:]).float()
                wanted = pytest.approx(float(airi_twonn(x)), rel=1e-6)
                assert float(ds["dimension_twonn"].sel(prompt=n, layer=layer)) == wanted
                assert float(own["airi"].sel(prompt=n, layer=layer)) == wanted
    assert ds["dimension_twonn"].attrs["fit"] == "airi"
    assert "inflates" in ds["dimension_twonn"].attrs["duplicates"]
    clean = model.measured(ti.geometry.PerCloud(airi_twonn, name="airi")).result()["airi"]
    assert float(own["airi"].sel(prompt=0, layer=1)) > 1.2 * float(clean.sel(prompt=0, layer=1))


def test_contract_of_the_named_fit():
    assert_contract(lambda: ti.geometry.IntrinsicDimension((2,), k=4, twonn="airi", small="nan"))
