"""Logit lens, tuned lens and Jacobian lens over depth, and how much of a state few directions make up."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots

NAMES = {"normed": "logit lens", "tuned": "tuned lens", "jacobian": "Jacobian lens"}


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.lenses``."""
    lens, space = results["lens"].to_dataset(), results["space"].to_dataset()
    lens = lens.assign_coords(
        variant=("variant", [NAMES[str(v)] for v in lens["variant"].values], {"long_name": "lens"})
    )
    fig, axes = plots.figure("double", 4.8, rows=2, columns=2)
    with plots.paper_style():
        for ax, name in zip(axes.flat[:3], ("cross_entropy", "kl", "agreement"), strict=True):
            plots.curves(lens, name, ax=ax, legend=ax is axes[0, 0])
        middle = space.isel(layer=[space.sizes["layer"] // 2]).squeeze("layer")
        plots.curves(middle, ["share", "control"], along="n_chosen", ax=axes[1, 1], ylabel="share of squared norm")
        axes[1, 1].set_xlabel(f"directions chosen, layer {int(middle['layer'])}")
        plots.panel_letters(axes)
    return fig
