"""Cosines over layers, by distance in the text, and angles between neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer, spread

MEASUREMENT = "CosineSimilarity"
KINDS = {
    "cosine": "in a prompt",
    "cosine_across": "across prompts",
    "cosine_centred": "in a prompt, centred",
}
MANY = ("null", "shuffle", "model", "replicate")


@checked()
def cosine_by_layer(ds: xr.Dataset, *, ax: Axes | None = None, name: str | None = None, **options: Any) -> Axes:
    """Draw the mean cosine of tokens over layers: in a prompt, across prompts, and in a prompt about its mean.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``CosineSimilarity``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    name : str, optional
        Draw only this variable; needed for results with a further dimension (``null``, ``model``).
    **options
        ``other``, ``label``, ``relative``, ``level``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if name is not None:
        ax = by_layer(ds, name, ax=ax, ylabel="mean cosine", **options)
    else:
        one = xr.Dataset({"cosine": ds["cosine"]}, attrs=ds.attrs)
        rest = {text: ds[[kind]].rename({kind: "cosine"}) for kind, text in list(KINDS.items())[1:]}
        ax = by_layer(one, "cosine", ax=ax, other=rest, label=KINDS["cosine"], relative=False, ylabel="mean cosine",
                      **options)  # fmt: skip
    ax.axhline(0, color="0.7", lw=0.6, zorder=0)
    return ax


@checked()
def smoothness_by_layer(ds: xr.Dataset, offset: int | Sequence[int] | None = None, *, ax: Axes | None = None,
                        **options: Any) -> Axes:  # fmt: skip
    """Draw how much more alike tokens near each other in the text are than any two tokens of the prompt.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``CosineSimilarity``.
    offset : int or sequence of int, optional
        Places between the two tokens; all by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``other``, ``label``, ``relative``, ``level``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    select = {} if offset is None else {"offset": offset}
    name = "cosine above that of shuffled pairs"
    ax = by_layer(ds, "smoothness", ax=ax, select=select, ylabel=name, **options)
    ax.axhline(0, color="0.7", lw=0.6, zorder=0)
    return ax


@checked()
def angle_histogram(ds: xr.Dataset, layers: Sequence[int] | None = None, *, ax: Axes | None = None,
                    width: str | float = "column") -> Axes:  # fmt: skip
    """Draw the distribution of the angle at a token between its two nearest neighbours, for some layers.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``CosineSimilarity`` with angles.
    layers : sequence of int, optional
        Which layers; by default up to five, spread over the depth.
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
        If the result has no angles.
    """
    if "angle_count" not in ds:
        raise ValueError("no angles in this result: measure with angles=True")
    layers = spread(ds["layer"].values, 5) if layers is None else list(dict.fromkeys(layers))
    count = ds["angle_count"].sel(layer=layers)
    share = count / count.sum("bin") / np.diff(ds["bin"].values)[0]
    with style.drawing(ax, width) as axes:
        for layer, colour in zip(layers, style.ordered_colours(len(layers)), strict=True):
            axes.plot(ds["bin"], share.sel(layer=layer), color=colour, label=str(layer))
        axes.axvline(60, color="0.4", ls=":", lw=0.8)
        axes.set_xlim(0, 180)
        axes.set_xticks([0, 60, 120, 180])
        axes.set_xlabel("angle between two nearest neighbours (degree)")
        axes.set_ylabel("share of tokens\nper degree")
        axes.legend(title="layer", labelspacing=0.25)
        style.from_zero(axes)
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``CosineSimilarity``."""
    many = [d for d in MANY if d in ds.dims]
    fig, axes = style.figure("double", columns=2)
    with style.paper_style():
        cosine_by_layer(ds, ax=axes[0, 0], name="cosine" if many else None)
        smoothness_by_layer(ds, 1 if many else None, ax=axes[0, 1], legend=True)
        style.panel_letters(axes)
    yield (
        "cosine",
        f"a: mean cosine of two tokens, {interval_said(ds)}. b: cosine of tokens so many places apart in the text, "
        "less that of all pairs of the prompt, which is what tokens in random order would have.",
        fig,
    )
    if "angle_count" in ds and not many:
        fig, axes = style.figure("column")
        with style.paper_style():
            angle_histogram(ds, ax=axes[0, 0])
        yield (
            "angles",
            "Angle at a token between the directions of its two nearest neighbours, all prompts. In an isotropic cloud "
            "of many dimensions it is near 60 degrees (dotted).",
            fig,
        )
