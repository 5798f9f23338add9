"""Correlation of the dimension with the loss over layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import palette, put_legend

MEASUREMENT = "DimensionLossCorrelation"


@checked()
def correlation_by_layer(
    ds: xr.Dataset,
    kind: str = "pearson",
    scale: int | Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    rate: float = 0.05,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw the correlation of log dimension and loss over layers, with its interval.

    Parameters
    ----------
    ds : xarray.Dataset
        From `tokinterp.geometry.dimension_loss_correlation`.
    kind : {"pearson", "spearman", "partial"}
        Which correlation.
    scale : int or sequence of int, optional
        Scales; by default the first two.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    rate : float
        Layers at a false discovery rate below this have a full marker.
    legend : bool
        Whether to name the scales.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If there is no such correlation or scale.
    """
    if kind not in ds:
        raise ValueError(f"no {kind!r} in this result: there are {', '.join(map(str, ds.data_vars))}")
    if "scale" not in ds.dims:
        ds = ds.expand_dims(scale=[0])
    known = ds["scale"].values.tolist()
    scales = known[:2] if scale is None else [scale] if isinstance(scale, int) else list(scale)
    if set(scales) - set(known):
        raise ValueError(f"scale {scale!r} was not measured: there are {known}")
    looks = {n: {"color": c, "marker": "o"} for n, c in zip(scales, palette("scale", scales), strict=False)}
    with style.drawing(ax, width) as axes:
        for n, look in looks.items():
            one = ds.sel(scale=n)
            x, r = one["layer"].values, one[kind].values
            sure = one[f"{kind}_q"].values < rate
            axes.plot(x, r, color=look["color"])
            axes.plot(x[sure], r[sure], ls="none", **look)
            axes.plot(x[~sure], r[~sure], ls="none", mfc="white", **look)
            band = one[f"{kind}_interval"].transpose("bound", "layer").values
            axes.fill_between(x, *band, color=look["color"], alpha=0.2, lw=0)
        axes.axhline(0, color="0.7", lw=0.6, zorder=0)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"{kind.capitalize()} correlation\nof log dimension and loss")
        axes.set_ylim(max(-1, np.nanmin([*axes.get_ylim(), -0.1])), 1)
        style.integer_axis(axes)
        if legend and len(looks) > 1:
            put_legend(axes, [("scale", looks)])
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a correlation of dimension and loss."""
    kinds = [k for k in ("pearson", "spearman", "partial") if k in ds]
    if "layer" not in ds.dims:
        return
    fig, axes = style.figure("double", 2.2, columns=len(kinds))
    with style.paper_style():
        for i, (kind, ax) in enumerate(zip(kinds, axes.flat, strict=True)):
            correlation_by_layer(ds, kind, ax=ax, legend=i == 0)
            ax.set_title(kind.capitalize(), loc="center")
            if i:
                ax.set_ylabel("")
            else:
                ax.set_ylabel("correlation of\nlog dimension and loss")
        low = min(ax.get_ylim()[0] for ax in axes.flat)
        for ax in axes.flat:
            ax.set_ylim(low, 1)
    n = ds["n"].values
    yield (
        "correlation",
        f"Correlation, over {int(n.min())} to {int(n.max())} prompts, of the logarithm of the dimension with the mean "
        f"loss, {interval_said(ds)}. Full markers: false discovery rate over layers below 0.05.",
        fig,
    )
