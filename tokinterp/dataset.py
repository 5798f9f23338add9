"""Conventions of results: labelled variables, provenance, check, read, write, comparison and summary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .capture import Site

if TYPE_CHECKING:
    from .models.base import ModelInfo

CONVENTIONS = "tokinterp-1"
DIMS = {
    "prompt": "order of the input",
    "position": "place in the sequence, BOS counted",
    "token": "a place in the concatenated stream of all prompts",
    "layer": "blocks applied, 0..n_layers",
    "block": "what happens between layer b and b+1",
    "offset": "place decoded minus place probed",
    "vocab": "token id",
    "scale": "neighbour rank n2 of the estimator",
    "k": "number of neighbours",
    "span": "a span of tokens",
    "head": "attention head",
    "filler": "kind of filler",
    "shuffle": "level of shuffling",
    "replicate": "repetition",
    "bound": "lower, upper",
    "model": "model",
    "rank": "order in a ranking, 0 first",
    "subset": "which tokens take part",
    "component": "principal component, largest first",
    "threshold": "share of variance",
    "rule": "what counts as massive",
    "variant": "how a layer is decoded",
    "fact": "named fact",
}
REQUIRED = (
    "Conventions", "created", "versions", "model", "revision", "weights", "backend", "dtype", "device",
    "tokenizer", "prompts", "parameters", "fingerprint",
)  # fmt: skip


def variable(
    dims: str | Sequence[str], values: Any, long_name: str, units: str, references: str | None = None
) -> xr.Variable:
    """Return a variable that says what it is.

    Parameters
    ----------
    dims : str or sequence of str
        Names of the dimensions, in the order of the axes of ``values``.
    values : array_like or torch.Tensor
        The numbers.
    long_name, units : str
        What the numbers are, and in which unit (``nat``, ``token``, ``1``).
    references : str, optional
        Paper and equation that define the quantity.

    Examples
    --------
    >>> variable("layer", [0.5, 0.7], "loss", "nat").attrs["units"]
    'nat'
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    values = np.asarray(values)
    if values.dtype.kind in "UOT":
        values = values.astype(object)
    attrs = {"long_name": long_name, "units": units}
    if references:
        attrs["references"] = references
    return xr.Variable(dims, values, attrs)


def layer_coords(layers: Sequence[int], info: ModelInfo) -> dict[str, Any]:
    """Return the coordinates of a ``layer`` dimension: number, relative depth and TransformerLens name."""
    return {
        "layer": variable("layer", np.asarray(layers, dtype=np.int64), "blocks applied", "1"),
        "relative_depth": variable("layer", np.asarray(layers) / info.n_layers, "layer divided by n_layers", "1"),
        "site": variable(
            "layer", np.array([Site("resid", n).lens_name for n in layers]), "TransformerLens name of the site", "1"
        ),
    }


def block_coords(blocks: Sequence[int], info: ModelInfo, site: str = "attn_out") -> dict[str, Any]:
    """Return the coordinates of a ``block`` dimension: number and TransformerLens name of the site."""
    names = np.array([Site(site, n).lens_name for n in blocks])
    return {
        "block": variable("block", np.asarray(blocks, dtype=np.int64), "block, 0 first", "1"),
        "site": variable("block", names, "TransformerLens name of the site", "1"),
    }


