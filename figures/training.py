"""Erasure during training: what is read at the ends of words over depth, by checkpoint, and psi over training."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.training import FEWEST, checkpoints, steps_of_end
from tokinterp import plots
from tokinterp.plots import style

KINDS = {"word": "words", "name": "names"}


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.training``."""
    parts = {n.path.strip("/"): n.to_dataset(inherit=False) for n in results.subtree if n.data_vars}
    order = checkpoints(parts)
    trained = style.ordered_colours(len(order) + 1)[-2::-1]
    looks = {name: {"color": trained[k], "ls": "-"} for k, name in enumerate(order)}
    if "untrained" in looks:
        looks["untrained"] = {"color": "0.5", "ls": "--"}
    fig, axes = plots.figure("double", 4.9, rows=2, columns=2)
    with plots.paper_style():
        for ax, variable, offset in ((axes[0, 0], "accuracy", -1), (axes[0, 1], "gap", -1), (axes[1, 0], "gap", 0)):
            by_layer(ax, parts, looks, variable, offset)
        over_training(axes[1, 1], parts, order)
        plots.panel_letters(axes)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)), columnspacing=1.0)
    return fig


def by_layer(ax: Axes, parts: dict[str, xr.Dataset], looks: dict[str, dict], variable: str, offset: int) -> None:
    """Draw a read-out at last pieces of words over the layers, one line per checkpoint."""
    for name, look in looks.items():
        ds = parts[f"{name}/scores"].sel(subset="last piece", offset=offset)
        ax.plot(ds["layer"], ds[variable], marker="o", ms=2, label=readable(name), **look)
        low, high = ds[f"{variable}_interval"].transpose("bound", "layer").values
        ax.fill_between(ds["layer"].values, low, high, color=look["color"], alpha=0.15, lw=0)
    said = {0: "own token", -1: "token before"}[offset]
    if variable == "gap":
        ax.axhline(0, color="0.6", lw=0.6)
        ax.set_ylabel(f"gap in accuracy,\n{said}")
    else:
        ax.set_ylabel(f"accuracy at last pieces,\n{said}")
    ax.set_xlabel("layer")
    style.integer_axis(ax)


def over_training(ax: Axes, parts: dict[str, xr.Dataset], order: list[str]) -> None:
    """Draw the AUROC of psi up to the last layer, with intervals, checkpoint by checkpoint."""
    for k, (kind, said) in enumerate(KINDS.items()):
        rows = []
        for at, name in enumerate(order):
            ends = sorted((n for n in parts if n.startswith(f"{name}/end_")), key=steps_of_end)
            ds = parts[ends[-1]]
            if kind in ds["subset"].values and int(ds["n_spans"].sel(subset=kind)) >= FEWEST:
                one = ds.sel(subset=kind)
                rows.append([at, float(one["auroc"]), *(float(b) for b in one["auroc_interval"].values)])
        if rows:
            x, y, low, high = np.array(rows).T
            x = x + 0.06 * k
            ax.plot(x, y, color=style.COLOURS[k], ls=style.DASHES[k], marker="o", ms=3, lw=1, label=said)
            ax.vlines(x, low, high, color=style.COLOURS[k], lw=1)
    ax.axhline(0.5, color="0.6", lw=0.6)
    ax.set_ylim(0, 1)
    ax.set_xticks(range(len(order)), [readable(n) for n in order], rotation=0 if len(order) < 5 else 45)
    ax.set_ylabel("AUROC of psi")
    style.legend_above(ax)


def readable(name: str) -> str:
    """Return a checkpoint as in the legend: its steps without zeros before them."""
    digits = "".join(c for c in name if c.isdigit())
    return f"step {int(digits):,}" if digits else name
