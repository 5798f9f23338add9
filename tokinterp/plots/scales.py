"""Axes that show what there is: ticks where the numbers are, and limits that one extreme place does not set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from ..results.facts import DEPTHS, Facts, pick
from . import style


def x_axis(ax: Axes, x: np.ndarray, axis: str, facts: Facts, relative: bool) -> None:
    """Put the ticks of the horizontal axis where its numbers are; on a log axis where they grow by ratios."""
    if relative or x.dtype.kind not in "iuf":
        return
    positive = x[x > 0]
    ratios = positive[1:] / positive[:-1] if len(positive) > 1 else np.ones(1)
    grows = ratios.min() >= 1.4 and positive[-1] >= 4 * positive[0]  # 1, 2, 3 are counts
    if axis not in DEPTHS and axis != "offset" and 3 <= len(x) <= 12 and grows and (x >= 0).all():
        if (x == 0).any():
            ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        else:
            ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{n:g}" for n in x])
        ax.xaxis.set_minor_locator(NullLocator())
    elif axis == "component" and facts.log:
        ax.set_xscale("log")
    elif x.dtype.kind in "iu":
        style.integer_axis(ax)


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many of the values, first and last among them, evenly spread.

    Examples
    --------
    >>> spread(range(13), 4)
    [0, 4, 8, 12]
    """
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return [values[i] for i in np.unique(places)]


def limits(ax: Axes, lines: Sequence[Any], facts: Facts, levels: Sequence[float] | np.ndarray = ()) -> None:
    """Set the vertical axis: within what the numbers can be, and so that one extreme place does not flatten the rest.

    Where the values at one place alone would take up two thirds of the axis, it ends before them and an arrow says how
    far they go.  ``levels`` are further values that have to be seen: those by chance.
    """
    ends = [np.stack([c.y, *(c.band if c.band is not None else ())]) for c in lines]
    every = np.concatenate([e.ravel() for e in ends]) if ends else np.zeros(0)
    every = every[np.isfinite(every)]
    if facts.log and len(every) and every.min() > 0:
        ax.set_yscale("log")
        return
    low, high = facts.low, facts.high
    if low is not None and high is not None and len(every) and every.max() > low + 0.6 * (high - low):
        size = high - low
        ax.set_ylim(max(min(low, every.min()), low - size) - 0.02 * size, max(high, every.max()) + 0.02 * size)
        if every.min() < low - size:
            far = min((c for c in lines if np.isfinite(c.y).any()), key=lambda c: np.nanmin(c.y))
            _beyond(ax, far.x[np.nanargmin(far.y)], every.min(), 0)
        return
    sizes = {len(c.x) for c in lines}
    if len(sizes) == 1 and min(sizes) >= 4:
        columns = [np.concatenate([e[:, i] for e in ends]) for i in range(min(sizes))]
        tops = np.array([np.nanmax(c) if np.isfinite(c).any() else -np.inf for c in columns])
        far = int(np.argmax(tops))
        rest = np.concatenate([*(c for i, c in enumerate(columns) if i != far), np.ravel(levels)])
        rest = rest[np.isfinite(rest)]
        if len(rest):  # what goes down at the extreme place is seen, too
            rest = np.append(rest, columns[far].min(initial=rest.min(), where=np.isfinite(columns[far])))
        if len(rest) and low is not None:
            rest = np.append(rest, low)
        if len(rest) and np.isfinite(tops[far]) and tops[far] - rest.min() > 3 * np.ptp(rest) > 0:
            top = rest.max() + 0.15 * np.ptp(rest)
            ax.set_ylim(rest.min() - 0.05 * np.ptp(rest), top)
            top_line = next(c for c, e in zip(lines, ends, strict=True) if (e[:, far] == tops[far]).any())
            _beyond(ax, top_line.x[far], tops[far], 1)
            return
    if low is not None:
        top = ax.get_ylim()[1]
        ax.set_ylim(min(low, every.min(initial=low)), top + 0.02 * (top - low))


def chance_levels(ds: xr.Dataset, name: str, select: Mapping[str, Any] | None, keep: Collection[Any]) -> xr.DataArray:
    """Return levels by chance at what is selected: means over all dimensions but those to keep."""
    v = pick(ds, name, {d: x for d, x in (select or {}).items() if d in ds[name].dims})[name]
    return v.mean([d for d in v.dims if d not in keep])


def _beyond(ax: Axes, x: float, value: float, end: int) -> None:
    """Say at the upper (1) or lower (0) end of the axis how far values go beyond it."""
    ax.plot([x], [end], "^" if end else "v", color="0.2", ms=3, transform=ax.get_xaxis_transform(), clip_on=False)
    ax.annotate(  # upright and on white, since the line that goes there is steep and close
        f"to {value:.3g}", (x, end), xytext=(3, -1 if end else 1), xycoords=ax.get_xaxis_transform(), rotation=90,
        textcoords="offset points", va="top" if end else "bottom", fontsize=style.RC["legend.fontsize"],
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip
