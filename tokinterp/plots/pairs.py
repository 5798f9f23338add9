"""Every layer against every other: a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..settings import checked, number, pair
from . import style
from .layers import pick


@checked(limits=pair(number(), number()))
def layer_pairs(
    ds: xr.Dataset,
    name: str,
    *,
    ax: Axes | None = None,
    select: Mapping[str, Any] | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    label: str | None = None,
    width: str | float = "column",
) -> Axes:
    """Draw a variable of two layers as a heat map, ``layer`` upwards and ``other_layer`` to the right.

    Parameters
    ----------
    ds : xarray.Dataset
        With the dimensions ``layer`` and ``other_layer``.
    name : str
        Variable to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    select : mapping, optional
        Value of each further dimension; the mean is taken over ``prompt``.
    limits : (float, float), optional
        Ends of the colours; give the same to compare.
    cmap : str
        Colour map.
    label : str, optional
        Shorter name for the colour bar; the unit is added.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the variable is not of two layers, or further dimensions are left.
    """
    v = pick(ds, name, select)[name]
    if "prompt" in v.dims:
        v = v.mean("prompt", keep_attrs=True)
    v = v.squeeze([d for d in v.dims if v.sizes[d] == 1 and d not in ("layer", "other_layer")])
    if set(v.dims) != {"layer", "other_layer"}:
        raise ValueError(
            f"{name} has the dimensions {', '.join(map(str, v.dims))}: choose values with select= until layer and "
            "other_layer are left"
        )
    v = v.transpose("layer", "other_layer")
    low, high = limits or (None, None)
    with style.drawing(ax, width, None if ax is not None else 0.8 * style.inches_of(width)) as axes:
        edges = [np.arange(n + 1) - 0.5 for n in v.shape]
        drawn = axes.pcolormesh(
            edges[1], edges[0], np.ma.masked_invalid(v.values), cmap=cmap, vmin=low, vmax=high, rasterized=True
        )
        axes.set_facecolor("0.85")
        axes.spines[:].set_visible(False)
        axes.set_aspect("equal")
        for axis, d in (("x", "other_layer"), ("y", "layer")):
            numbers = v[d].values
            places = np.arange(0, len(numbers), max(1, int(np.ceil(len(numbers) / 10))))
            getattr(axes, f"set_{axis}ticks")(places, [str(n) for n in numbers[places]])
        axes.set_xlabel("other layer")
        axes.set_ylabel("layer")
        bar = style.figure_of(axes).colorbar(drawn, ax=axes, pad=0.02, aspect=18)
        bar.set_label(style.label(ds[name], label, width=30))
        bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=style.RC["ytick.labelsize"], width=0.4)
    return axes
