"""Separators, registers and fillers as go-betweens: who reads them, what they hold, what hiding them costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..results.summary import summary
from ..settings import checked
from . import style

MEASUREMENT = (
    "segment_coverage", "segment_probe", "separator_windows", "registers", "cell_clusters", "routing",
)  # fmt: skip


def lines(
    ds: xr.Dataset, names: Mapping[str, str], dim: str, *, ax: Axes | None = None, ylabel: str = "",
    width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw variables over one dimension, each with its 95 % interval over prompts.

    Parameters
    ----------
    ds : xarray.Dataset
        Variables with dimensions ``prompt`` and ``dim``; means are taken over any other.
    names : mapping of str to str
        Variable to what the legend calls it.
    dim : str
        Dimension along which is drawn: ``block``, ``layer`` or ``n_fillers``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    ylabel : str
        Quantity and unit.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    kept = xr.Dataset({n: ds[n].mean([d for d in ds[n].dims if d not in ("prompt", dim)]) for n in names})
    s = summary(kept)
    with style.drawing(ax, width) as axes:
        x = ds[dim].values
        for number, (name, text) in enumerate(names.items()):
            draw_line(axes, x, s[name].values, s[f"{name}_interval"].transpose("bound", dim).values, number, text)
        axes.set_xlabel({"n_fillers": "registers (tokens)"}.get(dim, dim))
        axes.set_ylabel(ylabel)
        style.integer_axis(axes)
        headroom(axes, 0.1 * len(names))
        style.small_legend(axes)
    return axes


def headroom(axes: Axes, share: float = 0.35) -> None:
    """Leave room for a legend above the lines."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))


def colour(number: int) -> str:
    """Return the colour of the line of that number."""
    return style.COLOURS[number % len(style.COLOURS)]


def draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, bounds: np.ndarray, number: int, text: str) -> None:
    """Draw a line with markers and its interval as a band."""
    (line,) = axes.plot(
        x,
        y,
        marker=style.MARKERS[number % len(style.MARKERS)],
        ms=3,
        lw=1.2,
        color=colour(number),
        label=text,
    )
    axes.fill_between(x, *bounds, color=line.get_color(), alpha=0.2, lw=0)


@checked()
def coverage_by_block(ds: xr.Dataset, *, ax: Axes | None = None, width: str | float = "column") -> Axes:
    """Draw how much of the attention beyond the own segment is on separators (result of ``segment_coverage``).

    Parameters
    ----------
    ds : xarray.Dataset
        With ``separator_share`` and ``chance``.
    ax, width
        See `lines`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    names = {"separator_share": "on separators", "chance": "their share of the tokens"}
    axes = lines(ds, names, "block", ax=ax, ylabel="share of attention out of reach", width=width)
    style.from_zero(axes)
    return axes


@checked()
def explained_by_source(
    ds: xr.Dataset, target: str | None = None, *, ax: Axes | None = None, width: str | float = "column"
) -> Axes:
    """Draw what can be read of a segment, by layer and place of reading (result of ``segment_probe``).

    Parameters
    ----------
    ds : xarray.Dataset
        With ``explained`` and ``explained_interval``.
    target : str, optional
        What is predicted; the last target by default.
    ax, width
        See `lines`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    chosen = str(ds["target"].values[-1]) if target is None else target
    with style.drawing(ax, width) as axes:
        for number, source in enumerate(ds["source"].values.tolist()):
            one = ds.sel(target=chosen, source=source)
            bounds = one["explained_interval"].transpose("bound", "layer").values
            draw_line(axes, ds["layer"].values, one["explained"].values, bounds, number, source)
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
        axes.set_xlabel("layer")
        axes.set_ylabel("variance explained, held out")
        axes.set_title(chosen, fontsize="medium")
        style.integer_axis(axes)
        headroom(axes, 0.5)
        style.small_legend(axes, "read at")
    return axes


