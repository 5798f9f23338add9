"""Fillers against none against chain of thought: curves per seed, sizes, kinds of examples, probes, ablations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokinterp import plots
from tokinterp.fillers.tasks.last import last_evaluation
from tokinterp.plots import style

ARMS = {"filler": "with fillers", "none": "without", "none_equal_flops": "without, equal FLOPs"}


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.dot_by_dot``."""
    trained = {
        task: {arm: node.to_dataset(inherit=False) for arm, node in arms.children.items()}
        for task, arms in results["training"].children.items()
    }
    sizes = {task: json.loads(next(iter(arms.values())).attrs["parameters"])["task"] for task, arms in trained.items()}
    first = str(results["probe/frozen"].attrs["task"])  # files do not keep the order of groups
    same = {along: _longest(trained, sizes, other) for along, other in (("n", "d"), ("d", "n"))}
    arms = trained[first]
    with plots.paper_style():
        fig = Figure(figsize=(7, 8.6), layout="constrained")
        upper, lower = fig.subfigures(2, 1, squeeze=False, height_ratios=[3, 1.25])[:, 0]  # long names of ablations
        axes = np.vstack([upper.subplots(3, 2), lower.subplots(1, 2, width_ratios=[1.2, 1])])
        every: dict[str, Any] = {"along": "step", "select": {"stratum": "all"}, "ylabel": "accuracy"}
        plots.curves(arms["filler"], "accuracy", ax=axes[0, 0], **every)
        plots.curves(arms["none"] if "none" in arms else next(iter(arms.values())), "accuracy", ax=axes[0, 1], **every)
        accuracy_by_size(same["n"], "n", axes[1, 0])
        accuracy_by_size(same["d"], "d", axes[1, 1], legend=False)
        plots.curves(results["probe/frozen"].to_dataset(), "accuracy", along="kept", ax=axes[2, 0], ylabel="accuracy")
        plots.rows(last_evaluation(arms["filler"]), "accuracy", "stratum", ax=axes[2, 1])
        probes = results["dots/probes"].to_dataset()
        select = {"target": "pair sum", "trunk": probes["trunk"].values[0]}
        plots.maps(probes, "accuracy", select=select, ax=axes[3, 0])
        plots.rows(results["dots/ablation"].to_dataset(), "correct", "intervention", ax=axes[3, 1])
        plots.panel_letters(axes)
    return fig


def _longest(trained: dict[str, Any], sizes: dict[str, Any], fixed: str) -> dict[str, Any]:
    """Return the largest group of tasks that have one size in common, of equals the first."""
    groups: dict[int, dict[str, Any]] = {}
    for task, arms in trained.items():
        groups.setdefault(sizes[task][fixed], {})[task] = arms
    return max(groups.values(), key=len)


def accuracy_by_size(
    results: Mapping[str, Mapping[str, xr.Dataset]], along: str, ax: Axes, legend: bool = True
) -> None:
    """Draw the last accuracy without chain of thought against the length or the dimension of the rows, seed by seed."""
    points: dict[str, dict[int, Any]] = {}
    chance: dict[int, float] = {}
    for arms in results.values():
        for arm, ds in arms.items():
            size = int(json.loads(ds.attrs["parameters"])["task"][along])
            form = "filler" if "filler" in ds["format"].values else "none"
            last = last_evaluation(ds)["accuracy"].sel(stratum="all", format=form)
            points.setdefault(arm, {})[size] = last.values
            chance[size] = float(ds["majority"].sel(format=form))
    for a, (arm, found) in enumerate(points.items()):
        sizes = sorted(found)
        shift = 0.06 * (a - (len(points) - 1) / 2)
        look: dict[str, Any] = {"color": style.COLOURS[a], "marker": style.MARKERS[a]}
        label = ARMS.get(arm, arm)
        ax.plot(np.array(sizes) + shift, [found[s].mean() for s in sizes], ls=style.DASHES[a], label=label, **look)
        for s in sizes:
            ax.plot([s + shift] * len(found[s]), found[s], ls="none", **look)
    sizes = sorted(chance)
    ax.plot(sizes, [chance[s] for s in sizes], ":", color="0.4", marker="_", ms=14, label="majority")
    ax.set_xlim(min(sizes) - 0.4, max(sizes) + 0.4)
    ax.set_xlabel({"n": "rows n", "d": "coordinates d"}[along])
    ax.set_ylabel("accuracy")
    ax.set_ylim(None, 1.02)
    style.integer_axis(ax)
    if legend:
        style.legend_above(ax)
