"""Heat maps: two layers, blocks and heads, layers and tokens; colours that a few extreme values do not use up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..results.facts import DEPTHS, REPEATS, Facts, axis_label, facts_of, first_of, pick, show
from ..results.tables import result_with
from ..settings import checked, number, pair
from . import style
from .scales import chance_levels
from .style import Look

PROMPT_NUMBERS = ("prompt", "prompt_number", "token_prompt")
LONGEST = 50
"""Tokens drawn where no positions are asked for."""
SHARE = 0.02
"""Share of the values at either end that share the last colour."""


@checked(limits=pair(number(), number()))
def maps(
    ds: xr.Dataset | xr.DataTree,
    name: str | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
    prompt: int | None = None,
    positions: Sequence[int] | range | None = None,
    select: Mapping[str, Any] | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str | None = None,
    label: str | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw a variable of two dimensions as a heat map: layers upwards, tokens, heads or other layers to the right.

    Parameters
    ----------
    ds : xarray.Dataset
        A result.  The mean is taken over prompts; of a variable per token, the tokens of one prompt are drawn.
    name : str, optional
        Variable to draw; by default the first of the result.
    x, y : str, optional
        Dimensions to the right and upwards; by default depth is upwards.
    prompt : int, optional
        Number of the prompt, of a variable per token; by default the first with any.
    positions : sequence of int, optional
        Which tokens; by default the first 50.
    select : mapping, optional
        Value of each further dimension.
    limits : (float, float), optional
        Ends of the colours. By default the range of the variable, or else all but the outer 2 % of the values: arrows
        at the scale say that there are values beyond. To compare maps, give the same.
    cmap : str, optional
        Colour map; by default one that can be read with any colour vision and in grey, or, around a chance level of 0,
        one from blue to red.
    label : str, optional
        Another name for the colour bar; the unit is added.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the variable has not these two dimensions, the prompt or the positions are not in it, or further dimensions
        are left.

    Notes
    -----
    Where the variable says by what it is sorted (cells by their cluster), lines part its values, and what is in none
    (-1) is left out.  A dot marks cells whose own interval lies above chance, that of the cell where it differs from
    cell to cell.  A dotted line in the scale is chance, its mean over the cells.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"lens": ti.lens.LogitLens(layers=[2, 4, 8], top=0)}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)
    >>> ax = ti.plots.maps(run["lens"], "token_cross_entropy", prompt=0)
    """
    ds = result_with(ds, name)
    name = first_of(ds)[0] if name is None else name
    facts = facts_of(ds, name) if name in ds else facts_of(pick(ds, name), name)
    one, v, right, up = table_of(ds, name, x, y, prompt, positions, select)
    v, edges = sorted_by(ds, v, facts.by)
    values = v.values
    colours, low, high, extend = scale_of(values, facts, limits, cmap)
    height = max(1.9, 1.4 + 0.085 * min(values.shape[0], 40)) if right == "token" else None
    square = {right, up} == {"layer", "other_layer"} or {right, up} == {"cell", "other_cell"}
    wide = look.get("width", "double" if right == "token" else "column")
    with style.drawing(look, wide, 0.8 * style.inches_of(wide) if square else height) as axes:
        sides = [np.arange(n + 1) - 0.5 for n in values.shape[::-1]]  # cells about whole numbers
        looks: dict[str, Any] = {"cmap": colours, "vmin": low, "vmax": high, "rasterized": True}
        drawn = axes.pcolormesh(*sides, np.ma.masked_invalid(values), **looks)
        axes.set_facecolor("0.85")
        axes.spines[:].set_visible(False)
        if square:
            axes.set_aspect("equal")
        if edges:
            axes.hlines(edges, -0.5, values.shape[1] - 0.5, color="white", lw=1)
            axes.vlines(edges, -0.5, values.shape[0] - 0.5, color="white", lw=1)
        else:
            _marks(axes, ds, name, v, facts, select)
        if right == "token":
            style.write_tokens(axes, strings_of(one))
            axes.set_xlabel("")
        else:
            _ticks(axes, "x", one, right, values.shape[1])
        _ticks(axes, "y", one, up, values.shape[0])
        if edges:
            said = f"{up}s, by {facts_of(ds, facts.by or '').label}"
            axes.set(xlabel=said, ylabel=said, xticks=[], yticks=[])
        style.colour_bar(
            axes, drawn, style.wrapped(label or facts.label, facts.units), extend, level_of(ds, facts, select)
        )
    return axes


