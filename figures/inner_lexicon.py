"""The inner lexicon over depth: words and non-words, words found again, canonicity, attention to the pieces."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tokinterp import plots


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.inner_lexicon``; the untrained copy is dashed."""

    def pair(name: str) -> tuple[xr.Dataset, dict[str, xr.Dataset] | None]:
        first, *rest = (results[f"{m}/{name}"].to_dataset() for m in ("trained", "untrained") if m in results.children)
        return first, {"untrained": rest[0]} if rest else None

    names = ("probe", "split", "canonicity", "pieces")
    (probe, probe_0), (split, split_0), (near, near_0), (pieces, pieces_0) = (pair(n) for n in names)
    fig, axes = plots.figure("double", 7.2, rows=3, columns=2)
    with plots.paper_style():
        plots.curves(probe, "accuracy", ax=axes[0, 0], other=probe_0, label="trained")
        plots.curves(
            split, "retrieved", by="kind", select={"variant": "input, raw, dot"}, ax=axes[0, 1], other=split_0,
            label="trained",
        )  # fmt: skip
        pair_of = ["canonicity", "control"]
        plots.curves(near, pair_of, select={"variant": "centred"}, ax=axes[1, 0], other=near_0, label="trained",
                     ylabel="cosine with a word")  # fmt: skip
        plots.curves(near, "closer", by="kind", select={"variant": "raw"}, ax=axes[1, 1], other=near_0, label="trained")
        for n, ax in zip(pieces["pieces"].values[:2], axes[2], strict=True):
            plots.curves(
                pieces, ["attention", "control"], select={"pieces": int(n)}, ax=ax, other=pieces_0, label="trained",
                ylabel=f"attention to earlier pieces, words of {n} tokens",
            )  # fmt: skip
        plots.panel_letters(axes)
    return fig
