"""Linearity of the blocks, with and without the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import by_layer, named_sets

MEASUREMENT = "Linearity"
KINDS = {"": "as published", "_adjusted": "adjusted", "_held_out": "held out"}


@checked()
def linearity_by_block(
    ds: xr.Dataset,
    *,
    residual: bool = True,
    kinds: Sequence[str] | None = None,
    ax: Axes | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    width: str | float = "column",
) -> Axes:
    """Draw the linearity score of every block, beside the score that independent clouds would have.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``Linearity``.
    residual : bool
        Of the whole stream, or of what the block adds.
    kinds : sequence of str, optional
        Of ``"as published"``, ``"adjusted"`` and ``"held out"``; all that there are by default, by colour. With
        ``other`` the held-out score alone, or the adjusted one where there is none.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    other, label
        What to compare with; see `by_layer`. An untrained network, say.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If there is no score of a kind asked for.
    """
    stem = "linearity" if residual else "linearity_without_residual"
    known = {text: stem + ending for ending, text in KINDS.items() if stem + ending in ds}
    chosen = list(known if kinds is None else kinds)
    if kinds is None and other is not None:
        chosen = chosen[-1:]
    if missing := [k for k in chosen if k not in known]:
        raise ValueError(f"no score {missing[0]!r}: there are {', '.join(known) or 'none'}")
    with style.drawing(ax, width) as axes:
        sets = named_sets(ds, other, label)
        looks = zip(
            [(name, one, kind) for name, one in sets.items() for kind in chosen],
            style.COLOURS,
            style.MARKERS,
            strict=False,
        )
        for n, ((name, one, kind), colour, marker) in enumerate(looks):
            text = name if len(sets) > 1 and len(chosen) == 1 else f"{name} {kind}".strip()
            axes.plot(
                one["block"],
                one[known[kind]],
                marker=marker,
                color=colour,
                label=text,
                ls=style.DASHES[n % 4],
                zorder=3,
            )
        floor = ds["linearity_floor"]
        if np.isfinite(floor).any() and KINDS[""] in chosen:
            axes.plot(ds["block"], floor, color="0.55", ls=":", lw=1, label="independent clouds, as published")
        axes.set_xlabel("block")
        axes.set_ylabel("linearity" if residual else "linearity without the residual")
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.04)
        style.integer_axis(axes)
        axes.legend(loc="best", labelspacing=0.25)
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``Linearity``."""
    fig, axes = style.figure("double", 4.6, rows=2, columns=2)
    with style.paper_style():
        linearity_by_block(ds, ax=axes[0, 0])
        linearity_by_block(ds, residual=False, ax=axes[0, 1])
        by_layer(ds, "relative_step", ax=axes[1, 0], ylabel="norm added / norm of the input")
        axes[1, 0].set_yscale("log")
        by_layer(ds, "cosine", ax=axes[1, 1], ylabel="cosine before and after the block")
        style.panel_letters(axes)
    without = ds["n"].attrs.get("exclude", "nothing")
    yield (
        "linearity",
        f"How far each block is a linear map of the stream, {int(ds['n'][0])} tokens, without: {without}. a: share of "
        "the variance of its output that the best linear map of its input explains; dotted: what independent clouds "
        "would score. b: the same for what the block adds to the stream. c, d: size of what it adds (log), and the "
        f"cosine of a token's stream before and after, mean over prompts, {interval_said(ds)}.",
        fig,
    )
