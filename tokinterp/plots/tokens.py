"""Values at single tokens: heat maps of tokens over layers, and the rows of one prompt in a per-token result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..settings import checked, number, pair
from . import style
from .layers import AXES, pick

PROMPT_NUMBERS = ("prompt", "prompt_number", "token_prompt")
LONGEST = 50


@checked(limits=pair(number(), number()))
def token_layer_map(
    ds: xr.Dataset,
    name: str,
    prompt: int = 0,
    *,
    ax: Axes | None = None,
    positions: Sequence[int] | range | None = None,
    select: Mapping[str, Any] | None = None,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    label: str | None = None,
    width: str | float = "double",
) -> Axes:
    """Draw a per-token variable of one prompt as a heat map, tokens from left to right and layers upwards.

    Parameters
    ----------
    ds : xarray.Dataset
        With the dimensions ``token`` (coordinates prompt, position and text) and ``layer`` or ``block``.
    name : str
        Variable to draw.
    prompt : int
        Number of the prompt.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    positions : sequence of int, optional
        Which tokens; by default the first 50.
    select : mapping, optional
        Value of each further dimension.
    cmap : str
        Colour map; the default can be read with any colour vision and in grey.
    limits : (float, float), optional
        Ends of the colours; by default the least and the greatest value drawn. To compare prompts, give the same.
    label : str, optional
        Shorter name for the colour bar; the unit is added.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the variable has no values per token and layer, the prompt or the positions are not in it, or further
        dimensions are left.
    """
    one = tokens_of(pick(ds, name, select), prompt, positions)
    v = one[name].squeeze()
    depth = next((d for d in AXES if d in one[name].dims), None)
    if depth is None:
        raise ValueError(f"{name} has one value per token and no layers: there is nothing to draw over depth")
    rest = [str(d) for d in one[name].dims if d not in ("token", depth) and one.sizes[d] > 1]
    if rest:
        raise ValueError(
            f"{name} has more dimensions than token and {depth}: choose one value of {', '.join(rest)} with select="
        )
    v = one[name].isel({d: 0 for d in one[name].dims if d not in ("token", depth)}).transpose(depth, "token")
    numbers = one[depth].values
    with style.drawing(ax, width, map_height(len(numbers))) as axes:
        low, high = limits or (None, None)
        drawn = axes.pcolormesh(
            np.arange(v.sizes["token"] + 1) - 0.5, np.arange(len(numbers) + 1) - 0.5, np.ma.masked_invalid(v.values),
            cmap=cmap, vmin=low, vmax=high, rasterized=True,
        )  # fmt: skip
        axes.set_facecolor("0.85")
        axes.spines[:].set_visible(False)
        style.write_tokens(axes, strings_of(one))
        layer_ticks(axes, numbers, depth)
        axes.set_xlabel("")
        bar = style.figure_of(axes).colorbar(drawn, ax=axes, pad=0.01, aspect=18)
        bar.set_label(style.label(ds[name], label, width=24))
        bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
        bar.ax.tick_params(labelsize=style.RC["ytick.labelsize"], width=0.4)
    return axes


def map_height(n_layers: int) -> float:
    """Return the height of a figure, in inches, in which a heat map of so many layers is legible."""
    return 1.4 + 0.085 * min(n_layers, 40)


@checked()
def tokens_of(ds: xr.Dataset, prompt: int, positions: Sequence[int] | range | None = None) -> xr.Dataset:
    """Return the rows of one prompt in a per-token result, in the order of their positions.

    Parameters
    ----------
    ds : xarray.Dataset
        With the dimension ``token``.
    prompt : int
        Number of the prompt.
    positions : sequence of int, optional
        Which places; by default the first 50 that have values.

    Raises
    ------
    ValueError
        If there are no per-token values, no such prompt, or no such positions.
    """
    if "token" not in ds.dims:
        raise ValueError(
            f"no value per token in {', '.join(map(str, ds.data_vars)) or 'this result'}: measure with tokens=None"
        )
    number = prompt_of(ds)
    here = np.flatnonzero(number == prompt)
    if not len(here):
        known = np.unique(number)
        raise ValueError(
            f"prompt={prompt}: prompt {prompt} has no tokens here: there are {len(known)} prompts, from {known[0]} to "
            f"{known[-1]}"
        )
    place = ds["position"].values[here]
    here, place = here[np.argsort(place, kind="stable")], np.sort(place, kind="stable")
    if positions is None:
        return ds.isel(token=here[:LONGEST])
    keep = np.isin(place, np.asarray(list(positions)))
    if not keep.any():
        raise ValueError(f"prompt {prompt} has no positions {list(positions)[:8]}: it has {place[0]} to {place[-1]}")
    return ds.isel(token=here[keep])


def prompt_of(ds: xr.Dataset) -> np.ndarray:
    """Return (token,) the number of the prompt that each token belongs to."""
    for name in PROMPT_NUMBERS:
        if name in ds.coords and ds[name].dims == ("token",):
            return ds[name].values
    raise ValueError("the tokens of this result do not say which prompt they belong to")


def strings_of(ds: xr.Dataset) -> list[str]:
    """Return (token,) strings, or ids where the result has no strings."""
    for name in ("text", "token_id", "position"):
        if name in ds.coords and ds[name].dims == ("token",):
            return [str(t) for t in ds[name].values]
    return [str(n) for n in range(ds.sizes["token"])]


def layer_ticks(ax: Axes, numbers: np.ndarray, depth: str) -> None:
    """Write the layer numbers beside the rows of a heat map; thinned out to at most 14."""
    step = max(1, int(np.ceil(len(numbers) / 14)))
    places = np.arange(0, len(numbers), step)
    ax.set_yticks(places, [str(n) for n in numbers[places]])
    ax.set_ylabel(depth)
