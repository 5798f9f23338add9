"""Spectrum of token clouds: how many directions the stream of each layer uses, with and without massive rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import Curve, by_layer, draw_curves, named_sets, pick, spread

MEASUREMENT = "Spectrum"
NAMES = {
    "anisotropy": "anisotropy",
    "participation_ratio": "participation ratio",
    "participation_ratio_unbiased": "participation ratio, unbiased",
    "effective_rank": "effective rank (singular values)",
    "effective_rank_variance": "effective rank (eigenvalues)",
    "pca_components": "principal components",
    "kaiser": "eigenvalues above their mean",
    "broken_stick": "components above the broken stick",
    "power_law": "power-law exponent",
    "total_variance": "total variance",
    "mean_norm": "mean norm of rows",
    "mean_cosine": "mean cosine of row pairs",
    "prompt_cosine": "mean cosine within a prompt",
    "prompt_cosine_centred": "mean cosine within a prompt, centred",
    "prompt_norm": "mean norm of rows",
}


@checked()
def spectrum_by_layer(
    ds: xr.Dataset,
    name: str = "participation_ratio",
    *,
    ax: Axes | None = None,
    subset: str | Sequence[str] | None = None,
    threshold: float | Sequence[float] | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    log: bool = False,
    **options: Any,
) -> Axes:
    """Draw a number of the covariance spectrum over layers, for all rows and for the regular ones.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``Spectrum``.
    name : str
        For example ``"anisotropy"``, ``"participation_ratio_unbiased"``, ``"effective_rank"``, ``"pca_components"``,
        ``"mean_cosine"``, ``"prompt_cosine"``. Those named ``prompt_...`` have an interval over prompts; the others are
        numbers of the whole corpus.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    subset : {"all", "regular"} or sequence, optional
        Which rows; both by default, by colour. Of a comparison only ``"regular"`` by default.
    threshold : float or sequence, optional
        Share of the variance, for ``"pca_components"``; all measured by default.
    other, label
        What to compare with; see `by_layer`.
    log : bool
        Logarithmic axis.
    **options
        ``relative``, ``level``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    select: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    if subset is None and (other is not None or (name == "pca_components" and threshold is None)):
        subset = str(ds["subset"].values[-1])
    if subset is not None:
        select["subset"] = subset
    ax = by_layer(ds, name, ax=ax, select=select, other=other, label=label, ylabel=NAMES.get(name), **options)
    if log:
        ax.set_yscale("log")
    elif "cosine" in name:
        ax.axhline(0, color="0.7", lw=0.6, zorder=0)
    else:
        style.from_zero(ax)
    return ax


@checked()
def eigenvalues(
    ds: xr.Dataset,
    layers: Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    subset: str | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    width: str | float = "column",
) -> Axes:
    """Draw the eigenvalue spectrum of some layers, as shares of the variance, on logarithmic axes.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``Spectrum``.
    layers : sequence of int, optional
        Which layers; by default up to five, spread over the depth.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    subset : {"all", "regular"}, optional
        Which rows; the regular ones by default.
    other, label
        What to compare with, drawn dashed; see `by_layer`.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    layers = spread(ds["layer"].values, 5) if layers is None else list(layers)
    select = {"layer": layers, "subset": subset or str(ds["subset"].values[-1])}
    sets = named_sets(ds, other, label)
    found: dict[str, list[Curve]] = {key: [] for key in sets}
    for key, one in sets.items():
        values = pick(one, "eigenvalue", select)["eigenvalue"].isel(subset=0)
        total = pick(one, "total_variance", select)["total_variance"].isel(subset=0)
        for layer in layers:
            share = values.sel(layer=layer).values / float(total.sel(layer=layer))
            share = np.where(share > 1e-12, share, np.nan)
            rank = np.arange(1, len(share) + 1)
            found[key].append(Curve({"layer": layer} if len(layers) > 1 else {}, rank, share, None, rank < 0))
    with style.drawing(ax, width) as axes:
        draw_curves(axes, found, marker=False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("principal component")
        axes.set_ylabel("share of the variance")
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``Spectrum``."""
    fig, axes = style.figure("double", 4.4, rows=2, columns=2)
    with style.paper_style():
        spectrum_by_layer(ds, "anisotropy", ax=axes[0, 0])
        spectrum_by_layer(ds, "participation_ratio_unbiased", ax=axes[0, 1], legend=False)
        spectrum_by_layer(ds, "prompt_cosine", ax=axes[1, 0], legend=False)
        eigenvalues(ds, ax=axes[1, 1])
        style.panel_letters(axes)
    regular = ds["subset"].attrs.get("regular", "")
    yield (
        "spectrum",
        "a: share of the variance in the first direction of the stream. b: number of directions that share it. c: mean "
        f"cosine of pairs of rows of a prompt, {interval_said(ds)}. d: eigenvalues of the regular rows. "
        + (f"Regular rows are those {regular}." if regular else ""),
        fig,
    )
