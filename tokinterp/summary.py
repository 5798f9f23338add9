"""Results side by side, and means with bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from .dataset import own_attributes, variable
from .kernels.state import neutral
from .settings import anything, checked
from .stamp import derived, mark_of


@checked(results=anything)
@neutral()
def concat_models(results: Mapping[str, xr.Dataset] | Sequence[xr.Dataset]) -> xr.Dataset:
    """Put the same measurement of several models side by side along a new ``model`` dimension.

    Nothing is joined silently: all coordinates must be equal.  For models of different depth compare along
    ``relative_depth`` instead (``ds.swap_dims(layer="relative_depth")``) or choose common layers first.

    Parameters
    ----------
    results : mapping of name -> Dataset, or sequence of Dataset
        Without names the ``model`` attributes are used.

    Raises
    ------
    ValueError
        If coordinates differ (named) or two results have the same name.
    """
    if not isinstance(results, Mapping):
        names = [str(ds.attrs.get("model", n)) for n, ds in enumerate(results)]
        if len(set(names)) < len(names):
            raise ValueError(f"the results come from {names}: give a mapping of different names to them")
        results = dict(zip(names, results, strict=True))
    if len(results) < 1:
        raise ValueError("no results to put side by side")
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
    out = xr.concat(
        [ds.assign_coords(model=name) for name, ds in results.items()],
        dim="model", join="exact", combine_attrs="drop_conflicts", coords="minimal", compat="override", data_vars="all",
    )  # fmt: skip
    out["model"].attrs.update(long_name="model", units="1")
    for key in ("model", "weights", "identity", "revision", "dtype", "backend", "device", "tokenizer", "prompts",
                "history", "edits", "parameters"):  # fmt: skip
        values = [str(ds.attrs.get(key, "")) for ds in sets]
        out.attrs[key] = values[0] if len(set(values)) == 1 else json.dumps(values)
    out.attrs.update(own_attributes(), fingerprint=mark_of("concat_models", sets, {"names": list(results)}))
    return out


@checked()
@neutral()
def summary(
    ds: xr.Dataset, dim: str = "prompt", *, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Return mean, bootstrap interval and count of every numeric variable over a dimension.

    Whole prompts are drawn with replacement, so that the interval covers the spread between prompts; NaN is left out.

    Parameters
    ----------
    ds : xarray.Dataset
        Variables without ``dim`` are dropped.
    dim : str
        What is drawn.
    level : float
        Share of the bootstrap means inside the interval.
    n_boot, seed : int
        Number of draws and their seed.

    Returns
    -------
    xarray.Dataset
        For each variable ``x``: ``x`` (mean), ``x_interval`` with a ``bound`` dimension (lower, upper; percentile
        bootstrap) and ``x_count`` (values that are not NaN).

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
    if dim not in ds.dims:
        raise ValueError(f"no dimension {dim!r} to summarise over: there are {', '.join(map(str, ds.dims))}")
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}: at least one draw is needed")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    n = ds.sizes[dim]
    if n == 0:
        raise ValueError(f"dimension {dim!r} is empty: there is nothing to summarise")
    tail = (1 - level) / 2
    out: dict[str, xr.Variable] = {}
    for name, v in ds.data_vars.items():
        if dim not in v.dims or v.dtype.kind not in "fiub":
            continue
        v = v.transpose(dim, ...)
        flat = v.values.reshape(n, -1).astype(np.float64)
        ok = np.isfinite(flat)
        filled = np.where(ok, flat, 0.0)
        count = ok.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = filled.sum(0) / count
            boot = _bootstrap(filled, ok, n_boot, seed, [tail, 1 - tail])
        dims, shape = tuple(map(str, v.dims[1:])), v.shape[1:]
        label, units = v.attrs.get("long_name", name), v.attrs.get("units", "1")
        out[str(name)] = variable(dims, mean.reshape(shape), f"mean {label}", units, v.attrs.get("references"))
        out[f"{name}_interval"] = variable(
            ("bound", *dims),
            boot.reshape(2, *shape),
            f"{level:.0%} bootstrap interval of the mean {label} over {dim}s",
            units,
        )
        out[f"{name}_count"] = variable(dims, count.reshape(shape), f"number of {dim}s with a value", "1")
    coords = {c: x for c, x in ds.coords.items() if dim not in x.dims}
    bound = variable("bound", np.array(["lower", "upper"]), "bound of the interval", "1")
    settings = {"dim": dim, "level": level, "n_boot": n_boot}
    return derived(xr.Dataset(out, coords={**coords, "bound": bound}), "summary", [ds], settings, seed, same_kind=True)


def _bootstrap(filled: np.ndarray, ok: np.ndarray, n_boot: int, seed: int, tails: list[float]) -> np.ndarray:
    """Return (bound, column) quantiles of the means of rows drawn with replacement, in bounded memory."""
    n, columns = filled.shape
    out = np.full((len(tails), columns), np.nan)
    rows, step = max(1, 4_000_000 // n), max(1, 4_000_000 // n_boot)
    for a in range(0, columns, step):
        part, present = filled[:, a : a + step], ok[:, a : a + step].astype(np.float64)
        rng = np.random.default_rng(seed)
        means = np.empty((n_boot, part.shape[1]))
        for b in range(0, n_boot, rows):
            draws = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, n_boot - b)).astype(np.float64)
            means[b : b + rows] = (draws @ part) / (draws @ present)
        some = ~np.isnan(means).all(0)
        if some.any():
            out[:, a : a + step][:, some] = np.nanquantile(means[:, some], tails, axis=0)
    return out
