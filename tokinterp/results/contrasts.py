"""Conditions side by side in one result, and the difference between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..settings import checked
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


@checked()
@neutral()
def contrast(
    ds: xr.Dataset,
    condition: str,
    minus: str,
    over: str = "prompt",
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Return the mean difference between two conditions over paired prompts, with its interval.

    Whole documents are drawn with replacement where the prompts are windows of documents, else whole prompts: see
    `summary`.

    Parameters
    ----------
    ds : xarray.Dataset
        One measurement of `measure_conditions` (dimension ``condition``) or `measure_nulls` (``null``).
    condition, minus : str
        The difference is the first less the second, of each prompt.
    over : str
        What makes the pairs, and what the mean is over.
    level, n_boot, seed
        See `summary`.

    Returns
    -------
    xarray.Dataset
        For each numeric variable ``x`` by condition and prompt: ``x`` (mean difference), ``x_interval`` with a
        ``bound`` dimension, NaN for fewer than 3 groups, ``x_count`` (pairs without NaN), and ``x_groups`` where
        documents are drawn.  The attributes ``n_groups`` and ``groups`` say how many were drawn of what.

    Raises
    ------
    ValueError
        For an unknown condition, or if nothing of the result makes pairs.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France.", "Go on, then."], model)
    >>> conditions = {"whole": ti.Condition(prompts),
    ...               "no MLP": ti.Condition(prompts, [ti.edits.zero(ti.Site("mlp_out", 1))])}
    >>> run = ti.measure_conditions(model, conditions, {"lens": ti.lens.LogitLens(layers=[4])}, progress=False)
    >>> change = ti.contrast(run["lens"].to_dataset(), "no MLP", minus="whole")
    >>> change["cross_entropy_interval"].sizes["bound"], change.attrs["n_groups"]
    (2, 3)
    """
    dim = next((d for d in ("condition", "null") if d in ds.dims), None)
    if dim is None:
        raise ValueError("ds has no dimension condition: give one measurement of measure_conditions(), run['NAME']")
    known = [str(c) for c in ds[dim].values]
    for name, given in (("condition", condition), ("minus", minus)):
        if given not in known:
            raise ValueError(f"{name}={given!r}: there are {', '.join(map(repr, known))}")
    if condition == minus:
        raise ValueError(f"minus={minus!r}: a condition less itself is nothing; name another")
    paired = [k for k, v in ds.data_vars.items() if {dim, over} <= {*v.dims} and v.dtype.kind in "fiub"]
    if not paired:
        raise ValueError(
            f"over={over!r}: nothing makes pairs under {condition!r} and {minus!r}; what is not the same number of "
            f"{over}s of the same documents in all conditions stands in a group of each condition"
        )
    values = ds[paired].astype(np.float64)
    change = values.sel({dim: condition}, drop=True) - values.sel({dim: minus}, drop=True)
    for name in paired:
        said = f"change of {ds[name].attrs.get('long_name', name)} from {minus!r} to {condition!r}"
        change[name].attrs = {**ds[name].attrs, "long_name": said}
    out = summary(change.assign_attrs(ds.attrs), over, level=level, n_boot=n_boot, seed=seed)
    settings = {"condition": condition, "minus": minus, "over": over, "level": level, "n_boot": n_boot}
    return derived(out.drop_attrs(deep=False).assign_attrs({k: out.attrs[k] for k in ("n_groups", "groups")}),
                   "contrast", [ds], settings, seed, same_kind=True)  # fmt: skip
