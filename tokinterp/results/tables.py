"""A run in rows and columns: means per layer with their intervals, and a run as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..files.escape import in_one_line
from ..run.checkpoint import how_far
from ..run.facts import read_facts
from ..run.loop import read_progress
from .dataset import circumstances
from .dataset import kind as kind_of
from .documents import interval_said
from .facts import DEPTHS, REPEATS, WIDE, facts_of, first_of, preferred, show
from .summary import summary


class Column(NamedTuple):
    """One column of the table of a result: a variable at one value of its further dimensions.

    Attributes
    ----------
    name, label, short, about : str
        Variable with its unit; value of the further dimensions; its name for a reader, with its unit; what it is.
    first : bool
        Whether it is the column to look at first of its variable.
    mean : numpy.ndarray
        (layer,) value, or mean over prompts.
    interval, count : numpy.ndarray or None
        (bound, layer) and (layer,) of means over prompts.
    """

    name: str
    label: str
    short: str
    about: str
    first: bool
    mean: np.ndarray
    interval: np.ndarray | None = None
    count: np.ndarray | None = None


def layer_table(ds: xr.Dataset) -> tuple[str, list[int], list[Column]]:
    """Return the dimension that is depth, its values, and the main columns of a result."""
    first = str(ds.attrs.get("first", ""))
    wanted = first.split(", ") if first else [str(n) for n in ds.data_vars]
    places = [ds[n].dims for n in wanted if n in ds] if first else [ds.dims]
    depth = next((d for dims in places for d in DEPTHS if d in dims), None)
    if depth is None:
        return "", [], []
    wide = {*WIDE} - {"other_layer"}
    names = [n for n in wanted if n in ds and depth in ds[n].dims and not wide & {*ds[n].dims}]
    names = [n for n in names if ds[n].dtype.kind in "fiub"]
    found: list[Column] = []
    means = summary(ds[names]) if "prompt" in ds[names].dims else ds[[]]
    for name in names:
        v = means[name] if name in means else ds[name]
        units, about = str(ds[name].attrs.get("units", "1")), str(ds[name].attrs.get("long_name", name))
        rest = [str(d) for d in v.dims if d != depth]
        best = {d: preferred(ds, d) for d in rest}
        for at in product(*(_ends(v, d) for d in rest)):
            place = dict(zip(rest, at, strict=True))
            label = ", ".join(_said(ds, d, i) for d, i in place.items() if d in ds.coords)
            unit = "" if units == "1" else f" ({units})"
            short = facts_of(ds, name).label + unit
            column = Column(name.replace("_", " ") + unit, label, short, about, place == best, v.isel(place).values)
            if f"{name}_interval" in means:
                interval = means[f"{name}_interval"].isel(place).transpose("bound", depth).values
                column = column._replace(interval=interval, count=means[f"{name}_count"].isel(place).values)
            found.append(column)
    return depth, ds[depth].values.tolist(), found


def _ends(v: xr.DataArray, dim: str) -> Sequence[int]:
    """Return the places of a further dimension that are columns: all, but of layers compared with the ends alone."""
    n = v.sizes[dim]
    return [0, n - 1] if dim == "other_layer" and n > 2 else range(n)


def _said(ds: xr.Dataset, dim: str, place: int) -> str:
    value = ds[dim].values[place]
    return f"with layer {value}" if dim == "other_layer" else show(value, dim)


def value_rows(ds: xr.Dataset, most: int = 40) -> list[tuple[str, str]]:
    """Return what to look at first in a result without layers: places of values, and values with intervals."""
    out: list[tuple[str, str]] = []
    for name in first_of(ds):
        long = [d for d in ds[name].dims if d == "bound" or (d in WIDE and ds.sizes[d] > 12)]
        if ds[name].dtype.kind not in "fiub" or long:
            continue
        repeat = next((d for d in REPEATS if d in ds[name].dims), None)
        means = ds if repeat is None else summary(ds[[name]], repeat)
        v = means[name].mean([d for d in REPEATS if d in means[name].dims])
        interval = means.get(f"{name}_interval")
        interval = None if interval is None or {*interval.dims} != {*v.dims, "bound"} else interval
        for at in np.ndindex(*v.shape):
            place = dict(zip(map(str, v.dims), at, strict=True))
            label = ", ".join(
                [name.replace("_", " "), *(show(ds[d].values[i], d) for d, i in place.items() if d in ds.coords)]
            )
            ends = [] if interval is None else [number(float(x)) for x in interval.isel(place).transpose("bound")]
            out.append((label, number(float(v.isel(place))) + (f" ({' to '.join(ends)})" if ends else "")))
    if len(out) > most:
        out = [*out[:most], (f"and {len(out) - most} more values", "in the report, plot and export")]
    return out


def named_results(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the results of measurements in a tree by their path, the same kinds beside each other."""
    found = {n.path.strip("/") or "result": n.to_dataset(inherit=False) for n in tree.subtree if n.data_vars}

    def order(name: str) -> tuple[bool, str, str]:
        attrs = found[name].attrs
        return ("first" not in attrs, kind_of(attrs), name)

    return {k: found[k] for k in sorted(found, key=order) if "measurement" in found[k].attrs or len(found) == 1}


