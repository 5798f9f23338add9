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
