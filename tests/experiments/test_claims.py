"""Verdicts follow from intervals and targets; numbers have the intervals of the results they are made of."""

import numpy as np
import pytest
import xarray as xr

import tokinterp as ti
from experiments.runner.claims import Claim, Number, curve, evaluate, given, judge, mean

NAN = float("nan")


@pytest.mark.parametrize(
    ("target", "number", "verdict"),
    [
        ({"above": 0.5}, (0.7, 0.6, 0.8), "yes"),
        ({"above": 0.5}, (0.7, 0.5, 0.8), "not shown"),
        ({"above": 0.5}, (0.4, 0.3, 0.6), "not shown"),
        ({"above": 0.5}, (0.4, 0.3, 0.5), "no"),
        ({"above": 0}, (0.4, NAN, NAN), "no interval"),
        ({"above": 0}, (-1, 0, NAN), "no interval"),
        ({"below": 1}, (0.4, 0.3, 0.9), "yes"),
        ({"below": 1}, (0.9, 0.8, 1.1), "not shown"),
        ({"below": 1}, (1.5, 1.2, 1.6), "no"),
        ({"near": (0, 0.05)}, (0.05, NAN, NAN), "yes"),
        ({"near": (0, 0.05)}, (-0.06, -1, 1), "no"),
        ({"above": 0}, (NAN, NAN, NAN), "not measured"),
        ({}, (0.7, 0.6, 0.8), "no target"),
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(target, number, verdict):
    assert judge(Claim("it is", "we", "how", dict, **target), Number(*number)) == verdict


def test_only_what_was_measured_of_the_right_model_is_judged():
    ds = xr.Dataset({"x": 1.0})
    claims = [
        Claim("first", "we", "x", lambda r: {"x": Number(float(r["a"]["x"])), "by layer": [1.0, 2.0]}, ("a",), above=0),
        Claim("second", "we", "x", lambda r: {"x": Number(1)}, ("b",)),
        Claim("third", "we", "x", lambda r: {"x": Number(1)}, ("a",), model="gpt2"),
    ]
    (row,) = evaluate(claims, {"a": ds}, "bundled")
    assert (row["claim"], row["target"], row["verdict"]) == ("first", "above 0", "no interval")
    assert row["numbers"]["by layer"] == {"curve": [1.0, 2.0]}
    assert [r["claim"] for r in evaluate(claims, {"a": ds}, "gpt2")] == ["first", "third"]
    with pytest.raises(TypeError, match="cannot be judged"):
        evaluate([Claim("curve", "we", "x", lambda r: {"x": [1.0]})], {})


def test_a_condition_that_was_left_out_is_not_measured_and_the_others_are():
    ds = xr.Dataset({"x": (("null", "prompt"), np.arange(8.0).reshape(1, 8))}, {"null": ["none"]})
    claims = [
        Claim("more", "we", "x", lambda r: {"x": mean(r["a"]["x"], null="shuffle:5")}, ("a",), above=0),
        Claim("text", "we", "x", lambda r: {"x": mean(r["a"]["x"], null="none")}, ("a",), above=0),
    ]
    left, there = evaluate(claims, {"a": ds})
    assert left["verdict"] == "not measured"
    ((label, number),) = left["numbers"].items()
    assert label == "not in the results: 'shuffle:5'"
    assert np.isnan(number["value"])
    assert there["verdict"] == "yes"


def test_means_have_the_interval_of_the_documents():
    values = np.random.default_rng(0).random((12, 3))
    v = xr.DataArray(values, dims=("prompt", "layer"), coords={"layer": [0, 1, 2]}, name="v")
    found = mean(v, layer=2)
    own = ti.summary(xr.Dataset({"v": v}).sel(layer=2))
    assert found[:3] == pytest.approx((values[:, 2].mean(), *own["v_interval"].values))
    assert mean(v).value == pytest.approx(values.mean())
    windows = v.assign_coords(document=("prompt", np.repeat([0, 1, 2, 3], 3)))
    assert mean(windows, layer=2)[1:3] != pytest.approx(found[1:3])
    spans = v.isel(layer=0, drop=True).rename(prompt="span").assign_coords(span_prompt=("span", np.arange(12)))
    assert mean(spans, "span").value == pytest.approx(values[:, 0].mean())
    assert curve(v) == pytest.approx(values.mean(0).tolist())
    ds = xr.Dataset(
        {"a": ("layer", [1.0, 2]), "a_interval": (("layer", "bound"), [[0, 3], [1, 4]]), "a_band": (
            ("layer", "bound"), [[-1, 5], [-2, 6]])}, {"layer": [3, 4], "bound": ["lower", "upper"]},
    )  # fmt: skip
    assert given(ds, "a", layer=4) == (2, 1, 4, "")
    assert given(ds, "a", "a_band", layer=4) == (2, -2, 6, "")
