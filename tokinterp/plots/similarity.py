"""Similarity of layers as heat maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..settings import checked
from . import style
from .pairs import layer_pairs

MEASUREMENT = ("LayerSimilarity", "compare_models")
NAMES = {
    "cka_debiased": "linear CKA, debiased",
    "cka": "linear CKA, biased",
    "procrustes": "orthogonal Procrustes",
    "rsa": "RSA (Spearman)",
    "cka_rbf_debiased": "RBF CKA, debiased",
    "cka_rbf": "RBF CKA, biased",
    "mutual_neighbours": "mutual neighbours",
}


@checked()
def similarity_map(ds: xr.Dataset, name: str = "cka_debiased", *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the similarity of every layer with every other, colours from 0 (or the least value) to 1.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``LayerSimilarity`` or ``compare_models``.
    name : str
        ``"cka_debiased"``, ``"cka"``, ``"procrustes"``, ``"rsa"``, ``"mutual_neighbours"``, ...
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``limits``, ``cmap``, ``label``, ``width`` of `layer_pairs`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if name in ds and "limits" not in options:
        low = float(np.nanmin(ds[name].values)) if np.isfinite(ds[name].values).any() else 0.0
        options["limits"] = (min(0.0, low), 1.0)
    return layer_pairs(ds, name, ax=ax, **{"label": NAMES.get(name), **options})


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a similarity of layers, of one model or two."""
    names = [n for n in NAMES if n in ds]
    drawn = [n for n in names if not (n.startswith("cka") and f"{n}_debiased" in names)][:4]
    fig, axes = style.figure(
        "double" if len(drawn) > 1 else "column", rows=(len(drawn) + 1) // 2, columns=min(2, len(drawn))
    )
    with style.paper_style():
        for name, ax in zip(drawn, axes.flat, strict=False):
            similarity_map(ds, name, ax=ax)
        for ax in axes.flat[len(drawn) :]:
            ax.set_axis_off()
        if len(drawn) > 1:
            style.panel_letters(axes.flat[: len(drawn)])
    one, two = ds.attrs.get("model"), ds.attrs.get("other_model")
    what = (
        f"texts, one row each, at layers of {one} and other layers of {two}" if two else "the same tokens at two layers"
    )
    rows = ", ".join(sorted({str(ds[n].attrs.get("rows", "")) for n in drawn} - {""}))
    yield (
        "similarity",
        f"Similarity of the geometry of {what}; 1 is the same up to rotation and scale. "
        + "; ".join(f"{chr(97 + i)}: {NAMES[n]}" for i, n in enumerate(drawn))
        + (f". Rows: {rows}." if rows else "."),
        fig,
    )
