"""Curves over an axis: any variable over depth, or over whatever has numbers in order, with intervals and chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..results.facts import (
    DEPTHS,
    REPEATS,
    REPLICATES,
    axis_label,
    axis_of,
    chance_name,
    facts_of,
    first_of,
    pick,
    same_units,
)
from ..results.summary import summary
from ..results.tables import result_with
from ..settings import checked, several, string
from . import style
from .scales import chance_levels, limits, x_axis
from .style import Look

Other = xr.Dataset | Mapping[str, xr.Dataset]
CHANCE: dict[str, Any] = {"ls": ":", "lw": 0.9, "zorder": 1}


class Curve(NamedTuple):
    """One line of a plot: what it is of, and its numbers.

    Attributes
    ----------
    of : dict
        Dimension -> value that this line stands for; ``variable`` and the empty name are the variable and the dataset.
    x, y : numpy.ndarray
        (axis,) place and value.
    band : numpy.ndarray or None
        (2, axis) interval.
    unsure : numpy.ndarray or None
        (axis,) bool, where some repeats, but not all, have a value, or a correction for many tests is not passed.
    each : numpy.ndarray or None
        (replicate, axis) of each replicate, of which ``y`` is the mean.
    """

    of: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    band: np.ndarray | None = None
    unsure: np.ndarray | None = None
    each: np.ndarray | None = None


class Shown(Look, total=False):
    """What is drawn of a result, and beside what: `tokinterp.plots.style.Look`, and

    Attributes
    ----------
    select : mapping, optional
        Dimension -> value or list of values to draw.  What is left becomes lines or colours.
    other : Dataset or mapping of name -> Dataset, optional
        What to compare with, drawn dashed or with open markers: a second model, a run on shuffled text, an untrained
        network.
    label : str, optional
        Name of the result in the legend of a comparison.
    level : float
        Of the interval, 0.95 by default; so many of the means of prompts drawn with replacement lie in it.
    legend : bool
        Whether to name lines or colours, if there are several, as by default.
    """

    select: Mapping[str, Any] | None
    other: Other | None
    label: str | None
    level: float
    legend: bool


@checked(names=string | several(string, 1))
def curves(
    ds: xr.Dataset | xr.DataTree,
    names: str | Sequence[str] | None = None,
    *,
    along: str | None = None,
    by: str | None = None,
    layers: Sequence[int] | None = None,
    relative: bool | None = None,
    ylabel: str | None = None,
    **look: Unpack[Shown],
) -> Axes:
    """Draw variables over depth or another axis, with intervals; dotted: by chance.

    The mean over prompts (or tokens) has a bootstrap interval, any other variable the interval that it comes with,
    ``NAME_interval``. An open marker says that some prompts have no value there (a cloud too small, say):
    the mean is over the others; or, of what has a false discovery rate ``NAME_q``, that it is not below 0.05.

    Parameters
    ----------
    ds : xarray.Dataset
        A result. Dimensions that are left after ``select`` (``scale``, ``model``, ``null``, ...) become lines: the
        first by colour, the second by dashes. The mean is taken over heads; replicates are thin lines beside theirs.
    names : str or sequence of str, optional
        Variables to draw, one colour each; by default the first of the result.
    along : str, optional
        Dimension of the axis; by default ``layer`` or ``block``, or else what has numbers in order.
    by : str, optional
        Coordinate of the prompts (``kind`` of a case, say), or variable of theirs, of which each value becomes a line;
        by default what the variable names itself.
    layers : sequence of int, optional
        Which layers (or blocks), for example ``range(1, 13)`` without the embedding.
    relative : bool, optional
        Whether the axis is layer divided by the number of blocks. By default only where the models compared differ in
        depth.
    ylabel : str, optional
        Another name for the variable; the unit is added.
    **look
        ``select``, ``other``, ``label``, ``level``, ``legend``, ``ax``, ``width``: see `Shown`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the dataset has no such variable, the variable no axis, or more than two other dimensions are left; if the
        variables differ in unit.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> loss = xr.DataArray(np.random.rand(9, 5), dims=("prompt", "layer"), attrs={"long_name": "loss", "units": "nat"})
    >>> ax = curves(xr.Dataset({"loss": loss}, {"layer": range(5)}), "loss")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('layer', 'loss (nat)')
    """
    ds = result_with(ds, names)
    sets, select = named_sets(ds, look.get("other"), look.get("label")), look.get("select")
    shown = [names] if isinstance(names, str) else list(names or first_of(ds)[:1])
    axis = along or depth_of(pick(ds, shown[0]), shown[0])
    if layers is not None:
        select = {**(select or {}), axis: list(layers)}
    if relative is None:
        relative = axis in DEPTHS and len({d.attrs.get("n_layers") for d in sets.values()}) > 1
    options = {"relative": relative, "level": look.get("level", 0.95)}

    def of(d: xr.Dataset, name: str) -> Mapping[str, Any] | None:  # a further variable need not have all dimensions
        first = name == shown[0] or name not in d
        return select if first else {dim: x for dim, x in (select or {}).items() if dim in d[name].dims}

    found = {
        key: [
            c._replace(of={"variable": facts_of(ds, n).label, **c.of}) if len(shown) > 1 else c
            for n in shown
            for c in lines_of(d, n, axis, of(d, n), by=by or (facts_of(d, n).by if n in d else None), **options)
        ]
        for key, d in sets.items()
    }
    facts = same_units(sets, shown)
    with style.drawing(look) as axes:
        looks = draw_curves(axes, found)
        parts = list(looks.items())
        before = len(axes.lines)
        for n in shown:
            parts += draw_chance(axes, sets, n, axis, select, looks, relative)
        levels = [np.asarray(line.get_ydata(), float) for line in axes.lines[before:]]
        axes.set_ylabel(style.wrapped(ylabel or facts.label, facts.units))
        name = axis_label(ds, axis)
        axes.set_xlabel(f"relative depth ({axis} / number of blocks)" if relative else name)
        x_axis(axes, np.unique(np.concatenate([c.x for lines in found.values() for c in lines])), axis, facts, relative)
        limits(axes, [c for lines in found.values() for c in lines], facts, np.concatenate([*levels, []]))
        if look.get("legend", True):
            style.legend_above(axes, parts)
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


def lines_of(
    ds: xr.Dataset,
    name: str,
    along: str | None = None,
    select: Mapping[str, Any] | None = None,
    *,
    relative: bool = False,
    level: float = 0.95,
    by: str | None = None,
) -> list[Curve]:
    """Return the lines of a variable over an axis, one for each combination of its other dimensions.

    ``along=""`` gives single values, (1,): of a variable without an axis.
    """
    if by is not None:
        return list(_grouped(ds, name, by, along, select, relative=relative, level=level))
    one = pick(ds, name, select)
    axis = depth_of(one, name) if along is None else along
    if relative and "relative_depth" not in one.coords:
        raise ValueError(f"{name} has no relative_depth: draw it over its {axis}s, relative=False")
    if heads := "head" in one[name].dims and axis != "head" and "head" not in (select or {}):  # without intervals
        one = one.assign({name: one[name].mean("head", keep_attrs=True)})
    v = one[name]
    band, unsure = None, xr.zeros_like(v, dtype=bool)
    repeat = next((d for d in REPEATS if d in v.dims and d != axis), None)
    if repeat is not None:
        n, means = v.sizes[repeat], summary(one, repeat, level=level)
        v, count = means[name], means.get(f"{name}_count", n)
        band = means.get(f"{name}_interval") if n > 1 else None
        unsure = xr.zeros_like(v, dtype=bool) | ((count > 0) & (count < n) & (repeat == "prompt"))
    elif not heads and {*ds.get(f"{name}_interval", v).dims} == {*ds[name].dims, "bound"}:  # an interval of its own
        band = pick(ds, f"{name}_interval", select)[f"{name}_interval"]
    if f"{name}_q" in ds and {*ds[f"{name}_q"].dims} == {*v.dims}:
        unsure = unsure | (pick(ds, f"{name}_q", select)[f"{name}_q"] >= 0.05)
    times = [d for d in REPLICATES if d in v.dims and d != axis and v.sizes[d] > 1]
    x = one["relative_depth"].values if relative else one[axis].values if axis in one.coords else None
    rest = [str(d) for d in v.dims if d != axis and d not in times]
    out = []
    for places in product(*(range(v.sizes[d]) for d in rest)):
        at = dict(zip(rest, places, strict=True))
        of = {d: v[d].values[i] if d in v.coords else i for d, i in at.items()}
        y = v.isel(at).transpose(*times, *([axis] if axis else [])).values
        each = y.reshape(-1, y.shape[-1] if axis else 1) if times else None
        out.append(
            Curve(
                {d: value for d, value in of.items() if v.sizes[d] > 1},
                np.arange(v.sizes.get(axis, 1)) if x is None else x,
                np.atleast_1d(y) if each is None else each.mean(0),
                None if band is None or times else _bounds(band.isel(at), axis),
                None if times else np.atleast_1d(unsure.isel(at).values),
                each,
            )
        )
    return out


def _bounds(band: xr.DataArray, axis: str) -> np.ndarray:
    return band.transpose("bound", *([axis] if axis else [])).values.reshape(2, -1)


def _grouped(ds: xr.Dataset, name: str, by: str, along: str | None, select: Any, **options: Any) -> Iterator[Curve]:
    """Yield a line for each value of a variable that tells prompts (or what is drawn of each) apart."""
    if by not in ds or not {*ds[by].dims} & {*REPEATS} or not {*ds[by].dims} <= {*ds[name].dims}:
        known = [str(c) for c, v in ds.coords.items() if v.dims == ("prompt",) and v.dtype.kind in "OUb"]
        raise ValueError(f"by={by!r}: this result does not say the {by} of its prompts; it has {', '.join(known)}")
    labels, says = ds[by], facts_of(ds, by).label
    values = sorted({x for x in labels.values.ravel().tolist() if x == x})
    yes_no = labels.dtype.kind in "bf" and {*values} <= {0, 1}
    for value in values:
        if labels.ndim == 1:
            one = ds.isel({labels.dims[0]: np.flatnonzero(labels.values == value)})
        else:
            one = ds.assign({name: ds[name].where(labels == value)})
        called = (says if value else f"not {says}") if yes_no else value
        for c in lines_of(one, name, along, select, **options):
            yield c._replace(of={by: called, **c.of}, unsure=c.unsure if labels.ndim == 1 else None)


def depth_of(ds: xr.Dataset, name: str) -> str:
    """Return the dimension over which a variable is drawn; refuses one that has none."""
    found = axis_of(ds, name)
    if found is None:
        there = ", ".join(map(str, ds[name].dims)) or "no dimension"
        raise ValueError(f"{name} has {there}: no layer, block or numbers in order to draw it over; see plots.rows")
    return found


def draw_curves(ax: Axes, found: Mapping[str, Sequence[Curve]]) -> dict[str, dict[Any, dict[str, Any]]]:
    """Draw lines, the first dimension (or else the datasets) by colour, the second by dashes; return how each looks.

    Dimension -> value -> look, for a legend.
    """
    every = [c for lines in found.values() for c in lines]
    dims, values = looks_of(found)
    colours = palette(values[dims[0]]) if dims else list(style.COLOURS)
    looks: dict[str, dict[Any, dict[str, Any]]] = {d: {} for d in dims}
    many = max((len(c.x) for c in every), default=0) > 40
    for name, lines in found.items():
        for c in (c for c in lines if has_values(c) or not any(map(has_values, every))):
            key = [name if d == "" else c.of[d] for d in dims]
            at = [values[d].index(k) for d, k in zip(dims, key, strict=True)] or [0]
            named = not dims or isinstance(key[0], str)
            dash = at[1] if len(at) > 1 else at[0] if named else 0
            look = {"color": colours[at[0] % len(colours)], "ls": style.DASHES[dash % len(style.DASHES)],
                    "marker": "" if many else style.MARKERS[dash % len(style.MARKERS)]}  # fmt: skip
            for row in () if c.each is None else c.each:
                ax.plot(c.x, row, color=look["color"], lw=0.6, alpha=0.5)
            ax.plot(c.x, c.y, **look)
            if c.unsure is not None and c.unsure.any():
                ax.plot(
                    c.x[c.unsure], c.y[c.unsure], **{**look, "ls": "none", "marker": look["marker"] or "o"}, mfc="white"
                )
            if c.band is not None:
                ax.fill_between(c.x, *c.band, color=look["color"], alpha=0.25, lw=0)
            if len(dims) == 1:
                looks[dims[0]][key[0]] = look
            elif dims:
                looks[dims[0]].setdefault(key[0], {"color": look["color"]})
                looks[dims[1]].setdefault(key[1], {**look, "color": "0.35"})
    return looks


def looks_of(found: Mapping[str, Sequence[Curve]]) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the dimensions that lines differ in, at most two, and all their values in order, drawn or not."""
    every = [(c.of | {"": name}, has_values(c)) for name, lines in found.items() for c in lines]
    dims = [d for d in dict.fromkeys(d for of, _ in every for d in of) if d] + [""]  # what is compared comes last
    values = {d: list(dict.fromkeys(of[d] for of, _ in every if d in of)) for d in dims}
    shown = [of for of, seen in every if seen] or [of for of, _ in every]
    dims = [d for d in dims if len({of[d] for of in shown if d in of}) > 1]
    if len(dims) > 2:
        said = ", ".join(d or "other" for d in dims)
        raise ValueError(f"too many dimensions for one plot ({said}): choose values of one")
    return dims, values


