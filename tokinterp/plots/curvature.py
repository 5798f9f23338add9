"""Turning angles over layers, and how far blocks move a token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer

MEASUREMENT = "Curvature"
NAMES = {
    "curvature": "turning angle, token to token",
    "curvature_absolute": "angle of lines, token to token",
    "depth_curvature": "turning angle, layer to layer",
}
REFERENCES = {
    "curvature": {120: "independent", 90: "random walk"},
    "curvature_absolute": {90: "random walk", 60: "independent"},
    "depth_curvature": {90: "random walk"},
}


@checked()
def curvature_by_layer(ds: xr.Dataset, name: str = "curvature", *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the mean turning angle over layers, in degrees, beside those of known paths.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``Curvature``.
    name : str
        ``"curvature"``, ``"curvature_absolute"`` or ``"depth_curvature"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``other``, ``label``, ``relative``, ``level``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    other = options.pop("other", None)
    if isinstance(other, xr.Dataset):
        other = in_degrees(other, name)
    elif other is not None:
        other = {key: in_degrees(d, name) for key, d in other.items()}
    ax = by_layer(in_degrees(ds, name), name, ax=ax, other=other, **{"ylabel": NAMES.get(name), **options})
    for value, text in REFERENCES.get(name, {}).items():
        ax.axhline(value, color="0.55", lw=0.7, ls=(0, (4, 3)), zorder=0)
        ax.annotate(text, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 1.5), textcoords="offset points",
                    ha="right", va="bottom", fontsize=style.RC["legend.fontsize"], color="0.4")  # fmt: skip
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.06 * (high - low))  # room for the words above the highest line
    return ax


def in_degrees(ds: xr.Dataset, name: str) -> xr.Dataset:
    """Return the dataset with one variable in degrees."""
    if name not in ds:
        return ds
    v = ds[name]
    return ds.assign({name: v.copy(data=np.degrees(v.values)).assign_attrs(units="degree")})


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``Curvature``."""
    followed = "depth_curvature" in ds
    fig, axes = style.figure("double" if followed else "column", rows=1 + followed, columns=1 + followed)
    with style.paper_style():
        curvature_by_layer(ds, ax=axes.flat[0])
        if followed:
            curvature_by_layer(ds, "depth_curvature", ax=axes.flat[1])
            by_layer(ds, "relative_step", ax=axes.flat[2], ylabel="length of the update / norm")
            axes.flat[2].set_yscale("log")
            by_layer(ds, "step_cosine", ax=axes.flat[3], ylabel="cosine of input and output")
            style.panel_letters(axes)
    caption = (
        "Mean turning angle of the stream from token to token"
        if not followed
        else "a: mean turning angle of the stream from token to token. b: that of a token's way through the layers. "
        "c: length of a block's update over the norm of its input. d: cosine of a block's input and output"
    )
    yield (
        "curvature",
        f"{caption}. Dashed: paths whose angle is known. Bands: {interval_said(ds)}.",
        fig,
    )
