"""Curves over depth: any variable with a layer or block dimension, with intervals over prompts and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..results.summary import summary
from ..settings import checked, short
from . import style

AXES = ("layer", "block")
UNORDERED = ("", "model", "null", "label", "subset", "rule", "variant", "estimator")


class Curve(NamedTuple):
    """One line of a plot: what it is of, and its numbers.

    Attributes
    ----------
    of : dict
        Dimension -> value that this line stands for.
    x, y : numpy.ndarray
        (layer,) place and value.
    band : numpy.ndarray or None
        (2, layer) interval of the mean over prompts.
    partial : numpy.ndarray
        (layer,) bool, where some prompts, but not all, have a value.
    """

    of: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    band: np.ndarray | None
    partial: np.ndarray


@checked()
def by_layer(
    ds: xr.Dataset,
    name: str,
    *,
    ax: Axes | None = None,
    select: Mapping[str, Any] | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    layers: Sequence[int] | None = None,
    relative: bool | None = None,
    level: float = 0.95,
    ylabel: str | None = None,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw a variable over depth, with a bootstrap interval where it has a value per prompt, or with its own interval.

    An open marker says that some prompts have no value there (a cloud too small, say): the mean is over the others.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of a measurement. Dimensions that are left after ``select`` (``scale``, ``model``, ``shuffle``, ...)
        become lines: the first by colour, the second by dashes.
    name : str
        Variable to draw; with the dimension ``layer`` or ``block``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    select : mapping, optional
        Dimension -> value or list of values to draw.
    other : Dataset or mapping of name -> Dataset, optional
        What to compare with, drawn dashed: a second model, a run on shuffled text, an untrained network.
    label : str, optional
        Name of ``ds`` in the legend of a comparison.
    layers : sequence of int, optional
        Which layers (or blocks), for example ``range(1, 13)`` without the embedding.
    relative : bool, optional
        Whether the axis is layer divided by the number of blocks. By default only where the models compared differ in
        depth.
    level : float
        Of the interval; 95 % of the means of prompts drawn with replacement lie in it.  A variable that comes with an
        interval, ``NAME_interval``, is drawn with that.
    ylabel : str, optional
        Shorter name than the variable's own; the unit is added.
    legend : bool
        Whether to name the lines, if there are several.
    width : {"column", "double"} or float
        Of a new figure, in inches.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the dataset has no such variable, the variable no depth, or more than two other dimensions are left.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> loss = xr.DataArray(np.random.rand(9, 5), dims=("prompt", "layer"), attrs={"long_name": "loss", "units": "nat"})
    >>> ax = by_layer(xr.Dataset({"loss": loss}, {"layer": range(5)}), "loss")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('layer', 'loss (nat)')
    """
    sets = named_sets(ds, other, label)
    if layers is not None:
        select = {**(select or {}), depth_of(pick(ds, name)[name]): list(layers)}
    if relative is None:
        relative = len({d.attrs.get("n_layers") for d in sets.values()}) > 1
    found = {key: list(curves(d, name, select, relative, level)) for key, d in sets.items()}
    with style.drawing(ax, width) as axes:
        draw_curves(axes, found, legend)
        axes.set_ylabel(style.label(ds[name], ylabel))
        axis = depth_of(ds[name])
        axes.set_xlabel(f"relative depth ({axis} / number of blocks)" if relative else axis)
        if not relative:
            style.integer_axis(axes)
    return axes


def named_sets(
    ds: xr.Dataset, other: xr.Dataset | Mapping[str, xr.Dataset] | None, name: str | None
) -> dict[str, xr.Dataset]:
    """Return the datasets of a comparison by the name that each has in the legend."""
    if other is None:
        return {name or "": ds}
    if isinstance(other, xr.Dataset):
        models = [str(d.attrs.get("model", "")) for d in (ds, other)]
        names = models if models[0] != models[1] else ["run", "other"]
        return {name or names[0]: ds, names[1]: other}
    out = {name or str(ds.attrs.get("model", "run")): ds, **other}
    if len(out) <= len(other):
        raise ValueError(f"label {name!r} is also a name in other: {', '.join(map(repr, other))}; give another label=")
    return out


def curves(
    ds: xr.Dataset,
    name: str,
    select: Mapping[str, Any] | None = None,
    relative: bool = False,
    level: float = 0.95,
    along: str | None = None,
) -> Iterator[Curve]:
    """Yield the lines of a variable over depth (or ``along``): one for each combination of the other dimensions."""
    chosen = pick(ds, name, select)
    depth = along or depth_of(chosen[name])
    if relative:
        if "relative_depth" not in chosen.coords:
            raise ValueError(f"{name} has no relative_depth: draw it over its {depth}s, relative=False")
        x = chosen["relative_depth"].values
    else:
        x = chosen[depth].values
    band, mean = None, chosen[name]
    partial = xr.zeros_like(mean, dtype=bool)
    if "prompt" in mean.dims:
        n, means = chosen.sizes["prompt"], summary(chosen, level=level)
        mean, band = means[name], means[f"{name}_interval"] if n > 1 else None
        partial = (means[f"{name}_count"] > 0) & (means[f"{name}_count"] < n)
    elif {*ds.get(f"{name}_interval", mean).dims} == {*mean.dims, "bound"}:  # an interval of its own
        band = pick(ds, f"{name}_interval", select)[f"{name}_interval"]
    rest = [str(d) for d in mean.dims if d != depth]
    for places in product(*(range(mean.sizes[d]) for d in rest)):
        at = dict(zip(rest, places, strict=True))
        of = {d: mean[d].values[i] if d in mean.coords else i for d, i in at.items()}
        yield Curve(
            {d: v for d, v in of.items() if mean.sizes[d] > 1},
            x,
            mean.isel(at).values,
            None if band is None else band.isel(at).transpose("bound", depth).values,
            partial.isel(at).values,
        )