def table_of(
    ds: xr.Dataset, name: str, x: str | None, y: str | None, prompt: int | None,
    positions: Sequence[int] | range | None, select: Mapping[str, Any] | None,
) -> tuple[xr.Dataset, xr.DataArray, str, str]:  # fmt: skip
    """Return the rows drawn, the (up, right) values of a map, and the names of its dimensions."""
    one = pick(ds, name, select)
    if "token" in one[name].dims:
        one = tokens_of(one, int(np.min(prompt_of(ds))) if prompt is None else prompt, positions)
    elif prompt is not None:
        raise ValueError(f"prompt={prompt}: {name} has no values of single tokens")
    v = one[name]
    v = v.mean([d for d in REPEATS if d in v.dims and d != "token" and d not in (x, y)], keep_attrs=True)
    v = v.squeeze([d for d in v.dims if v.sizes[d] == 1 and d not in ("token", *DEPTHS, x, y)])
    dims = [str(d) for d in v.dims]
    right = x or next((d for d in ("token", "other_layer", "other_cell", "head", "channel", "slot") if d in dims), None)
    right = right or next((d for d in dims if d not in (*DEPTHS, y)), dims[-1] if dims else "")
    up = y or next((d for d in (*DEPTHS, *dims) if d in dims and d != right), "")
    if up == "" and right in dims:
        v, up = v.expand_dims(""), ""
    if {*v.dims} != {right, up}:
        rest = [d for d in dims if d not in (right, up)]
        said = f"choose one value of {', '.join(rest)} with select=" if rest else "there is nothing to draw over"
        raise ValueError(f"{name} has the dimensions {', '.join(map(str, ds[name].dims))}: {said}")
    return one, v.transpose(up, right), right, up


def sorted_by(ds: xr.Dataset, v: xr.DataArray, by: str | None) -> tuple[xr.DataArray, list[float]]:
    """Return a map with its places in the order of a variable of theirs, and where the values of that change."""
    if by is None or ds[by].ndim != 1:
        return v, []
    labels = ds[by].values
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    both = [d for d in v.dims if str(d).removeprefix("other_") == ds[by].dims[0]]
    return v.isel(dict.fromkeys(both, order)), (np.flatnonzero(np.diff(labels[order])) + 0.5).tolist()


def scale_of(
    values: np.ndarray, facts: Facts, limits: tuple[float, float] | None = None, cmap: str | None = None
) -> tuple[str, float, float, str]:
    """Return colour map, ends of the colours, and at which end there are values beyond.

    Examples
    --------
    >>> facts = Facts("x", "1", 0, None, None, False, (), ())
    >>> scale_of(np.array([*range(100), 1e6]), facts)[2:]
    (98.0, 'max')
    """
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"limits={limits}: give the lower end first, and a higher one")
    good = values[np.isfinite(values)].astype(float)
    if not len(good):
        return cmap or "viridis", *(limits or (0.0, 1.0)), "neither"
    low, high = np.quantile(good, [SHARE, 1 - SHARE], method="nearest") if len(good) > 20 else (good.min(), good.max())
    low, high = (min(low, 0.0), high) if facts.low == 0 else (low, high)
    if facts.low is not None and facts.high is not None and high - low > 0.3 * (facts.high - facts.low):
        low, high = facts.low, facts.high
    signed = facts.chance == 0 and good.min() < 0 < good.max()
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    low, high = limits or (low, high)
    high = high if high > low else low + (abs(low) or 1.0)
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = beyond[bool((good < low).any()), bool((good > high).any())]
    return cmap or ("RdBu_r" if signed else "viridis"), float(low), float(high), extend


def level_of(ds: xr.Dataset, facts: Facts, select: Mapping[str, Any] | None = None) -> float | None:
    """Return the level by chance of a whole map, a mean where it differs from cell to cell."""
    if not isinstance(facts.chance, str):
        return facts.chance
    v = chance_levels(ds, facts.chance, select, ds[facts.chance].dims)
    if {"layer", "other_layer"} <= {*v.dims}:
        v = v.where(v["layer"] != v["other_layer"])
    return float(v.mean())


def _marks(ax: Axes, ds: xr.Dataset, name: str, v: xr.DataArray, facts: Facts, select: Any) -> None:
    chance: Any = facts.chance
    if (
        chance is None
        or {*ds.get(f"{name}_interval", v).dims} != {*ds[name].dims, "bound"}
        or "prompt" in ds[name].dims
    ):
        return
    low = pick(ds, f"{name}_interval", select)[f"{name}_interval"].sel(bound="lower", drop=True)
    low = low.squeeze([d for d in low.dims if d not in v.dims]).transpose(*v.dims)
    if isinstance(chance, str):  # of each cell its own
        chance = chance_levels(ds, chance, select, v.dims).broadcast_like(v).transpose(*v.dims).values
    for row, column in np.argwhere(low.values > chance):
        ax.plot(column, row, ".", color="w", mec="k", mew=0.4, ms=4)


def _ticks(ax: Axes, axis: str, ds: xr.Dataset, dim: str, n: int) -> None:
    """Write the values of a dimension beside the cells of a map, thinned out where they would overlap."""
    values = ds[dim].values if dim in ds.coords else np.arange(n) if dim else np.array([""])
    texts = [show(value) for value in values]
    names = values.dtype.kind not in "iuf"
    most = (24 if names else 14) if axis == "y" else (16 if names else 10)
    places = np.arange(0, n, max(1, int(np.ceil(n / most))))
    turned = {"rotation": 90} if axis == "x" and names else {}
    getattr(ax, f"set_{axis}ticks")(places, [style.shown(texts[i], 24) for i in places], parse_math=False, **turned)
    getattr(ax, f"set_{axis}label")(axis_label(ds, dim) if dim else "")
    ax.tick_params(axis=axis, length=2 if dim else 0)  # pyright: ignore[reportArgumentType]


def tokens_of(ds: xr.Dataset, prompt: int, positions: Sequence[int] | range | None = None) -> xr.Dataset:
    """Return the rows of one prompt in a per-token result, in order; at some positions, by default the first 50."""
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
