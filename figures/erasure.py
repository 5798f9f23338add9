"""Token erasure: accuracy and gap over depth, scores of segments against controls, precision and recall."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.erasure import FEWEST
from tokinterp import plots
from tokinterp.erasure.plots import precision_recall, psi_distribution
from tokinterp.plots import style


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.erasure``."""
    trained = results.children["trained"]
    blank = results.children.get("untrained")
    scores = trained["scores"].to_dataset()
    offsets = [int(o) for o in scores["offset"].values if o in (0, -1, -2)]
    fig, axes = plots.figure("double", 5.0, rows=2, columns=2)
    with plots.paper_style():
        select = {"offset": offsets, "subset": ["last piece", "other"]}
        plots.curves(scores, "accuracy", select=select, ax=axes[0, 0])
        draw_gaps(trained, blank, axes[0, 1])
        controls = {n: trained[n].to_dataset() for n in ("shuffled", "bigram") if n in trained.children}
        if blank is not None and "text" in blank.children:
            controls["untrained"] = blank["text"].to_dataset()
        text = trained["text"].to_dataset()
        known = text.attrs.get("threshold", "none")
        controls = {n: ds for n, ds in controls.items() if ((ds["stop"] - ds["start"]) > 1).any()}
        psi_distribution(text, controls, ax=axes[1, 0], threshold=None if known == "none" else float(known))
        draw_precision(trained, blank, axes[1, 1])
        plots.panel_letters(axes)
    return fig


def draw_gaps(trained: xr.DataTree, blank: xr.DataTree | None, ax: Axes) -> Axes:
    """Draw the gap at offset 0 of words and of further units, in the trained and the untrained network."""
    scores = trained["scores"].to_dataset()
    enough = scores["n_positions"].sel(offset=0) >= FEWEST
    kinds = [s for s in ("last piece", "last of name", "last of entity") if s in scores["subset"].values]
    kinds = [s for s in kinds if s == "last piece" or enough.sel(subset=s)]
    networks = {"": scores} | ({} if blank is None else {", untrained": blank["scores"].to_dataset()})
    for k, kind in enumerate(kinds):
        for n, (name, ds) in enumerate(networks.items()):
            one = ds.sel(subset=kind, offset=0)
            colour, dash = style.COLOURS[k], style.DASHES[n]
            label = f"{kind.replace('last piece', 'last of word')}{name}"
            ax.plot(one["layer"], one["gap"], color=colour, ls=dash, marker="o", ms=2, label=label)
            low, high = one["gap_interval"].transpose("bound", "layer").values
            ax.fill_between(one["layer"].values, low, high, color=colour, alpha=0.15, lw=0)
    ax.axhline(0, color="0.6", lw=0.6)
    ax.set_xlabel("layer")
    ax.set_ylabel("gap in accuracy, offset 0")
    style.integer_axis(ax)
    style.legend_above(ax)
    return ax


def draw_precision(trained: xr.DataTree, blank: xr.DataTree | None, ax: Axes) -> Axes:
    """Draw precision against recall of the words, going down the ranks, with the vocabularies of the controls."""
    if "text_evaluation" not in trained.children:
        ax.text(0.5, 0.5, "no unit occurs twice", ha="center", transform=ax.transAxes)
        return ax
    one = trained["text_evaluation"].to_dataset()
    kinds = [s for s in ("word", "name", "entity") if s in one["subset"].values]
    kinds = [s for s in kinds if s == "word" or one["n_units"].sel(subset=s) >= FEWEST][:2]
    names = ("shuffled", "bigram")
    controls = {n: trained[f"{n}_evaluation"].to_dataset() for n in names if f"{n}_evaluation" in trained.children}
    if blank is not None and "text_evaluation" in blank.children:
        controls["untrained"] = blank["text_evaluation"].to_dataset()
    return precision_recall(one, ax=ax, subsets=kinds, controls=controls)
