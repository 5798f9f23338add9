"""Results side by side, and means with bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..settings import checked, mapping, result, several
from ..stats.resample import LEAST, mean_sums, ratio, ratio_intervals
from .dataset import bound_coord, own_attributes, variable
from .documents import groups_of
from .facts import is_count
from .stamp import derived, mark_of


@checked(results=mapping(result, 1) | several(result, 1))
@neutral()
def concat_models(results: Mapping[str, xr.Dataset] | Sequence[xr.Dataset]) -> xr.Dataset:
    """Put the same measurement of several models side by side along a new ``model`` dimension.

    Nothing is joined silently: all coordinates must be equal.  Models of different depth are compared at relative
    depths that all have, without the coordinates in which they differ:
    ``ds.swap_dims(layer="relative_depth").sel(relative_depth=[0, 1]).drop_vars(["layer", "site"])``.

    Parameters
    ----------
    results : mapping of name -> Dataset, or sequence of Dataset
        Without names the ``model`` attributes are used.

    Raises
    ------
    ValueError
        If coordinates differ (named) or two results have the same name.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, asked = ti.load_model(), {"c": ti.geometry.Curvature()}
    >>> runs = [ti.measure(m, ["The Nile flows north."], asked, progress=False) for m in (model, ti.untrained(model))]
    >>> trained, blank = (run["c"].to_dataset() for run in runs)
    >>> ti.concat_models({"trained": trained, "untrained": blank})["model"].values.tolist()
    ['trained', 'untrained']
    """
    if not isinstance(results, Mapping):
        names = [str(ds.attrs.get("model", n)) for n, ds in enumerate(results)]
        if len(set(names)) < len(names):
            raise ValueError(f"the results come from {names}: give a mapping of different names to them")
        results = dict(zip(names, results, strict=True))
    columns = [
        c for c in ("document", "token_document", "span_document") if any(c in ds.coords for ds in results.values())
    ]
    if any(len({ds[c].values.tobytes() if c in ds.coords else b"" for ds in results.values()}) > 1 for c in columns):
        results = {name: ds.drop_vars(columns, errors="ignore") for name, ds in results.items()}  # of no shared text
    sets = list(results.values())
    first, reference = next(iter(results.items()))
    for name, ds in results.items():
        if differing := sorted(map(str, set(ds.data_vars) ^ set(reference.data_vars))):
            raise ValueError(f"{name!r} and {first!r} do not have the same variables: {', '.join(differing)}")
        for c in reference.coords.keys() | ds.coords.keys():
            if c not in ds.coords or c not in reference.coords or not reference[c].variable.equals(ds[c].variable):
                raise ValueError(
                    f"coordinate {c!r} of {name!r} differs from that of {first!r}: select common values first, or plot "
                    "them side by side along relative_depth"
                )
        if ds.sizes != reference.sizes:
            raise ValueError(
                f"{name!r} has sizes {dict(ds.sizes)}, {first!r} {dict(reference.sizes)}: select equal parts"
            )
        units = {k: (v.attrs.get("units"), ds[k].attrs.get("units")) for k, v in reference.data_vars.items()}
        if other := [k for k, (one, two) in units.items() if one != two]:
            raise ValueError(f"{other[0]!r} is in {units[other[0]][1]} in {name!r}, but in {units[other[0]][0]} in "
                             f"{first!r}: convert one of them")  # fmt: skip
    out = xr.concat(
        [ds.assign_coords(model=name) for name, ds in results.items()],
        dim="model", join="exact", combine_attrs="drop_conflicts", coords="minimal", compat="override", data_vars="all",
    )  # fmt: skip
    out["model"].attrs.update(long_name="model", units="1")
    for name in set(out.variables) - {"model"}:  # what differs (how many prompts there were) is said of each
        told = [str(ds[name].attrs["long_name"]) for ds in sets if "long_name" in ds.variables[name].attrs]
        if told:
            out[name].attrs["long_name"] = " / ".join(dict.fromkeys(told))
    for key in ("model", "weights", "identity", "revision", "dtype", "backend", "device", "tokenizer", "prompts",
                "history", "edits", "parameters"):  # fmt: skip
        values = [str(ds.attrs.get(key, "")) for ds in sets]
        out.attrs[key] = values[0] if len(set(values)) == 1 else json.dumps(values)
    mark = mark_of("concat_models", sets, {"names": list(results)})
    out.attrs.update(own_attributes([ds.attrs for ds in sets]), fingerprint=mark)
    return out


@overload
def summary(
    ds: xr.Dataset, dim: str = ..., *, level: float = ..., n_boot: int = ..., seed: int = ...
) -> xr.Dataset: ...
@overload
def summary(
    ds: xr.DataTree, dim: str = ..., *, level: float = ..., n_boot: int = ..., seed: int = ...
) -> xr.Dataset | xr.DataTree: ...
@checked()
@neutral()
def summary(
    ds: xr.Dataset | xr.DataTree, dim: str = "prompt", *, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> xr.Dataset | xr.DataTree:
    """Return mean, bootstrap interval and count of every numeric variable over a dimension.

    Whole documents are drawn with replacement, where the prompts are windows of documents; else whole prompts.  So the
    interval covers the spread between independent texts.  NaN is left out.

    Parameters
    ----------
    ds : Dataset or DataTree
        A result: variables without ``dim`` are dropped; or a whole run, of which every result with ``dim`` is
        summarised.
    dim : str
        What the mean is over.  Drawn are its values, or the documents (for tokens: the prompts) they belong to.
    level : float
        Chance that the interval holds the mean of further such texts.
    n_boot, seed : int
        Least number of draws and their seed.

    Returns
    -------
    Dataset or DataTree
        The latter of a whole run.  For each variable ``x``: ``x`` (mean), ``x_interval`` with a ``bound`` dimension
        (lower, upper; expanded percentiles, see `tokinterp.stats.resample`; NaN where fewer than 3 documents have a
        value), ``x_count`` (values that are not NaN); where documents are drawn, ``x_groups`` (documents with a value).
        Of what is itself a count (``n_targets``), the mean alone.  The attributes ``n_groups`` and ``groups`` say how
        many were drawn of what.

    Raises
    ------
    ValueError
        If the dataset has no such dimension or the level is not between 0 and 1.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> ds = xr.Dataset({"x": ("prompt", np.arange(10.0), {"long_name": "x", "units": "1"})})
    >>> float(summary(ds)["x"])
    4.5
    """
    if isinstance(ds, xr.DataTree):
        if ds.data_vars:
            return summary(ds.to_dataset(), dim, level=level, n_boot=n_boot, seed=seed)
        measured = [n for n in ds.subtree if "measurement" in n.attrs and dim in n.dims]
        if not measured:
            raise ValueError(f"dim={dim!r}: no result of this run has it: its groups are {', '.join(ds.children)}")
        return xr.DataTree.from_dict(
            {n.path: summary(n.to_dataset(inherit=False), dim, level=level, n_boot=n_boot, seed=seed) for n in measured}
        )
    if dim not in ds.dims:
        raise ValueError(f"no dimension {dim!r} to summarise over: there are {', '.join(map(str, ds.dims))}")
    n = ds.sizes[dim]
    if n == 0:
        raise ValueError(f"dimension {dim!r} is empty: there is nothing to summarise")
    groups, kind = groups_of(ds, dim)
    chosen = {
        str(k): v.transpose(dim, ...) for k, v in ds.data_vars.items() if dim in v.dims and v.dtype.kind in "fiub"
    }
    sums = {name: mean_sums(v.values, groups) for name, v in chosen.items()}
    drawn = {name: pair for name, pair in sums.items() if not is_count(name)}
    boots = dict(zip(drawn, ratio_intervals([*drawn.values()], level=level, n_boot=n_boot, seed=seed), strict=True))
    out: dict[str, xr.Variable] = {}
    for name, v in chosen.items():
        above, below = sums[name]
        dims = tuple(map(str, v.dims[1:]))
        label, units = v.attrs.get("long_name", name), v.attrs.get("units", "1")
        mean = ratio(above.sum(0), below.sum(0))
        out[name] = variable(dims, mean, f"mean {label}", units, v.attrs.get("references"))
        if name not in boots:
            continue
        what = f"{level:.0%} bootstrap interval of the mean {label} over {kind}, NaN for fewer than {LEAST}"
        out[f"{name}_interval"] = variable(("bound", *dims), boots[name], what, units)
        out[f"{name}_count"] = variable(dims, below.sum(0).astype(int), f"number of {dim}s with a value", "1")
        if kind != f"{dim}s":
            out[f"{name}_groups"] = variable(dims, (below > 0).sum(0), f"number of {kind} with a value", "1")
    coords = {c: x for c, x in ds.coords.items() if dim not in x.dims}
    bound = bound_coord()
    settings = {"dim": dim, "level": level, "n_boot": n_boot}
    attrs = {"n_groups": len(np.unique(groups)), "groups": kind}
    return derived(xr.Dataset(out, {**coords, "bound": bound}, attrs), "summary", [ds], settings, seed, same_kind=True)
