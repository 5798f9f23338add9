"""Curves: means, bands, comparison of models, chance, controls and replicates."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible, curves_of, tokens_dataset
from matplotlib.figure import Figure

import tokinterp as ti
from tokinterp import plots
from tokinterp.results.dataset import variable

mpl.use("Agg")


def test_curve_is_the_mean_and_its_band_the_interval_of_summary():
    ds = curves_of()
    ax = plots.curves(ds, "loss")
    means = ti.summary(ds)
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_ydata(), ds["loss"].mean("prompt"))
    np.testing.assert_array_equal(line.get_xdata(), ds["layer"])
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(float(means["loss_interval"].min()))
    assert corners.max() == pytest.approx(float(means["loss_interval"].max()))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "loss of the next token\n(nat)")
    assert all(float(t).is_integer() for t in ax.get_xticks())
    assert ax.get_legend() is None


def test_new_figure_is_for_print_and_a_given_axes_is_used():
    ax = plots.curves(curves_of(), "loss")
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.3)
    assert ax.xaxis.label.get_fontsize() == 8
    mine = Figure().subplots()
    assert plots.curves(curves_of(), "loss", ax=mine) is mine
    assert mine.xaxis.label.get_fontsize() == mpl.rcParams["font.size"]  # the caller's settings, not ours
    assert_legible(ax.figure)


def test_further_dimensions_become_lines_and_selection_takes_one():
    ds = curves_of(scale=[2, 4, 8])
    ax = plots.curves(ds, "loss")
    assert len(ax.lines) == 3
    assert len({mpl.colors.to_hex(line.get_color()) for line in ax.lines}) == 3
    one = plots.curves(ds, "loss", select={"scale": 4})
    np.testing.assert_allclose(one.lines[0].get_ydata(), ds["loss"].sel(scale=4).mean("prompt"))
    two = plots.curves(curves_of(shuffle=[0, 5], model=["a", "b"]), "loss")
    assert len(two.lines) == 4
    assert len({line.get_linestyle() for line in two.lines}) == 2
    with pytest.raises(ValueError, match="too many dimensions"):
        plots.curves(curves_of(shuffle=[0, 5], model=["a", "b"], scale=[2, 4]), "loss")


def test_comparison_of_models_of_different_depth_is_along_relative_depth():
    ax = plots.curves(curves_of(), "loss", other=curves_of(layers=9, n_layers=8))
    assert ax.get_xlabel().startswith("relative depth")
    assert [line.get_xdata().max() for line in ax.lines] == [1, 1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["m4", "m8"]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()  # told apart without colour too
    same = plots.curves(curves_of(), "loss", other={"shuffled": curves_of(seed=1)}, label="text", relative=False)
    assert [t.get_text() for t in same.get_legend().get_texts()] == ["text", "shuffled"]
    with pytest.raises(ValueError, match="also a name in other"):
        plots.curves(curves_of(), "loss", other={"m4": curves_of(seed=1)})


def test_a_mean_over_some_prompts_only_has_an_open_marker():
    ds = curves_of()
    ds["loss"][:3, 2] = np.nan
    ds["loss"][:, 4] = np.nan
    ax = plots.curves(ds, "loss")
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
        plots.curves(curves_of(scale=[2, 4]), name, **options)


def test_what_has_no_axis_is_refused_and_of_tokens_the_mean_is_drawn():
    with pytest.raises(ValueError, match="no layer, block or numbers in order"):
        plots.curves(xr.Dataset({"n": ("prompt", [1.0, 2.0])}), "n")
    ds, values = tokens_dataset(["a", "b", "c"])
    line = plots.curves(ds.isel(token=ds["token_prompt"] == 7), "surprise").lines[0]
    np.testing.assert_allclose(line.get_ydata(), values.mean(0))


def test_bands_and_names_belong_to_their_own_lines():
    ds = curves_of(variant=["raw", "normed"])
    ds["loss"] = ds["loss"] + xr.DataArray([0.0, 10.0], dims="variant", coords={"variant": ["raw", "normed"]})
    ax = plots.curves(ds, "loss")
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
    ax = plots.curves(ds, "loss", layers=range(1, 4))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["loss"].mean("prompt").sel(layer=[1, 2, 3]))
    relative = plots.curves(ds, "loss", layers=range(1, 4), relative=True)
    np.testing.assert_allclose(relative.lines[0].get_xdata(), [0.25, 0.5, 0.75])


def test_a_variable_without_prompts_is_drawn_with_its_own_interval():
    at = {"layer": [0, 1]}
    ds = xr.Dataset(
        {"x": ("layer", [1.0, 2.0], {"units": "1"}), "y": ("layer", [5.0, 6.0], {"units": "1"}),
         "x_interval": (("bound", "layer"), [[0.5, 1.5], [1.25, 2.25]]),
         "y_interval": (("bound", "layer"), [[4.0, 5.0], [7.0, 8.0]])}, at,
    )  # fmt: skip
    for name, ends in (("x", (0.5, 2.25)), ("y", (4.0, 8.0))):
        corners = plots.curves(ds, name).collections[0].get_paths()[0].vertices[:, 1]
        assert (corners.min(), corners.max()) == ends


def planted(**facts):
    """Overlaps that chance, k and another variable go with; every number is its own."""
    rng = np.random.default_rng(0)
    coords = {"block": [0, 1, 2], "k": [1, 5, 20], "prompt": range(6)}
    data = {
        "overlap": (("prompt", "block", "k"), rng.random((6, 3, 3)), {"long_name": "overlap", "units": "1", **facts}),
        "chance": (("prompt", "k"), np.array([0.01, 0.05, 0.2]) * (1 + rng.random((6, 1)))),
        "control": (("prompt", "block", "k"), rng.random((6, 3, 3)), {"long_name": "a control"}),
    }
    return xr.Dataset(data, coords)


def dotted(ax):
    return [line for line in ax.lines if line.get_linestyle() == ":"]


@pytest.mark.parametrize("k", [[1, 5, 20], [5], [1, 20]])
def test_chance_is_that_of_the_lines_drawn_in_their_colours(k):
    ds = planted(chance="chance")
    ax = plots.curves(ds, "overlap", select={"k": k})
    curves, levels = ax.lines[: len(k)], dotted(ax)
    for n, line, level in zip(k, curves, levels, strict=True):
        np.testing.assert_allclose(line.get_ydata(), ds["overlap"].sel(k=n).mean("prompt"))
        assert level.get_ydata()[0] == pytest.approx(float(ds["chance"].sel(k=n).mean()))
        assert level.get_color() == (line.get_color() if len(k) > 1 else "0.4")
    assert "chance" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_a_number_by_chance_is_that_of_each_result_compared():
    def of(chance):
        return xr.Dataset({"x": variable("layer", np.arange(3.0), "x", "1", chance=chance)}, {"layer": range(3)})

    def drawn(*chances):
        sets = {f"{n}": of(chance) for n, chance in enumerate(chances)}
        ax = plots.curves(sets.pop("0"), "x", other=sets, label="0")
        lines = {v: ax.lines[n].get_color() for n, v in enumerate("01")}
        seen = [(line.get_ydata()[0], line.get_color()) for line in ax.lines if line.get_linestyle() == ":"]
        return [(y, next((k for k, v in lines.items() if v == colour), "all")) for y, colour in seen]

    assert drawn(0.5, 0.5) == [(0.5, "all")]
    assert drawn(0.5, 0.25) == [(0.5, "0"), (0.25, "1")]
    assert drawn(None, 0.25) == [(0.25, "all")]


def test_chance_is_a_number_or_a_curve_of_its_own():
    ax = plots.curves(planted(chance=0.5), "overlap", select={"k": 1})
    assert [set(line.get_ydata()) for line in dotted(ax)] == [{0.5}]
    ds = planted().isel(k=0, drop=True)
    ds = ds.assign(overlap_null=("block", [0.1, 0.3, 0.2], {"short_name": "permuted"}))
    ax = plots.curves(ds, "overlap")
    assert dotted(ax)[0].get_ydata().tolist() == [0.1, 0.3, 0.2]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["permuted"]
    assert dotted(plots.curves(planted(), "overlap", select={"k": 1})) == []


def test_variables_stand_beside_each_other_under_their_own_names():
    ds = planted(short_name="the overlap")
    ax = plots.curves(ds, ["overlap", "control"], select={"k": 5}, other={"again": ds * 0.5}, label="text")
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["the overlap", "a control", "text", "again"]
    want = [(n, f) for f in (1, 0.5) for n in ("overlap", "control")]
    for line, (name, factor) in zip(ax.lines, want, strict=True):
        np.testing.assert_allclose(line.get_ydata(), factor * ds[name].sel(k=5).mean("prompt"))
    colours = [line.get_color() for line in ax.lines]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert ax.lines[0].get_linestyle() != ax.lines[2].get_linestyle()


def test_heads_are_averaged_and_one_can_be_chosen():
    values = np.random.default_rng(0).random((5, 3, 2))
    ds = xr.Dataset({"mass": (("prompt", "block", "head"), values)}, {"block": range(3), "head": range(2)})
    np.testing.assert_allclose(plots.curves(ds, "mass").lines[0].get_ydata(), values.mean((0, 2)))
    one = plots.curves(ds, "mass", select={"head": 1})
    np.testing.assert_allclose(one.lines[0].get_ydata(), values[..., 1].mean(0))


def test_lines_can_be_kinds_of_prompts():
    ds = curves_of().assign_coords(kind=("prompt", np.array(["typo", "split"] * 6, dtype=object)))
    ax = plots.curves(ds, "loss", by="kind")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["split", "typo"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["loss"][1::2].mean("prompt"))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ds["loss"][::2].mean("prompt"))
    with pytest.raises(ValueError, match="by='kin': this result does not say the kin of its prompts; it has kind"):
        plots.curves(ds, "loss", by="kin")


def test_replicates_are_thin_lines_beside_their_mean():
    values = np.random.default_rng(0).random((4, 3))
    ds = xr.Dataset({"accuracy": (("step", "seed"), values.repeat(1, 0))}, {"step": [0, 10, 20, 30], "seed": [3, 5, 8]})
    ax = plots.curves(ds, "accuracy")
    *each, mean = ax.lines
    np.testing.assert_allclose([line.get_ydata() for line in each], values.T)
    np.testing.assert_allclose(mean.get_ydata(), values.mean(1))
    assert max(line.get_linewidth() for line in each) < mean.get_linewidth()


def test_what_is_not_sure_after_many_tests_has_open_markers():
    ds = xr.Dataset({"r": ("layer", [0.1, 0.9, 0.2]), "r_q": ("layer", [0.5, 0.01, 0.05])}, {"layer": range(3)})
    line, hollow = plots.curves(ds, "r").lines
    assert hollow.get_xdata().tolist() == [0, 2]
    assert hollow.get_markerfacecolor() == "white"
    assert line.get_xdata().tolist() == [0, 1, 2]


def test_a_line_without_any_number_is_not_drawn():
    ds = curves_of(key_set=["sink", "empty"])
    ds["loss"][..., 1] = np.nan
    assert len(plots.curves(ds, "loss").lines) == 1


def test_chance_of_every_line_is_drawn_where_two_dimensions_and_the_control_differ():
    """A mean of the levels of different lines would be the level of none."""
    ds = planted(chance="chance")
    ds = ds.expand_dims(null=["none", "untrained"]).copy()
    ds["chance"] = ds["chance"] + xr.DataArray([0.0, 0.3], dims="null")
    ds = ds.assign_coords(null=["none", "untrained"])
    ax = plots.curves(ds, "overlap", select={"k": [1, 20]})
    wanted = ds["chance"].sel(k=[1, 20]).mean("prompt").values.ravel()
    np.testing.assert_allclose(sorted(line.get_ydata()[0] for line in dotted(ax)[-4:]), sorted(wanted))
    one = planted(chance="chance").sel(k=1, drop=True)
    other = one.assign(chance=one["chance"] + 0.4)
    ax = plots.curves(one, "overlap", other={"other": other})
    levels = {line.get_color(): line.get_ydata()[0] for line in dotted(ax)}
    assert levels == {
        ax.lines[0].get_color(): pytest.approx(float(one["chance"].mean())),
        ax.lines[1].get_color(): pytest.approx(float(other["chance"].mean())),
    }
    assert len(dotted(plots.curves(one, "overlap", other={"other": one}))) == 1


def test_numbers_of_different_units_have_no_common_axis():
    ds = curves_of().assign(share=("layer", np.full(5, 0.5), {"long_name": "share", "units": "1"}))
    for draw in (plots.curves, plots.rows):
        with pytest.raises(ValueError, match=r"names=\['loss', 'share'\]: share is in 1, loss in nat: draw each alone"):
            draw(ds, ["loss", "share"])
    other = curves_of()
    other["loss"].attrs["units"] = "bit"
    with pytest.raises(ValueError, match="loss is in bit, loss in nat"):
        plots.curves(curves_of(), "loss", other={"bits": other})


def test_the_mean_of_heads_has_not_the_intervals_of_single_heads():
    value = np.arange(6.0).reshape(2, 3)
    data = {"x": (("block", "head"), value), "x_interval": (("bound", "block", "head"), np.stack([value, value + 1]))}
    ds = xr.Dataset(data, {"block": [0, 1], "head": range(3), "bound": ["lower", "upper"]})
    ax = plots.curves(ds, "x")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), value.mean(1))
    assert not ax.collections
    assert plots.curves(ds, "x", select={"head": 1}).collections


def test_open_markers_are_seen_on_long_curves_too():
    ds = curves_of(layers=60)
    ds["loss"][0, 7] = np.nan
    marked = [line for line in plots.curves(ds, "loss").lines if line.get_markerfacecolor() == "white"]
    assert [(line.get_xdata().tolist(), line.get_marker()) for line in marked] == [([7], "o")]


def test_a_value_keeps_its_colour_where_another_is_missing():
    whole = curves_of(scale=[2, 4, 8])
    part = whole.copy(deep=True)
    part["loss"].loc[{"scale": 2}] = np.nan
    lines = [plots.curves(ds, "loss").lines for ds in (whole, part)]
    colours = [{round(float(np.mean(line.get_ydata())), 9): line.get_color() for line in some} for some in lines]
    assert len(colours[1]) == 2
    assert colours[1].items() <= colours[0].items()
    names = [t.get_text() for t in plots.curves(part, "loss").get_legend().get_texts()]
    assert names == ["scale 4", "scale 8"]


def test_lines_are_split_by_what_the_variable_says():
    ds = xr.Dataset(
        {
            "change": (("slot", "prompt"), [[1.0, 5.0], [2.0, 7.0]], {"by": "match"}),
            "match": (("prompt", "slot"), [[1.0, 1.0], [0.0, np.nan]], {"short_name": "completed"}),
        },
        {"slot": [0, 1]},
    )
    ax = plots.curves(ds, "change", along="slot")
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["not completed", "completed"]
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:2]], [[5.0, np.nan], [1.0, 2.0]])


def test_a_run_in_which_one_result_has_the_variable_is_drawn():
    tree = xr.DataTree.from_dict({
        "/a": curves_of().assign_attrs(measurement="A"), "/b": curves_of("gain").assign_attrs(measurement="B"),
    })  # fmt: skip
    np.testing.assert_allclose(plots.curves(tree, "gain").lines[0].get_ydata(), tree["b"]["gain"].mean("prompt"))
    with pytest.raises(ValueError, match=r"holds 2 results: give one of 'a', 'b', for example run\['a'\]"):
        plots.curves(tree)
