"""In how many directions predictions spread: the dimension of the cloud of logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .dimension import dimension_by_scale

MEASUREMENT = "LogitDimension"
MOST = 60  # prompts with a dot of their own error


@checked()
def dimension_of_prompts(
    ds: xr.Dataset, scale: int | None = None, *, ax: Axes | None = None, width: str | float = "column"
) -> Axes:
    """Draw the dimension of every prompt in ascending order, with its standard error; dashed: the mean.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``LogitDimension``.
    scale : int, optional
        Neighbour rank of GRIDE; 4 (or else the first) by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For a scale that was not measured, or dimensions beside prompt and scale.
    """
    scales = ds["scale"].values.tolist()
    scale = (4 if 4 in scales else scales[0]) if scale is None else scale
    if scale not in scales:
        raise ValueError(f"the dimension was not measured at scale {scale}: there are {', '.join(map(str, scales))}")
    if extra := [str(d) for d in ds["dimension"].dims if d not in ("prompt", "scale")]:
        raise ValueError(f"choose one {extra[0]} first: ds.isel({extra[0]}=0)")
    value, error = (ds[n].sel(scale=scale).values for n in ("dimension", "dimension_error"))
    order = np.argsort(value)[: int(np.isfinite(value).sum())]
    with style.drawing(ax, width) as axes:
        x = np.arange(1, len(order) + 1)
        bars = error[order] if len(order) <= MOST else None
        axes.errorbar(
            x, value[order], yerr=bars, fmt="o", ms=2.5, lw=0.8, capsize=0, color=style.COLOURS[0], clip_on=False
        )
        if len(order):
            axes.axhline(value[order].mean(), color="0.4", ls="--", lw=0.8, zorder=0)
        axes.set_xlim(0.25, len(order) + 0.75)
        axes.set_xlabel("prompt, in ascending order")
        axes.set_ylabel(f"intrinsic dimension (n₂ = {scale})")
        style.integer_axis(axes)
        style.from_zero(axes)
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``LogitDimension``."""
    extra = [str(d) for d in ds["dimension"].dims if d not in ("prompt", "scale")]
    single = ds.isel(dict.fromkeys(extra, 0))
    several = bool(np.isfinite(ds["dimension"]).any()) and ds.sizes["prompt"] > 1
    fig, axes = style.figure("double" if several else "column", columns=2 if several else 1)
    with style.paper_style():
        dimension_by_scale(ds, ax=axes[0, 0])
        if several:
            dimension_of_prompts(single, ax=axes[0, 1])
            style.panel_letters(axes)
    what = str(ds["dimension"].attrs.get("long_name", "intrinsic dimension"))
    text = f"{what[0].upper()}{what[1:]}: one point of the vocabulary's width per token"
    if several:
        of = f" (of {extra[0]} {single[extra[0]].values} only)" if extra else ""
        bars = ", with standard errors" if ds.sizes["prompt"] <= MOST else ""
        text += (
            f". a: mean over prompts by scale, band: {interval_said(ds)}; a plateau is what can be "
            f"called the dimension. b: every prompt{of}{bars}; dashed: the mean"
        )
    else:
        text += ", by scale; a plateau is what can be called the dimension"
    refused = int((ds["refused"] > 0).sum())
    gaps = f" {refused} of {ds['refused'].size} clouds have no value at some scale (see refused)." if refused else ""
    yield "logit_dimension", f"{text}.{gaps}", fig