def has_values(line: Curve) -> bool:
    """Whether anything of a line can be seen."""
    return bool(np.isfinite(line.y).any())


def draw_chance(
    ax: Axes, sets: Mapping[str, xr.Dataset], name: str, axis: str, select: Mapping[str, Any] | None,
    looks: Mapping[str, Mapping[Any, Any]], relative: bool = False,
) -> list[tuple[str, dict[Any, dict[str, Any]]]]:  # fmt: skip
    """Draw the level by chance of each line, dotted, in its colour where they differ; return what a legend says."""
    grey = {**CHANCE, "color": "0.4"}
    usual = facts_of(next(iter(sets.values())), name).chance  # also of a summary, which has the levels without the word
    chances = {k: (d, usual if usual in d else facts_of(d, name).chance) for k, d in sets.items()}
    levels = {k: chance_levels(d, c, select, (axis, *looks)) if isinstance(c, str) else xr.DataArray(c)
              for k, (d, c) in chances.items() if c is not None}  # fmt: skip
    if not levels:
        return []
    first = next(iter(levels.values()))
    if all(v.broadcast_equals(first) for v in levels.values()):
        levels = {next(iter(levels)): first}
    for k, v in levels.items():
        v = v.sel({d: [x for x in v[d].values if x in values] for d, values in looks.items() if d in v.coords})
        drawn = [d for d in looks if d in v.dims]
        for places in product(*(range(v.sizes[d]) for d in drawn)):
            one = v.isel(dict(zip(drawn, places, strict=True)))
            key = one[drawn[0]].item() if drawn else k
            by = looks.get(drawn[0] if drawn else "", {}) if len(levels) > 1 or drawn else {}
            look = {**grey, "color": by[key]["color"]} if key in by else grey
            if axis in v.dims:
                (line,) = lines_of(one.to_dataset(name="x"), "x", axis, relative=relative)
                ax.plot(line.x, line.y, **look)
            else:
                ax.axhline(float(one), **look)
    said = next((chance_name(d, c) for d, c in chances.values() if isinstance(c, str)), "chance")
    return [("", {said: grey})] if any(c for _, c in chances.values()) else []


def palette(values: Sequence[Any]) -> list[Any]:
    """Return a colour for each value: distinct ones for names, dark to light for numbers."""
    return list(style.COLOURS) if isinstance(values[0], str) else style.ordered_colours(len(values))
