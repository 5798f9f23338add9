"""Rows with intervals: one for each intervention, class of tokens, policy or number of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..results.facts import CONDITIONS, REPEATS, REPLICATES, facts_of, first_of, pick, same_units, show
from ..results.tables import result_with
from ..settings import checked, several, string
from . import style
from .lines import CHANCE, Curve, Shown, has_values, lines_of, looks_of, named_sets, palette
from .scales import chance_levels


@checked(names=string | several(string, 1))
def rows(
    ds: xr.Dataset | xr.DataTree,
    names: str | Sequence[str] | None = None,
    dim: str | None = None,
    *,
    without: Sequence[str] = (),
    ordered: bool = False,
    most: int | None = None,
    xlabel: str | None = None,
    **look: Unpack[Shown],
) -> Axes:
    """Draw values with their intervals, one row for each value of a dimension, or for each variable.

    Rows without any value are left out and named below the axis.

    Parameters
    ----------
    ds : xarray.Dataset
        A result: means over prompts are drawn with a bootstrap interval, other variables with their own.
    names : str or sequence of str, optional
        One variable, with a row for each value of ``dim``; or several without such a dimension, with a row each.  By
        default the first of the result.
    dim : str, optional
        Dimension that becomes rows; by default the one with most names.
    without : sequence of str
        Beginnings of the names of rows that are left out.
    ordered : bool
        Whether the rows stand in the order of their values, highest first, and not in that of the result.
    most : int, optional
        Rows drawn, the first ones of the result.
    xlabel : str, optional
        Another name for the variable; the unit is added.
    **look
        ``select``, ``other``, ``label``, ``level``, ``legend``, ``ax``, ``width``: see `tokinterp.plots.lines.Shown`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the variable is not there, or more than one dimension is left beside the rows; if the variables differ in
        unit.

    Examples
    --------
    >>> x = xr.DataArray([0.5, 0.75], dims="policy", coords={"policy": ["window", "all"]}, attrs={"long_name": "loss"})
    >>> [t.get_text() for t in rows(xr.Dataset({"x": x}), "x").get_yticklabels()]
    ['window', 'all']
    """
    ds = result_with(ds, names)
    sets, select = named_sets(ds, look.get("other"), look.get("label")), look.get("select")
    shown = [names] if isinstance(names, str) else list(names or first_of(ds)[:1])
    axis = dim if dim is not None or len(shown) > 1 else rows_of(pick(ds, shown[0], select), shown[0])
    facts = same_units(sets, shown)
    found = {k: _lines(d, shown, axis or "", select, look.get("level", 0.95)) for k, d in sets.items()}
    first = next(iter(found.values()))[0]
    keys = [k for k in first.x.tolist() if not any(str(k).startswith(w) for w in without)][:most]
    there = {k for lines in found.values() for c in lines for k in c.x[np.isfinite(c.y)].tolist()}
    empty = [k for k in keys if k not in there] if there else []
    keys = [k for k in keys if k not in empty]
    if ordered:
        value = dict(zip(first.x.tolist(), first.y.tolist(), strict=True))
        keys.sort(key=lambda k: -np.nan_to_num(value[k], nan=-np.inf))
    names_of = {k: facts_of(ds, k).label if not axis else show(k, axis) for k in (*keys, *empty)}
    texts = [style.wrapped(names_of[k], width=28) for k in keys]
    if axis and "n_tokens" in ds and ds["n_tokens"].dims == (axis,):
        numbers = dict(zip(ds[axis].values.tolist(), ds["n_tokens"].values.tolist(), strict=True))
        texts = [f"{t} ({numbers[k]:,})" for t, k in zip(texts, keys, strict=True)]
    dims, values = looks_of(found)
    if len(dims) > 1:
        raise ValueError(f"too many dimensions for one plot ({', '.join(dims)}): choose values of one")
    colours = palette(values[dims[0]]) if dims else list(style.COLOURS)
    n = len(values[dims[0]]) if dims else 1
    looks: dict[Any, dict[str, Any]] = {}
    levels: list[tuple[np.ndarray, float, Any]] = []
    with style.drawing(
        look, height=0.75 + (0.15 + 0.06 * n) * len(keys) + 0.12 * sum(t.count("\n") for t in texts)
    ) as axes:
        for name, lines in found.items():
            for c in (c for c in lines if has_values(c) or not there):
                key = (name if dims[0] == "" else c.of[dims[0]]) if dims else ""
                at = values[dims[0]].index(key) if dims else 0
                shift = (0.6 / n) * (at - (n - 1) / 2)
                levels.append(
                    (levels_of(sets[name], shown, axis or "", keys, select, c.of), shift, colours[at % len(colours)])
                )
                place = np.arange(len(keys)) + shift
                here = {k: i for i, k in enumerate(c.x.tolist())}
                order = [here[k] for k in keys if k in here]
                place = place[[k in here for k in keys]]
                mark = {"color": colours[at % len(colours)], "ls": "none", "marker": style.MARKERS[at % 7],
                        "mfc": "white" if dims == [""] and at else None}  # fmt: skip
                if c.band is not None:  # the point may lie outside of its interval
                    axes.hlines(place, *c.band[:, order], lw=1.1, color=mark["color"])
                if c.each is not None:
                    axes.plot(c.each[:, order].T, place, ".", ms=2, color=mark["color"], alpha=0.6)
                axes.plot(c.y[order], place, **mark)
                looks[key] = mark
        _draw_levels(axes, levels, n)
        axes.set_yticks(range(len(keys)), texts if axis or len(shown) > 1 else [""], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.xaxis.set_major_locator(style.Roomy())
        if facts.low == 0 and facts.high == 1:
            axes.set_xlim(min(0, axes.get_xlim()[0]), axes.get_xlim()[1])
        common = xlabel or (facts.label if axis else "value" if len(shown) > 1 else facts.label)
        size = int(style.panel_width(axes) / 9)  # half is for the names
        said = f"no value: {', '.join(names_of[k] for k in empty)}".replace("$", r"\$") if empty else ""
        axes.set_xlabel(f"{style.wrapped(common, facts.units, size)}\n{style.wrapped(said, width=size)}".strip())
        if dims and look.get("legend", True):
            style.legend_above(axes, [(dims[0], looks)])
    return axes


def rows_of(ds: xr.Dataset, name: str) -> str:
    """Return the dimension of a variable that becomes rows: that with most names, conditions last."""
    v = ds[name]
    dims = [str(d) for d in v.dims if d not in (*REPEATS, *REPLICATES, "bound", "head")]
    return max(dims, key=lambda d: (d not in CONDITIONS, v.sizes[d]), default="head" if "head" in v.dims else "")


def _lines(ds: xr.Dataset, names: Sequence[str], axis: str, select: Any, level: float) -> list[Curve]:
    """Return the values of each colour along the rows."""
    if axis:
        return lines_of(ds, names[0], axis, select, level=level)
    each = [(n, lines_of(ds, n, "", select, level=level)) for n in names]
    if any(len(c) > 1 for _, c in each):
        raise ValueError(f"names={list(names)}: they have further dimensions: choose values with select=")
    one = [(n, c[0]) for n, c in each]
    nothing = np.full((2, 1), np.nan)
    bands = np.concatenate([nothing if c.band is None else c.band for _, c in one], 1)
    return [Curve({}, np.array([n for n, _ in one], dtype=object), np.concatenate([c.y for _, c in one]), bands)]


def levels_of(
    ds: xr.Dataset, names: Sequence[str], axis: str, keys: Sequence[Any], select: Any, of: Mapping[str, Any]
) -> np.ndarray:
    """Return (row,) the level by chance of what is drawn in one colour; NaN where there is none."""
    out = np.full(len(keys), np.nan)
    for i, name in enumerate(names):
        chance = facts_of(ds, name).chance
        if isinstance(chance, str):
            v = chance_levels(ds, chance, {**(select or {}), **of}, (axis,))
            chance = v.reindex({axis: list(keys)}).values if axis in v.dims else float(v)
        if chance is not None:
            out[slice(None) if axis else i] = chance
    return out


def _draw_levels(ax: Axes, levels: Sequence[tuple[np.ndarray, float, Any]], n: int) -> None:
    """Draw levels by chance: a line through all rows where they have one, else marks; in colour where those differ."""
    first = levels[0][0]
    alike = all(np.array_equal(level, first, equal_nan=True) for level, _, _ in levels)
    for level, shift, colour in [(first, 0.0, "0.4")] if alike else levels:
        there, half = np.flatnonzero(np.isfinite(level)), 0.4 if alike else 0.3 / n
        if alike and len({*level.tolist()}) == 1:
            ax.vlines(level[there[:1]], -0.6, len(level) - 0.4, color=colour, **CHANCE)
        elif len(there):
            ax.vlines(level[there], there + shift - half, there + shift + half, color=colour, **CHANCE)