def result_with(data: xr.Dataset | xr.DataTree, names: str | Sequence[str] | None = None) -> xr.Dataset:
    """Return a result as it is given, or the one of a run that has these variables.

    Raises
    ------
    ValueError
        If no result of the run has them, or several; says which there are.
    """
    if isinstance(data, xr.Dataset) or data.data_vars:
        return data if isinstance(data, xr.Dataset) else data.to_dataset()
    wanted = [names] if isinstance(names, str) else list(names or ())
    there = named_results(data)
    found = [k for k, ds in there.items() if all(n in ds for n in wanted)]
    if len(found) == 1:
        return there[found[0]]
    inside = ", ".join(map(repr, found or there)) or "nothing"
    if wanted and not found:
        raise ValueError(f"name={wanted[0]!r}: no result of the run has {' and '.join(wanted)}; its results: {inside}")
    way = f"give one of {inside}, for example run[{found[0]!r}]" if found else "measure something first"
    raise ValueError(f"ds: a whole run holds {len(found)} results: {way}")


def prompt_tables(tree: xr.DataTree) -> list[xr.Dataset]:
    """Return the tables that `measure` writes beside its results: tokens per prompt, and prompts left out."""
    return [n.to_dataset(inherit=False) for n in tree.subtree if "first_nonfinite_layer" in n.data_vars]


def number(x: float) -> str:
    """Return a number with four significant digits; a dash for none.

    Examples
    --------
    >>> number(3.14159), number(12), number(0.00001234), number(float("nan"))
    ('3.142', '12', '1.234e-05', '–')
    """
    return "–" if not np.isfinite(x) else f"{x:.4g}"


def summary_text(run: xr.DataTree) -> str:
    """Return a run as text: where it comes from, and the means of the main variables per layer."""
    out = []
    attrs = run.attrs or next((n.attrs for n in run.subtree if n.data_vars), {})
    wanted = ("model", "revision", "backend", "dtype", "device", "created", "fingerprint")
    facts = [(k, attrs[k]) for k in wanted if k in attrs]
    for table in prompt_tables(run):
        n = table["n_tokens"].values
        facts.append(("prompts", f"{len(n):,} with {int(n.sum()):,} tokens, {n.min()} to {n.max()} each"))
        if bad := int((table["first_nonfinite_layer"] >= 0).sum()):
            facts.append(("left out", f"{bad} prompts with NaN or infinite activations"))
    out.append(columns(facts))
    out += map(in_one_line, circumstances(attrs))
    for name, ds in named_results(run).items():
        sizes = ", ".join(f"{d} {n}" for d, n in ds.sizes.items())
        out.append("\n" + in_one_line(f"{name} ({ds.attrs.get('measurement', '')}): {sizes}"))
        out += [f"  {in_one_line(line)}" for line in circumstances(ds.attrs) if line not in circumstances(attrs)]
        depth, numbers, table = layer_table(ds)
        out += [f"  {k}: {in_one_line(ds.attrs[k])}" for k in ("verdict", "best_head") if k in ds.attrs]
        if not table:
            rows = value_rows(ds) or [(str(n), ", ".join(map(str, v.dims))) for n, v in ds.data_vars.items()]
            out.append("\n".join(f"  {line}" for line in columns(rows).splitlines()))
            continue
        shown = [c for c in table if c.first][:6]
        rows = [[depth, *(c.name for c in shown)], ["", *(c.label for c in shown)]]
        rows += [[str(n), *(number(c.mean[i]) for c in shown)] for i, n in enumerate(numbers)]
        rows = [[in_one_line(x) for x in r] for r in rows]
        if any(c.interval is not None for c in table):
            out.append(f"  means over prompts; a report has each {interval_said(ds)}".replace("each no", "no"))
        widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
        out += ["  " + "  ".join(x.rjust(w) for x, w in zip(r, widths, strict=True)) for r in rows if any(r)]
        if "refused" in ds and (n := int((ds["refused"] > 0).sum())):
            out.append(f"  {n} of {ds['refused'].size} clouds lack some estimate (NaN): the variable refused says why")
    return "\n".join(out)


def unfinished_text(run: Path, folder: Path) -> str:
    """Return how far an unfinished run, walk or fit has come, of which this folder is kept meanwhile."""
    facts = read_facts(folder)
    if "measurements" in facts:
        names = ", ".join(f"{k} ({v['class']})" for k, v in facts["measurements"].items())
        rows, how = [("measurements", names)], _so_far
    else:
        rows, how = [("function", facts.get("function", "a fit"))], how_far
    for part in _parts(folder):
        name = " ".join(p.removesuffix(".partial") for p in part.relative_to(folder).parts)
        rows.append((name or "so far", "finished" if part.suffix == ".zarr" else how(part)))
    return f"{run} is unfinished: the command that began it goes on\n{columns(rows)}"


def _parts(folder: Path) -> list[Path]:
    """Return what each share, and each of several runs, is kept in: the folder itself where there is one run."""
    there = sorted(p for p in folder.iterdir() if p.is_dir())
    parts = [p for p in there if p.name.startswith("share-") or p.suffix in (".zarr", ".partial")]
    return [x for p in parts for x in ([p] if p.suffix == ".zarr" else _parts(p))] or [folder]


def _so_far(folder: Path) -> str:
    p = read_progress(folder)
    return "finished" if p.finished else f"{p.done} prompts done{f' in reading {p.reading + 1}' if p.reading else ''}"


def columns(rows: Sequence[tuple[str, Any]]) -> str:
    """Return names and values in two columns."""
    shown = [(in_one_line(k), in_one_line(v)) for k, v in rows]
    width = max((len(k) for k, _ in shown), default=0)
    return "\n".join(f"{k.ljust(width)}  {v}" for k, v in shown)
