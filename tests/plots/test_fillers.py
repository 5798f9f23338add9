"""Figures of insertion show the paired change, those of interventions stay in their bounds."""

import numpy as np
import pytest
import xarray as xr

import tokinterp as ti
from tokinterp.fillers.insertion import insert
from tokinterp.plots.fillers import intervals, wrapped


@pytest.fixture(scope="module")
def inserted(bundled):
    return insert(bundled, ti.bundled_questions("cloze")[:5], n_fillers=[2, 4], kinds=["dots", "words"])


def test_insertion_curve_shows_the_paired_change(inserted):
    ax = ti.plots.insertion_curves(inserted, kinds=["dots"])
    line = next(x for x in ax.lines if x.get_label() == "dots")
    change = (inserted["log_prob"] - inserted["log_prob"].sel(n_fillers=0)).sel(filler="dots", placement="post")
    np.testing.assert_allclose(line.get_ydata(), change.mean("prompt"))


def test_intervals_are_drawn_where_they_are():
    made = {"gap": ("filler", [2.0, 0.5]), "gap_interval": (("bound", "filler"), [[1.1, 0.2], [3.0, 0.9]])}
    ds = xr.Dataset(made, {"filler": ["dots", "words"], "bound": ["lower", "upper"]})
    ds["gap"].attrs.update(long_name="gap", units="nat")
    ax = intervals(ds, "gap", "filler")
    bars = np.concatenate([c.get_segments() for c in ax.collections])
    np.testing.assert_allclose(bars[:, :, 0], [[1.1, 3.0], [0.2, 0.9]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["dots", "words"]


def test_long_names_are_wrapped():
    lines = wrapped("a name of many words that is long", 12).split("\n")
    assert all(len(x) <= 12 for x in lines)
    assert " ".join(lines) == "a name of many words that is long"


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
    ax = intervals(made["dots"], "gap", "intervention", other=made["random words"], labels=("dots", "random words"))
    points = {line.get_label(): line for line in ax.lines if line.get_label() in values}
    assert points.keys() == values.keys()
    for name, line in points.items():
        np.testing.assert_allclose(line.get_xdata(), values[name])
        assert np.round(line.get_ydata()).tolist() == [0, 1, 2]
    bars = [c.get_segments() for c in ax.collections]
    for segments, name in zip(bars, values, strict=True):
        found = [(s[0, 0], s[1, 0]) for s in segments]
        np.testing.assert_allclose(found, [(v - 0.1, v + 0.3) for v in values[name]])
    few = intervals(made["dots"], "gap", "intervention", without=("b",))
    np.testing.assert_allclose(few.lines[-1].get_xdata(), [1, 3])


def test_a_point_outside_of_its_interval_is_drawn_beside_it():
    from tokinterp.plots.fillers_text import hidden_in_windows

    said = {"long_name": "share", "units": "1"}
    made = {
        "gap_left": ("filler", [2.0, 0.5], said),
        "gap_left_interval": (("bound", "filler"), [[0.1, 0.2], [1.0, 0.9]]),
    }
    ds = xr.Dataset(made, {"filler": ["dots", "words"], "bound": ["lower", "upper"]})
    ax = intervals(ds, "gap_left", "filler")
    bars = np.concatenate([c.get_segments() for c in ax.collections])
    np.testing.assert_allclose(bars[:, :, 0], [[0.1, 1.0], [0.2, 0.9]])
    assert any(2.0 in line.get_xdata() for line in ax.lines)
    kl = xr.DataArray(np.array([[[0.0] * 99 + [500.0]]]), dims=("intervention", "policy", "prompt"), attrs=said)
    coords = {"intervention": ["all blocks"], "policy": ["separators"]}
    assert hidden_in_windows(xr.Dataset({"kl": kl}, coords)).collections
