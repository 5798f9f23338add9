"""Distance of single tokens from the linear map of each block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..settings import checked
from . import style
from .tokens import map_height, token_layer_map, tokens_of

MEASUREMENT = "TokenNonlinearity"


@checked()
def nonlinearity_map(
    ds: xr.Dataset,
    prompt: int = 0,
    *,
    blocks: Sequence[int] | range | None = None,
    ax: Axes | None = None,
    positions: Sequence[int] | range | None = None,
    label: str | None = "nonlinearity",
    **options: Any,
) -> Axes:
    """Draw the nonlinearity of the tokens of one prompt, tokens from left to right and blocks upwards.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``TokenNonlinearity``.
    prompt : int
        Number of the prompt.
    blocks : sequence of int, optional
        Which blocks; by default all.
    ax, positions, label, **options
        See `token_layer_map`. Unless ``limits`` are given, colours end at the 99th percentile of the tokens that the
        map was fitted on: others (BOS and massive rows) can be ten times as far.

    Returns
    -------
    matplotlib.axes.Axes
    """
    select = {} if blocks is None else {"block": list(blocks)}
    rows = tokens_of(ds, prompt, positions)
    rows = rows.isel(token=rows["fitted"].values) if rows["fitted"].any() else rows
    chosen = rows["nonlinearity"].sel(select) if select else rows["nonlinearity"]
    if "limits" not in options and np.isfinite(chosen).any():
        options["limits"] = (0.0, float(np.nanpercentile(chosen.values, 99)))
    return token_layer_map(
        ds, "nonlinearity", prompt, ax=ax, positions=positions, select=select, label=label, **options
    )


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``TokenNonlinearity``."""
    number = int(ds["token_prompt"].values.min()) if prompt is None else prompt
    fig, axes = style.figure("double", map_height(ds.sizes["block"]))
    with style.paper_style():
        nonlinearity_map(ds, number, ax=axes[0, 0])
    yield (
        "nonlinearity",
        f"Distance of each token of prompt {number} from where the linear map of the block takes it, in units of the "
        "spread of all tokens: 1 is as far as without any map. Colours end at the 99th percentile of the "
        "tokens that the maps were fitted on.",
        fig,
    )