def pick(ds: xr.Dataset, name: str, select: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Return a dataset with one variable at the values selected.

    Raises
    ------
    ValueError
        If there is no such variable or value; says which there are.
    """
    if name not in ds.data_vars:
        raise ValueError(f"name={name!r}: no variable {name!r}: there are {', '.join(map(str, ds.data_vars))}")
    one = ds[[name]]
    for dim, value in (select or {}).items():
        if dim not in one.dims:
            there = ", ".join(map(str, one[name].dims))
            raise ValueError(f"select={short(dict(select or {}))}: {name} has no dimension {dim!r}: it has {there}")
        wanted = list(value) if isinstance(value, list | tuple | range | np.ndarray) else [value]
        try:
            one = one.sel({dim: wanted})
        except KeyError:
            known = ", ".join(f"{v}" for v in one[dim].values)
            raise ValueError(f"{name} was not measured at {dim} {value!r}: there are {known}") from None
    return one


def depth_of(v: xr.DataArray) -> str:
    """Return the dimension that is depth, ``layer`` or ``block``.

    Raises
    ------
    ValueError
        If there is none, or the variable has one value per token.
    """
    found = [d for d in AXES if d in v.dims]
    if not found:
        raise ValueError(
            f"{v.name} has the dimensions {', '.join(map(str, v.dims))}: no layer or block to draw it over"
        )
    if "token" in v.dims or "position" in v.dims:
        raise ValueError(f"{v.name} has one value per token: draw it with token_layer_map")
    return found[0]


def draw_curves(ax: Axes, found: Mapping[str, Sequence[Curve]], legend: bool = True, marker: bool = True) -> None:
    """Draw lines and their legend: the first dimension (or else the datasets) by colour, the second by dashes."""
    every = [c for lines in found.values() for c in lines]
    values: dict[str, list[Any]] = {}
    for c in every:
        for d, v in c.of.items():
            if v not in values.setdefault(d, []):
                values[d].append(v)
    if len(found) > 1:
        values[""] = list(found)
    dims = list(values)
    if len(dims) > 2:
        raise ValueError(
            f"too many dimensions for one plot ({', '.join(d or 'other' for d in dims)}): choose values of one"
        )
    colours = palette(dims[0], values[dims[0]]) if dims else list(style.COLOURS)
    looks: list[dict[Any, dict[str, Any]]] = [{} for _ in dims]
    for name, lines in found.items():
        for c in lines:
            key = [name if d == "" else c.of[d] for d in dims]
            at = [values[d].index(k) for d, k in zip(dims, key, strict=True)] or [0]
            named = not dims or dims[0] in UNORDERED
            dash = at[1] if len(at) > 1 else at[0] if named else 0
            look = {"color": colours[at[0] % len(colours)], "ls": style.DASHES[dash % len(style.DASHES)],
                    "marker": style.MARKERS[dash % len(style.MARKERS)] if marker else ""}  # fmt: skip
            ax.plot(c.x, c.y, **look)
            if c.partial.any():
                ax.plot(c.x[c.partial], c.y[c.partial], **{**look, "ls": "none"}, mfc="white")
            if c.band is not None:
                ax.fill_between(c.x, *c.band, color=look["color"], alpha=0.25, lw=0)
            if len(dims) == 1:
                looks[0][key[0]] = look
            elif dims:
                looks[0].setdefault(key[0], {"color": look["color"]})
                looks[1].setdefault(key[1], {**look, "color": "0.35"})
    if legend and dims:
        put_legend(ax, [(d, look) for d, look in zip(dims, looks, strict=True) if len(look) > 1])


def put_legend(ax: Axes, parts: Sequence[tuple[str, Mapping[Any, dict[str, Any]]]]) -> None:
    """Put a legend where it hides least, one part for each dimension; beside the axes if it is long."""
    handles: list[Line2D] = []
    for dim, looks in parts:
        if dim and (len(parts) > 1 or not isinstance(next(iter(looks)), str)):
            handles.append(Line2D([], [], ls="none", label=dim.replace("_", " ")))
        handles += [Line2D([], [], **look, label=show(value)) for value, look in looks.items()]
    if not handles:
        return
    room: dict[str, Any] = (
        {"loc": "best"} if len(handles) <= 7 else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02)}
    )
    ax.legend(handles=handles, labelspacing=0.25, borderaxespad=0.3, **room)


def spread(values: Sequence[Any] | np.ndarray, most: int) -> list[Any]:
    """Return at most so many of the values, first and last among them, evenly spread.

    Examples
    --------
    >>> spread(range(13), 4)
    [0, 4, 8, 12]
    """
    values = np.asarray(values)
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return values[np.unique(places)].tolist()


def palette(dim: str, values: Sequence[Any]) -> list[Any]:
    """Return a colour for each value: distinct ones for names, dark to light for numbers."""
    named = dim in UNORDERED or isinstance(values[0], str)
    return list(style.COLOURS) if named else style.ordered_colours(len(values))


def show(value: Any) -> str:
    """Return a coordinate value as text.

    Examples
    --------
    >>> show(0.95), show(4), show("regular")
    ('0.95', '4', 'regular')
    """
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
