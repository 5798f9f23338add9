"""Networks trained with and without fillers: learning curves, kinds of examples, lengths, and the frozen probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..fillers.tasks.last import last_evaluation
from ..settings import checked
from . import style

MEASUREMENT = "FillersTraining"
FORMATS = {
    "filler": "fillers",
    "none": "no fillers",
    "parallel": "chain of thought",
    "serial": "serial chain of thought",
}
STRATA = {
    "all": "all", "planted": "planted", "survivor": "corrupted,\nyet True", "near_0": "no\nnear\nmiss",
    "near_1": "1\nnear\nmiss", "near_2": "2\nnear\nmisses", "near_3+": "≥ 3\nnear\nmisses", "some": "not all\nmatch",
}  # fmt: skip
ARMS = {
    "filler": "with fillers",
    "none": "without",
    "none_equal_flops": "without, equal FLOPs",
    "random": "not trained",
}


@checked()
def learning_curve(ds: xr.Dataset, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw the accuracy of each format over the examples seen, one thin line per seed.

    Parameters
    ----------
    ds : xarray.Dataset
        From `tokinterp.fillers.tasks.train`.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    legend : bool
        Whether to name the lines.
    """
    with style.drawing(ax) as axes:
        for f, form in enumerate(ds["format"].values):
            of = ds.sel(format=form, stratum="all")
            for s in range(of.sizes["seed"]):
                axes.plot(
                    of["examples_seen"], of["accuracy"].isel(seed=s), style.DASHES[f % 4], color=_colour(form),
                    alpha=0.8, label=FORMATS.get(str(form), str(form)) if s == 0 else None,
                )  # fmt: skip
        _majority(axes, float(ds["majority"][0]))
        axes.set_xlabel("training examples of the format")
        axes.set_ylabel("accuracy of the answer")
        axes.set_ylim(None, 1.02)
        if legend:
            axes.legend(loc="best")
    return axes


@checked()
def stratum_accuracy(ds: xr.Dataset, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw the last accuracy of each format on each kind of example: the mean over seeds, and each seed as a point."""
    with style.drawing(ax) as axes:
        present = [s for s in ds["stratum"].values if bool(ds["accuracy"].sel(stratum=s).notnull().any())]
        forms = list(ds["format"].values)
        last = last_evaluation(ds)["accuracy"]
        for f, form in enumerate(forms):
            x = np.arange(len(present)) + (f - (len(forms) - 1) / 2) * 0.8 / len(forms)
            values = last.sel(format=form, stratum=present).transpose("seed", "stratum").values
            axes.bar(
                x, values.mean(0), 0.8 / len(forms), color=_colour(form), alpha=0.5, label=FORMATS.get(str(form), form)
            )
            for row in values:
                axes.plot(x, row, style.MARKERS[f], color=_colour(form), mec="k", mew=0.3)
        axes.set_xticks(range(len(present)), [STRATA.get(str(s), str(s)) for s in present])
        axes.set_ylabel("accuracy of the answer")
        axes.set_ylim(0, 1.05)
        if legend:
            axes.legend(loc="lower left", ncols=2, frameon=True, framealpha=0.9)
    return axes


@checked()
def probe_curve(ds: xr.Dataset, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw the accuracy of answers after a share of the fillers, one line per network probed."""
    with style.drawing(ax) as axes:
        for t, trunk in enumerate(ds["trunk"].values):
            axes.plot(
                ds["kept"], ds["accuracy"].sel(trunk=trunk), style.DASHES[t % 4], marker=style.MARKERS[t],
                color=style.COLOURS[t], label=ARMS.get(str(trunk), str(trunk)),
            )  # fmt: skip
        _majority(axes, float(ds["majority"]))
        axes.set_xlabel("share of the fillers kept")
        axes.set_ylabel("accuracy of the probe")
        axes.set_ylim(None, 1.02)
        if legend:
            axes.legend()
    return axes


@checked()
def accuracy_by_size(
    results: Mapping[str, Mapping[str, xr.Dataset]], along: str = "n", *, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Draw the last accuracy without chain of thought against the length or the dimension of the rows, seed by seed.

    Parameters
    ----------
    results : mapping
        Task -> arm -> Dataset of `tokinterp.fillers.tasks.train`.
    along : {"n", "d"}
        Number of rows, or coordinates of a row.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    legend : bool
        Whether to name the lines.
    """
    import json

    with style.drawing(ax) as axes:
        points: dict[str, dict[int, Any]] = {}
        chance: dict[int, float] = {}
        for arms in results.values():
            for arm, ds in arms.items():
                size = int(json.loads(ds.attrs["parameters"])["task"][along])
                form = "filler" if "filler" in ds["format"].values else "none"
                last = last_evaluation(ds)["accuracy"].sel(stratum="all", format=form)
                points.setdefault(arm, {})[size] = last.values
                chance[size] = float(ds["majority"].sel(format=form))
        names = [*(a for a in ARMS if a in points), *(a for a in points if a not in ARMS)]
        for a, (arm, found) in enumerate((name, points[name]) for name in names):
            sizes = sorted(found)
            shift = 0.06 * (a - (len(points) - 1) / 2)
            colour, mark, dash = style.COLOURS[a], style.MARKERS[a], style.DASHES[a]
            axes.plot(np.array(sizes) + shift, [found[s].mean() for s in sizes], ls=dash, color=colour)
            for s in sizes:
                axes.plot([s + shift] * len(found[s]), found[s], mark, color=colour)
            axes.plot([], [], ls=dash, marker=mark, color=colour, label=ARMS.get(arm, arm))  # as it is in the legend
        sizes = sorted(chance)
        axes.plot(sizes, [chance[s] for s in sizes], ":", color="0.4", marker="_", ms=14, label="majority")
        axes.set_xlim(min(sizes) - 0.4, max(sizes) + 0.4)
        axes.set_xlabel({"n": "rows n", "d": "coordinates d"}[along])
        axes.set_ylabel("accuracy of the answer")
        axes.set_ylim(None, 1.02)
        style.integer_axis(axes)
        if legend:
            axes.legend()
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield learning curves and the accuracy on each kind of example."""
    for name, caption, draw in (
        ("learning", "Accuracy of the answer in each format; one line per seed.", learning_curve),
        ("strata", "Last accuracy on each kind of example; points are seeds.", stratum_accuracy),
    ):
        fig, axes = style.figure("column")
        with style.paper_style():
            draw(ds, ax=axes[0, 0])
        yield name, caption, fig


def _colour(form: Any) -> str:
    names = list(FORMATS)
    return style.COLOURS[names.index(str(form)) if str(form) in names else -1]


def _majority(axes: Axes, value: float) -> None:
    axes.axhline(value, color="0.4", ls=":", lw=0.8)
    axes.set_ylim(min(axes.get_ylim()[0], value - 0.07))
    axes.annotate("majority", (1, value), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=6.5)
