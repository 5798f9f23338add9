"""Maps: of tokens, of pairs of layers, of heads; colours that a few values do not use up."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible, tokens_dataset

from tokinterp import plots

mpl.use("Agg")


def test_token_map_shows_the_values_of_one_prompt_in_order_of_position():
    texts = ["<s>", " The", " Nile", "\n", "$x$", "é", "水", "語", "_^{"]
    ds, values = tokens_dataset(texts)
    ds["surprise"][0, 0] = np.nan
    ax = plots.maps(ds, "surprise", prompt=7)
    mesh = ax.collections[0].get_array()
    expected = values.T.copy()
    expected[0, int(ds["position"][0])] = np.nan
    np.testing.assert_array_equal(mesh.filled(np.nan), expected)
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[:5] == ["<s>", "␣The", "␣Nile", "⏎", "$x$"]
    assert labels[6:8] == ["□", "□"]  # what the font cannot show
    assert "surprise (nat)" in [a.get_ylabel() for a in ax.figure.axes]
    assert_legible(ax.figure)
    some = plots.maps(ds, "surprise", prompt=7, positions=[2, 1])
    assert [t.get_text() for t in some.get_xticklabels()] == ["␣The", "␣Nile"]


@pytest.mark.parametrize(
    ("prompt", "positions", "message"),
    [(8, None, "prompt 8 has no tokens here"), (7, [50], "no positions")],
)
def test_missing_tokens_are_named(prompt, positions, message):
    ds, _ = tokens_dataset(["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        plots.maps(ds, "surprise", prompt=prompt, positions=positions)


def drawn(ax):
    return np.asarray(ax.collections[0].get_array())


def test_pairs_and_heads_are_the_right_way_round():
    rng = np.random.default_rng(0)
    pair, mass = rng.random((2, 4, 4)), rng.random((5, 3, 2))
    ds = xr.Dataset(
        {"pair": (("k", "layer", "other_layer"), pair), "mass": (("prompt", "head", "block"), mass.swapaxes(1, 2)),
         "slots": (("slot", "layer"), rng.random((6, 4)))},
        {"k": [1, 4], "layer": range(4), "other_layer": range(4), "block": range(3), "head": range(2),
         "slot": range(6)},
    )  # fmt: skip
    ax = plots.maps(ds, "pair", select={"k": 4})
    np.testing.assert_array_equal(drawn(ax), pair[1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("other layer", "layer")
    with pytest.raises(ValueError, match="choose one value of k"):
        plots.maps(ds, "pair")
    ax = plots.maps(ds, "mass")
    np.testing.assert_allclose(drawn(ax), mass.mean(0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "block")
    np.testing.assert_array_equal(drawn(plots.maps(ds, "slots")), ds["slots"].values.T)
    with pytest.raises(ValueError, match="prompt=0: mass has no values of single tokens"):
        plots.maps(ds, "mass", prompt=0)


def test_one_extreme_token_does_not_make_the_map_dark():
    values = np.arange(200.0).reshape(4, 50)
    values[0, 0] = 1e6
    ds = xr.Dataset({"x": (("layer", "other_layer"), values)}, {"layer": range(4), "other_layer": range(50)})
    ax = plots.maps(ds, "x")
    low, high = ax.collections[0].get_clim()
    assert 190 < high < 200
    assert 0 <= low < 10
    assert plots.maps(ds, "x", limits=(0, 5)).collections[0].get_clim() == (0, 5)
    ds["x"].attrs["range"] = "0..1"
    ds["x"][:] = np.linspace(0.2, 0.9, 200).reshape(4, 50)
    assert plots.maps(ds, "x").collections[0].get_clim() == (0, 1)


def test_colours_around_a_chance_of_nothing_are_even_and_chance_is_in_the_scale():
    values = np.linspace(-1, 3, 12).reshape(3, 4)
    ds = xr.Dataset({"gain": (("layer", "other_layer"), values, {"chance": 0.0})}, {"layer": range(3)})
    mesh = plots.maps(ds, "gain").collections[0]
    assert mesh.get_clim() == (-3, 3)
    assert mesh.get_cmap().name == "RdBu_r"
    ds = xr.Dataset({"x": (("layer", "other_layer"), values), "x_null": (("layer", "other_layer"), values * 0 + 0.7)})
    ax = plots.maps(ds.assign_coords(layer=range(3), other_layer=range(4)), "x")
    bar = ax.figure.axes[-1]
    assert {line.get_ydata()[0] for line in bar.lines if line.get_linestyle() == ":"} == {0.7}


def test_cells_whose_interval_lies_above_chance_are_marked():
    value = np.full((2, 3), 0.6)
    low = np.array([[0.4, 0.55, 0.4], [0.4, 0.4, 0.52]])
    data = {
        "accuracy": (("layer", "slot"), value, {"chance": "chance"}), "chance": ((), 0.5),
        "accuracy_interval": (("bound", "layer", "slot"), np.stack([low, value + 0.1])),
    }  # fmt: skip
    ds = xr.Dataset(data, {"layer": [0, 1], "slot": [0, 1, 2], "bound": ["lower", "upper"]})
    ax = plots.maps(ds, "accuracy")
    marks = {(int(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in ax.lines}
    assert marks == {(1, 0), (2, 1)}


def test_cells_are_marked_above_the_chance_of_their_own():
    value = np.full((2, 3), 0.6)
    chance = np.array([[0.1, 0.9, 0.1], [0.9, 0.1, 0.9]])
    data = {
        "accuracy": (("layer", "slot"), value, {"chance": "chance"}), "chance": (("slot", "layer"), chance.T),
        "accuracy_interval": (("bound", "layer", "slot"), np.stack([value - 0.1, value + 0.1])),
    }  # fmt: skip
    ds = xr.Dataset(data, {"layer": [0, 1], "slot": [0, 1, 2], "bound": ["lower", "upper"]})
    ax = plots.maps(ds, "accuracy")
    marks = {(int(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in ax.lines}
    assert marks == {(0, 0), (2, 0), (1, 1)}


@pytest.mark.parametrize("limits", [(1, 0), (2, 2)])
def test_ends_of_colours_in_the_wrong_order_are_refused(limits):
    ds, _ = tokens_dataset(["a", "b", "c"])
    for draw in (plots.maps, plots.tokens):
        with pytest.raises(ValueError, match=r"limits=.*: give the lower end first"):
            draw(ds, "surprise", prompt=7, limits=limits)


def test_cells_stand_by_their_cluster():
    ami = np.arange(16.0).reshape(4, 4)
    ds = xr.Dataset({"ami": (("cell", "other_cell"), ami, {"by": "cluster"}), "cluster": ("cell", [1, -1, 0, 1])})
    ax = plots.maps(ds, "ami")
    order = [2, 0, 3]
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(3, 3), ami[np.ix_(order, order)])
    assert [c.get_segments()[0][0][k] for k, c in ((1, ax.collections[1]), (0, ax.collections[2]))] == [0.5, 0.5]
    assert ax.get_xlabel() == "cells, by cluster"
