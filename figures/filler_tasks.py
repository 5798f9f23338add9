"""Tasks that need a step in between: accuracy by number and kind of fillers, and what a transplant of fillers does."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots

TITLES = {"equations": "systems of equations", "letters": "letters of elements", "facts": "sums of two facts"}


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.filler_tasks``: a row for each task."""
    tasks = [t for t in TITLES if t in results.children]
    fig, axes = plots.figure("double", 1.0 + 2.1 * len(tasks), rows=len(tasks), columns=2)
    with plots.paper_style():
        for (left, right), task in zip(axes.reshape(-1, 2), tasks, strict=True):
            tests, swaps = (results[f"{task}/{n}"].to_dataset() for n in ("tests", "interventions"))
            first = task == tasks[0]
            plots.curves(
                tests, "log_prob_change", select={"placement": "post"}, ax=left, legend=first,
                ylabel=f"{TITLES[task]}:\nchange of log p(answer)",
            )  # fmt: skip
            plots.rows(swaps, "donor_change", "intervention", ax=right, xlabel="change of log p(the donor's answer)")
        plots.panel_letters(axes)
    return fig
