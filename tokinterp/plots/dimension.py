"""Intrinsic dimension: over layers at one scale, over scales at some layers, and around single tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked, one_of
from . import style
from .layers import by_layer, curves, draw_curves, named_sets, spread
from .tokens import map_height, token_layer_map

MEASUREMENT = "IntrinsicDimension"
VARIABLES = {"gride": "dimension", "mle": "dimension_mle", "twonn": "dimension_twonn"}


@checked(estimator=one_of(*VARIABLES))
def dimension_by_layer(
    ds: xr.Dataset,
    scale: int | Sequence[int] = 4,
    *,
    ax: Axes | None = None,
    estimator: str = "gride",
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    **options: Any,
) -> Axes:
    """Draw the mean intrinsic dimension of prompts over layers, with a bootstrap interval over prompts.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``IntrinsicDimension``.
    scale : int or sequence of int
        Neighbour rank of GRIDE; several are drawn dark to light.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    estimator : {"gride", "mle", "twonn"}
        Which estimate; the last two have no scale.
    other, label
        What to compare with, for example ``other={"shuffled": ds2}``; see `by_layer`.
    **options
        ``relative``, ``level``, ``legend``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For an unknown estimator or a scale that was not measured.
    """
    select = {"scale": scale} if estimator == "gride" else {}
    name = f"intrinsic dimension ({'n₂ = ' + str(scale) if select and isinstance(scale, int) else estimator.upper()})"
    ax = by_layer(ds, VARIABLES[estimator], ax=ax, select=select, other=other, label=label, ylabel=name, **options)
    style.from_zero(ax)
    return ax


@checked()
def dimension_by_scale(
    ds: xr.Dataset,
    layers: Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    level: float = 0.95,
    width: str | float = "column",
) -> Axes:
    """Draw the mean GRIDE dimension over the scale, for some layers; a plateau is what can be called the dimension.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``IntrinsicDimension``, or of ``LogitDimension``, which has no layers.
    layers : sequence of int, optional
        Which layers; by default up to five, spread over the depth.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    other, label
        What to compare with; see `by_layer`.
    level : float
        Of the bootstrap interval over prompts.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For layers that were not measured, or that a result of the logits cannot have.
    """
    select = {}
    if "layer" in ds["dimension"].dims:
        select["layer"] = spread(ds["layer"].values, 5) if layers is None else list(layers)
    elif layers is not None:
        raise ValueError(f"layers={list(layers)}: this dimension is not of layers but of the logits")
    sets = named_sets(ds, other, label)
    found = {key: list(curves(d, "dimension", select, level=level, along="scale")) for key, d in sets.items()}
    with style.drawing(ax, width) as axes:
        draw_curves(axes, found)
        axes.set_xscale("log", base=2)
        scales = np.unique(np.concatenate([c.x for lines in found.values() for c in lines]))
        axes.set_xticks(scales, [str(n) for n in scales])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("scale (neighbour rank n₂)")
        axes.set_ylabel("intrinsic dimension (GRIDE)")
        style.from_zero(axes)
    return axes


@checked()
def local_dimension_map(ds: xr.Dataset, prompt: int = 0, **options: Any) -> Axes:
    """Draw the dimension around every token of a prompt at every layer, as a heat map.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``IntrinsicDimension`` that kept the tokens of this prompt. Tokens that were excluded are grey.
    prompt : int
        Number of the prompt.
    **options
        ``ax``, ``positions``, ``cmap``, ``limits``, ``width`` of `token_layer_map`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    k = ds["local_dimension"].attrs.get("k", "?") if "local_dimension" in ds else "?"
    return token_layer_map(ds, "local_dimension", prompt, **{"label": f"local dimension (k = {k})", **options})


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``IntrinsicDimension``."""
    scales = ds["scale"].values.tolist()
    scale = 4 if 4 in scales else scales[0]
    fig, axes = style.figure("double", columns=2)
    with style.paper_style():
        dimension_by_layer(ds, scale, ax=axes[0, 0])
        dimension_by_scale(ds, ax=axes[0, 1])
        style.panel_letters(axes)
    yield (
        "dimension",
        f"Intrinsic dimension of the cloud of tokens of each prompt, mean, {interval_said(ds)}. a: over layers, "
        f"at scale {scale}. b: over scales; a plateau is what can be called the dimension. Values above about 15 are "
        "lower bounds. Open markers: some prompts are too small for an estimate.",
        fig,
    )
    if prompt is not None and "local_dimension" in ds:
        fig, axes = style.figure("double", map_height(ds.sizes["layer"]))
        with style.paper_style():
            local_dimension_map(ds, prompt, ax=axes[0, 0])
        yield "local_dimension", f"Dimension around each token of prompt {prompt}, at every layer.", fig
