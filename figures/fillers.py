"""Fillers, separators and sinks in a frozen model: insertion, interventions, attention, keep-masks."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots
from tokinterp.fillers import insertion_tests


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.fillers``."""
    found = {n: node.to_dataset(inherit=False) for n, node in results.children.items()}
    kinds = [k for k in ("dots", "counting", "words") if k in found["insertion"]["filler"].values]
    fig, axes = plots.figure("double", 9.6, rows=4, columns=2)
    with plots.paper_style():
        change = insertion_tests(found["insertion"])
        for ax, where, legend in ((axes[0, 0], "post", True), (axes[0, 1], "pre", False)):
            select = {"placement": where, "filler": kinds}
            plots.curves(change, "log_prob_change", select=select, ax=ax, legend=legend)
            ax.set_xlabel(f"filler tokens\n{'after' if where == 'post' else 'before'} the question")
        axes[0, 1].set_ylim(axes[0, 0].get_ylim())
        same = found["interventions"].sel(intervention=found["control"]["intervention"])
        plots.rows(
            same, "log_prob_change", "intervention", ax=axes[1, 0], other={"random words": found["control"]},
            label="dots", xlabel="change of log p(answer)", without=("insertion", "knock-out, places"),
        )  # fmt: skip
        plots.rows(found["verdict"], "value", ax=axes[1, 1])
        axes[1, 1].set_title(f"fillers: {found['verdict'].attrs.get('verdict', '')}")
        text = found["text_attention"]
        plots.curves(
            text, "net_enrichment", select={"query_set": text["query_set"].values[0]}, ax=axes[2, 0],
            other={"untrained": found["untrained_text_attention"]}, label="trained",
        )  # fmt: skip
        plots.rows(found["policies"], "loss_change", "policy", ax=axes[2, 1], xlabel="change of the loss")
        if "segments" in found:
            segments = found["segments"]
            plots.curves(segments, "explained", select={"target": segments["target"].values[-1]}, ax=axes[3, 0])
        else:
            plots.curves(found["coverage"], "separator_share", ax=axes[3, 0])
        plots.rows(found["windows"], "kl", "intervention", ax=axes[3, 1])
        plots.panel_letters(axes)
    return fig
