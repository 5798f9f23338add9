"""Figures of linearity, nonlinearity and profiles show the numbers of their datasets."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible
from tiny import tiny

import tokinterp as ti
from tokinterp import plots
from tokinterp.plots import style
from tokinterp.text import token_classes

mpl.use("Agg")


@pytest.fixture(scope="module")
def run():
    texts = ["the river runs in the valley, and ends"] * 3 + ["a king went to the river and sang 12 songs."] * 3
    prompts = ti.Prompts.from_texts(texts, tiny())
    asked = {"linearity": ti.linearity.Linearity(), "nonlinearity": ti.linearity.TokenNonlinearity()}
    return prompts, ti.measure(tiny(), prompts, asked, progress=False)


def test_linearity(run):
    ds = run[1]["linearity"].to_dataset(inherit=False)
    ax = plots.linearity_by_block(ds)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(lines["held out"], ds["linearity_held_out"])
    np.testing.assert_array_equal(lines["as published"], ds["linearity"])
    one = plots.linearity_by_block(ds, residual=False, kinds=["adjusted"], other={"other": ds}, label="own")
    legend = one.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["own", "other"]
    assert one.get_ylabel() == "linearity without the residual"
    with pytest.raises(ValueError, match="no score 'tuned'"):
        plots.linearity_by_block(ds, kinds=["tuned"])


def test_profile(run):
    prompts, tree = run
    ds = tree["nonlinearity"].to_dataset(inherit=False)
    found = ti.results.class_profile(ds, "nonlinearity_mean", token_classes(prompts), prompts, least=2)
    ax = plots.profile(found, "effect")
    drawn = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(drawn.get_xdata()), np.sort(found["effect"]))
    assert "special" not in " ".join(t.get_text() for t in ax.get_yticklabels())
    assert_legible(style.figure_of(ax))
    every = ti.results.class_profile(ds, "nonlinearity", token_classes(prompts), prompts, least=2)
    with pytest.raises(ValueError, match="choose one value of all but subset"):
        plots.profile(every)
    with pytest.raises(ValueError, match="class_profile"):
        plots.profile(ds)


@pytest.mark.slow
def test_overviews_are_legible(run):
    for name in ("linearity", "nonlinearity"):
        figures = list(plots.overview(run[1][name].to_dataset(inherit=False)))
        assert [n for n, _, _ in figures] == [name]
        for _, caption, figure in figures:
            assert len(caption) > 60
            assert_legible(figure)
