"""Matrix entropy over layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer

MEASUREMENT = "MatrixEntropy"
NAMES = {
    "prompt_entropy": "prompt entropy",
    "prompt_entropy_share": "prompt entropy / log min(n, d)",
    "prompt_effective_rank": "effective rank of a prompt",
    "dataset_entropy": "dataset entropy",
    "dataset_entropy_share": "dataset entropy / log min(n, d)",
    "dataset_rankme": "RankMe of pooled prompts",
}


@checked()
def entropy_by_layer(
    ds: xr.Dataset, name: str = "prompt_entropy_share", *, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draw a matrix entropy over layers, one line for each order.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``MatrixEntropy``.
    name : str
        ``"prompt_entropy"``, ``"prompt_entropy_share"``, ``"prompt_effective_rank"`` (with intervals over prompts),
        ``"dataset_entropy"``, ``"dataset_entropy_share"``, ``"dataset_rankme"``.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``select``, ``other``, ``label``, ``relative``, ``level``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    return by_layer(ds, name, ax=ax, **{"ylabel": NAMES.get(name), **options})


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``MatrixEntropy``."""
    names = ["prompt_entropy_share", "prompt_effective_rank", "dataset_entropy_share", "dataset_rankme"]
    drawn = [n for n in names if n in ds]
    if not drawn:
        return
    fig, axes = style.figure("double", rows=(len(drawn) + 1) // 2, columns=2)
    with style.paper_style():
        for name, ax in zip(drawn, axes.flat, strict=False):
            entropy_by_layer(ds, name, ax=ax)
        style.panel_letters(axes.flat[: len(drawn)])
    text = {
        "prompt_entropy_share": "matrix entropy of the tokens of a prompt, as a share of the largest possible value",
        "prompt_effective_rank": "how many directions the tokens of a prompt share",
        "dataset_entropy_share": "matrix entropy of the mean-pooled prompts",
        "dataset_rankme": "effective rank of the mean-pooled prompts",
    }
    caption = ". ".join(f"{chr(97 + i)}: {text[n]}" for i, n in enumerate(drawn))
    yield "entropy", f"{caption}. Bands over prompts: {interval_said(ds)}.", fig
