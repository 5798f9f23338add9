"""Figures of attention on sets and of sinks, of planted results."""

import numpy as np
import pytest
import xarray as xr

from tokinterp import plots

KEYS, QUERIES = ["sink", "text", "empty"], ["all", "last"]


@pytest.fixture(scope="module")
def mass():
    rng = np.random.default_rng(0)
    by, out = ("prompt", "block", "head", "query_set", "key_set"), {}
    for name in ("mass", "net_enrichment"):
        value = rng.random((6, 3, 2, 2, 3))
        value[..., 2] = np.nan
        out[name] = (by, value)
    ds = xr.Dataset(out, {"block": [0, 1, 2], "query_set": QUERIES, "key_set": KEYS})
    for name in out:
        ds[name].attrs.update(long_name=name, units="1")
    return ds


def test_curves_are_means_over_heads_of_the_positions_that_look(mass):
    for q, queries in enumerate(QUERIES):
        ax = plots.attention_by_block(mass, queries=queries)
        lines = [np.asarray(line.get_ydata()) for line in ax.lines]
        assert len(lines) == 2  # nothing is drawn of an empty set
        for k, line in enumerate(lines):
            np.testing.assert_allclose(line, mass["mass"].values[:, :, :, q, k].mean((0, 2)))
    ax = plots.attention_by_block(mass, "net_enrichment")
    assert [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2] == [1]  # chance


def test_what_is_compared_with_is_drawn_under_its_own_name(mass):
    other = mass.assign(mass=mass["mass"] * 0.1).assign_attrs(model="untrained")
    ax = plots.attention_by_block(mass.isel(key_set=[0]), other=other.isel(key_set=[0]), label="trained")
    first, second = (np.asarray(line.get_ydata()) for line in ax.lines[:2])
    np.testing.assert_allclose(first, mass["mass"].values[:, :, :, 0, 0].mean((0, 2)))
    np.testing.assert_allclose(second, 0.1 * first)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["trained", "untrained"]


def test_the_map_has_heads_across_and_blocks_upwards(mass):
    ax = plots.head_map(mass, keys="text", queries="last")
    values = np.asarray(ax.collections[0].get_array())
    np.testing.assert_allclose(values, mass["mass"].values[:, :, :, 1, 1].mean(0))
    assert values.shape == (3, 2)
    assert ax.get_xlabel() == "head"
    assert ax.get_title("left") == "last → text"


def test_positions_that_few_see_are_left_out_and_a_control_has_its_own_rates():
    rng = np.random.default_rng(0)
    rate, other = rng.random((2, 3, 20)), rng.random((2, 3, 20))
    seen = np.arange(20)[::-1] + 6  # queries that see each position
    made = [
        xr.Dataset({"sink_rate": (("block", "head", "position"), r), "n_queries": ("position", seen)},
                   {"position": np.arange(20)}) for r in (rate, other)
    ]  # fmt: skip
    ax = plots.sink_by_position(made[0], other=made[1], labels=("trained", "untrained"))
    for line, values, name in zip(ax.lines, (rate, other), ("trained", "untrained"), strict=True):
        kept = np.flatnonzero(seen >= 16)
        assert line.get_xdata().tolist() == kept.tolist()
        np.testing.assert_allclose(line.get_ydata(), values.mean((0, 1))[kept])
        assert line.get_label() == name
