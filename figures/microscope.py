"""Linearity, anisotropy, nonlinearity and context by kind of token, lenses, deletions: text beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.microscope import beyond_random
from tokinterp import plots
from tokinterp.plots import style
from tokinterp.plots.lines import lines_of

NAMES = {"none": "text", "untrained": "untrained network"}
Parts = Mapping[str, xr.Dataset]
Looks = Mapping[str, dict[str, Any]]


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.microscope``; panels of parts that were not measured stay away.

    Thick lines of linearity are held out, without BOS and massive rows; thin ones are as published.
    """
    parts = {n: node.to_dataset(inherit=False) for n, node in results.children.items()}
    if "linearity" in parts:
        every = parts["linearity_all"]
        published = {f"{stem}_published": every[stem] for stem in ("linearity", "linearity_without_residual")}
        parts["linearity"] = parts["linearity"].assign(published)
    panels = [(needed, draw_one) for needed, draw_one in PANELS if needed in parts]
    rows = int(np.ceil(len(panels) / 3))
    fig, axes = plots.figure("double", 2.25 * rows + 0.35, rows=rows, columns=3)
    looks = looks_of([str(n) for n in next(iter(parts.values()))["null"].values])
    with plots.paper_style():
        for (needed, draw_one), ax in zip(panels, axes.flat, strict=False):
            draw_one(ax, parts[needed], looks)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        plots.panel_letters(axes.flat[: len(panels)])
        handles = [Line2D([], [], **look, label=name_of(null)) for null, look in looks.items()]
        if "linearity" in parts:
            handles.append(Line2D([], [], color="0.6", lw=0.7, label="thin: all rows, fitted and scored on the same"))
        fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    return fig


def looks_of(nulls: list[str]) -> dict[str, dict[str, Any]]:
    """Return colour, dashes and marker of each condition; no two of the first seven share a colour."""
    colours = [6, 1, 0, 2, 3, 4, 5]
    return {
        n: {"color": style.COLOURS[colours[i % 7]], "ls": style.DASHES[i % 4], "marker": style.MARKERS[i % 7]}
        for i, n in enumerate(nulls)
    }


def name_of(null: str) -> str:
    """Return a condition as in the legend."""
    return NAMES.get(null, "shuffled tokens" if null == "shuffle:5" else null.replace("_", " "))


def _over_depth(ax: Axes, ds: xr.Dataset, name: str, looks: Looks, select: Mapping[str, Any], **change: Any) -> None:
    for null, look in looks.items():
        (one,) = lines_of(ds.sel(null=null), name, select=select)
        ax.plot(one.x, one.y, **{**look, **change})
        if one.band is not None:
            ax.fill_between(one.x, *one.band, color=look["color"], alpha=0.2, lw=0)
    style.integer_axis(ax)


