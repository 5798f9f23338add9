"""Fillers in frozen models: what insertion does, what interventions undo, and the evidence of the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..results.summary import summary
from ..settings import checked
from . import style
from .layers import by_layer

MEASUREMENT = (
    "insert", "intervene", "verdict", "shift", "filler_states", "filler_probes", "read_fillers", "policy_loss",
    "sentinels",
)  # fmt: skip


@checked()
def insertion_curves(
    ds: xr.Dataset, name: str = "log_prob", *, ax: Axes | None = None, placement: str = "post",
    kinds: Sequence[str] | None = None, legend: bool = True, width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw how the answer changes with the number of fillers, with paired intervals over items.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``insert``.
    name : {"log_prob", "correct", "kl", "js", "flip", "entropy_change"}
        Quantity; of the first two the change from no filler is drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    placement : {"post", "pre"}
        After or before the question.
    kinds : sequence of str, optional
        Kinds of fillers; all by default.
    legend : bool
        Whether to name the kinds.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    labels = {
        "log_prob": "change of log p(answer) (nat)", "correct": "change of accuracy",
        "kl": "KL from no filler (nat)", "js": "JS from no filler (nat)",
        "flip": "share of answers changed", "entropy_change": "change of entropy (nat)",
    }  # fmt: skip
    v = ds[name].sel(placement=placement)
    v = v - v.sel(n_fillers=0) if name in ("log_prob", "correct") else v
    s = summary(xr.Dataset({"x": v}))
    with style.drawing(ax, width) as axes:
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
        for n, kind in enumerate(kinds or ds["filler"].values.tolist()):
            one = s.sel(filler=kind)
            colour, x = style.COLOURS[n % len(style.COLOURS)], ds["n_fillers"].values
            axes.fill_between(x, *one["x_interval"].values, color=colour, alpha=0.2, lw=0)
            axes.plot(x, one["x"].values, color=colour, ls=style.DASHES[n % 4], marker=style.MARKERS[n % 7], label=kind)
        axes.set_xscale("symlog", linthresh=2, linscale=0.5)
        axes.set_xticks(ds["n_fillers"].values, [str(k) for k in ds["n_fillers"].values])
        axes.minorticks_off()
        axes.set_xlabel(f"filler tokens {'after' if placement == 'post' else 'before'} the question")
        axes.set_ylabel(labels[name])
        if legend:
            axes.legend(ncols=2 if ds.sizes["filler"] > 3 else 1)
    return axes


@checked()
def intervals(
    ds: xr.Dataset, name: str, dim: str, *, ax: Axes | None = None, other: xr.Dataset | None = None,
    labels: tuple[str, str] = ("fillers", "random words"), names: Mapping[str, str] | None = None,
    without: Sequence[str] = (), ylabel: str | None = None, width: str | float = "column",
) -> Axes:  # fmt: skip
    """Draw means over items (or texts) with their intervals, one row for each intervention, policy or sentinel.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``intervene``, ``policy_loss`` or ``sentinels``.
    name : str
        Variable, for example ``log_prob_change`` or ``loss_change``.
    dim : str
        Dimension that becomes rows: ``intervention``, ``policy`` or ``filler``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    other : xarray.Dataset, optional
        The same of a control, drawn with open markers.
    labels : (str, str)
        Names of the two.
    names : mapping, optional
        Other names for rows.
    without : sequence of str
        Beginnings of the names of rows that are left out.
    ylabel : str, optional
        Shorter name of the variable.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    rows = [r for r in ds[dim].values.tolist() if not any(str(r).startswith(w) for w in without)]
    with style.drawing(ax, width, 0.9 + 0.2 * len(rows)) as axes:
        axes.axvline(0, color="0.6", lw=0.8, zorder=0)
        for n, (d, label) in enumerate(zip((ds, other), labels, strict=True)):
            if d is None:
                continue
            s = (d if f"{name}_interval" in d else summary(d[[name]])).sel({dim: rows})
            x, (low, high) = s[name].values, s[f"{name}_interval"].transpose("bound", dim).values
            place = np.arange(len(rows)) + (0 if other is None else 0.18 * (2 * n - 1))
            colour = style.COLOURS[n]
            axes.hlines(place, low, high, lw=0.9, color=colour)  # the point may lie outside of its interval
            axes.plot(x, place, style.MARKERS[n], ms=3, color=colour, mfc="white" if n else None, label=label)
        axes.set_yticks(range(len(rows)), [wrapped((names or {}).get(str(r), str(r))) for r in rows])
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(style.label(ds[name], ylabel, 44))
        if other is not None:
            axes.legend(loc="lower left", bbox_to_anchor=(0.08, 1), ncols=2, borderaxespad=0)
    return axes


