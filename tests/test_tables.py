"""Results as columns of text: means over prompts, the value to look at first, nothing that a terminal obeys."""

import numpy as np
import xarray as xr

from tokinterp.tables import columns, layer_table, named_results, number, prompt_tables, summary_text


def lens():
    layer = ("layer", [0, 1], {"long_name": "layer", "units": "1"})
    loss = np.arange(8.0).reshape(2, 2, 2)
    attrs = {"measurement": "LogitLens", "model": "m\x1b[2J"}
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
    assert list(named_results(tiny_run)) == ["dimension", "spectrum", "lens"]


def test_numbers_have_four_digits():
    assert [number(x) for x in (0.123456, 1234567.0, float("inf"))] == ["0.1235", "1.235e+06", "–"]
    assert columns([("a", 1), ("long", 2)]) == "a     1\nlong  2"
