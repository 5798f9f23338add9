"""Figures are legible at any depth, in print, and with any name."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from drawn import assert_legible, curves_of, tokens_dataset
from matplotlib.figure import Figure
from matplotlib.text import Text

from tokinterp import plots
from tokinterp.results.dataset import variable

mpl.use("Agg")


@pytest.mark.parametrize("n_layers", [1, 6, 33, 81])
def test_maps_and_curves_stay_legible_at_any_depth(n_layers):
    ds, _ = tokens_dataset([f" token{n}" for n in range(60)], layers=n_layers + 1)
    assert_legible(plots.maps(ds, "surprise", prompt=7).figure)
    ax = plots.curves(curves_of(layers=n_layers + 1, n_layers=n_layers, model=list("abcdefgh")), "loss")
    assert_legible(ax.figure)


def test_pdf_keeps_text_as_truetype(tmp_path):
    ax = plots.curves(curves_of(), "loss")
    data = plots.save(ax, tmp_path / "new" / "a.pdf").read_bytes()
    assert b"/Type3" not in data
    assert b"/CIDFontType2" in data


@pytest.mark.slow
def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    layer = variable("layer", np.arange(3), "blocks applied", "1")
    ds = xr.Dataset({"x": variable("layer", [1.0, 2.0, 3.0], "value", "1")}, {"layer": layer})
    for name in ("$$", "$x_1$", "a $ b $ c"):
        ax = plots.curves(ds, "x", label="a", other={name: ds})
        assert name in [t.get_text() for t in ax.get_legend().get_texts()]
        assert not any(t.get_parse_math() for t in ax.findobj(Text) if "$" in t.get_text())
        plots.save(ax, tmp_path / "a.png")
    own = Figure().subplots()
    own.set_title(r"$\alpha$")
    own.set_yscale("log")
    plots.curves(ds, "x", ax=own)
    assert own.title.get_parse_math()  # the caller's own
    assert all(t.get_parse_math() for t in own.yaxis.get_ticklabels())
    with plots.style.drawing({"ax": own}) as axes:
        axes.set_xlabel("$x_1$")
    assert not own.xaxis.label.get_parse_math()
    plots.save(own, tmp_path / "b.png")


def test_a_legend_tells_dashes_from_a_line_and_names_all_that_differ():
    ds = curves_of(null=["all", "x"], subset=["all", "y"])
    ax = plots.curves(ds, "loss")
    legend = ax.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["all", "x", "all", "y"]
    ax.figure.draw_without_rendering()
    dashed = next(line for line in legend.get_lines() if line.get_linestyle() == "--")
    period = sum(dashed._dash_pattern[1])  # in points
    assert dashed.get_window_extent().width / ax.figure.dpi * 72 > 2.5 * period
