"""Means with intervals over documents, and results of models side by side."""

import json

import numpy as np
import pytest
import xarray as xr
from result_trees import example
from scipy import stats

import tokinterp as ti
from tokinterp.results.dataset import variable


def results(values, **coords):
    values = np.asarray(values, dtype=float)
    data = {"x": (("prompt", "layer"), values, {"long_name": "x", "units": "nat"})}
    layer = ("layer", np.arange(values.shape[1]), {"long_name": "layer", "units": "1"})
    return xr.Dataset(data, {"layer": layer, **coords}, {"model": "m"})


def test_mean_count_and_interval_leave_nan_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    x[3, 0] = np.nan
    found = ti.summary(results(x))
    np.testing.assert_allclose(found["x"], np.nanmean(x, 0))
    assert found["x_count"].values.tolist() == [11, 12]
    low, high = found["x_interval"].transpose("bound", "layer").values
    assert ((low < found["x"]) & (found["x"] < high)).all()
    narrow = ti.summary(results(x), level=0.5)["x_interval"]
    assert (narrow.diff("bound") < found["x_interval"].diff("bound")).all()


def test_documents_are_drawn_where_there_are_some():
    x = np.repeat([[0.0], [1.0], [2.0], [3.0]], 3, 0)
    alone = ti.summary(results(x))
    together = ti.summary(results(x, document=("prompt", np.repeat(np.arange(4), 3))))
    assert (together.attrs["n_groups"], together.attrs["groups"]) == (4, "documents")
    assert together["x_groups"].values.tolist() == [4]
    assert "x_groups" not in alone
    assert together["x"].values.tolist() == alone["x"].values.tolist() == [1.5]
    width = [float(d["x_interval"].diff("bound").squeeze()) for d in (alone, together)]
    assert width[1] > 1.3 * width[0]
    few = ti.summary(results(x[:6], document=("prompt", np.repeat([0, 1], 3))))
    assert np.isnan(few["x_interval"]).all()


def test_what_cannot_be_summarised_is_said():
    with pytest.raises(ValueError, match="no dimension 'token'"):
        ti.summary(results(np.ones((2, 2))), "token")
    with pytest.raises(ValueError, match="is empty"):
        ti.summary(results(np.ones((0, 2))))


def test_models_side_by_side_keep_their_numbers_and_refuse_others():
    a, b = results(np.zeros((2, 3))), results(np.ones((2, 3))).assign_attrs(model="n")
    both = ti.concat_models([a, b])
    assert both["model"].values.tolist() == ["m", "n"]
    np.testing.assert_array_equal(both["x"].sel(model="n"), b["x"])
    assert both.attrs["model"] == '["m", "n"]'
    with pytest.raises(ValueError, match="give a mapping of different names"):
        ti.concat_models([a, a])
    with pytest.raises(ValueError, match="coordinate 'layer' of 'q' differs"):
        ti.concat_models({"p": a, "q": b.assign_coords(layer=[0, 1, 5])})
    with pytest.raises(ValueError, match="do not have the same variables: x, y"):
        ti.concat_models({"p": a, "q": b.rename(x="y")})
    b["x"].attrs |= {"long_name": "loss over 3 documents"}
    a["x"].attrs |= {"long_name": "loss over 2 documents"}
    both = ti.concat_models({"p": a, "q": b})
    assert both["x"].attrs["long_name"] == "loss over 2 documents / loss over 3 documents"
    b["x"].attrs["units"] = "bit"
    with pytest.raises(ValueError, match=r"'x' is in bit in 'q', but in \w+ in 'p': convert one of them"):
        ti.concat_models({"p": a, "q": b})


