"""Repetition, distance, ciphers, CUTE and spelling: each with its controls, as far as the record has them."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.behaviours``."""
    made = {name: draw for name, draw in PANELS.items() if name in results.children}
    fig, axes = plots.figure("double", 2.5 * ((len(made) + 1) // 2), rows=(len(made) + 1) // 2, columns=2)
    with plots.paper_style():
        for ax, (name, draw) in zip(axes.flat, made.items(), strict=False):
            draw(results[name].to_dataset(), ax)
        for ax in axes.flat[len(made) :]:
            ax.set_visible(False)
        plots.panel_letters(axes.flat[: len(made)])
    return fig


def _repetition(ds: xr.Dataset, ax: Axes) -> None:
    kept = ["all kept", "2 kept"]
    own, moved = (ds.sel(condition=[f"{k}{how}" for k in kept]) for how in ("", ", moved"))
    moved = moved.assign_coords(condition=own["condition"])
    own["prob_last"].attrs["log"] = moved["prob_last"].attrs["log"] = 1
    plots.curves(own, "prob_last", along="repetition", other={"moved": moved}, label="in their place",
                 ylabel="probability of the last target", ax=ax)  # fmt: skip


def _distance(ds: xr.Dataset, ax: Axes) -> None:
    plots.rows(ds, "slope", "condition", ax=ax, xlabel="log-odds gained when repetitions double")


def _ciphers(ds: xr.Dataset, ax: Axes) -> None:
    plots.curves(ds, "loss", along="place", ax=ax)


def _cute(ds: xr.Dataset, ax: Axes) -> None:
    names = {"most common answer": "accuracy_guess", "answers to other items": "accuracy_null"}
    plots.rows(ds, "accuracy", "task", ax=ax, label="accuracy",
               other={k: ds[[n]].rename({n: "accuracy"}) for k, n in names.items()})  # fmt: skip


def _spelling(ds: xr.Dataset, ax: Axes) -> None:
    names = ["mean_matched_auc", *(f"mean_matched_auc_{k}" for k in ("shuffled", "random", "length"))]
    plots.curves(ds, names, ax=ax, ylabel="AUROC of letters, words of one length")


PANELS = {"repetition": _repetition, "distance": _distance, "ciphers": _ciphers, "cute": _cute, "spelling": _spelling}
