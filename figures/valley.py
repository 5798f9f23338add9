"""The compression valley: entropy with and without the largest row, its norm, its persistence, and attention sinks."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.valley``; the untrained network is dashed."""
    valley, massive = (results[n].to_dataset() for n in ("valley", "massive"))
    text = valley.sel(null="none", drop=True)
    other = {"untrained": valley.sel(null="untrained", drop=True)} if "untrained" in valley["null"].values else None
    fig, axes = plots.figure("double", 6.6, rows=3, columns=2)
    with plots.paper_style():
        parts = ["entropy", "entropy_without", "entropy_control"]
        plots.curves(text, parts, ax=axes[0, 0], ylabel="matrix entropy (share)")
        plots.curves(text, "entropy", ax=axes[0, 1], other=other, label="trained")
        plots.curves(text, "largest_norm_ratio", ax=axes[1, 0], other=other, label="trained", legend=False)
        plots.curves(
            text, "persistence", ax=axes[1, 1], other=other, label="trained", legend=False,
            ylabel="cosine of the largest row\nwith the layer before",
        )  # fmt: skip
        massive = massive.assign(sink_change=massive["sink_change"].mean("block", keep_attrs=True))
        for ax, name in zip(axes[2], ("sink_change", "loss_change"), strict=True):
            plots.rows(massive, name, "intervention", ax=ax)
        plots.panel_letters(axes)
    return fig
