"""Conditions side by side in one result, and the difference between two of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..settings import checked, instance, short
from . import dataset
from .stamp import derived, joined
from .summary import concat_models, summary


def side_by_side(sets: dict[str, xr.Dataset]) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return what has the same places under all conditions as one dataset, and the rest of each."""
    for dim in {d for d in _differing(sets) if not any(d in v.dims for ds in sets.values() for v in ds.values())}:
        own = [ds.drop_vars(ds.data_vars) for ds in sets.values()]  # coordinates alone: the strings of top ids
        lists = [ds.drop_vars([c for c, v in ds.coords.items() if v.dims != (dim,)]) for ds in own]
        every = xr.concat(lists, dim, join="outer").drop_duplicates(dim).sortby(dim)
        sets = {name: ds.drop_dims(dim).assign_coords(every.coords) for name, ds in sets.items()}
    differing = _differing(sets)
    names = set.intersection(*({*ds.data_vars} for ds in sets.values()))
    apart = {
        name: ds[[v for v in ds.data_vars if v not in names or differing & {*ds[v].dims}]] for name, ds in sets.items()
    }
    same = {name: ds.drop_vars([*apart[name].data_vars]).drop_dims(differing, errors="ignore")
            for name, ds in sets.items()}  # fmt: skip
    rest = {name: ds for name, ds in apart.items() if ds.data_vars}
    if not any(ds.data_vars for ds in same.values()):
        attrs = joined([{str(k): v for k, v in ds.attrs.items()} for ds in sets.values()])
        return xr.Dataset(attrs={**attrs, **dataset.own_attributes([ds.attrs for ds in sets.values()])}), rest
    return along(same, "condition", "under what was measured"), rest


def _differing(sets: Mapping[str, xr.Dataset]) -> set[Any]:
    """Return the dimensions whose places are not the same in all datasets."""
    first, *others = sets.values()

    def same(d: Any, ds: xr.Dataset) -> bool:
        coords = {c for one in (first, ds) for c, v in one.coords.items() if d in v.dims}
        return first.sizes.get(d) == ds.sizes.get(d) and all(
            c in first.coords and c in ds.coords and first[c].variable.equals(ds[c].variable) for c in coords
        )

    return {d for ds in others for d in {*first.dims, *ds.dims} if not same(d, ds)}


def along(sets: Mapping[str, xr.Dataset], dim: str, long_name: str) -> xr.Dataset:
    """Return results side by side along a dimension of their names."""
    out = concat_models(sets).rename(model=dim)
    return out.assign_coords({dim: dataset.variable(dim, np.array(list(sets)), long_name, "1")})


