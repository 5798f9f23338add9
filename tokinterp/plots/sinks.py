"""Attention to the first token, block by head."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer
from .tokens import layer_ticks

MEASUREMENT = "FirstTokenAttention"


@checked()
def first_token_map(ds: xr.Dataset, *, ax: Axes | None = None, width: str | float = "column") -> Axes:
    """Draw the mean attention of each head to the first token, heads to the right and blocks upwards.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``FirstTokenAttention``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    v = ds["first_token_mass"].mean("prompt").transpose("block", "head")
    with style.drawing(ax, width) as axes:
        edges = [np.arange(n + 1) - 0.5 for n in v.shape]
        drawn = axes.pcolormesh(
            edges[1], edges[0], np.ma.masked_invalid(v.values), vmin=0, vmax=1, cmap="viridis", rasterized=True
        )
        axes.set_facecolor("0.85")
        axes.spines[:].set_visible(False)
        layer_ticks(axes, ds["block"].values, "block")
        style.integer_axis(axes)
        axes.set_xlabel("head")
        bar = style.figure_of(axes).colorbar(drawn, ax=axes, pad=0.02, aspect=18)
        bar.set_label("attention to the first token")
        bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=style.RC["ytick.labelsize"], width=0.4)
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``FirstTokenAttention``."""
    fig, axes = style.figure("double", columns=2)
    with style.paper_style():
        first_token_map(ds, ax=axes[0, 0])
        by_layer(ds, "sink_rate", ax=axes[0, 1], ylabel="share of heads that are sinks")
        style.panel_letters(axes)
    even = float(ds["uniform"].mean())
    yield (
        "sinks",
        f"a: mean attention of later positions to the first token; even attention gives {even:.2g}. b: "
        f"{ds['sink_rate'].attrs['long_name']}, {interval_said(ds)}.",
        fig,
    )
