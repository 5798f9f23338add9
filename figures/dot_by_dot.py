"""Fillers against none against chain of thought: curves per seed, sizes, kinds of examples, probes."""

from __future__ import annotations

import json

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def draw(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.dot_by_dot``."""
    trained = {
        task: {arm: node.to_dataset(inherit=False) for arm, node in arms.children.items()}
        for task, arms in results["training"].children.items()
    }
    sizes = {task: json.loads(next(iter(arms.values())).attrs["parameters"])["task"] for task, arms in trained.items()}
    first = str(results["probe/frozen"].attrs["task"])  # files do not keep the order of groups
    same = {
        along: {t: a for t, a in trained.items() if sizes[t][other] == sizes[first][other]}
        for along, other in (("n", "d"), ("d", "n"))
    }
    arms = trained[first]
    fig, axes = plots.figure("double", 6.2, rows=3, columns=2)
    with plots.paper_style():
        plots.learning_curve(arms["filler"], ax=axes[0, 0])
        plots.learning_curve(arms["none"] if "none" in arms else next(iter(arms.values())), ax=axes[0, 1])
        plots.accuracy_by_size(same["n"], "n", ax=axes[1, 0])
        plots.accuracy_by_size(same["d"], "d", ax=axes[1, 1], legend=False)
        plots.probe_curve(results["probe/frozen"].to_dataset(), ax=axes[2, 0])
        plots.stratum_accuracy(arms["filler"], ax=axes[2, 1])
        plots.panel_letters(axes)
    return fig