@checked(ds=instance("Dataset", "DataTree"))
@neutral()
def contrast(
    ds: xr.Dataset | xr.DataTree,
    condition: str,
    minus: str,
    over: str = "prompt",
    by: str | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Return the mean difference between two conditions over pairs, with its interval.

    Prompts of one number make a pair, or those of one label (``by``).  Whole documents are drawn with replacement where
    the pairs belong to documents, else whole pairs: see `summary`.

    Parameters
    ----------
    ds : Dataset or DataTree
        One measurement of `measure_conditions` (dimension ``condition``), ``run["NAME"]``, or of `measure_nulls`
        (``null``).
    condition, minus : str
        The difference is the first less the second, of each pair.
    over : str
        What makes the pairs, and what the mean is over.
    by : str, optional
        A coordinate of these: what has the same value under both conditions is a pair; of several with one value the
        mean is taken first.  By default ``item``, where the conditions have it (`Condition.items`), else the number.
    level, n_boot, seed
        See `summary`.

    Returns
    -------
    xarray.Dataset
        For each numeric variable ``x`` by condition and prompt: ``x`` (mean difference), ``x_interval`` with a
        ``bound`` dimension, NaN for fewer than 3 groups, ``x_count`` (pairs without NaN), and ``x_groups`` where
        documents are drawn.  The attributes ``n_groups`` and ``groups`` say how many were drawn of what, ``unpaired``
        (JSON) what has no partner under the other condition and is left out; a warning names it, too.

    Raises
    ------
    ValueError
        For an unknown condition or coordinate, or if nothing of the result makes pairs.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France.", "Go on, then."], model)
    >>> conditions = {"whole": ti.Condition(prompts),
    ...               "no MLP": ti.Condition(prompts, [ti.edits.zero(ti.Site("mlp_out", 1))])}
    >>> run = ti.measure_conditions(model, conditions, {"lens": ti.lens.LogitLens(layers=[4])}, progress=False)
    >>> change = ti.contrast(run["lens"], "no MLP", minus="whole")
    >>> change["cross_entropy_interval"].sizes["bound"], change.attrs["n_groups"]
    (2, 3)
    """
    if condition == minus:
        raise ValueError(f"minus={minus!r}: a condition less itself is nothing; name another")
    given = ds.to_dataset(inherit=False) if isinstance(ds, xr.DataTree) else ds
    own = {str(k): v.to_dataset(inherit=False) for k, v in ds.children.items()} if isinstance(ds, xr.DataTree) else {}
    one, other = (
        _of_condition(given, own, over, name, value) for name, value in (("condition", condition), ("minus", minus))
    )
    if by is None and all("item" in x.coords and x["item"].dims == (over,) for x in (one, other)):
        by = "item"
    paired = [k for k, v in one.data_vars.items() if k in other and over in v.dims and v.dtype.kind in "fiub"]
    apart = one is own.get(condition)
    if not paired or (by is None and apart):
        raise ValueError(
            f"over={over!r}: nothing makes pairs under {condition!r} and {minus!r}; what is not the same number of "
            f"{over}s of the same documents in all conditions stands in a group of each condition: give the node "
            "run['NAME'] and by=, what its prompts have in common (Condition(items=...))"
        )
    sides, unpaired = [x[paired].astype(np.float64) for x in (one, other)], {}
    if by is not None:
        sides, unpaired = _paired(sides, (condition, minus), over, by)
    change = sides[0] - sides[1]
    for name in paired:
        said = f"change of {one[name].attrs.get('long_name', name)} from {minus!r} to {condition!r}"
        change[name].attrs = {**one[name].attrs, "long_name": said}
    out = summary(change.assign_attrs(given.attrs), by or over, level=level, n_boot=n_boot, seed=seed)
    said = {k: out.attrs[k] for k in ("n_groups", "groups")} | ({"unpaired": json.dumps(unpaired)} if unpaired else {})
    settings = {"condition": condition, "minus": minus, "over": over, "level": level, "n_boot": n_boot}
    settings |= {} if by is None else {"by": by}
    of = [one, other] if apart else [given]
    return derived(out.drop_attrs(deep=False).assign_attrs(said), "contrast", of, settings, seed, same_kind=True)


def _of_condition(whole: xr.Dataset, own: dict[str, xr.Dataset], over: str, name: str, given: str) -> xr.Dataset:
    """Return what was measured under one condition: its part of the whole, or a group of its own."""
    dim = next((d for d in ("condition", "null") if d in whole.dims), None)
    if dim is None and not own:
        raise ValueError("ds has no dimension condition: give one measurement of measure_conditions(), run['NAME']")
    known = [*map(str, whole[dim].values)] if dim else [*own]
    if given not in known:
        raise ValueError(f"{name}={given!r}: there are {', '.join(map(repr, known))}")
    there = [k for k, v in whole.data_vars.items() if {dim, over} <= {*v.dims}]
    return own[given] if given in own and not there else whole.sel({dim: given}, drop=True)[there]


def _paired(
    sides: list[xr.Dataset], names: tuple[str, str], over: str, by: str
) -> tuple[list[xr.Dataset], dict[str, list[Any]]]:
    """Return the means of what has one label, of the labels that both sides have, and which labels one side lacks."""
    for x, name in zip(sides, names, strict=True):
        if by not in x.coords or x[by].dims != (over,):
            has = ", ".join(str(c) for c, v in x.coords.items() if v.dims == (over,))
            raise ValueError(f"by={by!r}: under {name!r} there is no such coordinate of each {over}: there are {has}")
    labels = [x[by].values for x in sides]
    known = [{*v.tolist()} for v in labels]
    common = [v for v in dict.fromkeys(labels[1].tolist()) if v in known[0]]
    if not common:
        raise ValueError(f"by={by!r}: nothing makes pairs: no {by} of {names[0]!r} is one of {names[1]!r}")
    lone = {name: sorted(own - {*common}) for name, own in zip(names, known, strict=True) if own - {*common}}
    if lone:
        said = "; ".join(f"{short(v)} only under {name!r}" for name, v in lone.items())
        logging.getLogger("tokinterp").warning("contrast by %s leaves out what has no partner: %s", by, said)
    place = {v: n for n, v in enumerate(common)}
    out = []
    for x, own in zip(sides, labels, strict=True):
        at = np.array([place.get(v, -1) for v in own.tolist()])
        means = {k: ((by, *(d for d in v.dims if d != over)), _means(v.transpose(over, ...).values, at, len(common)))
                 for k, v in x.data_vars.items()}  # fmt: skip
        coords = {c: v for c, v in x.coords.items() if over not in v.dims}
        own_label = dataset.variable(by, np.array(common, dtype=own.dtype), str(x[by].attrs.get("long_name", by)), "1")
        out.append(xr.Dataset(means, {**coords, by: own_label}))
    documents = [_documents(x, own, common, over) for x, own in zip(sides, labels, strict=True)]
    group = _joined([d for d in documents if d is not None])
    if by != "document" and group is not None:
        group = dataset.variable(by, group, "documents that share no label with another", "1")
        out = [x.assign_coords(document=group) for x in out]
    return out, lone


def _means(values: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    """Return (label, ...) means over the rows of each label, NaN left out; rows at -1 have none."""
    known, total, count = np.isfinite(values), np.zeros((n, *values.shape[1:])), np.zeros((n, *values.shape[1:]))
    np.add.at(total, at[at >= 0], np.where(known, values, 0)[at >= 0])
    np.add.at(count, at[at >= 0], known[at >= 0])
    with np.errstate(invalid="ignore"):
        return total / count


def _joined(documents: list[list[Any]]) -> np.ndarray | None:
    """Return (label,) groups that share no document on any side: labels of one document on one side are together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not documents:
        return None
    numbers = [np.unique(d, return_inverse=True)[1] for d in documents]
    first, last = numbers[0], numbers[-1] + numbers[0].max() + 1
    size = int(last.max()) + 1
    edges = coo_array((np.ones(len(first)), (first, last)), shape=(size, size))
    return connected_components(edges, directed=False)[1][first]


def _documents(x: xr.Dataset, labels: np.ndarray, common: list[Any], over: str) -> list[Any] | None:
    """Return the document of each label; None where there are none, or a label is of several."""
    if "document" not in x.coords or x["document"].dims != (over,):
        return None
    found: dict[Any, set[Any]] = {}
    for label, document in zip(labels.tolist(), x["document"].values.tolist(), strict=True):
        found.setdefault(label, set()).add(document)
    return [next(iter(found[v])) for v in common] if all(len(found[v]) == 1 for v in common) else None
