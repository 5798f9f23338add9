"""Sparse features and their labels, concepts that decoding follows, tokens to come, and the topic."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.features``."""
    made = {name: draw for name, draw in PANELS.items() if name.partition(" ")[0] in results.children}
    fig, axes = plots.figure("double", 2.4 * ((len(made) + 1) // 2), rows=(len(made) + 1) // 2, columns=2)
    with plots.paper_style():
        for ax, (name, draw) in zip(axes.flat, made.items(), strict=False):
            draw(results[name.partition(" ")[0]].to_dataset(), ax)
        for ax in axes.flat[len(made) :]:
            ax.set_visible(False)
        plots.panel_letters(axes.flat[: len(made)])
    return fig


def _labels(ds: xr.Dataset, ax: Axes) -> None:
    permuted = ds[["accuracy_shuffled"]].rename(accuracy_shuffled="accuracy")
    plots.rows(ds, "accuracy", "dictionary", ax=ax, label="codes", other={"permuted labels": permuted})


def _again(ds: xr.Dataset, ax: Axes) -> None:
    null = ds[["identifiability_null"]].rename(identifiability_null="identifiability").mean("feature", keep_attrs=True)
    own = ds[["identifiability"]].mean("feature", keep_attrs=True)
    plots.rows(own, "identifiability", "dictionary", ax=ax, label="features", other={"random directions": null},
               xlabel="largest cosine with another fit")  # fmt: skip


def _guided(ds: xr.Dataset, ax: Axes) -> None:
    plots.rows(ds, "score", "guide", ax=ax)


def _cost(ds: xr.Dataset, ax: Axes) -> None:
    plots.rows(ds, "cross_entropy", "guide", ax=ax)


def _future(ds: xr.Dataset, ax: Axes) -> None:
    text, shuffled = (ds.sel(condition=c, drop=True) for c in ("text", "shuffled"))
    some = {"layer": [int(k) for k in ds["layer"].values[[0, len(ds["layer"]) // 2]]]}
    plots.curves(
        text.sel(some), "accuracy", along="offset", other={"shuffled": shuffled.sel(some)}, label="text", ax=ax
    )


def _topic(ds: xr.Dataset, ax: Axes) -> None:
    plots.curves(ds, "accuracy", along="position", ax=ax)


PANELS = {"features": _labels, "features again": _again, "guided": _guided, "guided cost": _cost, "future": _future,
          "topic": _topic}  # fmt: skip