@checked()
def hidden_in_windows(
    ds: xr.Dataset, name: str = "kl", *, ax: Axes | None = None, width: str | float = "column"
) -> Axes:
    """Draw what hiding separators in windows of blocks does, beside hiding random tokens (``separator_windows``).

    Parameters
    ----------
    ds : xarray.Dataset
        With ``kl`` and ``loss_change`` by intervention, policy and prompt.
    name : {"kl", "loss_change"}
        Quantity.
    ax, width
        See `lines`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    s = summary(ds[[name]])
    rows = ds["intervention"].values.tolist()
    with style.drawing(ax, width) as axes:
        for number, policy in enumerate(ds["policy"].values.tolist()):
            one = s.sel(policy=policy)
            y = np.arange(len(rows)) + 0.12 * (2 * number - 1)
            middle = one[name].values
            low, high = one[f"{name}_interval"].transpose("bound", "intervention").values
            axes.hlines(y, low, high, color=colour(number))  # the point may lie outside of its interval
            axes.plot(middle, y, style.MARKERS[number], ms=4, color=colour(number), label=f"{policy} hidden")
        axes.axvline(0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xlabel(style.label(ds[name]))
        style.small_legend(axes)
    return axes


@checked()
def cell_likeness(ds: xr.Dataset, *, ax: Axes | None = None, width: str | float = "column") -> Axes:
    """Draw how alike cells (layer, filler) sort the items, ordered by cluster (result of ``cell_clusters``).

    Parameters
    ----------
    ds : xarray.Dataset
        With ``ami``, ``cluster``, ``cell_layer`` and ``cell_slot``.
    ax, width
        See `lines`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    cluster = ds["cluster"].values
    order = np.lexsort((ds["cell_slot"].values, ds["cell_layer"].values, cluster))
    order = order[cluster[order] >= 0]
    table = ds["ami"].values[np.ix_(order, order)]
    with style.drawing(ax, width) as axes:
        image = axes.imshow(table, vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        axes.figure.colorbar(image, ax=axes, label="adjusted mutual information")
        for edge in np.flatnonzero(np.diff(cluster[order])) + 0.5:
            axes.axhline(edge, color="w", lw=1)
            axes.axvline(edge, color="w", lw=1)
        layers = ds["cell_layer"].values[order]
        shown = np.linspace(0, len(order) - 1, min(len(order), 12)).round().astype(int)
        axes.set_yticks(shown, [f"layer {layers[i]}" for i in shown], fontsize="x-small")
        axes.set_xticks([])
        axes.set_xlabel("cells (layer, filler), ordered by cluster")
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure of a result."""
    kind = str(ds.attrs["measurement"])
    over = interval_said(ds)
    fig, axes = style.figure("column", 3.0 if kind == "cell_clusters" else None)
    ax = axes[0, 0]
    with style.paper_style():
        if kind == "segment_coverage":
            coverage_by_block(ds, ax=ax)
            caption = f"Attention beyond the own segment that falls on separators, mean over heads, {over}."
        elif kind == "segment_probe":
            explained_by_source(ds, ax=ax)
            caption = f"Mean embedding of a segment's content, read by ridge probes, {over}."
        elif kind == "separator_windows":
            hidden_in_windows(ds, ax=ax)
            caption = f"Next-token prediction when separators are hidden in some blocks, {over}."
        elif kind == "registers":
            mass = ds["mass"]
            sets = {"registers": "on registers", "first": "on its first token"}
            by_set = xr.Dataset({k: mass.sel(key_set=k, drop=True) for k in sets})
            lines(by_set, sets, "n_fillers", ax=ax, ylabel="attention of the text")
            style.from_zero(ax)
            caption = f"Attention on registers and on the text's first token, mean over blocks and heads, {over}."
        elif kind == "cell_clusters":
            cell_likeness(ds, ax=ax)
            low, high = ds["contrast_interval"].values
            caption = (
                f"Cells whose decoded tokens go together: within less between clusters {float(ds['contrast']):.2f} "
                f"[{low:.2f}, {high:.2f}], with shuffled labels {float(ds['contrast_shuffled']):.2f}."
            )
        else:
            names = {
                "direct": "answer to question",
                "answer_to_fillers": "answer to fillers",
                "routed": "by way of fillers",
            }
            lines(ds, names, "block", ax=ax, ylabel="attention, mean over heads")
            style.from_zero(ax)
            caption = f"Attention from the answer position, directly and by way of the fillers, {over}."
    yield kind, caption, fig
