"""A per-token quantity by class of token."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..settings import checked
from . import style


@checked()
def profile(
    ds: xr.Dataset,
    name: str = "mean",
    *,
    most: int = 16,
    counts: bool = True,
    ax: Axes | None = None,
    label: str | None = None,
    width: str | float = "column",
) -> Axes:
    """Draw means or effect sizes of the classes of tokens, highest first, with their intervals.

    Parameters
    ----------
    ds : xarray.Dataset
        Of `tokinterp.results.class_profile`, with one value per class (choose a layer or block first).
    name : {"mean", "effect", "dominance"}
        What to draw; ``dominance`` has no interval.
    most : int
        Classes drawn, those with most tokens.
    counts : bool
        Whether the number of tokens is written behind each name.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure, as high as the classes need.
    label : str, optional
        Shorter name of the axis; the unit is added.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the dataset is no profile, or has further dimensions.
    """
    if "subset" not in ds.dims or name not in ds:
        raise ValueError(f"no {name!r} by class of token: give a result of tokinterp.results.class_profile")
    if ds[name].dims != ("subset",):
        raise ValueError(
            f"{name} has the dimensions {', '.join(map(str, ds[name].dims))}: choose one value of all but subset"
        )
    one = ds.isel(subset=slice(most))
    one = one.isel(subset=np.argsort(one[name].values, kind="stable"))
    places = np.arange(one.sizes["subset"])
    with style.drawing(ax, width, 0.75 + 0.17 * len(places)) as axes:
        if f"{name}_interval" in one:
            low, high = one[f"{name}_interval"].transpose("bound", "subset").values
            axes.hlines(places, low, high, color=style.COLOURS[0], lw=1.6, alpha=0.6)
        axes.plot(one[name], places, "o", color=style.COLOURS[0])
        if name != "mean":
            axes.axvline(0, color="0.6", lw=0.8, zorder=0)
        names = [str(s) for s in one["subset"].values]
        if counts:
            names = [f"{s} ({n:,})" for s, n in zip(names, one["n_tokens"].values, strict=True)]
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(places) - 0.4)
        axes.set_xlabel(style.label(ds[name], label))
    return axes
