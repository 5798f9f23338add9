"""Attention on sets of tokens, and how much each position receives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.dataset import kind
from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer
from .tokens import layer_ticks

MEASUREMENT = ("AttentionMass", "AttentionSinks")
NAMES = {
    "mass": "attention on the set",
    "net_enrichment": "attention over chance, net of sink",
    "enrichment": "attention over chance",
    "valued_mass": "share of attention times written norm",
}


@checked()
def attention_by_block(
    ds: xr.Dataset, name: str = "mass", *, ax: Axes | None = None, queries: str | None = None, legend: bool = True,
    other: xr.Dataset | None = None, label: str | None = None, width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw a quantity of ``AttentionMass`` over blocks, mean over heads, with its interval over prompts.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``AttentionMass``.
    name : {"mass", "enrichment", "net_enrichment", "valued_mass"}
        Quantity to draw; at enrichment 1, drawn grey, the set gets what its size would give it.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    queries : str, optional
        Which positions look; by default the first set.
    legend : bool
        Whether to name the sets.
    other, label
        What to compare with, drawn dashed, and the name of ``ds`` beside it.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    queries = str(ds["query_set"].values[0]) if queries is None else queries

    def mean(d: xr.Dataset) -> xr.Dataset:
        out = d[[name]].sel(query_set=queries).mean("head", keep_attrs=True)
        some = out[name].notnull().any([n for n in out[name].dims if n != "key_set"]).values
        return out.isel(key_set=np.flatnonzero(some)).assign_attrs(d.attrs)

    second = None if other is None else mean(other)
    ax = by_layer(mean(ds), name, ax=ax, other=second, label=label, ylabel=NAMES.get(name), legend=legend, width=width)
    if name.endswith("enrichment"):
        ax.axhline(1, color="0.6", lw=0.8, zorder=0)
    style.from_zero(ax)
    return ax


@checked()
def head_map(
    ds: xr.Dataset, name: str = "mass", keys: str | None = None, *, ax: Axes | None = None, queries: str | None = None,
    width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw a quantity of ``AttentionMass`` for one set of keys, heads to the right and blocks upwards.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``AttentionMass``.
    name : str
        Quantity, see `attention_by_block`.
    keys, queries : str, optional
        Sets; by default the first.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    keys = str(ds["key_set"].values[0]) if keys is None else keys
    queries = str(ds["query_set"].values[0]) if queries is None else queries
    v = ds[name].sel(key_set=keys, query_set=queries).mean("prompt").transpose("block", "head")
    with style.drawing(ax, width) as axes:
        top = 1.0 if name.endswith("mass") else None
        drawn = axes.pcolormesh(
            np.arange(v.shape[1] + 1) - 0.5, np.arange(v.shape[0] + 1) - 0.5, np.ma.masked_invalid(v.values), vmin=0,
            vmax=top, cmap="viridis", rasterized=True,
        )  # fmt: skip
        axes.set_facecolor("0.85")
        axes.spines[:].set_visible(False)
        layer_ticks(axes, ds["block"].values, "block")
        style.integer_axis(axes)
        axes.set_xlabel("head")
        axes.set_title(f"{queries} → {keys}")
        bar = style.figure_of(axes).colorbar(drawn, ax=axes, pad=0.02, aspect=18)
        bar.set_label(NAMES.get(name, name))
        bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=style.RC["ytick.labelsize"], width=0.4)
    return axes


@checked()
def sink_by_position(
    ds: xr.Dataset, *, ax: Axes | None = None, other: xr.Dataset | None = None, labels: tuple[str, str] = ("", "other"),
    width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw the share of prompts, blocks and heads in which each position is an attention sink.

    Positions that fewer than 16 queries see are left out: the last ones are seen by little but themselves.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``AttentionSinks``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    other : xarray.Dataset, optional
        What to compare with, drawn dashed.
    labels : (str, str)
        Names of the two.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    with style.drawing(ax, width) as axes:
        for n, (d, name) in enumerate(zip((ds, other), labels, strict=True)):
            if d is not None:
                rate = d["sink_rate"].mean(("block", "head"))
                rate = rate[d["n_queries"].values >= min(16, d.sizes["position"])]
                axes.plot(
                    rate["position"].values, rate.values, color=style.COLOURS[n], ls=style.DASHES[n],
                    marker=style.MARKERS[n], ms=2, label=name or None,
                )  # fmt: skip
        axes.set_xlabel("position")
        axes.set_ylabel("share of prompts and heads\nthat make it a sink")
        style.integer_axis(axes)
        style.from_zero(axes)
        if other is not None:
            axes.legend()
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``AttentionMass`` or ``AttentionSinks``."""
    if kind(ds.attrs) == "AttentionSinks":
        fig, axes = style.figure("column")
        with style.paper_style():
            sink_by_position(ds, ax=axes[0, 0])
        first = float(ds["sink_rate"].isel(position=0).mean())
        yield "sinks", f"How often a position is an attention sink; position 0: {first:.2f} (Gu et al. 2024).", fig
        return
    for queries in ds["query_set"].values:
        fig, axes = style.figure("double", columns=2)
        with style.paper_style():
            attention_by_block(ds, "mass", ax=axes[0, 0], queries=str(queries))
            attention_by_block(ds, "net_enrichment", ax=axes[0, 1], queries=str(queries))
            style.panel_letters(axes)
        caption = (
            f"Attention of the positions '{queries}': share on each set (a), and over chance with sink and self taken "
            f"out (b; grey: chance). Mean over heads, {interval_said(ds)}."
        )
        yield f"attention_{queries}", caption, fig
