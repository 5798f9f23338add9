"""Maps of tokens and tables of the lens."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible, tokens_dataset

from tokinterp import plots

mpl.use("Agg")


def test_token_map_shows_the_values_of_one_prompt_in_order_of_position():
    texts = ["<s>", " The", " Nile", "\n", "$x$", "é", "水", "語", "_^{"]
    ds, values = tokens_dataset(texts)
    ds["surprise"][0, 0] = np.nan
    ax = plots.token_layer_map(ds, "surprise", 7)
    mesh = ax.collections[0].get_array()
    expected = values.T.copy()
    expected[0, int(ds["position"][0])] = np.nan
    np.testing.assert_array_equal(mesh.filled(np.nan), expected)
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[:5] == ["<s>", "␣The", "␣Nile", "⏎", "$x$"]
    assert labels[6:8] == ["□", "□"]  # what the font cannot show
    assert "surprise (nat)" in [a.get_ylabel() for a in ax.figure.axes]
    assert_legible(ax.figure)
    some = plots.token_layer_map(ds, "surprise", 7, positions=[2, 1])
    assert [t.get_text() for t in some.get_xticklabels()] == ["␣The", "␣Nile"]


@pytest.mark.parametrize(
    ("prompt", "positions", "message"),
    [(8, None, "prompt 8 has no tokens here"), (7, [50], "no positions")],
)
def test_missing_tokens_are_named(prompt, positions, message):
    ds, _ = tokens_dataset(["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        plots.token_layer_map(ds, "surprise", prompt, positions=positions)


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
    ax = plots.lens_table(ds, 1, positions=range(4, 8))
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
        plots.lens_table(ds.drop_vars(["top_id", "top_prob"]))
