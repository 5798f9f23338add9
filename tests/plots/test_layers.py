"""Curves over layers: means, bands, comparison of models."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible, curves_of, tokens_dataset
from matplotlib.figure import Figure

import tokinterp as ti
from tokinterp import plots

mpl.use("Agg")


def test_curve_is_the_mean_and_its_band_the_interval_of_summary():
    ds = curves_of()
    ax = plots.by_layer(ds, "loss")
    means = ti.summary(ds)
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_ydata(), ds["loss"].mean("prompt"))
    np.testing.assert_array_equal(line.get_xdata(), ds["layer"])
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(float(means["loss_interval"].min()))
    assert corners.max() == pytest.approx(float(means["loss_interval"].max()))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "loss of the next token (nat)")
    assert all(float(t).is_integer() for t in ax.get_xticks())
    assert ax.get_legend() is None


def test_new_figure_is_for_print_and_a_given_axes_is_used():
    ax = plots.by_layer(curves_of(), "loss")
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.4)
    assert ax.xaxis.label.get_fontsize() == 8
    mine = Figure().subplots()
    assert plots.by_layer(curves_of(), "loss", ax=mine) is mine
    assert mine.xaxis.label.get_fontsize() == mpl.rcParams["font.size"]  # the caller's settings, not ours
    assert_legible(ax.figure)


def test_further_dimensions_become_lines_and_selection_takes_one():
    ds = curves_of(scale=[2, 4, 8])
    ax = plots.by_layer(ds, "loss")
    assert len(ax.lines) == 3
    assert len({mpl.colors.to_hex(line.get_color()) for line in ax.lines}) == 3
    one = plots.by_layer(ds, "loss", select={"scale": 4})
    np.testing.assert_allclose(one.lines[0].get_ydata(), ds["loss"].sel(scale=4).mean("prompt"))
    two = plots.by_layer(curves_of(shuffle=[0, 5], model=["a", "b"]), "loss")
    assert len(two.lines) == 4
    assert len({line.get_linestyle() for line in two.lines}) == 2
    with pytest.raises(ValueError, match="too many dimensions"):
        plots.by_layer(curves_of(shuffle=[0, 5], model=["a", "b"], scale=[2, 4]), "loss")


def test_comparison_of_models_of_different_depth_is_along_relative_depth():
    ax = plots.by_layer(curves_of(), "loss", other=curves_of(layers=9, n_layers=8))
    assert ax.get_xlabel().startswith("relative depth")
    assert [line.get_xdata().max() for line in ax.lines] == [1, 1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["m4", "m8"]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()  # told apart without colour too
    same = plots.by_layer(curves_of(), "loss", other={"shuffled": curves_of(seed=1)}, label="text", relative=False)
    assert [t.get_text() for t in same.get_legend().get_texts()] == ["text", "shuffled"]
    with pytest.raises(ValueError, match="also a name in other"):
        plots.by_layer(curves_of(), "loss", other={"m4": curves_of(seed=1)})


def test_a_mean_over_some_prompts_only_has_an_open_marker():
    ds = curves_of()
    ds["loss"][:3, 2] = np.nan
    ds["loss"][:, 4] = np.nan
    ax = plots.by_layer(ds, "loss")
    full, partial = ax.lines
    assert partial.get_xdata().tolist() == [2]
    assert partial.get_markerfacecolor() == "white"
    np.testing.assert_allclose(full.get_ydata()[2], ds["loss"][3:, 2].mean())
    assert np.isnan(full.get_ydata()[4])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lost", {}, "no variable 'lost': there are loss"),
        ("loss", {"select": {"scale": 3}}, "not measured at scale 3: there are 2, 4"),
        ("loss", {"select": {"head": 3}}, "no dimension 'head'"),
        ("loss", {"width": "page"}, "'column' or 'double'"),
    ],
)
def test_wrong_calls_say_what_there_is(name, options, message):
    with pytest.raises(ValueError, match=message):
        plots.by_layer(curves_of(scale=[2, 4]), name, **options)


def test_per_token_and_flat_variables_are_refused_by_name():
    ds, _ = tokens_dataset(["a", "b"])
    with pytest.raises(ValueError, match="token_layer_map"):
        plots.by_layer(ds, "surprise")
    with pytest.raises(ValueError, match="no layer or block"):
        plots.by_layer(xr.Dataset({"n": ("prompt", [1.0, 2.0])}), "n")


def test_bands_and_names_belong_to_their_own_lines():
    ds = curves_of(variant=["raw", "normed"])
    ds["loss"] = ds["loss"] + xr.DataArray([0.0, 10.0], dims="variant", coords={"variant": ["raw", "normed"]})
    ax = plots.by_layer(ds, "loss")
    means = ti.summary(ds)
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    handles = [h.get_color() for h in ax.get_legend().get_lines()]
    for line, band, variant in zip(ax.lines, ax.collections, ("raw", "normed"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), ds["loss"].sel(variant=variant).mean("prompt"))
        corners = band.get_paths()[0].vertices[:, 1]
        interval = means["loss_interval"].sel(variant=variant)
        assert (corners.min(), corners.max()) == pytest.approx((float(interval.min()), float(interval.max())))
        assert line.get_color() == handles[texts.index(variant)]


def test_layers_chosen_stand_at_their_own_numbers_and_depths():
    ds = curves_of()
    ax = plots.by_layer(ds, "loss", layers=range(1, 4))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["loss"].mean("prompt").sel(layer=[1, 2, 3]))
    relative = plots.by_layer(ds, "loss", layers=range(1, 4), relative=True)
    np.testing.assert_allclose(relative.lines[0].get_xdata(), [0.25, 0.5, 0.75])


def test_a_variable_without_prompts_is_drawn_with_its_own_interval():
    at = {"layer": [0, 1]}
    ds = xr.Dataset(
        {"x": ("layer", [1.0, 2.0], {"units": "1"}), "y": ("layer", [5.0, 6.0], {"units": "1"}),
         "x_interval": (("bound", "layer"), [[0.5, 1.5], [1.25, 2.25]]),
         "y_interval": (("bound", "layer"), [[4.0, 5.0], [7.0, 8.0]])}, at,
    )  # fmt: skip
    for name, ends in (("x", (0.5, 2.25)), ("y", (4.0, 8.0))):
        corners = plots.by_layer(ds, name).collections[0].get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == ends
