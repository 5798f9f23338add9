"""Fillers against none against chain of thought: curves per seed, sizes, kinds of examples, probes, ablations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


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
        plots.learning_curve(arms["filler"], ax=axes[0, 0])
        plots.learning_curve(arms["none"] if "none" in arms else next(iter(arms.values())), ax=axes[0, 1])
        plots.accuracy_by_size(same["n"], "n", ax=axes[1, 0])
        plots.accuracy_by_size(same["d"], "d", ax=axes[1, 1], legend=False)
        plots.probe_curve(results["probe/frozen"].to_dataset(), ax=axes[2, 0])
        plots.stratum_accuracy(arms["filler"], ax=axes[2, 1])
        plots.dot_probe_map(results["dots/probes"].to_dataset(), ax=axes[3, 0])
        plots.dot_ablation(results["dots/ablation"].to_dataset(), ax=axes[3, 1])
        plots.panel_letters(axes)
    return fig


def _longest(trained: dict[str, Any], sizes: dict[str, Any], fixed: str) -> dict[str, Any]:
    """Return the largest group of tasks that have one size in common, of equals the first."""
    groups: dict[int, dict[str, Any]] = {}
    for task, arms in trained.items():
        groups.setdefault(sizes[task][fixed], {})[task] = arms
    return max(groups.values(), key=len)
