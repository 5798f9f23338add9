"""Curves over depth: any variable with a layer or block dimension, with intervals over prompts and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..dataset import summary
from . import style

AXES = ("layer", "block")
UNORDERED = ("model", "subset", "rule", "variant", "estimator")


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
    """

    of: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    band: np.ndarray | None


def by_layer(
    ds: xr.Dataset,
    name: str,
    *,
    ax: Axes | None = None,
    select: Mapping[str, Any] | None = None,
    other: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    label: str | None = None,
    relative: bool | None = None,
    level: float = 0.95,
    width: str | float = "column",
) -> Axes:
    """Draw a variable over depth, with a bootstrap interval where it has a value per prompt.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of a measurement. Dimensions that are left after ``select`` (``scale``, ``model``, ``shuffle``, ...) become
        lines: the first by colour, the second by dashes.
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
    relative : bool, optional
        Whether the axis is layer divided by the number of blocks. By default only where the models compared differ in
        depth.
    level : float
        Of the interval; 95 % of the means of prompts drawn with replacement lie in it.
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
    if relative is None:
        relative = len({d.attrs.get("n_layers") for d in sets.values()}) > 1
    found = {key: list(curves(d, name, select, relative, level)) for key, d in sets.items()}
    with style.drawing(ax, width) as axes:
        title = draw_curves(axes, found)
        axes.set_ylabel(style.label(ds[name]))
        axis = depth_of(ds[name])
        axes.set_xlabel(f"relative depth ({axis} / number of blocks)" if relative else axis)
        if not relative:
            style.integer_axis(axes)
        if axes.get_legend_handles_labels()[1]:
            place_legend(axes, title)
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
    ds: xr.Dataset, name: str, select: Mapping[str, Any] | None = None, relative: bool = False, level: float = 0.95
) -> Iterator[Curve]:
    """Yield the lines of a variable: one for each combination of the dimensions other than depth and prompt."""
    chosen = pick(ds, name, select)
    depth = depth_of(chosen[name])
    if relative:
        if "relative_depth" not in chosen.coords:
            raise ValueError(f"{name} has no relative_depth: draw it over its {depth}s, relative=False")
        x = chosen["relative_depth"].values
    else:
        x = chosen[depth].values
    band: xr.DataArray | None = None
    mean = chosen[name]
    if "prompt" in mean.dims:
        means = summary(chosen, level=level)
        mean, band = means[name], means[f"{name}_interval"] if chosen.sizes["prompt"] > 1 else None
    rest = [str(d) for d in mean.dims if d != depth]
    for places in product(*(range(mean.sizes[d]) for d in rest)):
        at = dict(zip(rest, places, strict=True))
        of = {d: mean[d].values[i] if d in mean.coords else i for d, i in at.items()}
        yield Curve(
            {d: v for d, v in of.items() if mean.sizes[d] > 1},
            x,
            mean.isel(at).values,
            None if band is None else band.isel(at).transpose("bound", depth).values,
        )


def pick(ds: xr.Dataset, name: str, select: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Return a dataset with one variable at the values selected.

    Raises
    ------
    ValueError
        If there is no such variable or value; says which there are.
    """
    if name not in ds.data_vars:
        raise ValueError(f"no variable {name!r}: there are {', '.join(map(str, ds.data_vars))}")
    one = ds[[name]]
    for dim, value in (select or {}).items():
        if dim not in one.dims:
            raise ValueError(f"{name} has no dimension {dim!r}: it has {', '.join(map(str, one[name].dims))}")
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
        raise ValueError(f"{v.name} has the dimensions {', '.join(map(str, v.dims))}: no layer or block to draw it over")
    if "token" in v.dims or "position" in v.dims:
        raise ValueError(f"{v.name} has one value per token: draw it with token_layer_map")
    return found[0]


def draw_curves(ax: Axes, found: Mapping[str, Sequence[Curve]]) -> str | None:
    """Draw lines, the first dimension (or the datasets) by colour, the second by dashes; return the legend's title."""
    every = [c for lines in found.values() for c in lines]
    dims = list(dict.fromkeys(d for c in every for d in c.of))
    compared = len(found) > 1
    if len(dims) + compared > 2:
        raise ValueError(f"too many dimensions for one plot ({', '.join(dims)}): choose values with select=")
    values = {d: list(dict.fromkeys(c.of[d] for c in every if d in c.of)) for d in dims}
    first = dims[0] if dims else None
    colours = palette(first, values[first]) if first else list(style.COLOURS)
    for place, (name, lines) in enumerate(found.items()):
        for c in lines:
            at = [values[d].index(c.of[d]) for d in dims if d in c.of]
            second = place if compared else (at[1] if len(at) > 1 else 0)
            n = at[0] if at else place
            colour = colours[n % len(colours)]
            text = ", ".join([*([name] if name else []), *(f"{show(v)}" for v in c.of.values())])
            ax.plot(
                c.x, c.y, color=colour, ls=style.DASHES[second % len(style.DASHES)],
                marker=style.MARKERS[second % len(style.MARKERS)], label=text or None,
            )  # fmt: skip
            if c.band is not None:
                ax.fill_between(c.x, *c.band, color=colour, alpha=0.2, lw=0)
    return ", ".join(d.replace("_", " ") for d in dims) or None


def palette(dim: str, values: Sequence[Any]) -> list[Any]:
    """Return a colour for each value: distinct ones for names, dark to light for numbers."""
    named = dim in UNORDERED or isinstance(values[0], str)
    return list(style.COLOURS) if named else style.ordered_colours(len(values))


def place_legend(ax: Axes, title: str | None = None) -> None:
    """Put the legend where it hides least, small; beside the axes if it is long."""
    n = len(ax.get_legend_handles_labels()[1])
    room: dict[str, Any] = {"loc": "best"} if n <= 5 else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02)}
    legend = ax.legend(title=title, labelspacing=0.25, borderaxespad=0.3, **room)
    legend._legend_box.align = "left"  # pyright: ignore[reportAttributeAccessIssue]


def show(value: Any) -> str:
    """Return a coordinate value as text.

    Examples
    --------
    >>> show(0.95), show(4), show("regular")
    ('0.95', '4', 'regular')
    """
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
