"""Every result has a picture that follows from what its variables say, legible in a column and on a page."""

import inspect
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible, assert_no_text_over_text, curves_of, tokens_dataset
from every import every_measurement, fitted, models, texts

import tokinterp as ti
from tokinterp import plots
from tokinterp.results.facts import facts_of, first_of
from tokinterp.results.tables import named_results

mpl.use("Agg")
SHOW = {"AttentionSinks": {"tokens": 64}, "LogitLens": {"top": 1}}


@pytest.fixture(scope="module")
def run():
    """Every measurement of the package that needs no task of its own."""
    asked = {}
    for kind in every_measurement():
        if kind.__module__.startswith("tokinterp.fillers."):
            continue
        needed = [n for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
        asked[kind.__name__] = kind(**{n: fitted()[n] for n in needed}, **SHOW.get(kind.__name__, {}))
    return ti.measure(models()[0], texts(), asked, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("width", ["column", "double"])
def test_every_measurement_is_drawn_and_legible(run, width):
    named = named_results(run)
    assert len(named) > 22
    for name, ds in named.items():
        pictures = plots.draw(ds, width=width)
        assert pictures, name
        for p in pictures:
            assert p.caption.endswith("."), name
            assert p.caption.removeprefix("(a) ")[0].isupper(), name
            assert_legible(p.figure)
            assert_no_text_over_text(p.figure)
            legends = [ax.get_legend() for ax in p.figure.axes if ax.get_legend() is not None]
            for legend in legends:  # off the data
                box, axes = legend.get_window_extent(), legend.axes.get_window_extent()
                assert box.y0 >= axes.y1 - 1, f"{name} {p.name}"


@pytest.mark.slow
def test_what_is_drawn_are_the_means_of_the_variables_said_first(run):
    for name, ds in named_results(run).items():
        lines = [
            np.asarray(line.get_ydata(), float)
            for p in plots.draw(ds) for ax in p.figure.axes for line in ax.lines if len(line.get_xdata()) > 2
        ]  # fmt: skip
        for variable in first_of(ds):
            v = ds[variable]
            dims = {*v.dims} - {"prompt"}
            if dims in ({"layer"}, {"block"}) and v.dtype.kind in "fiu" and np.isfinite(v).all():
                mean = (v.mean("prompt") if "prompt" in v.dims else v).values
                if len(mean) > 2:
                    assert any(len(y) == len(mean) and np.allclose(y, mean) for y in lines), (name, variable)


def test_what_chance_and_beside_name_is_a_variable_of_the_result(run):
    kinds = {k.__name__: k for k in every_measurement()}
    for name, ds in named_results(run).items():
        for variable in ds.data_vars:
            said = ds[variable].attrs
            for other in (said.get("chance"), *str(said.get("beside", "")).split(", ")):
                if isinstance(other, str) and other:
                    assert other in ds or other in kinds[name].fields, (name, variable, other)
            facts = facts_of(ds, str(variable))
            assert facts.low is None or facts.high is None or facts.low < facts.high


class Pairs(ti.Measurement):
    """A measurement that nobody has heard of: per prompt, per token and block, and one number."""

    fields = {
        "spread": ti.Field(("prompt", "layer"), "spread of the rows", short="spread", chance=1.0, range=(0, None)),
        "step": ti.Field(("token", "block"), "length of the step of a token"),
        "total": ti.Field((), "rows that took part"),
    }
    layers = None
    tokens = None

    def update(self, batch):
        x = [batch.resid(n) for n in self.at_layers()]
        mask = batch.mask[..., None]
        spread = torch_stack([(n * mask).std((1, 2)) for n in x])
        step = torch_stack([(b - a).norm(dim=-1) for a, b in pairwise(x)])
        self.keep(batch, spread=spread, step=step)
        self.add("total", batch.mask.sum())


def torch_stack(parts):
    import torch

    return torch.stack(parts, -1)


def test_a_measurement_that_nobody_has_heard_of_has_pictures_and_a_stored_one_the_same(tmp_path):
    model = models()[0]
    run = ti.measure(model, texts(), {"pairs": Pairs()}, progress=False)
    ds = run["pairs"].to_dataset()
    pictures = plots.draw(ds)
    assert [p.name for p in pictures] == ["spread", "total", "step_tokens"]
    curves, numbers, tokens = (p.figure.axes for p in pictures)
    np.testing.assert_allclose(curves[0].lines[0].get_ydata(), ds["spread"].mean("prompt"))
    assert {line.get_ydata()[0] for line in curves[0].lines if line.get_linestyle() == ":"} == {1.0}
    assert curves[0].get_ylabel() == "spread"
    np.testing.assert_allclose(curves[1].lines[0].get_ydata(), ds["step"].mean("token"), rtol=1e-5)  # A mean by block
    assert numbers[0].lines[0].get_xdata().tolist() == [float(ds["total"])]
    first = ds["token_prompt"] == 0
    shown = np.asarray(tokens[0].collections[0].get_array())
    np.testing.assert_allclose(shown, ds["step"][first.values].values[:50].T, rtol=1e-6)
    again = plots.draw(ti.read(ti.write(run, tmp_path / "a.zarr")))
    assert [p.name for p in again] == [p.name for p in pictures]
    assert [p.caption for p in again] == [p.caption for p in pictures]
    page = ti.report(run, tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 3
    assert "pairs" in page


def test_a_result_a_node_and_a_run_are_taken_alike():
    ds = curves_of(scale=[2, 4])
    assert [p.name for p in plots.draw(ds)] == ["loss"]
    tree = xr.DataTree.from_dict({"/a": ds.assign_attrs(measurement="A"), "/b": ds.assign_attrs(measurement="B")})
    assert [p.name for p in plots.draw(tree)] == ["a/loss", "b/loss"]
    assert [p.name for p in plots.draw(tree["a"])] == ["loss"]
    assert plots.curves(tree["a"], "loss").get_ylabel().startswith("loss")
    shown = plots.draw(tree)._repr_html_()
    assert plots.draw(tree)[0]._repr_html_().count("<svg") == 1, "a single one is shown, too"
    assert shown.count("<svg") == shown.count("<figcaption>") == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw(xr.DataTree.from_dict({"/": xr.Dataset(attrs={"a": 1})}))


def test_conditions_are_told_apart_and_other_dimensions_keep_to_one_value_that_is_said():
    ds = curves_of(null=["none", "shuffle:5", "untrained"], scale=[2, 4, 8], variant=["raw", "normed"])
    (picture,) = plots.draw(ds)
    axes = picture.figure.axes
    assert len(axes) == 2  # a panel for each variant
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["text", "shuffled, S = 5", "untrained network"]
    assert "Scale 4 only." in picture.caption
    for ax, variant in zip(axes, ("raw", "normed"), strict=True):
        assert ax.get_title() == variant
        for line, null in zip(ax.lines, ds["null"].values, strict=True):
            want = ds["loss"].sel(null=null, scale=4, variant=variant).mean("prompt")
            np.testing.assert_allclose(line.get_ydata(), want)


def test_a_control_stands_in_the_panel_of_what_it_controls():
    ds = curves_of()
    ds["control"] = ds["loss"] * 0.5
    ds["loss"].attrs["beside"] = "control"
    ds.attrs["first"] = "loss, control"
    (picture,) = plots.draw(ds)
    (ax,) = picture.figure.axes
    for line, name in zip(ax.lines, ("loss", "control"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), ds[name].mean("prompt"))
    assert "beside it" in picture.caption


def test_a_wide_variable_is_a_map_and_what_is_not_drawn_is_named():
    ds = curves_of(channel=list(range(40)))
    (picture,) = plots.draw(ds)
    shown = np.asarray(picture.figure.axes[0].collections[0].get_array())
    np.testing.assert_allclose(shown, ds["loss"].mean("prompt").transpose("layer", "channel"))
    many = xr.Dataset({f"x{n:02}": ("layer", [1.0, 2.0]) for n in range(14)}, {"layer": [0, 1]})
    pictures = plots.draw(many)
    assert sum(len(p.figure.axes) for p in pictures) == 12
    assert pictures[-1].caption.endswith("Not drawn: x12, x13.")


def test_intervals_and_circumstances_are_said():
    ds = curves_of().assign_attrs(edits="zero(attn_out 0)")
    (picture,) = plots.draw(ds)
    assert "Mean over prompts, 95 % interval over 12 prompts." in picture.caption
    assert "Measured under edits: zero(attn_out 0)." in picture.caption
    own = xr.Dataset({"x": ("layer", [1.0, 2.0]), "x_interval": (("bound", "layer"), [[0.5, 1], [2, 3]])})
    own["x_interval"].attrs["long_name"] = "95% jackknife interval over 9 prompts"
    (picture,) = plots.draw(own)
    assert "Bands: 95% jackknife interval over 9 prompts." in picture.caption


def test_tokens_of_the_prompt_asked_for_are_drawn():
    ds, values = tokens_dataset(["a", "b", "c"])
    last = plots.draw(ds, prompt=9)[-1]
    assert "prompt 9" in last.caption
    np.testing.assert_array_equal(np.asarray(last.figure.axes[0].collections[0].get_array()), np.full((3, 2), -1.0))
    assert "prompt 7" in plots.draw(ds)[-1].caption
    assert values.shape == (3, 3)


def test_each_panel_says_what_its_own_interval_is_of():
    ds = curves_of().assign(pooled=("layer", np.arange(5.0)))
    ds["times"] = (("replicate", "layer"), np.ones((3, 5)))
    ds["pairs"] = (("prompt", "layer", "other_layer"), np.ones((12, 5, 5)))
    lines, pairs = plots.draw(ds.assign_coords(other_layer=range(5)))
    assert "(a) Mean over prompts, 95 % interval over 12 prompts." in lines.caption
    assert "(c) Mean, and each replicate as a thin line." in lines.caption
    assert "(b) Mean" not in lines.caption
    assert "Mean over prompts. " in f"{pairs.caption} "
    assert "interval" not in pairs.caption  # a map has none
    both = curves_of().expand_dims(replicate=[0, 1])
    (picture,) = plots.draw(both)
    assert "Mean over prompts, and each replicate as a thin line." in picture.caption


def test_numbers_of_another_range_have_an_axis_of_their_own_and_the_width_asked_for():
    said = {"right": "whether it is right", "share": "share of it", "rank": "rank of the answer"}
    ds = xr.Dataset({n: ("prompt", np.full(4, 1.0), {"long_name": t, "units": "1"}) for n, t in said.items()})
    pictures = plots.draw(ds, width="column")
    assert [[t.get_text() for t in p.figure.axes[0].get_yticklabels()] for p in pictures] == [
        ["whether it is right", "share of it"], [""],
    ]  # fmt: skip
    assert pictures[1].figure.axes[0].get_xlabel() == "rank of the answer"  # said once
    assert {p.figure.get_figwidth() for p in pictures} == {3.3}


def test_the_mean_of_a_few_kept_prompts_does_not_stand_beside_that_of_all_under_its_name():
    ds, _ = tokens_dataset(["a", "b", "c"])
    ds["whole"] = (("prompt", "layer"), np.ones((12, 3)), {"long_name": "surprise", "units": "nat"})
    names = [p.name for p in plots.draw(ds.assign_coords(prompt=range(12)))]
    assert names == ["whole", "surprise_tokens"]
    assert [p.name for p in plots.draw(ds.drop_vars("whole"))] == ["surprise", "surprise_tokens"]


def test_what_is_dotted_is_called_by_its_name():
    ds = xr.Dataset({"x": ("layer", [1.0, 2.0, 3.0]), "x_null": ("layer", [0.5, 0.5, 0.5], {"short_name": "bigrams"})})
    (picture,) = plots.draw(ds.assign_coords(layer=range(3)))
    assert "Dotted: bigrams." in picture.caption
