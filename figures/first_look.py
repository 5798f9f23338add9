"""Text against shuffled text over depth: dimension, cosine, cross-entropy, agreement."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def draw(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.first_look``."""
    dimension, spectrum, lens = (results.children[n].to_dataset() for n in ("dimension", "spectrum", "lens"))
    fig, axes = plots.figure("double", 4.4, rows=2, columns=2)
    with plots.paper_style():
        plots.dimension_by_layer(dimension, scale=4, ax=axes[0, 0])
        plots.spectrum_by_layer(spectrum, "prompt_cosine", subset="regular", ax=axes[0, 1], legend=False)
        plots.lens_by_layer(lens, "cross_entropy", ax=axes[1, 0], legend=False)
        plots.lens_by_layer(lens, "agreement", ax=axes[1, 1], legend=False)
        plots.panel_letters(axes)
    return fig
