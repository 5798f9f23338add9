"""The graph of nearest neighbours over layers: reciprocity, transitivity, hubs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer

MEASUREMENT = "NeighbourGraph"
NAMES = {
    "reciprocity": "reciprocity",
    "transitivity": "transitivity",
    "in_degree_skewness": "skewness of in-degree",
    "orphans": "share without an arrow to them",
}


@checked()
def graph_by_layer(
    ds: xr.Dataset,
    name: str = "reciprocity",
    k: int | Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draw a number of the graph of nearest neighbours over layers.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``NeighbourGraph``.
    name : {"reciprocity", "transitivity", "in_degree_skewness", "orphans"}
        What to draw.
    k : int or sequence of int, optional
        Numbers of neighbours; all by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``other``, ``label``, ``relative``, ``level``, ``legend``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    select = {} if k is None else {"k": k}
    ax = by_layer(ds, name, ax=ax, select=select, ylabel=NAMES.get(name), **options)
    if name == "in_degree_skewness":
        ax.axhline(0, color="0.7", lw=0.6, zorder=0)
    else:
        ax.set_ylim(0, 1.02)
    return ax


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``NeighbourGraph``."""
    k = int(ds["k"].values[len(ds["k"]) // 2]) if {"null", "shuffle", "model"} & {*ds.dims} else None
    fig, axes = style.figure("double", 4.6, rows=2, columns=2)
    with style.paper_style():
        for i, (name, ax) in enumerate(zip(NAMES, axes.flat, strict=True)):
            graph_by_layer(ds, name, k, ax=ax, legend=i == 0)
        style.panel_letters(axes)
    yield (
        "graph",
        f"Graph with an arrow from each token to its k nearest neighbours, mean, {interval_said(ds)}. a: share of "
        "arrows that have their opposite. b: share of two arrows in a row that a third one closes. c: skewness of the "
        "number of arrows to a token; above 1 there are hubs. d: share of tokens to which no arrow points.",
        fig,
    )
