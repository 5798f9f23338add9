"""Text against shuffled text over depth: dimension, cosine, cross-entropy, agreement."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.first_look``, from layer 1 on: at layer 0 tokens do not know their order yet."""
    dimension, spectrum, lens = (levels(results[n].to_dataset()) for n in ("dimension", "spectrum", "lens"))
    layers = [int(n) for n in lens["layer"].values if n > 0]
    fig, axes = plots.figure("double", 4.4, rows=2, columns=2)
    with plots.paper_style():
        plots.curves(dimension, "dimension", select={"scale": 4}, ax=axes[0, 0], layers=layers)
        regular = {"subset": "regular"}
        plots.curves(spectrum, "prompt_cosine", select=regular, ax=axes[0, 1], layers=layers, legend=False)
        plots.curves(lens, "cross_entropy", ax=axes[1, 0], layers=layers, legend=False)
        plots.curves(lens, "agreement", ax=axes[1, 1], layers=layers, legend=False)
        plots.panel_letters(axes)
    return fig


def levels(ds: xr.Dataset) -> xr.Dataset:
    """Return the conditions as levels of shuffling, S, whose order is seen in the colours."""
    level = [int(str(n).partition(":")[2] or 0) for n in ds["null"].values]
    ds = ds.assign_coords(null=level).rename(null="shuffling_level")
    ds["shuffling_level"].attrs = {
        "long_name": "level of shuffling: 4**S blocks of tokens in random order",
        "units": "1",
    }
    return ds
