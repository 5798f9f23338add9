"""Overlap of neighbours: from layer to layer, between all layers, and with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked, one_of
from . import style
from .layers import by_layer, palette
from .pairs import layer_pairs

MEASUREMENT = "NeighbourOverlap"


@checked()
def overlap_by_layer(
    ds: xr.Dataset,
    k: int | Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    corrected: bool = False,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    **options: Any,
) -> Axes:
    """Draw the overlap of the neighbours at layers b and b + 1, with the overlap by chance (dotted).

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``NeighbourOverlap``.
    k : int or sequence of int, optional
        Numbers of neighbours; all by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    corrected : bool
        Whether 0 is chance and 1 is everything.
    other, label
        What to compare with; see `by_layer`.
    **options
        ``relative``, ``level``, ``legend``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    select = {} if k is None else {"k": k}
    name = "overlap_corrected" if corrected else "overlap"
    ylabel = "overlap of neighbours, corrected" if corrected else "overlap of neighbours"
    ax = by_layer(ds, name, ax=ax, select=select, other=other, label=label, ylabel=ylabel, **options)
    ax.set_xlabel(ax.get_xlabel().replace("block", "block (layer b to b + 1)"))
    if not corrected:
        _chance(ax, ds["chance"].sel(k=_listed(ds, k)))
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.02)
    return ax


@checked(way=one_of("", "balanced", "corrected"))
def label_overlap_by_layer(
    ds: xr.Dataset,
    label: str = "token_id",
    k: int | Sequence[int] | None = None,
    *,
    ax: Axes | None = None,
    way: str = "",
    **options: Any,
) -> Axes:
    """Draw the share of neighbours with the label of the token over layers, with that by chance (dotted).

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``NeighbourOverlap``.
    label : str
        Which label.
    k : int or sequence of int, optional
        Numbers of neighbours; all by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    way : {"", "balanced", "corrected"}
        Mean over tokens; over classes; of as many neighbours as the class has.
    **options
        ``relative``, ``level``, ``legend``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    way = f"_{way}" if way else ""
    select: dict[str, Any] = {"label": label} | ({} if k is None else {"k": k})
    name = f"neighbours with the same {label.replace('_', ' ')}"
    ax = by_layer(ds, f"label_overlap{way}", ax=ax, select=select, ylabel=name, **options)
    _chance(ax, ds[f"label_chance{way}"].sel(label=label, k=_listed(ds, k)))
    ax.set_ylim(0, 1.02)
    return ax


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``NeighbourOverlap``."""
    one = len(ds["k"]) // 2
    k = int(ds["k"].values[one]) if {"null", "shuffle", "model"} & {*ds.dims} else None
    if "overlap" in ds:
        fig, axes = style.figure("double", columns=2)
        with style.paper_style():
            overlap_by_layer(ds, k, ax=axes[0, 0])
            overlap_by_layer(ds, k, ax=axes[0, 1], corrected=True)
            style.panel_letters(axes)
        yield (
            "overlap",
            "Share of the k nearest neighbours of a token at layer b that are among its k nearest at layer b + 1, mean "
            f"over prompts, {interval_said(ds)}. a: as it is; dotted: expected for unrelated clouds. b: 0 is that, "
            "1 is all.",
            fig,
        )
    if "overlap_pair" in ds and not {"null", "shuffle", "model", "replicate"} & {*ds.dims}:
        fig, axes = style.figure("column", 2.7)
        with style.paper_style():
            chosen = int(ds["k"].values[one])
            layer_pairs(ds, "overlap_pair", ax=axes[0, 0], select={"k": chosen}, label=f"overlap (k = {chosen})")
        yield "overlap_pair", f"Overlap of the {chosen} nearest neighbours between all layers, mean over prompts.", fig
    labels = ds["label"].values.tolist() if "label" in ds.coords else []
    if labels:
        fig, axes = style.figure("double", columns=min(2, len(labels)), rows=(len(labels) + 1) // 2)
        with style.paper_style():
            for label, ax in zip(labels, axes.flat, strict=False):
                label_overlap_by_layer(ds, label, k, ax=ax)
            for ax in axes.flat[len(labels) :]:
                ax.set_axis_off()
            style.panel_letters(axes.flat[: len(labels)])
        yield (
            "label_overlap",
            "Share of the nearest neighbours that have the label of the token; dotted: by chance.",
            fig,
        )


def _listed(ds: xr.Dataset, k: int | Sequence[int] | None) -> list[int]:
    if k is None:
        return ds["k"].values.tolist()
    return [k] if isinstance(k, int) else list(k)


def _chance(ax: Axes, chance: xr.DataArray) -> None:
    """Draw the mean chance level of each k, dotted, in the colour of its curve (grey beside several results)."""
    mean = chance.mean([d for d in chance.dims if d != "k"])
    ks = mean["k"].values.tolist()
    single = {"null", "shuffle", "model"} & {*chance.dims}
    colours = ["0.4"] * len(ks) if single or len(ks) == 1 else palette("k", ks)
    for colour, level in zip(colours, mean.values, strict=False):
        ax.axhline(level, color=colour, ls=":", lw=0.8, zorder=1)