def wrapped(text: str, width: int = 26) -> str:
    """Return the name of a row in lines of at most so many characters."""
    return "\n".join(textwrap.wrap(text, width))


@checked()
def evidence(ds: xr.Dataset, *, ax: Axes | None = None, width: str | float = "column") -> Axes:
    """Draw the conditions of a verdict: value and interval, filled where the lower bound exceeds what is wanted.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``verdict``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    rows = ds["criterion"].values.tolist()
    with style.drawing(ax, width, 0.9 + 0.2 * len(rows)) as axes:
        low, high = (ds["value_interval"].sel(bound=b).values for b in ("lower", "upper"))
        wanted, value = ds["bound_wanted"].values, ds["value"].values
        for i, passed in enumerate(ds["passed"].values):
            colour = style.COLOURS[0] if passed else style.COLOURS[1]
            axes.plot([low[i] - wanted[i], high[i] - wanted[i]], [i, i], color=colour)
            axes.plot(value[i] - wanted[i], i, marker="o", color=colour, mfc=colour if passed else "white")
        axes.axvline(0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(range(len(rows)), [wrapped(str(r)) for r in rows])
        axes.invert_yaxis()
        axes.set_xlabel("evidence above what is wanted\n(nat; best head: times chance)")
        axes.set_title(f"fillers: {ds.attrs['verdict']}")
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of the filler experiments."""
    kind = ds.attrs.get("measurement")
    if kind == "insert":
        fig, axes = style.figure("double", columns=2, sharey=True)
        with style.paper_style():
            for n, place in enumerate(ds["placement"].values.tolist()[:2]):
                insertion_curves(ds, ax=axes[0, n], placement=place, legend=n == 0)
            style.panel_letters(axes)
        yield "insertion", f"Change of the log-probability of the answer, paired, {_said(ds)}.", fig
    elif kind == "intervene":
        yield _rows(ds, "log_prob_change", "intervention", "What interventions on the fillers do to the answer.")
        yield _rows(ds, "kl", "intervention", "How far interventions on the fillers move the prediction.")
    elif kind == "verdict":
        fig, axes = style.figure("column", 2.2)
        with style.paper_style():
            evidence(ds, ax=axes[0, 0])
        yield "verdict", f"Evidence that fillers are used: {ds.attrs['verdict']}; {_said(ds)}.", fig
    elif kind == "policy_loss":
        yield _rows(ds, "loss_change", "policy", "What a model loses when only some keys stay visible.")
    elif kind == "sentinels":
        yield _rows(ds, "gap_left", "filler", "Share of earlier chunks' information that sentinels do not hold.")
    else:
        names = {"shift": "shift", "filler_states": "variance_share", "filler_probes": "explained",
                 "read_fillers": "reciprocal_rank"}  # fmt: skip
        name = names[str(kind)]
        shown = ds[[name]].mean("slot", keep_attrs=True) if "slot" in ds[name].dims else ds[[name]]
        select = {d: shown[d].values[:1] for d in ("variant",) if d in shown[name].dims}
        fig, axes = style.figure("column")
        with style.paper_style():
            by_layer(shown, name, ax=axes[0, 0], select=select)
        yield name, f"{ds[name].attrs['long_name']}{', mean over fillers' if 'slot' in ds[name].dims else ''}.", fig


def _said(ds: xr.Dataset) -> str:
    """Return what the intervals are over: the prompts of these results are items, but for texts."""
    said = interval_said(ds)
    return said if ds.attrs.get("measurement") in ("policy_loss", "sentinels") else said.replace("prompts", "items")


def _rows(ds: xr.Dataset, name: str, dim: str, caption: str) -> tuple[str, str, Figure]:
    fig, axes = style.figure("column", 0.9 + 0.22 * ds.sizes[dim])
    with style.paper_style():
        intervals(ds, name, dim, ax=axes[0, 0])
    return name, f"{caption} Mean, {_said(ds)}.", fig
