"""Token probes: accuracy over depth by offset and group of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import pick

MEASUREMENT = "ProbeScores"


@checked()
def probe_accuracy(
    ds: xr.Dataset,
    name: str = "accuracy",
    *,
    ax: Axes | None = None,
    subsets: Sequence[str] = ("last piece", "other"),
    offsets: Sequence[int] | None = None,
    baseline: str | None = None,
    width: str | float = "column",
) -> Axes:
    """Draw the accuracy of token probes over depth: offsets by colour, subsets of the tokens by dashes.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ProbeScores`: ``name`` with the dimensions subset, layer and offset, and its interval.
    name : str
        ``"accuracy"``, ``"relative_accuracy"``, ``"gap"``, ...
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    subsets, offsets : sequence
        What to draw; all offsets by default.
    baseline : str, optional
        A variable of subset and offset (``"bigram_accuracy"``), drawn as short lines at the right edge for the first
        subset.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For a variable, subset or offset that is not there.
    """
    select: dict[str, Any] = {"subset": list(subsets)} | ({} if offsets is None else {"offset": list(offsets)})
    one = pick(ds, name, select)[name].transpose("subset", "offset", "layer")
    band = f"{name}_interval"
    bands = pick(ds, band, select)[band].transpose("subset", "offset", "bound", "layer") if band in ds else None
    shown = sorted(one["offset"].values.tolist(), reverse=True)
    colours = style.COLOURS
    with style.drawing(ax, width) as axes:
        for s, subset in enumerate(one["subset"].values):
            for o, offset in enumerate(shown):
                line = one.sel(subset=subset, offset=offset)
                text = f"{offset:+d}" if offset else "0"
                label = f"{text}, {subset}" if len(subsets) > 1 else text
                dash = style.DASHES[s % len(style.DASHES)]
                colour = colours[o % len(colours)]
                axes.plot(line["layer"].values, line.values, color=colour, ls=dash, marker="o", ms=2, label=label)
                if bands is not None:
                    low, high = bands.sel(subset=subset, offset=offset).values
                    axes.fill_between(line["layer"].values, low, high, color=colour, alpha=0.15, lw=0)
                if baseline is not None and s == 0:
                    value = float(pick(ds, baseline, select)[baseline].sel(subset=subset, offset=offset))
                    axes.plot([0.97, 1.0], [value, value], color=colour, lw=1.5, transform=axes.get_yaxis_transform())
        axes.set_xlabel("layer")
        axes.set_ylabel(name.replace("_", " "))
        style.integer_axis(axes)
        if name.endswith("accuracy"):
            axes.set_ylim(0, 1.02)
        style.small_legend(axes, "offset" if len(subsets) == 1 else "offset, tokens")
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of `ProbeScores`."""
    offsets = [int(o) for o in ds["offset"].values if -2 <= o <= 1] or ds["offset"].values.tolist()
    fig, axes = style.figure("double", 2.6, columns=2)
    with style.paper_style():
        probe_accuracy(
            ds, ax=axes[0, 0], offsets=offsets, baseline="bigram_accuracy" if "bigram_accuracy" in ds else None
        )
        probe_accuracy(ds, "gap", ax=axes[0, 1], subsets=["last piece"], offsets=offsets)
        axes[0, 1].axhline(0, color="0.6", lw=0.6)
        style.panel_letters(axes)
    text = (
        f"Token probes over depth, {interval_said(ds, 'document')}. a: share of positions at which the "
        "probe names the token at the offset, at last tokens of multi-token words and at the others; short lines at "
        "the right edge are what the token at the position alone tells (bigrams), at last tokens. b: accuracy at the "
        "other tokens minus that at last tokens; erasure is a gap that grows with depth."
    )
    yield "probe_scores", text, fig
