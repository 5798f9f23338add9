"""Results as columns of text: means over prompts, the value to look at first, nothing that a terminal obeys."""

import numpy as np
import xarray as xr

from tokinterp.results.summary import summary
from tokinterp.results.tables import (
    columns,
    layer_table,
    named_results,
    number,
    prompt_tables,
    summary_text,
    value_rows,
)


def lens():
    layer = ("layer", [0, 1], {"long_name": "layer", "units": "1"})
    loss = np.arange(8.0).reshape(2, 2, 2)
    attrs = {
        "measurement": "LogitLens",
        "first": "cross_entropy, entropy, kl, agreement, accuracy",
        "model": "m\x1b[2J",
    }
    return xr.Dataset(
        {
            "cross_entropy": (("prompt", "variant", "layer"), loss, {"long_name": "loss", "units": "nat"}),
            "wide": (("token", "layer"), np.zeros((3, 2)), {"long_name": "w", "units": "1"}),
        },
        {"layer": layer, "variant": ("variant", ["raw", "normed"], {"long_name": "variant", "units": "1"})},
        attrs,
    )


def test_columns_are_means_over_prompts_at_each_value():
    depth, places, table = layer_table(lens())
    assert (depth, places) == ("layer", [0, 1])
    assert [(c.name, c.label, c.first) for c in table] == [
        ("cross entropy (nat)", "raw", True), ("cross entropy (nat)", "normed", False),
    ]  # fmt: skip
    np.testing.assert_allclose(table[0].mean, [2, 3])
    np.testing.assert_allclose(table[1].mean, [4, 5])
    assert table[0].count.tolist() == [2, 2]
    assert np.isnan(table[0].interval).all()  # of two prompts


def test_each_column_has_the_interval_and_count_of_its_own_variable():
    x = np.arange(4.0)[:, None, None] * [[1.0, 2.0], [10.0, 20.0]]
    x[0, 1] = np.nan
    ds = lens().isel(prompt=[0, 0, 1, 1]).drop_vars("wide")
    ds["cross_entropy"] = ds["cross_entropy"].copy(data=x)
    ds["entropy"] = (("prompt", "variant", "layer"), 100 + x, {"units": "bit"})
    table, means = layer_table(ds)[2], summary(ds)
    assert [c.name for c in table] == 2 * ["cross entropy (nat)"] + 2 * ["entropy (bit)"]
    for c in table:
        one = means.sel(variant=c.label)
        name = c.name.rsplit(" (", 1)[0].replace(" ", "_")
        np.testing.assert_allclose(c.interval, one[f"{name}_interval"].transpose("bound", "layer"))
        assert (c.interval[0] < c.mean).all()
        assert (c.mean < c.interval[1]).all()
        assert c.count.tolist() == ([4, 4] if c.label == "raw" else [3, 3])


def test_problems_are_counted_and_layers_keep_their_numbers():
    ds = lens().assign_coords(layer=[3, 7])
    ds["refused"] = (("prompt", "variant", "layer"), [[[0, 1], [0, 0]], [[2, 0], [0, 0]]])
    facts = {"n_tokens": ("prompt", [4, 6, 9]), "first_nonfinite_layer": ("prompt", [-1, 0, 2])}
    text = summary_text(xr.DataTree.from_dict({"prompts": xr.Dataset(facts), "lens": ds}))
    assert "3 with 19 tokens, 4 to 9 each" in text
    assert "2 prompts with NaN or infinite activations" in text
    assert "2 of 8 clouds lack some estimate" in text
    assert [line.split() for line in text.splitlines()[-3:-1]] == [["3", "2"], ["7", "3"]]


def test_a_result_without_depth_has_no_table():
    assert layer_table(xr.Dataset({"x": ("prompt", [1.0])}))[2] == []


def test_text_of_a_run_shows_means_and_obeys_nothing(tiny_run):
    text = summary_text(xr.DataTree.from_dict({"lens": lens()}))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [x.split() for x in lines[-2:]] == [["0", "2"], ["1", "3"]]
    whole = summary_text(tiny_run)
    n = int(sum(t["n_tokens"].sum() for t in prompt_tables(tiny_run)))
    assert f"5 with {n:,} tokens" in whole
    assert list(named_results(tiny_run)) == ["dimension", "lens", "spectrum"]


def test_numbers_have_four_digits():
    assert [number(x) for x in (0.123456, 1234567.0, float("inf"))] == ["0.1235", "1.235e+06", "–"]
    assert columns([("a", 1), ("long", 2)]) == "a     1\nlong  2"


def test_results_without_layers_show_their_numbers_too():
    data = {
        "psi": ("prompt", [1.0, 2.0, 3.0, 6.0], {"long_name": "psi"}),
        "by_scale": (("scale", "prompt"), np.arange(8.0).reshape(2, 4)),
        "kept": ((), 5.0),
    }
    ds = xr.Dataset(data, {"scale": [2, 4]}, {"measurement": "Made", "verdict": "not shown"})
    rows = dict(value_rows(ds))
    low, high = (number(float(x)) for x in summary(ds)["psi_interval"])
    assert rows["psi"] == f"3 ({low} to {high})"
    assert [k for k in rows if k.startswith("by scale")] == ["by scale, scale 2", "by scale, scale 4"]
    assert rows["by scale, scale 4"].startswith("5.5 (")
    assert rows["kept"] == "5"
    shown = summary_text(xr.DataTree.from_dict({"/made": ds}))
    assert "verdict: not shown" in shown
    assert f"3 ({low} to {high})" in shown
    assert value_rows(ds, most=2)[-1] == ("and 2 more values", "in the report, plot and export")


def test_layers_compared_are_shown_with_the_ends():
    pair = np.arange(9.0).reshape(3, 3)
    ds = xr.Dataset({"cka": (("layer", "other_layer"), pair)}, {"layer": [0, 1, 2], "other_layer": [0, 1, 2]},
                    {"first": "cka"})  # fmt: skip
    _, _, columns = layer_table(ds)
    assert [c.label for c in columns] == ["with layer 0", "with layer 2"]
    assert columns[1].mean.tolist() == [2, 5, 8]
