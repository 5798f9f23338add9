"""Fillers, separators and sinks in a frozen model: insertion, interventions, attention, keep-masks."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.fillers``."""
    found = {n: node.to_dataset(inherit=False) for n, node in results.children.items()}
    kinds = [k for k in ("dots", "counting", "words") if k in found["insertion"]["filler"].values]
    fig, axes = plots.figure("double", 9.6, rows=4, columns=2)
    with plots.paper_style():
        plots.insertion_curves(found["insertion"], ax=axes[0, 0], kinds=kinds)
        plots.insertion_curves(found["insertion"], ax=axes[0, 1], kinds=kinds, placement="pre", legend=False)
        axes[0, 1].set_ylim(axes[0, 0].get_ylim())
        same = found["interventions"].sel(intervention=found["control"]["intervention"])
        plots.intervals(
            same, "log_prob_change", "intervention", ax=axes[1, 0], other=found["control"],
            labels=("dots", "random words"), ylabel="change of log p(answer)",
            without=("insertion", "knock-out, places"),
        )  # fmt: skip
        plots.evidence(found["verdict"], ax=axes[1, 1])
        plots.attention_by_block(
            found["text_attention"], "net_enrichment", ax=axes[2, 0],
            other=found["untrained_text_attention"].assign_attrs(model="untrained"), label="trained",
        )  # fmt: skip
        axes[2, 0].set_ylim(0, 1.6 * axes[2, 0].get_ylim()[1])  # room for the legend
        plots.intervals(found["policies"], "loss_change", "policy", ax=axes[2, 1], ylabel="change of the loss")
        if "segments" in found:
            plots.explained_by_source(found["segments"], ax=axes[3, 0])
        else:
            plots.coverage_by_block(found["coverage"], ax=axes[3, 0])
        plots.hidden_in_windows(found["windows"], ax=axes[3, 1])
        plots.panel_letters(axes)
    return fig