# -- models side by side --------------------------------------------------------------------------------------
def test_models_are_joined_exactly():
    a, b = example(model="a", weights="1"), example(seed=1, model="b", weights="2")
    for out in (ti.concat_models([a, b]), ti.concat_models({"a": a, "b": b})):
        ti.check(out)
        assert out["model"].values.tolist() == ["a", "b"]
        assert json.loads(out.attrs["weights"]) == ["1", "2"]
        assert out.attrs["tokenizer"] == a.attrs["tokenizer"]
        for name, ds in (("a", a), ("b", b)):
            np.testing.assert_array_equal(out["x"].sel(model=name), ds["x"])
        assert out["x"].attrs["units"] == "nat"
    renamed = ti.concat_models({"first": a, "second": a})
    assert renamed["model"].values.tolist() == ["first", "second"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (example(layers=3), "coordinate '(layer|relative_depth|site)' of 'other' differs from that of 'one'"),
        (example(n=7), "coordinate 'prompt' of 'other' differs"),
        (example().assign_coords(layer=("layer", [0, 1, 2, 4])), "coordinate 'layer' of 'other' differs"),
        (example().assign_coords(extra=1), "coordinate 'extra' of 'other' differs"),
        (example().drop_vars("site"), "coordinate 'site' of 'other' differs"),
        (example().drop_vars("x"), "do not have the same variables: x"),
        (example().drop_vars("none").assign(none=("span", [1])), "has sizes"),
    ],
)
def test_differing_results_are_not_joined(other, message):
    for results in ({"one": example(), "other": other}, {"other": other, "one": example()}):
        names = message if next(iter(results)) == "one" else message.split(" of ")[0]
        with pytest.raises(ValueError, match=names):
            ti.concat_models(results)


def test_equal_names_and_nothing_are_refused():
    with pytest.raises(ValueError, match=r"the results come from \['tiny-llama', 'tiny-llama'\]: give a mapping"):
        ti.concat_models([example(), example(seed=1)])
    with pytest.raises(ValueError, match=r"^results=\[\]: give a dictionary"):
        ti.concat_models([])


# -- summary --------------------------------------------------------------------------------------------------
def normal(n, columns=400, seed=0):
    values = np.random.default_rng(seed).normal(3, 2, (n, columns))
    return xr.Dataset({"x": variable(("prompt", "vocab"), values, "x", "nat")}), values


def test_interval_has_the_width_and_coverage_of_theory():
    """Normal data: the interval is that of Student, 2 t s / sqrt(n) wide, and holds the true mean in 95 of 100 columns.

    With 400 columns two standard errors of the coverage are 2.2 points.
    """
    n = 100
    ds, values = normal(n)
    out = ti.summary(ds)
    low, high = out["x_interval"].sel(bound="lower").values, out["x_interval"].sel(bound="upper").values
    np.testing.assert_allclose(out["x"], values.mean(0))
    expected = 2 * stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)
    assert abs(np.mean((high - low) / expected) - 1) < 0.01
    assert np.abs((high - low) / expected - 1).max() < 0.15
    assert 0.91 < np.mean((low < 3) & (high > 3)) < 0.97
    narrow = ti.summary(ds, level=0.5)
    width = narrow["x_interval"].sel(bound="upper") - narrow["x_interval"].sel(bound="lower")
    assert abs(float((width / expected).mean()) / (0.6745 / 1.96) - 1) < 0.02
    assert out["x"].attrs == {"long_name": "mean x", "units": "nat"}
    assert "95% bootstrap interval" in out["x_interval"].attrs["long_name"]


def test_summary_is_seeded_and_the_same_in_any_chunks(monkeypatch):
    ds, _ = normal(30, 7)
    a, b, other = ti.summary(ds, seed=1), ti.summary(ds, seed=1), ti.summary(ds, seed=2)
    xr.testing.assert_identical(a.assign_attrs(created=""), b.assign_attrs(created=""))  # a second may begin
    assert not a["x_interval"].equals(other["x_interval"])
    one = ti.summary(ds.isel(vocab=[3]), seed=1)
    np.testing.assert_allclose(one["x_interval"][:, 0], a["x_interval"][:, 3])


def test_summary_leaves_nan_out():
    ds, values = normal(50, 3)
    ds["x"].values[10:, 1] = np.nan
    ds["x"].values[:, 2] = np.nan
    out = ti.summary(ds)
    assert out["x_count"].values.tolist() == [50, 10, 0]
    np.testing.assert_allclose(out["x"][1], values[:10, 1].mean())
    alone = ti.summary(xr.Dataset({"x": variable("prompt", values[:10, 1], "x", "nat")}))
    width = np.diff(out["x_interval"][:, 1])[0]
    assert abs(width / np.diff(alone["x_interval"])[0] - 1) < 0.2
    assert np.isnan(out["x"][2])
    assert np.isnan(out["x_interval"][:, 2]).all()


