"""Rows are at their own values, with their own intervals, names and levels by chance."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible

from tokinterp import plots

mpl.use("Agg")


def test_intervals_are_drawn_where_they_are():
    made = {"gap": ("filler", [2.0, 0.5]), "gap_interval": (("bound", "filler"), [[1.1, 0.2], [3.0, 0.9]])}
    ds = xr.Dataset(made, {"filler": ["dots", "words"], "bound": ["lower", "upper"]})
    ds["gap"].attrs.update(long_name="gap", units="nat")
    ax = plots.rows(ds, "gap", "filler")
    bars = np.concatenate([c.get_segments() for c in ax.collections])
    np.testing.assert_allclose(bars[:, :, 0], [[1.1, 3.0], [0.2, 0.9]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["dots", "words"]


def test_a_control_is_drawn_at_its_own_values_beside_the_fillers():
    """Each with its own name, its rows in the same order, whatever their order in the result."""
    rows = ["a", "b", "c"]
    values = {"dots": [1.0, 2.0, 3.0], "random words": [-1.0, -2.0, -3.0]}
    made = {}
    for name, order in (("dots", rows), ("random words", rows[::-1])):
        x = xr.DataArray(values[name], {"intervention": rows}, "intervention").sel(intervention=order)
        bounds = np.stack([x.values - 0.1, x.values + 0.3])
        made[name] = xr.Dataset({"gap": x, "gap_interval": (("bound", "intervention"), bounds)})
        made[name]["gap"].attrs.update(long_name="gap", units="nat")
    ax = plots.rows(made["dots"], "gap", "intervention", other={"random words": made["random words"]}, label="dots")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(values)
    for name, line in zip(values, ax.lines, strict=True):
        np.testing.assert_allclose(line.get_xdata(), values[name])
        assert np.round(line.get_ydata()).tolist() == [0, 1, 2]
    assert [line.get_markerfacecolor() for line in ax.lines][1] == "white"
    bars = [c.get_segments() for c in ax.collections]
    for segments, name in zip(bars, values, strict=True):
        found = [(s[0, 0], s[1, 0]) for s in segments]
        np.testing.assert_allclose(found, [(v - 0.1, v + 0.3) for v in values[name]])
    few = plots.rows(made["dots"], "gap", "intervention", without=("b",))
    np.testing.assert_allclose(few.lines[-1].get_xdata(), [1, 3])


def test_a_point_outside_of_its_interval_is_drawn_beside_it():
    said = {"long_name": "share", "units": "1"}
    made = {
        "gap_left": ("filler", [2.0, 0.5], said),
        "gap_left_interval": (("bound", "filler"), [[0.1, 0.2], [1.0, 0.9]]),
    }
    ds = xr.Dataset(made, {"filler": ["dots", "words"], "bound": ["lower", "upper"]})
    ax = plots.rows(ds, "gap_left", "filler")
    bars = np.concatenate([c.get_segments() for c in ax.collections])
    np.testing.assert_allclose(bars[:, :, 0], [[0.1, 1.0], [0.2, 0.9]])
    assert any(2.0 in line.get_xdata() for line in ax.lines)
    kl = xr.DataArray(np.array([[[0.0] * 99 + [500.0]]]), dims=("intervention", "policy", "prompt"), attrs=said)
    coords = {"intervention": ["all blocks"], "policy": ["separators"]}
    assert plots.rows(xr.Dataset({"kl": kl}, coords), "kl", "intervention").collections


def test_long_names_are_wrapped_and_inside_the_figure():
    names = ["knock-out of all the fillers in blocks 3 to 5", "mean"]
    ax = plots.rows(xr.Dataset({"gap": ("intervention", [1.0, 2.0])}, {"intervention": names}), "gap")
    first = ax.get_yticklabels()[0].get_text()
    assert first.count("\n") == 1
    assert first.replace("\n", " ") == names[0]
    assert_legible(ax.figure)


def test_each_row_has_its_own_level_or_all_have_one():
    data = {
        "value": ("criterion", [0.5, 2.0, 0.1], {"chance": "wanted"}), "wanted": ("criterion", [0.0, 1.0, 0.2]),
        "auroc": ("criterion", [0.5, 0.6, 0.7], {"chance": 0.5}),
    }  # fmt: skip
    ds = xr.Dataset(data, {"criterion": ["a", "b", "c"]})
    marks = plots.rows(ds, "value").collections[-1].get_segments()
    assert [(m[0, 0], round(m[:, 1].mean())) for m in marks] == [(0.0, 0), (1.0, 1), (0.2, 2)]
    (line,) = plots.rows(ds, "auroc").collections[-1].get_segments()
    assert line[:, 0].tolist() == [0.5, 0.5]
    assert line[0, 1] < 0 < 2 < line[1, 1]


def test_rows_in_order_some_of_them_and_with_their_numbers_of_tokens():
    data = {"effect": ("subset", [1.0, np.nan, 3.0, 2.0]), "n_tokens": ("subset", [4, 3, 1200, 1])}
    ds = xr.Dataset(data, {"subset": ["word", "none", "name", "digit"]})
    ax = plots.rows(ds, "effect", ordered=True, most=3)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["name (1,200)", "word (4)"]
    assert ax.lines[0].get_xdata().tolist() == [3.0, 1.0]
    assert ax.get_xlabel().splitlines()[-1] == "no value: none"
    assert "no value" not in plots.rows(ds.drop_sel(subset="none"), "effect").get_xlabel()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is above


def test_several_numbers_are_rows_with_their_own_intervals_and_chances():
    data = {
        "a": ((), 1.0, {"long_name": "the first"}), "b": ("prompt", [2.0, 4.0, 6.0, 8.0], {"chance": 3.0}),
        "a_interval": ("bound", [0.5, 1.5]),
    }  # fmt: skip
    ax = plots.rows(xr.Dataset(data), ["a", "b"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["the first", "b"]
    assert ax.lines[0].get_xdata().tolist() == [1.0, 5.0]
    bars = ax.collections[0].get_segments()
    assert bars[0][:, 0].tolist() == [0.5, 1.5]
    assert bars[1][0, 0] < 5 < bars[1][1, 0]
    (chance,) = ax.collections[-1].get_segments()
    assert chance[:, 0].tolist() == [3.0, 3.0]
    assert 0.5 < chance[0, 1] < 1 < chance[1, 1] < 1.5


def test_seeds_are_points_beside_their_mean_and_too_many_dimensions_are_named():
    values = np.array([[0.5, 0.7], [0.9, 0.3]])
    ds = xr.Dataset({"x": (("seed", "stratum"), values)}, {"seed": [0, 1], "stratum": ["all", "near"]})
    ax = plots.rows(ds, "x", "stratum")
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), values.mean(0))
    assert sorted(x for line in ax.lines[:-1] for x in line.get_xdata()) == [0.3, 0.5, 0.7, 0.9]
    ds = xr.Dataset({"x": (("policy", "trunk", "target"), np.zeros((3, 2, 2)))}, {"policy": list("abc")})
    with pytest.raises(ValueError, match=r"too many dimensions for one plot \(trunk, target\)"):
        plots.rows(ds, "x", "policy")


@pytest.mark.parametrize("scale", [0.005, 0.03, 0.3, 7.0])
def test_ticks_of_narrow_rows_stand_apart(scale):
    names = [f"a condition with quite a long name {n}" for n in range(3)]
    change = np.random.default_rng(0).normal(0, scale, (12, 3))
    ds = xr.Dataset({"change": (("prompt", "condition"), change)}, {"condition": names})
    for width in (2.2, 2.6):
        assert_legible(plots.rows(ds, "change", width=width).figure)


def test_each_result_has_its_own_level_by_chance():
    def one(chance):
        return xr.Dataset({"x": ("kind", [0.5, 0.6], {"chance": "by_chance"}), "by_chance": ("kind", chance)},
                          {"kind": ["a", "b"]})  # fmt: skip

    ax = plots.rows(one([0.1, 0.2]), "x", other={"control": one([0.3, 0.4])}, label="text")
    marks = {
        tuple(np.round(c.get_edgecolor()[0], 3)): [s[0, 0] for s in c.get_segments()]
        for c in ax.collections
        if c.get_linestyles()[0][1]
    }
    assert sorted(marks.values()) == [[0.1, 0.2], [0.3, 0.4]]
    assert {*marks} == {tuple(np.round(mpl.colors.to_rgba(line.get_color()), 3)) for line in ax.lines}
    same = plots.rows(one([0.1, 0.2]), "x", other={"control": one([0.1, 0.2])}, label="text")
    (level,) = [c for c in same.collections if c.get_linestyles()[0][1]]
    assert [s[0, 0] for s in level.get_segments()] == [0.1, 0.2]


def test_a_level_by_chance_of_each_condition_is_not_their_mean():
    ds = xr.Dataset(
        {"x": (("kind", "condition"), [[0.5, 0.6]], {"chance": "level"}), "level": ("condition", [0.2, 0.4])},
        {"kind": ["a"], "condition": ["whole", "blind"]},
    )
    ax = plots.rows(ds, "x", "kind")
    levels = [s[0, 0] for c in ax.collections if c.get_linestyles()[0][1] for s in c.get_segments()]
    assert levels == [0.2, 0.4]


def test_a_variable_that_only_has_heads_has_a_row_for_each():
    values = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 1.0], [0.3, 0.7, 1.1]])
    ds = xr.Dataset({"x": (("prompt", "head"), values, {"long_name": "x", "units": "1"})}, {"head": [0, 1, 2]})
    ax = plots.rows(ds, "x")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["head 0", "head 1", "head 2"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.2, 0.6, 1.0])
