"""Half-lives of planted curves, and of measured ones."""

import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.behaviour import Decipherment, cipher_conditions, half_life
from tokinterp.behaviour.recovery import half

STARTS = np.array([0, 1, 2, 4, 8, 16, 32])


def test_a_curve_that_halves_with_each_doubling_has_fallen_to_half_after_one():
    curve = 8 / (STARTS + 1)
    assert half(curve, STARTS) == pytest.approx(1)
    line = 10 - 2 * np.log2(STARTS + 1)  # linear between the classes: half of 10 at log2 = 2.5
    assert half(line, STARTS) == pytest.approx(2**2.5 - 1)
    assert np.isnan(half(np.full(7, 3.0), STARTS))
    assert np.isnan(half(-curve, STARTS))
    assert half(np.r_[np.nan, line[1:]], STARTS) == pytest.approx(7)


def planted(noise, n=30):
    """A result whose loss in cipher exceeds that of the plain text by a curve with the half-life 3."""
    model, prompts = tiny(), some_prompts([33] * n)
    run = ti.measure_conditions(
        model, cipher_conditions(prompts), {"d": Decipherment(prompts, layers=[3])}, progress=False
    )
    ds = run["d"].to_dataset()
    start = ds["place"].values
    draw = np.random.default_rng(0)
    loss = ds["loss"].copy()
    loss.loc[{"condition": "plain"}] = 0
    loss.loc[{"condition": "cipher"}] = 4 - np.log2(start + 1) + noise * draw.normal(size=(n, len(start)))
    return ds.assign(loss=loss)


def test_a_planted_half_life_lies_in_its_interval():
    found = half_life(planted(0.3), n_boot=200)
    ti.check(found)
    low, high = found["half_life_interval"].values
    assert low < 3 < high
    assert float(found["half_life"]) == pytest.approx(3, rel=0.2)
    assert float(found["reached"]) == 1
    np.testing.assert_allclose(found["excess"][1], 3, atol=0.2)
    ends = found["excess_interval"]
    assert ((ends[0] < found["excess"]) & (found["excess"] < ends[1])).sum() >= 5


def test_what_never_falls_has_none():
    ds = planted(0.0)
    flat = ds.assign(
        loss=xr.where(ds["condition"] == "cipher", 1.0, 0.0).broadcast_like(ds["loss"]).assign_attrs(ds["loss"].attrs)
    )
    found = half_life(flat, n_boot=20)
    assert np.isnan(found["half_life"])
    assert np.isnan(found["half_life_interval"]).all()
    assert float(found["reached"]) == 0
    with pytest.raises(ValueError, match="name='kl': the result has no such variable"):
        half_life(ds, name="kl")
