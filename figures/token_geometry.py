"""Geometry of tokens over depth: dimension, overlap, cosine and correlation with the loss, text beside its controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tokinterp import plots
from tokinterp.plots import style
from tokinterp.plots.lines import depth_of, lines_of

NAMES = {"none": "text", "random_ids": "random ids", "untrained": "untrained network"}


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.token_geometry``; panels of parts that were not measured stay away."""
    parts = {n: node.to_dataset(inherit=False) for n, node in results.children.items()}
    rows = [row for row in (_dimension, _overlap, _correlation) if row(parts, None)]
    fig, axes = plots.figure("double", 2.15 * len(rows) + 0.35, rows=len(rows), columns=3)
    first = next(iter(parts.values()))
    looks = looks_of([str(n) for n in first["null"].values])
    with plots.paper_style():
        for row, place in zip(rows, axes, strict=True):
            row(parts, place, looks)
        used = [ax for ax in axes.flat if ax.has_data()]
        for ax in axes.flat:
            if ax not in used:
                ax.remove()
        plots.panel_letters(np.array(used))
        handles = [Line2D([], [], **look, label=name_of(null)) for null, look in looks.items()]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), columnspacing=1.0)
    return fig


def looks_of(nulls: list[str]) -> dict[str, dict[str, Any]]:
    """Return colour and dashes of each condition: text black, shuffles dark to light, the others dashed."""
    shuffles = [n for n in nulls if n.startswith("shuffle:")]
    colours = dict(zip(shuffles[::-1], style.ordered_colours(len(shuffles) + 3)[-2::-1], strict=False))
    out: dict[str, dict[str, Any]] = {}
    for null in nulls:
        if null == "none":
            out[null] = {"color": "black", "ls": "-", "lw": 1.5}
        elif null in colours:
            out[null] = {"color": colours[null], "ls": "-"}
        else:
            out[null] = {"color": style.COLOURS[1 if null == "random_ids" else 3], "ls": "--" if "id" in null else ":"}
    return out


def name_of(null: str) -> str:
    """Return a condition as in the legend."""
    return NAMES.get(null, null.replace("shuffle:", "S = ").replace("_", " "))


def lines(ax: Axes, ds: xr.Dataset, name: str, looks: Mapping[str, Any], select: Mapping[str, Any], label: str) -> None:
    """Draw one variable under every condition, the mean over prompts with its interval; layers from 1 on."""
    axis = depth_of(ds, name)
    if axis == "layer":
        ds = ds.sel(layer=ds["layer"] > 0)
    for null, look in looks.items():
        (one,) = lines_of(ds.sel(null=null), name, select=select)
        ax.plot(one.x, one.y, **look)
        if one.band is not None:
            ax.fill_between(one.x, *one.band, color=look["color"], alpha=0.2, lw=0)
    ax.set_xlabel("layer" if axis == "layer" else "block (layer b to b + 1)")
    ax.set_ylabel(label)
    style.integer_axis(ax)


def _dimension(parts: Mapping[str, xr.Dataset], axes: Any, looks: Mapping[str, Any] | None = None) -> bool:
    if "dimension" not in parts or axes is None:
        return "dimension" in parts
    ds = parts["dimension"]
    scales = [int(n) for n in ds["scale"].values]
    for ax, scale in zip(axes, scales[:2], strict=False):
        lines(ax, ds, "dimension", looks or {}, {"scale": scale}, f"dimension (n₂ = {scale})")
        ax.set_ylim(bottom=0)
    ax, middle = axes[2], int(ds["layer"].values[len(ds["layer"]) // 2])
    for null, look in (looks or {}).items():
        (one,) = lines_of(ds.sel(null=null), "dimension", "scale", {"layer": middle})
        ax.plot(one.x, one.y, **look)
        if one.band is not None:
            ax.fill_between(one.x, *one.band, color=look["color"], alpha=0.2, lw=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(scales, [str(n) for n in scales])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("scale n₂")
    ax.set_ylabel(f"dimension at layer {middle}")
    ax.set_ylim(bottom=0)
    return True


def _overlap(parts: Mapping[str, xr.Dataset], axes: Any, looks: Mapping[str, Any] | None = None) -> bool:
    there = "overlap" in parts or "cosine" in parts
    if axes is None or not there:
        return there
    if "overlap" in parts:
        ds = parts["overlap"]
        ks = [int(n) for n in ds["k"].values]
        for ax, k in zip(axes, (ks[0], ks[-1]), strict=False):
            lines(ax, ds, "overlap", looks or {}, {"k": k}, f"overlap (k = {k})")
            ax.axhline(float(ds["chance"].sel(k=k).mean()), color="0.5", lw=0.8, ls=(0, (1, 1)))
            ax.set_ylim(0, 1)
    if "cosine" in parts:
        name = "cosine_diagonal"
        lines(axes[2], parts["cosine"], name, looks or {}, {}, "mean cosine in a prompt")
    return True


def _correlation(parts: Mapping[str, xr.Dataset], axes: Any, looks: Mapping[str, Any] | None = None) -> bool:
    if "correlation" not in parts or axes is None:
        return "correlation" in parts
    ds = parts["correlation"]
    scale = 4 if 4 in ds["scale"].values else int(ds["scale"].values[0])
    one = ds.sel(scale=scale)
    ends = [n for n in looks or {} if n in ("none", "random_ids", "untrained")]
    shuffles = [n for n in looks or {} if n.startswith("shuffle:")]
    for null in [*ends, *shuffles[-1:]]:
        axes[0].plot(one["layer"], one["pearson"].sel(null=null), **(looks or {})[null])
        _band(axes[0], one.sel(null=null), "pearson", (looks or {})[null]["color"])
    axes[0].set_ylabel(f"Pearson correlation of log\ndimension (n₂ = {scale}) and loss")
    text = one.sel(null="none")
    for i, kind in enumerate(k for k in ("pearson", "spearman", "partial") if k in text):
        look = {"color": style.COLOURS[i], "ls": style.DASHES[i], "marker": style.MARKERS[i]}
        axes[1].plot(text["layer"], text[kind], **look, label=kind)
        _band(axes[1], text, kind, look["color"])
    axes[1].set_ylabel("correlation, text")
    for ax in axes[:2]:
        ax.axhline(0, color="0.7", lw=0.6, zorder=0)
        ax.set_ylim(-1, 1)
        ax.set_xlabel("layer")
        style.integer_axis(ax)
    style.legend_above(axes[1])
    last = parts["lens"].isel(layer=-1)["cross_entropy"]
    loss = last.isel({d: 0 for d in last.dims if d not in ("null", "prompt")})
    dimension = parts["dimension"].isel(layer=-1)["dimension"].sel(scale=scale)
    for null in ends[:1] + shuffles[-1:]:
        look = (looks or {})[null]
        axes[2].plot(loss.sel(null=null), dimension.sel(null=null), ls="none", marker="o", ms=1.8, alpha=0.6,
                     color=look["color"])  # fmt: skip
    axes[2].set_xlabel("loss of the prompt (nat)")
    axes[2].set_ylabel(f"dimension, last layer (n₂ = {scale})")
    return True


def _band(ax: Axes, ds: xr.Dataset, kind: str, colour: Any) -> None:
    low, high = ds[f"{kind}_interval"].transpose("bound", "layer").values
    ax.fill_between(ds["layer"].values, low, high, color=colour, alpha=0.15, lw=0)
