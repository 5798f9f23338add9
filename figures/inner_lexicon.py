"""The inner lexicon over depth: words and non-words, words found again, canonicity, attention to the pieces."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def draw(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.inner_lexicon``; the untrained copy is dashed."""

    def pair(name: str) -> tuple[xr.Dataset, dict[str, xr.Dataset] | None]:
        first, *rest = (results[f"{m}/{name}"].to_dataset() for m in ("trained", "untrained") if m in results.children)
        return first, {"untrained": rest[0]} if rest else None

    (probe, other_probe), (split, _), (near, other_near), (pieces, other_pieces) = (
        pair(n) for n in ("probe", "split", "canonicity", "pieces")
    )
    fig, axes = plots.figure("double", 4.8, rows=2, columns=2)
    with plots.paper_style():
        plots.word_accuracy(probe, ax=axes[0, 0], other=other_probe, label="trained")
        plots.retrieval_by_layer(split, ax=axes[0, 1], variant="input, raw, cosine")
        plots.canonicity_by_layer(near, ax=axes[1, 0], other=other_near, label="trained")
        plots.piece_attention(pieces, ax=axes[1, 1], other=other_pieces, label="trained")
        plots.panel_letters(axes)
    return fig
