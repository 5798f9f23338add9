"""Token and concept induction by head, their copying scores, lists without these heads, and the first block."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots

HALF = "judged on"


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.heads``."""
    induction, copying, ablation, first = (
        results[n].to_dataset() for n in ("induction", "copying", "ablation", "detokenisation")
    )
    fig, axes = plots.figure("double", 7.4, rows=3, columns=2)
    with plots.paper_style():
        for row, ds, end in ((0, induction.sel(half=HALF, drop=True), "score"), (1, copying, "copying")):
            for ax, kind in zip(axes[row], ("token", "concept"), strict=True):
                plots.maps(ds, f"{kind}_{end}", ax=ax)
                ax.set_aspect("auto")
                ax.set_title(f"{kind}, {'attention' if end == 'score' else 'copying'}")
        task = str(ablation["task"].values[0])
        lists = ablation.sel(task=task, drop=True)
        plots.curves(lists.sel(choice="ranked", drop=True), "log_prob", along="n_heads", ax=axes[2, 0],
                     other={"other heads": lists.sel(choice="random", drop=True)}, label="ranked",
                     ylabel=f"log-probability, {task}")  # fmt: skip
        heads = first.sel(half=HALF, drop=True)
        blank = heads.sel(null="untrained", drop=True)
        plots.rows(heads.sel(null="none", drop=True), "excess", "head", ax=axes[2, 1], label="trained",
                   other={"untrained": blank})  # fmt: skip
        plots.panel_letters(axes)
    return fig
