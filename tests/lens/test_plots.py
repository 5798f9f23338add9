"""The grid of the lens writes the answers of each layer and marks those that are right."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible

from tokinterp import plots
from tokinterp.lens.plots import lens_table

mpl.use("Agg")


def test_lens_table_writes_the_most_probable_tokens_and_marks_right_ones(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    names = dict(zip(ds["vocab"].values.tolist(), ds["vocab_text"].values, strict=True))
    first = ds.isel(token=ds["token_prompt"].values == 1)
    following = first["token_id"].values[5:9].tolist()
    # Plant a right answer: the planted cell alone must be bold, if no other happens to be right.
    ds["top_id"] = ds["top_id"].copy()
    place = np.flatnonzero(ds["token_prompt"].values == 1)[4]
    ds["top_id"].values[place, 2, 0, 0] = following[0]
    names.setdefault(following[0], str(first["text"].values[5]))
    ax = lens_table(ds, 1, positions=range(4, 8))
    ids = ds["top_id"].isel(token=slice(place, place + 4), rank=0).sel(variant="normed").values
    cells = {(int(t.get_position()[0]), int(t.get_position()[1])): t for t in ax.texts}
    assert len(cells) == 4 * 4
    for (column, row), t in cells.items():
        assert t.get_text() == plots.style.shown(str(names[int(ids[column, row])]), 40)
        assert (t.get_fontweight() == "bold") == (ids[column, row] == following[column])
    assert cells[0, 2].get_fontweight() == "bold"
    probability = ds["top_prob"].isel(token=slice(place, place + 4), rank=0).sel(variant="normed").values
    np.testing.assert_array_equal(ax.collections[0].get_array(), probability.T)
    assert_legible(ax.figure)


def test_lens_table_without_answers_says_how_to_get_them(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    with pytest.raises(ValueError, match="top=1"):
        lens_table(ds.drop_vars(["top_id", "top_prob"]))


@pytest.mark.slow
@pytest.mark.parametrize("width", ["column", "double"])
def test_a_report_has_the_grid_beside_the_curves(tiny_run, width):
    pictures = plots.draw(tiny_run["lens"], width=width)
    assert [p.name for p in pictures if p.name == "lens_table"]
    for p in pictures:
        assert_legible(p.figure)


def test_values_below_nothing_have_colours_of_their_own(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    ds["gain"] = ds["token_cross_entropy"] - float(ds["token_cross_entropy"].max())
    mesh = lens_table(ds, 1, colour="gain", variant="raw").collections[0]
    assert mesh.get_clim()[0] < 0
    assert mesh.get_clim()[0] == pytest.approx(float(mesh.get_array().min()))
    assert lens_table(ds, 1, colour="token_entropy").collections[0].get_clim()[0] == 0