def _linearity(stem: str, label: str) -> Callable[[Axes, xr.Dataset, Looks], None]:
    def panel(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
        _over_depth(ax, ds, f"{stem}_held_out", looks, {})
        low = ax.get_ylim()[0]
        _over_depth(ax, ds, f"{stem}_published", looks, {}, lw=0.7, alpha=0.45, marker="")
        ax.set_ylim(max(min(low, 0), -1), 1.03)
        ax.set_xlabel("block")
        ax.set_ylabel(label)

    return panel


def _anisotropy(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
    _over_depth(ax, ds, "anisotropy", looks, {"subset": "regular"})
    if "all" in ds["subset"].values:
        _over_depth(ax, ds, "anisotropy", looks, {"subset": "all"}, lw=0.7, alpha=0.45, marker="")
    ax.set_xlabel("layer")
    ax.set_ylabel("anisotropy")
    ax.set_ylim(bottom=0)


def _classes(label: str) -> Callable[[Axes, xr.Dataset, Looks], None]:
    def panel(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
        text = ds.isel(null=0)
        ds = ds.isel(subset=np.flatnonzero(text["effect"].notnull().values))
        ds = ds.isel(subset=np.argsort(ds["effect"].isel(null=0).values))
        places = np.arange(ds.sizes["subset"])
        for i, (null, look) in enumerate(looks.items()):
            one, at = ds.sel(null=null), places + 0.22 * (len(looks) - 1) / 2 - 0.22 * i
            low, high = one["effect_interval"].transpose("bound", "subset").values
            ax.hlines(at, low, high, color=look["color"], lw=1, alpha=0.6)
            ax.plot(one["effect"], at, marker=look["marker"], color=look["color"], ls="none", ms=2.6)
        ax.axvline(0, color="0.6", lw=0.8, zorder=0)
        ax.set_yticks(places, [str(s) for s in ds["subset"].values])
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(label)

    return panel


def _correlation(what: str) -> Callable[[Axes, xr.Dataset, Looks], None]:
    def panel(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
        places = np.arange(ds.sizes["variant"])
        for i, (null, look) in enumerate(looks.items()):
            one, at = ds.sel(null=null), places + 0.16 * (i - (len(looks) - 1) / 2)
            low, high = one["pearson_interval"].transpose("bound", "variant").values
            ax.vlines(at, low, high, color=look["color"], lw=1.2, alpha=0.6)
            ax.plot(at, one["pearson"], marker=look["marker"], color=look["color"], ls="none")
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
        short = {
            "published": "as\npublished",
            "equal position": "equal\nposition",
            "beyond the mean state": "beyond\nmean\nstate",
        }
        ax.set_xticks(places, [short.get(str(v), str(v)) for v in ds["variant"].values])
        ax.set_xlim(-0.5, len(places) - 0.5)
        ax.set_ylabel(f"correlation of\nnonlinearity and {what}")

    return panel


def _explained(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
    for null, look in looks.items():
        ax.plot(ds["layer"], ds["explained"].sel(null=null), **look)
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    style.integer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("explained share of the\nwords before a token")


def _lens(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
    text, look = ds.isel(null=0), next(iter(looks.values()))
    for i, variant in enumerate(str(v) for v in ds["variant"].values):
        (one,) = lines_of(text, "cross_entropy", select={"variant": variant})
        colour = style.COLOURS[(4, 3, 2)[i % 3]]
        ax.plot(one.x, one.y, color=colour, marker=style.MARKERS[i + 3], ls=look["ls"], label=variant)
    ax.set_yscale("log")
    ax.set_yticks([2, 3, 5, 10, 20, 40], ["2", "3", "5", "10", "20", "40"])
    ax.set_yticks([], minor=True)
    ax.set_ylim(0.9 * float(text["cross_entropy"].mean("prompt").min()), None)
    style.integer_axis(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("next-token loss of text (nat)")
    style.legend_above(ax)


def _tuned(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
    variant = str(ds["variant"].values[-1])
    _over_depth(ax, ds, "cross_entropy", looks, {"variant": variant})
    ax.set_ylim(bottom=0)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"next-token loss, {variant} (nat)")


def _removal(ax: Axes, ds: xr.Dataset, looks: Looks) -> None:
    mean = ds["difference"].mean("prompt")
    places = np.arange(ds.sizes["variant"])[::-1]
    for i, (null, look) in enumerate(looks.items()):
        at = places + 0.2 * (1 - i)
        found = [beyond_random(ds.sel(null=null), str(v)) for v in ds["variant"].values]
        ax.hlines(at, [x.low for x in found], [x.high for x in found], color=look["color"], lw=1.2, alpha=0.6)
        ax.plot([x.value for x in found], at, marker=look["marker"], color=look["color"], ls="none")
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    text = mean.isel(null=0)
    names = []
    for v in ds["variant"].values:
        rise, random = (float(text.sel(variant=v, subset=s)) for s in ("condition", "random"))
        names.append(f"{str(v).replace(' and ', chr(10) + 'and ')}\n({rise:.2f} / {random:.2f})")
    ax.set_yticks(places, names)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("rise of the loss beyond\nrandom deletion (nat)")


PANELS: tuple[tuple[str, Callable[[Axes, xr.Dataset, Looks], None]], ...] = (
    ("linearity", _linearity("linearity", "linearity")),
    ("linearity", _linearity("linearity_without_residual", "linearity without\nthe residual")),
    ("spectrum", _anisotropy),
    ("nonlinearity", _classes("nonlinearity (Cohen's d)")),
    ("memory", _classes("context loss beyond that of\nthe mean state (Cohen's d)")),
    ("recall", _classes("recall of the prefix\n(Cohen's d)")),
    ("recall_layers", _explained),
    ("memory_correlation", _correlation("context loss")),
    ("recall_correlation", _correlation("recall")),
    ("removal", _removal),
    ("lens", _lens),
    ("lens", _tuned),
)
