"""Norms and massive activations over layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer
from .tokens import token_layer_map

MEASUREMENT = "TokenNorms"


@checked()
def magnitudes_by_layer(ds: xr.Dataset, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the three largest magnitudes of a prompt and its median magnitude over layers, on a log axis.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``TokenNorms``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``relative``, ``level``, ``layers``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    names = ["largest", "second", "third"]
    lines: Mapping[str, xr.Dataset] = {
        **{n: ds[["top_magnitude"]].isel(rank=i, drop=True).rename(top_magnitude="x") for i, n in enumerate(names)},
        "median": ds[["median_magnitude"]].rename(median_magnitude="x"),
    }
    first = lines["largest"].assign_attrs(ds.attrs)
    rest = {k: v for k, v in lines.items() if k != "largest"}
    options = {"relative": False, "ylabel": "magnitude of entries", **options}
    ax = by_layer(first, "x", ax=ax, other=rest, label="largest", **options)
    ax.set_yscale("log")
    return ax


@checked()
def norms_by_layer(ds: xr.Dataset, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the largest and the median norm of the rows of a prompt over layers, on a log axis.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``TokenNorms``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``relative``, ``level``, ``layers``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    first = ds[["max_norm"]].rename(max_norm="x")
    rest = {"median": ds[["median_norm"]].rename(median_norm="x")}
    options = {"relative": False, "ylabel": "norm of rows", **options}
    ax = by_layer(first, "x", ax=ax, other=rest, label="largest", **options)
    ax.set_yscale("log")
    return ax


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``TokenNorms``."""
    fig, axes = style.figure("double", columns=2, rows=2)
    with style.paper_style():
        magnitudes_by_layer(ds, ax=axes[0, 0])
        norms_by_layer(ds, ax=axes[0, 1])
        by_layer(ds, "top_channels", ax=axes[1, 0], ylabel="channels that carry the longest row")
        by_layer(ds, "massive_rows", ax=axes[1, 1], ylabel="massive rows per prompt")
        style.panel_letters(axes)
    yield (
        "norms",
        "a: the largest magnitudes in a prompt, and the median. b: norms of rows. c: participation ratio over channels "
        "of the longest row of a prompt. d: massive rows, by the norm and by the rule of Sun et al. 2024. Means over "
        f"prompts, {interval_said(ds)}.",
        fig,
    )
    if prompt is not None and "norm" in ds:
        fig, axes = style.figure("double", 2.6)
        with style.paper_style():
            rows = ds["norm"].isel(token=(ds["token_prompt"] == prompt).values).values
            token_layer_map(ds, "norm", prompt, ax=axes[0, 0], limits=(0.0, float(np.nanquantile(rows, 0.98))))
        yield (
            "norms_of_tokens",
            f"Norm of the stream at each token of prompt {prompt}; the top 2 % share a colour.",
            fig,
        )
