"""Axes: what one extreme place does, ranges, ticks where numbers grow by ratios."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import curves_of

from tokinterp import plots

mpl.use("Agg")


def flat(values, **facts):
    return xr.Dataset(
        {"x": ("layer", values, {"long_name": "x", "units": "1", **facts})}, {"layer": range(len(values))}
    )


def test_one_extreme_layer_does_not_flatten_the_rest_and_is_named():
    ax = plots.curves(flat([27.0, 2.0, 1.9, 1.7, 1.5, 1.8]), "x")
    assert ax.get_ylim()[1] < 3
    assert [t.get_text() for t in ax.texts] == ["to 27"]
    assert ax.texts[0].xy[0] == 0
    assert ax.lines[0].get_ydata()[0] == 27  # the line itself stays what it is
    for values in ([2.0, 2.1, 1.9, 1.7], [9.0, 7.0, 5.0, 3.0, 1.0]):
        ax = plots.curves(flat(values), "x")
        assert not ax.texts
        assert ax.get_ylim()[1] >= max(values)


def test_ranges_begin_where_numbers_can_begin():
    assert plots.curves(flat([0.5, 0.9, 0.7], range="0..1"), "x").get_ylim() == pytest.approx((-0.02, 1.02))
    low, high = plots.curves(flat([0.01, 0.02, 0.03], range="0..1"), "x").get_ylim()
    assert low == 0
    assert 0.03 < high < 0.05
    assert plots.curves(flat([5.0, 6.0, 7.0], range="0.."), "x").get_ylim()[0] == 0
    far = plots.curves(flat([0.9, -12.0, 0.8], range="0..1"), "x")
    assert far.get_ylim()[0] == pytest.approx(-1.02)
    assert [t.get_text() for t in far.texts] == ["to -12"]
    assert plots.curves(flat([1.0, 10.0, 1e4], log=1), "x").get_yscale() == "log"
    assert plots.curves(flat([0.0, 10.0, 1e4], log=1), "x").get_yscale() == "linear"


def test_an_axis_that_grows_by_ratios_has_ticks_at_its_numbers():
    ds = curves_of(scale=[2, 4, 8, 16]).isel(layer=0, drop=True)
    ax = plots.curves(ds, "loss", along="scale")
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "4", "8", "16"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["loss"].mean("prompt"))
    zero = plots.curves(curves_of(n_fillers=[0, 5, 10, 50]).isel(layer=0, drop=True), "loss")
    assert zero.get_xscale() == "symlog"
    assert zero.get_xlabel() == "filler tokens"
    counts = plots.curves(curves_of(n_fillers=[0, 1, 2]).isel(layer=0, drop=True), "loss")
    assert counts.get_xscale() == "linear", "0, 1, 2 do not grow by ratios"
    layers = plots.curves(curves_of(), "loss")
    assert layers.get_xscale() == "linear"


def test_a_clipped_axis_hides_no_low_value_and_no_level_by_chance():
    two = np.array([[100.0, 0.1, 0.2, 0.3, 0.2], [-20.0, 0.2, 0.1, 0.2, 0.3]])
    ds = xr.Dataset({"x": (("kind", "layer"), two)}, {"kind": ["a", "b"], "layer": range(5)})
    assert plots.curves(ds, "x").get_ylim()[0] < -20
    ax = plots.curves(flat([270.0, 2.0, 1.9, 1.7, 1.5, 1.8], chance=6.0), "x")
    assert 6 < ax.get_ylim()[1] < 100
    assert [t.get_text() for t in ax.texts] == ["to 270"]


def test_the_arrow_stands_where_the_line_that_goes_beyond_has_its_place():
    near, far = flat([1.0, 1.1, 1.2, 1.1]), flat([50.0, 1.1, 1.2, 1.0])
    far = far.assign_coords(layer=[5, 6, 7, 8])
    ax = plots.curves(near, "x", other={"far": far})
    assert [(t.xy[0], t.get_text()) for t in ax.texts] == [(5, "to 50")]
