"""The plane of the information imbalance: which of two layers tells more about the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..plots import style
from ..plots.style import Look
from ..plots.views import Picture, picture
from ..results.facts import CONDITIONS, REPLICATES
from ..results.tables import result_with
from ..settings import checked

__all__ = ["imbalance_plane"]


@checked()
def imbalance_plane(
    ds: xr.Dataset | xr.DataTree, layer: int | None = None, k: int | None = None, **look: Unpack[Look]
) -> Axes:  # fmt: skip
    """Draw Delta(layer -> l) against Delta(l -> layer) for all layers l, numbered where they are apart.

    Points below the diagonal are layers about which ``layer`` tells more than they tell about it.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``InformationImbalance``.
    layer : int, optional
        Layer compared with; the first by default.
    k : int, optional
        Number of neighbours; the first by default.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If there is no such layer or k.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [ti.bundled_texts("story")[0].text]
    >>> run = ti.measure(ti.load_model(), texts, {"i": ti.geometry.InformationImbalance(k=(1,))}, progress=False)
    >>> ax = ti.geometry.plots.imbalance_plane(run["i"])
    """
    ds = result_with(ds, "imbalance_pair")
    k = int(ds["k"].values[0]) if k is None else k
    layer = int(ds["layer"].values[0]) if layer is None else layer
    if k not in ds["k"].values or layer not in ds["layer"].values:
        raise ValueError(f"layer {layer}, k {k}: there are {ds['layer'].values.tolist()} and {ds['k'].values.tolist()}")
    pair = ds["imbalance_pair"].sel(k=k)
    others = [n for n in ds["layer"].values.tolist() if n != layer]
    y = pair.sel(layer=layer).sel(other_layer=others).values
    x = pair.sel(other_layer=layer).sel(layer=others).values
    with style.drawing(look, height=0.85 * style.inches_of(look.get("width", "column"))) as axes:
        top = 1.15 * float(np.nanmax([x, y]))
        axes.plot([0, top], [0, top], color="0.7", lw=0.6, zorder=0)
        axes.plot(x, y, color="0.8", lw=0.6, zorder=1)
        axes.scatter(x, y, c=style.ordered_colours(len(others)), s=12, zorder=2)
        apart = 0.05 * top  # as far as numbers have to be to be read
        named: list[int] = []
        for i in sorted(range(len(others)), key=lambda i: (i not in (0, len(others) - 1), i)):  # the ends in any case
            if all(np.hypot(x[i] - x[j], y[i] - y[j]) > apart for j in named):
                named.append(i)
                axes.annotate(
                    str(others[i]), (x[i], y[i]), xytext=(3, -7), textcoords="offset points",
                    fontsize=style.RC["xtick.labelsize"],
                )  # fmt: skip
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_aspect("equal")
        axes.set_xlabel(f"imbalance from the layer to layer {layer}")
        axes.set_ylabel(f"imbalance from layer {layer}\nto the layer")
    return axes


def pictures(ds: xr.Dataset, prompt: int | None, width: str | float) -> Iterator[Picture]:
    """Yield what a report shows of a result of `InformationImbalance` beside its curves and maps."""
    extra = [d for d in (*CONDITIONS, *REPLICATES) if d in ds["imbalance_pair"].dims]
    one = ds.isel(dict.fromkeys(extra, 0))
    of = f" Of {extra[0]} {one[extra[0]].values} only." if extra else ""
    text = (
        "Information imbalance between the first layer and all others (numbers), mean over prompts: 0 means that the "
        "nearest neighbour at one layer is the nearest at the other, 1 that it is as far as any; below the diagonal "
        f"the first tells more about the other than the other way round.{of}"
    )
    yield picture("imbalance_plane", text, partial(imbalance_plane, one), "column", 2.9)


PICTURES = {"InformationImbalance": pictures}
