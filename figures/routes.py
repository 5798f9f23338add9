"""Importance of heads, what they read, shares of MLPs, and the rank of attention; untrained dashed.

What they read is of the head of each block that takes most in every other prompt, drawn for the other prompts.
"""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.routes import strongest
from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.routes``."""
    routes, blank, rank, rank_0 = (
        results[part].to_dataset().sel(null=n, drop=True) for part in ("routes", "rank") for n in ("none", "untrained")
    )
    fig, axes = plots.figure("double", 7.0, rows=3, columns=2)
    with plots.paper_style():
        highest = max(float(ds["importance"].mean("prompt").max()) for ds in (routes, blank))
        for ax, ds in zip(axes[0], (routes, blank), strict=True):
            plots.maps(ds, "importance", ax=ax, limits=(0, highest))  # one scale for both
        for ax, said in zip(axes[0], ("trained", "untrained"), strict=True):
            ax.set_aspect("auto")
            ax.set_title(said)
        for ax, name, select in ((axes[1, 0], "previous", {}), (axes[1, 1], "merge", {"pieces": 2})):
            one, two = (strongest(ds, name) for ds in (routes, blank))
            one[name].attrs["log"] = 1  # one head is far above all others
            plots.curves(
                one, [name, f"{name}_control"], ax=ax, select=select, other={"untrained": two}, label="trained",
                ylabel=f"head chosen on other prompts,\nshare {WORDS[name]}", legend=ax is axes[1, 0],
            )  # fmt: skip
        plots.curves(routes, "mlp_share", ax=axes[2, 0], other={"untrained": blank}, label="trained")
        ranks, other = (ds.mean(("block", "head"), keep_attrs=True) for ds in (rank, rank_0))
        plots.curves(
            ranks, "eff_rank", along="length", ax=axes[2, 1], other={"untrained": other}, label="trained",
            ylabel="effective rank of logits",
        )  # fmt: skip
        plots.panel_letters(axes)
    return fig


WORDS = {"previous": "from the token before", "merge": "from the piece before"}