# -- provenance -----------------------------------------------------------------------------------------------
@cache
def versions() -> str:
    """Return the versions of the packages that decide numbers, as one JSON string."""
    found = {}
    for name in ("tokinterp", "torch", "transformers", "transformer_lens", "nnsight", "numpy", "xarray", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return json.dumps(found)


@cache
def git_commit() -> str:
    """Return the commit of the source tree tokinterp runs from, with ``+`` if it was changed; empty if installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        call = ["git", "-C", str(root)]
        commit = subprocess.run([*call, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*call, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def provenance(
    info: ModelInfo, prompts: str, parameters: Mapping[str, Any], fingerprint: str, seed: int = 0
) -> dict[str, Any]:
    """Return the attributes that say where a result comes from.

    Parameters
    ----------
    info : ModelInfo
        Of the model.
    prompts : str
        Hash of the prompts.
    parameters : mapping
        Settings of the measurement, stored as one JSON string.
    fingerprint : str
        Hash of all that decides the numbers.
    seed : int
        Of whatever is drawn.
    """
    facts = asdict(info)
    return {
        "Conventions": CONVENTIONS,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
        "model": facts["id"],
        **{k: facts[k] for k in ("revision", "weights", "architecture", "backend", "dtype", "device", "tokenizer")},
        "n_layers": info.n_layers,
        "d_model": info.d_model,
        "prompts": prompts,
        "seed": seed,
        "parameters": json.dumps(parameters, sort_keys=True),
        "fingerprint": fingerprint,
    }


# -- check ----------------------------------------------------------------------------------------------------
def check(data: xr.Dataset | xr.DataTree) -> None:
    """Raise ValueError, naming every problem, if a result does not follow the conventions.

    Every dimension must be one of :data:`DIMS`, every variable must have ``long_name`` and ``units``, every dataset
    its provenance; layers are counted from 0 to n_layers; no infinite values; no strings that netCDF refuses.

    Examples
    --------
    >>> import tokinterp as ti, xarray as xr
    >>> ti.check(xr.Dataset({"x": ("layers", [1.0])}))
    Traceback (most recent call last):
    ValueError: ...
    """
    if isinstance(data, xr.DataTree):
        for node in data.subtree:
            if node.data_vars or node.path == "/":
                try:
                    check(node.to_dataset(inherit=False))
                except ValueError as error:
                    raise ValueError(f"{node.path}: {error}") from None
        return
    problems = [f"attribute {a!r} is missing" for a in REQUIRED if a not in data.attrs]
    if data.attrs.get("Conventions", CONVENTIONS) != CONVENTIONS:
        problems.append(f"Conventions is {data.attrs['Conventions']!r}, not {CONVENTIONS!r}")
    problems += [f"unknown dimension {d!r} (known: {', '.join(DIMS)})" for d in data.dims if d not in DIMS]
    for name, v in data.variables.items():
        problems += [f"variable {name!r} has no {a}" for a in ("long_name", "units") if not v.attrs.get(a)]
        for key, value in v.attrs.items():
            if value is None or isinstance(value, bool | dict):
                problems.append(f"attribute {key!r} of {name!r} is a {type(value).__name__}: files cannot hold it")
        if v.dtype.kind == "f" and np.isinf(v.values).any():
            problems.append(f"variable {name!r} has infinite values")
        if v.dtype.kind in "UOT" and any(_unsafe(s) for s in np.unique(v.values.astype(str))):
            problems.append(f"variable {name!r} has strings with NUL or lone surrogates: escape them")
    if "layer" in data.coords:
        n = data.attrs.get("n_layers")
        bad = [int(x) for x in np.atleast_1d(data["layer"].values) if x < 0 or (n is not None and x > n)]
        if bad:
            problems.append(f"layers {bad} are not within 0..{n}")
    if problems:
        raise ValueError("not a tokinterp result: " + "; ".join(problems))


def _unsafe(text: str) -> bool:
    return "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)


# -- files ----------------------------------------------------------------------------------------------------
def write(data: xr.Dataset | xr.DataTree, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result: a zarr folder, or one netCDF file where the name ends in ``.nc``.

    The file appears under its name only when it is complete, and carries a digest of every variable, so that
    :func:`read` notices a damaged or missing piece.

    Raises
    ------
    FileExistsError
        If something is there and ``overwrite`` is false.
    ValueError
        If the data do not pass :func:`check`.
    OSError
        If the place cannot be written or the disk is full; nothing is left behind.

    Examples
    --------
    >>> import tokinterp as ti
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"lens": ti.LogitLens()})  # doctest: +SKIP
    >>> ti.write(run, "lens.zarr")  # doctest: +SKIP
    """
    path = Path(path)
    check(data)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another name or overwrite=True")
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise FileExistsError(f"{path} is a folder, but no zarr store: it is not overwritten; give another name")
    tree = data if isinstance(data, xr.DataTree) else xr.DataTree(data)
    kind = object if path.suffix == ".nc" else np.dtypes.StringDType()
    nodes = {n.path: _strings(n.to_dataset(inherit=False), kind) for n in tree.subtree}
    root = nodes["/"]
    root.attrs = {**root.attrs, "digests": json.dumps(digests(tree))}
    out = xr.DataTree.from_dict(nodes)
    partial = path.with_name(f".{path.name}.writing-{os.getpid()}")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nc":
            out.to_netcdf(partial, engine="h5netcdf")
        else:
            out.to_zarr(partial, mode="w", zarr_format=3, consolidated=False)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        _remove(old)
    except BaseException as error:
        _remove(partial)
        if old.exists() and not path.exists():
            os.replace(old, path)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
            ) from error
        raise
    return path