def test_summary_of_a_result_keeps_what_is_not_over_prompts():
    out = ti.summary(example())
    ti.check(out)
    assert set(out.data_vars) == {f"{n}{end}" for n in ("x", "y", "flag") for end in ("", "_interval", "_count")}
    assert out["site"].dims == ("layer",)
    assert out["x"].attrs["references"] == "Someone 2024, eq. 3"
    with pytest.raises(ValueError, match="no dimension 'head' to summarise over: there are prompt"):
        ti.summary(example(), "head")
    with pytest.raises(ValueError, match="level=95: give a number between 0 and 1"):
        ti.summary(example(), level=95)
    with pytest.raises(ValueError, match="n_boot=0"):
        ti.summary(example(), n_boot=0)
    with pytest.raises(ValueError, match="dimension 'span' is empty"):
        ti.summary(example(), "span")


def test_models_of_different_depth_stand_side_by_side_at_depths_that_all_have():
    from tiny import byte_tokenizer, tiny_lm

    found = {}
    for n in (2, 4):
        model = ti.wrap(tiny_lm("llama", num_hidden_layers=n), byte_tokenizer(), id=f"m{n}")
        ds = ti.measure(model, ["A river."], {"lens": ti.lens.LogitLens(tokens=0)}, progress=False)["lens"].to_dataset()
        some = ds.swap_dims(layer="relative_depth").sel(relative_depth=[0, 0.5, 1])
        found[f"m{n}"] = some.drop_vars(["layer", "site"])
    both = ti.concat_models(found)
    assert both["entropy"].sizes["model"] == 2
    assert both["relative_depth"].values.tolist() == [0, 0.5, 1]
    np.testing.assert_array_equal(both["entropy"].sel(model="m4"), found["m4"]["entropy"])


def whole_run():
    """Two results beside the table of prompts, as a run has them."""
    one, other = (results(np.arange(8.0).reshape(4, 2) * k).assign_attrs(measurement="M") for k in (1, 2))
    other = other.rename(x="y")
    sizes = xr.Dataset({"first_nonfinite_layer": ("prompt", np.full(4, -1))})
    return xr.DataTree.from_dict({"/": xr.Dataset(), "/prompts": sizes, "/one": one, "/other": other})


def test_a_whole_run_is_summarised_result_by_result():
    run = whole_run()
    found = ti.summary(run, level=0.5)
    assert list(found.children) == ["one", "other"]
    for name in ("one", "other"):
        xr.testing.assert_identical(
            found[name].to_dataset().drop_attrs(), ti.summary(run[name].to_dataset(), level=0.5).drop_attrs()
        )
        xr.testing.assert_equal(ti.summary(run[name], level=0.5), found[name].to_dataset())  # a node
    with pytest.raises(ValueError, match="dim='span': no result of this run has it"):
        ti.summary(run, "span")


def test_a_result_is_found_in_a_run_by_what_it_holds():
    from tokinterp.results.tables import result_with

    run = whole_run()
    for given in (run, run["other"], run["other"].to_dataset()):
        assert "y" in result_with(given, "y")
    with pytest.raises(ValueError, match=r"holds 2 results: give one of 'one', 'other', for example run\['one'\]"):
        result_with(run)
    with pytest.raises(ValueError, match="no result of the run has z; its results: 'one', 'other'"):
        result_with(run, "z")
    with pytest.raises(ValueError, match="measure something first"):
        result_with(xr.DataTree())


def test_counts_have_no_interval():
    ds = results(np.ones((4, 2)))
    found = ti.summary(ds.assign(n_targets=ds["x"] * 3))
    assert {*found.data_vars} == {"x", "x_interval", "x_count", "n_targets"}
    assert found["n_targets"].values.tolist() == [3, 3]
