"""What a result says of its own variables: names for readers, ranges, levels by chance, and what to show first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..settings import short

DEPTHS = ("layer", "block")
WIDE = ("token", "position", "component", "vocab", "other_layer", "bin", "channel")
"""Dimensions too long for lines or for a table."""
PREFERRED = {"scale": 4, "subset": "regular"}
"""Values of further dimensions to look at first; of other dimensions, the first value."""
CONDITIONS = ("condition", "null", "shuffle", "model", "tokenizer", "lang")
"""Dimensions of what is compared: always drawn by colour."""
REPEATS = ("prompt", "token", "span", "item", "document")
"""Dimensions whose mean is drawn, with its interval."""
REPLICATES = ("replicate", "seed")
"""Dimensions of which each line is drawn, thin, beside the mean."""
DOMAINS = ("bin", "component", "position")
"""Dimensions over which a variable is a function, whatever else it has."""
NULL_NAMES = {"none": "text", "untrained": "untrained network", "random_ids": "random tokens"}
FORMAT_NAMES = {
    "none": "no fillers", "filler": "fillers", "parallel": "chain of thought", "serial": "serial chain of thought",
    "none_equal_flops": "no fillers, equal FLOPs",
}  # fmt: skip
NAMES = {
    "null": NULL_NAMES, "format": FORMAT_NAMES, "arm": FORMAT_NAMES,
    "trunk": FORMAT_NAMES | {"random": "not trained", "untrained": "untrained network"},
    "condition": {n: NULL_NAMES[n] for n in ("untrained", "random_ids")},
}  # fmt: skip
"""What values are called, by dimension: conditions have the names that somebody gave them."""
AXES = {
    "prompt": "prompt",
    "scale": "neighbour rank n₂", "k": "neighbours k", "n_fillers": "filler tokens", "offset": "offset (tokens)",
    "component": "principal component", "other_layer": "other layer", "step": "optimiser steps",
    "examples_seen": "training examples",
}  # fmt: skip


class Facts(NamedTuple):
    """How a variable is drawn; see `tokinterp.Field`."""

    label: str
    units: str
    low: float | None
    high: float | None
    chance: float | str | None
    log: bool
    beside: tuple[str, ...]
    along: tuple[str, ...]
    by: str | None = None


def facts_of(ds: xr.Dataset, name: str) -> Facts:
    """Return what a result says of a variable, and else what goes without saying.

    Examples
    --------
    >>> ds = xr.Dataset({"x": ("layer", [0.5], {"long_name": "share of heads"}), "x_null": ("layer", [0.1])})
    >>> facts_of(ds, "x").high, facts_of(ds, "x").chance
    (1.0, 'x_null')
    """
    attrs = ds[name].attrs
    long = str(attrs.get("long_name", name))
    ends = str(attrs.get("range", "0..1" if re.match(r"(mean )?(share|accuracy|whether)\b", long) else ".."))
    low, high = (float(x) if x else None for x in ends.split(".."))
    chance = attrs.get("chance")
    if isinstance(chance, str):
        chance = chance if chance in ds else None
    elif chance is not None:
        chance = float(chance)
    elif f"{name}_null" in ds:
        chance = f"{name}_null"
    return Facts(
        str(attrs.get("short_name", long)), str(attrs.get("units", "1")), low, high, chance, bool(attrs.get("log", 0)),
        tuple(n for n in listed(attrs.get("beside")) if n in ds), listed(attrs.get("along")),
        str(attrs["by"]) if attrs.get("by") in ds else None,
    )  # fmt: skip


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


def same_units(sets: Mapping[str, xr.Dataset], names: Sequence[str]) -> Facts:
    """Return how variables that share an axis are drawn: as the first one, whose unit all must have.

    Raises
    ------
    ValueError
        If they differ in unit.
    """
    first = facts_of(next(iter(sets.values())), names[0])
    for d in sets.values():
        for n in (n for n in names if n in d):
            if (units := facts_of(d, n).units) != first.units:
                raise ValueError(
                    f"names={list(names)}: {n} is in {units}, {names[0]} in {first.units}: draw each alone"
                )
    return first


def chance_name(ds: xr.Dataset, name: str) -> str:
    """Return what a level by chance is called."""
    return facts_of(ds, name).label if "short_name" in ds[name].attrs else "chance"


def listed(text: Any) -> tuple[str, ...]:
    """Return the names of an attribute that holds several."""
    return tuple(n for n in str(text or "").split(", ") if n)


def axis_of(ds: xr.Dataset, name: str) -> str | None:
    """Return the dimension over which a variable is drawn as a curve; None where rows say more."""
    v = ds[name]
    said = [d for d in (*facts_of(ds, name).along, *DOMAINS, *DEPTHS) if d in v.dims]
    if said:
        return said[0]
    numbers = [str(d) for d in v.dims if d not in (*REPEATS, *REPLICATES, *CONDITIONS, "bound", "head", "rank")]
    numbers = [d for d in numbers if v.sizes[d] > 1 and d in v.coords and v[d].dtype.kind in "iuf"]
    return max(numbers, key=lambda d: v.sizes[d], default=None)


def first_of(ds: xr.Dataset) -> list[str]:
    """Return the variables to show first: those that the result names, or else all that stand for themselves."""
    named = [n for n in listed(ds.attrs.get("first")) if n in ds]
    if named:
        return named
    numeric = [str(n) for n, v in ds.data_vars.items() if v.dtype.kind in "fiub"]
    beside: set[Any] = set()
    for n in numeric:
        facts = facts_of(ds, n)
        beside |= {*facts.beside, facts.chance}
    ends = ("_interval", "_band", "_error", "_count", "_groups", "_null", "_q", "_p", "_id", "_hash")
    own = [n for n in numeric if n not in beside and not n.endswith(ends)]
    return [n for n in own if not is_count(n) and not n.startswith("first_nonfinite")] or own


def is_count(name: str) -> bool:
    """Whether a variable says of how many others are, or how long they took."""
    return name.startswith("n_") or name in ("n", "count", "refused", "seconds", "examples_seen")


def numeric(ds: xr.Dataset, dim: str) -> bool:
    """Whether a dimension has numbers, and not names."""
    return dim not in ds.coords or ds[dim].dtype.kind in "iuf"


def preferred(ds: xr.Dataset, dim: str) -> int:
    """Return the place of the value of a dimension to look at first."""
    if dim not in ds.coords:
        return 0
    return next((i for i, x in enumerate(ds[dim].values.tolist()) if x == PREFERRED.get(dim)), 0)


def show(value: Any, dim: str = "") -> str:
    """Return the value of a coordinate for a reader.

    Examples
    --------
    >>> show(0.95), show(4, "k"), show("none", "null"), show("shuffle:5", "null")
    ('0.95', 'k 4', 'text', 'shuffled, S = 5')
    >>> show("random", "condition"), show("random", "trunk")
    ('random', 'not trained')
    """
    if isinstance(value, float | np.floating):
        value = f"{value:g}"
    text = str(value)
    if not dim or dim == "variable":  # a name that somebody gave
        return text
    if dim == "rank" and text in ("0", "1", "2"):
        return ("largest", "second", "third")[int(text)]
    if dim in NAMES:
        if text.startswith("shuffle:"):
            return f"shuffled, S = {text.partition(':')[2]}"
        return NAMES[dim].get(text, text.replace("_", " "))
    number = bool(dim) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
    return f"{dim.replace('_', ' ')} {text}" if number else text.replace("_", " ")


def axis_label(ds: xr.Dataset, dim: str) -> str:
    """Return the name of an axis, with its unit."""
    if dim in (*DEPTHS, *AXES):
        return AXES.get(dim, dim)
    attrs = ds[dim].attrs if dim in ds.coords else {}
    units, name = str(attrs.get("units", "1")), str(attrs.get("long_name", dim)).partition(";")[0].replace("_", " ")
    name = name if len(name) <= 40 else dim.replace("_", " ")
    return name if units in ("1", name) else f"{name} ({units})"
