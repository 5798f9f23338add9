"""Information imbalance: which of two layers tells more about the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.summary import summary
from ..settings import checked
from . import style
from .pairs import layer_pairs

MEASUREMENT = "InformationImbalance"


@checked()
def imbalance_plane(
    ds: xr.Dataset, layer: int | None = None, k: int | None = None, *, ax: Axes | None = None,
    width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw Delta(layer -> l) against Delta(l -> layer) for all layers l, each with its number.

    Points below the diagonal are layers about which ``layer`` tells more than they tell about it.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``InformationImbalance``.
    layer : int, optional
        Layer compared with; the first by default.
    k : int, optional
        Number of neighbours; the first by default.
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
        If there is no such layer or k.
    """
    k = int(ds["k"].values[0]) if k is None else k
    layer = int(ds["layer"].values[0]) if layer is None else layer
    if k not in ds["k"].values or layer not in ds["layer"].values:
        raise ValueError(f"layer {layer}, k {k}: there are {ds['layer'].values.tolist()} and {ds['k'].values.tolist()}")
    pair = ds["imbalance_pair"].sel(k=k)
    others = [n for n in ds["layer"].values.tolist() if n != layer]
    y = pair.sel(layer=layer).sel(other_layer=others).values
    x = pair.sel(other_layer=layer).sel(layer=others).values
    with style.drawing(ax, width, None if ax is not None else 0.85 * style.inches_of(width)) as axes:
        top = 1.15 * float(np.nanmax([x, y]))
        axes.plot([0, top], [0, top], color="0.7", lw=0.6, zorder=0)
        axes.plot(x, y, color="0.8", lw=0.6, zorder=1)
        axes.scatter(x, y, c=style.ordered_colours(len(others)), s=12, zorder=2)
        for n, at in zip(others, zip(x, y, strict=True), strict=True):
            if n in (others[0], others[-1]) or len(others) <= 8:
                axes.annotate(
                    str(n), at, xytext=(3, -7), textcoords="offset points", fontsize=style.RC["xtick.labelsize"]
                )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_aspect("equal")
        axes.set_xlabel(f"imbalance from the layer to layer {layer}")
        axes.set_ylabel(f"imbalance from layer {layer}\nto the layer")
    return axes


@checked()
def imbalance_by_layer(
    ds: xr.Dataset, k: int | Sequence[int] | None = None, *, ax: Axes | None = None, level: float = 0.95,
    width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw the imbalance from layer b to b + 1 and back, with intervals over prompts; dotted: of a cloud with itself.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``InformationImbalance``.
    k : int, optional
        Number of neighbours; the first by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    level : float
        Of the interval.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    k = int(ds["k"].values[0]) if k is None else k
    one = summary(ds[["imbalance_forward", "imbalance_backward", "least"]].sel(k=k), level=level)
    with style.drawing(ax, width) as axes:
        for name, text, colour, dash in (
            ("imbalance_forward", "b to b + 1", style.COLOURS[0], "-"),
            ("imbalance_backward", "b + 1 to b", style.COLOURS[1], "--"),
        ):
            axes.plot(one["block"], one[name], color=colour, ls=dash, marker="o", label=text)
            if ds.sizes["prompt"] > 1:
                band = one[f"{name}_interval"].transpose("bound", "block").values
                axes.fill_between(one["block"], *band, color=colour, alpha=0.25, lw=0)
        axes.axhline(float(one["least"]), color="0.4", ls=":", lw=0.8)
        axes.set_xlabel("block b")
        axes.set_ylabel(f"information imbalance (k = {k})")
        axes.legend()
        style.integer_axis(axes)
        style.from_zero(axes)
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``InformationImbalance``."""
    extra = [d for d in ("null", "shuffle", "model", "replicate") if d in ds.dims]
    ds = ds.isel(dict.fromkeys(extra, 0))
    k = int(ds["k"].values[0])
    options: dict[str, Any] = {"select": {"k": k}, "label": f"imbalance from layer to other layer (k = {k})"}
    fig, axes = style.figure("double", 2.9, columns=2)
    with style.paper_style():
        imbalance_plane(ds, ax=axes[0, 0])
        layer_pairs(ds, "imbalance_pair", ax=axes[0, 1], **options)
        style.panel_letters(axes)
    of = f" Of {extra[0]} {ds[extra[0]].values} only." if extra else ""
    yield (
        "imbalance",
        "Information imbalance, mean over prompts: 0 means that the nearest neighbour at one layer is the nearest at "
        "the other, 1 that it is as far as any. a: the first layer and all others (numbers), below the diagonal where "
        f"the first tells more about the other than the other way round. b: all pairs of layers.{of}",
        fig,
    )
    if "imbalance_forward" in ds:
        fig, axes = style.figure("column")
        with style.paper_style():
            imbalance_by_layer(ds, ax=axes[0, 0])
        yield "imbalance_by_layer", f"Imbalance between a layer and the next; dotted: of a cloud with itself.{of}", fig
