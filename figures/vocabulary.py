"""The vocabulary: tokens that are not repeated, words and their concepts as frames, concepts in states of tokens."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.vocabulary import REST
from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.vocabulary``."""
    tokens, frames, concepts = (results[n].to_dataset() for n in ("tokens", "frames", "concepts"))
    frames = frames.isel(word=(frames["concept"] != REST).values)
    by_concept = frames[["cosine", "cosine_other", "cosine_random"]].groupby("concept").mean()
    both = concepts.rename(word="item")
    fig, axes = plots.figure("double", 5.2, rows=2, columns=2)
    with plots.paper_style():
        plots.rows(tokens, "verified_share", "kind", ax=axes[0, 0])
        plots.curves(tokens, "verified_near", along="ranked", ax=axes[0, 1])
        others = {"another word": "cosine_other", "random columns": "cosine_random"}
        plots.rows(by_concept, "cosine", "concept", ax=axes[1, 0], label="the word", xlabel="cosine with the concept",
                   other={k: by_concept[[n]].rename({n: "cosine"}) for k, n in others.items()})  # fmt: skip
        plots.rows(both, "explained_held_out", "dictionary", ax=axes[1, 1])
        plots.panel_letters(axes)
    return fig