def read(path: str | Path) -> xr.DataTree:
    """Read a result that :func:`write` wrote, check its conventions and that no value was damaged.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or only an unfinished run.
    ValueError
        If it is no tokinterp result, or a variable is damaged (named).
    """
    path = Path(path)
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        hint = (
            "; the run is unfinished: call measure() again with the same arguments to resume it"
            if partial.exists()
            else ""
        )
        raise FileNotFoundError(f"no result at {path}{hint}")
    try:
        if path.suffix == ".nc":
            tree = xr.open_datatree(path, engine="h5netcdf")
        else:
            tree = xr.open_datatree(path, engine="zarr", consolidated=False)
        with tree:
            nodes = {n.path: _strings(n.to_dataset(inherit=False).load(), object) for n in tree.subtree}
    except Exception as error:
        raise ValueError(f"{path} cannot be read (damaged, or no result): {type(error).__name__}: {error}") from error
    known = nodes["/"].attrs.pop("digests", None)
    loaded = xr.DataTree.from_dict(nodes)
    if known is None:
        raise ValueError(f"{path} has no digests: it is no result that tokinterp wrote")
    now, then = digests(loaded), json.loads(known)
    bad = sorted(k for k in then.keys() | now.keys() if now.get(k) != then.get(k))
    if bad:
        raise ValueError(
            f"{path} is damaged: {', '.join(bad)} differ from what was written; measure again or restore it"
        )
    check(loaded)
    return loaded


def digests(tree: xr.DataTree) -> dict[str, str]:
    """Return a hash of the values of every variable of a tree."""
    found = {}
    for node in tree.subtree:
        for name, v in node.to_dataset(inherit=False).variables.items():
            h = hashlib.sha256(f"{v.dims} {v.shape}".encode())
            if v.dtype.kind in "UOT":
                h.update("\0".join(map(str, v.values.ravel().tolist())).encode("utf-8", "surrogatepass"))
            else:
                values = np.ascontiguousarray(v.values)
                if v.dtype.kind == "f":  # files keep neither the sign of a zero nor the bits of a NaN
                    values = np.where(np.isnan(values), np.asarray(np.nan, v.dtype), values + np.asarray(0, v.dtype))
                h.update(v.dtype.str.encode() + values.tobytes())
            found[f"{node.path.rstrip('/')}/{name}"] = h.hexdigest()[:16]
    return found


def _strings(ds: xr.Dataset, kind: Any) -> xr.Dataset:
    """Return a dataset with its string variables in one kind of array, without encodings of an earlier file."""
    out = ds.copy()
    for name, v in ds.variables.items():
        if v.dtype.kind in "UOT":
            out[name] = v.copy(data=v.values.astype(kind))
    return out.drop_encoding()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# -- comparison and summary -----------------------------------------------------------------------------------
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
            if c not in ds.coords or c not in reference.coords or not reference[c].equals(ds[c]):
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
    for key in ("model", "weights", "fingerprint", "revision", "dtype", "backend", "device", "tokenizer", "prompts",
                "created", "versions", "parameters"):  # fmt: skip
        values = [str(ds.attrs.get(key, "")) for ds in sets]
        out.attrs[key] = values[0] if len(set(values)) == 1 else json.dumps(values)
    return out


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
        dims, shape = v.dims[1:], v.shape[1:]
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
    return xr.Dataset(out, coords={**coords, "bound": bound}, attrs=dict(ds.attrs))


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
