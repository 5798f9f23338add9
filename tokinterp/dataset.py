"""Conventions of results: labelled variables, provenance, check, read, write."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .capture import Site
from .files import new_folder, replace_folder
from .owner import discard, leftovers, sweep
from .paths import local_path
from .received import RefusedError, check_netcdf, check_zarr
from .settings import checked

if TYPE_CHECKING:
    from .edits import Edit
    from .models.base import ModelInfo
    from .text.prompts import Prompts

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
    "order": "order alpha of a Renyi entropy",
    "channel": "coordinate of the stream",
    "entry": "massive entry of the stream, largest ratio first",
    "other_layer": "layer compared with, blocks applied",
    "label": "what tokens are compared by",
    "bin": "bin of a histogram",
    "option": "answer of a multiple-choice item",
    "null": "what the text or the network is replaced by",
    "fact": "named fact",
    "format": "form of a task's text: none, filler, parallel, serial",
    "stratum": "kind of example",
    "seed": "seed of a training run",
    "arm": "what a network was trained on",
    "kept": "share of the filler tokens kept",
    "trunk": "network that is probed",
    "query_set": "positions that look",
    "key_set": "positions that are looked at",
    "placement": "where the fillers stand",
    "n_fillers": "filler tokens in the prompt",
    "slot": "place among the fillers",
    "cell": "one filler at one layer",
    "other_cell": "cell compared with",
    "intervention": "what is changed in the pass",
    "window": "window of blocks",
    "policy": "which keys stay visible",
    "criterion": "condition of a verdict",
    "target": "what is looked for",
    "source": "where it is read",
    "step": "tokens decoded one after the other, or optimiser steps taken",
    "pieces": "tokens of a word",
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


def numbers_version() -> str:
    """Return the part of tokinterp's version that changes when numbers may."""
    return ".".join(json.loads(versions()).get("tokinterp", "0").split(".")[:2])


def own_attributes() -> dict[str, Any]:
    """Return the attributes that every result gets anew: when, and by which packages it was made."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"Conventions": CONVENTIONS, "created": created, "versions": versions(), "git_commit": git_commit()}


def provenance(
    info: ModelInfo,
    prompts: Prompts | str,
    parameters: Mapping[str, Any],
    fingerprint: str,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> dict[str, Any]:
    """Return the attributes that say where a result comes from.

    Parameters
    ----------
    info : ModelInfo
        Of the model.
    prompts : Prompts or str
        What was run, or a hash of it.
    parameters : mapping
        Settings of the measurement, stored as one JSON string.
    fingerprint : str
        Hash of all that decides the numbers.
    seed : int
        Of whatever is drawn.
    edits : sequence of Edit
        What was changed during the passes.
    """
    facts = asdict(info)
    return {
        **own_attributes(),
        "model": facts["id"],
        **{k: facts[k] for k in ("revision", "weights", "architecture", "backend", "dtype", "device", "tokenizer")},
        "identity": info.identity,
        "n_layers": info.n_layers,
        "d_model": info.d_model,
        "prompts": prompts if isinstance(prompts, str) else prompts.hash,
        "history": "" if isinstance(prompts, str) else prompts.history,
        "edits": "; ".join(map(str, edits)),
        "seed": seed,
        "parameters": json.dumps(parameters, sort_keys=True),
        "fingerprint": fingerprint,
    }


def kind(attrs: Mapping[Any, Any]) -> str:
    """Return the name of the measurement whose numbers a result holds, itself or summarised, from its attributes."""
    return str(attrs.get("measured") or attrs.get("measurement", ""))


def circumstances(attrs: Mapping[Any, Any]) -> list[str]:
    """Return a line for each thing that was done to the passes or the prompts of a result, from its attributes.

    Examples
    --------
    >>> circumstances({"edits": "zero(attn_out 0)", "history": ""})
    ['measured under edits: zero(attn_out 0)']
    """
    told = (("edits", "measured under edits"), ("history", "prompts"))
    return [f"{text}: {attrs[name]}" for name, text in told if attrs.get(name)]


# -- check ----------------------------------------------------------------------------------------------------
@checked()
def check(data: xr.Dataset | xr.DataTree) -> None:
    """Raise ValueError, naming every problem, if a result does not follow the conventions.

    Every dimension must be one of :data:`DIMS`, or be named in the attribute ``dimensions`` and have a coordinate that
    says what it is; every variable must have ``long_name`` and ``units``, every dataset its provenance; layers are
    counted from 0 to n_layers; no infinite values; no strings that netCDF refuses.

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
    own = str(data.attrs.get("dimensions", "")).split(", ")
    unknown = [d for d in data.dims if d not in DIMS and not (d in own and d in data.coords)]
    problems += [f"unknown dimension {d!r} (known: {', '.join(DIMS)})" for d in unknown]
    problems += _unfit(data.attrs)
    for name, v in data.variables.items():
        problems += [f"variable {name!r} has no {a}" for a in ("long_name", "units") if not v.attrs.get(a)]
        problems += [f"{text} of {name!r}" for text in _unfit(v.attrs)]
        if v.dtype.kind == "f" and np.isinf(v.values).any():
            problems.append(f"variable {name!r} has infinite values")
        if v.dtype.kind in "UOT" and any(map(_unsafe, set(map(str, v.values.ravel().tolist())))):
            problems.append(f"variable {name!r} has strings with NUL or lone surrogates: escape them")
    if "layer" in data.coords:
        n = data.attrs.get("n_layers")
        bad = [int(x) for x in np.atleast_1d(data["layer"].values) if x < 0 or (n is not None and x > n)]
        if bad:
            problems.append(f"layers {bad} are not within 0..{n}")
    if problems:
        raise ValueError("not a tokinterp result: " + "; ".join(problems))


def _unfit(attrs: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with attributes that files cannot hold."""
    bad = [k for k, v in attrs.items() if v is None or isinstance(v, bool | np.bool_ | dict)]
    unsafe = [k for k, v in attrs.items() if isinstance(v, str) and _unsafe(v)]
    return [f"files cannot hold {type(attrs[k]).__name__} attribute {k!r}" for k in bad] + [
        f"NUL or lone surrogate in attribute {k!r}" for k in unsafe
    ]


def _unsafe(text: str) -> bool:
    return "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)


# -- files ----------------------------------------------------------------------------------------------------
@checked()
def write(data: xr.Dataset | xr.DataTree, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result: a zarr folder, or one netCDF file where the name ends in ``.nc``.

    The file appears under its name only when it is complete, and carries a digest of every variable and of all
    attributes, so that :func:`read` notices a damaged, missing or changed piece.  With ``overwrite=True`` a kill at any
    moment leaves the old result or the new one.

    Raises
    ------
    FileExistsError
        If something is there and ``overwrite`` is false, or it is a folder that is no store.
    ValueError
        If the data do not pass :func:`check`, or hold no result; for an address instead of a path.
    OSError
        If the place cannot be written or the disk is full; nothing is left behind.
    ImportError
        If the name ends in ``.nc`` and h5netcdf is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import tokinterp as ti
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"lens": ti.LogitLens(layers=[4])}, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ti.read(ti.write(run, folder + "/lens.zarr"))["lens"].sizes["layer"]
    1
    """
    path = target(path)
    if isinstance(data, xr.DataTree) and not any(n.variables for n in data.subtree):
        raise ValueError("the tree holds no result to write; a share that is not the last to finish gives an empty one")
    check(data)
    sweep(path)
    _refuse_existing(path, overwrite)
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise FileExistsError(f"{path} is a folder, but no zarr store: it is not overwritten; give another name")
    tree = data if isinstance(data, xr.DataTree) else xr.DataTree(data)
    kind = object if path.suffix == ".nc" else np.dtypes.StringDType()
    nodes = {n.path: _strings(n.to_dataset(inherit=False), kind) for n in tree.subtree}
    root = nodes["/"]
    root.attrs = {**root.attrs, "digests": json.dumps(digests(tree))}
    out = xr.DataTree.from_dict(nodes)
    partial: Path | None = None
    try:
        partial = new_folder(path)
        whole = partial / path.name
        if path.suffix == ".nc":
            out.to_netcdf(whole, engine="h5netcdf")
        else:
            out.to_zarr(whole, mode="w", zarr_format=3, consolidated=False)
        _refuse_existing(path, overwrite)
        if path.is_dir():
            replace_folder(whole, path)
        else:
            os.replace(whole, path)
        discard(partial)
    except BaseException as error:
        if partial is not None:
            discard(partial)
        if isinstance(error, OSError) and not (isinstance(error, FileExistsError) and error.errno is None):
            raise OSError(
                error.errno, f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
            ) from error
        raise
    return path


@checked()
def read(path: str | Path) -> xr.DataTree:
    """Read a result that :func:`write` wrote, check its conventions and that no value was damaged.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or only an unfinished run.
    ValueError
        If it is no tokinterp result, or a variable is damaged (named).
    """
    path = local_path(path)
    if not exists(path):
        partial = path.with_name(path.name + ".partial")
        hint = (
            "; the run is unfinished: call measure() again with the same arguments to resume it"
            if partial.exists()
            else ""
        )
        raise FileNotFoundError(f"no result at {path}{hint}")
    if path.suffix == ".nc":
        _need_netcdf()
    try:
        if path.suffix == ".nc":
            check_netcdf(path)
            tree = xr.open_datatree(path, engine="h5netcdf")
        else:
            check_zarr(path)
            tree = xr.open_datatree(path, engine="zarr", consolidated=False)
        with tree:
            nodes = {n.path: _strings(n.to_dataset(inherit=False).load(), object) for n in tree.subtree}
    except RefusedError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read (damaged, or no result): {type(error).__name__}: {error}") from error
    known = nodes["/"].attrs.pop("digests", None)
    loaded = xr.DataTree.from_dict(nodes)
    if known is None:
        raise ValueError(f"{path} has no digests: it is no result that tokinterp wrote")
    now, then = digests(loaded), json.loads(known)
    if not any(k.endswith(ATTRIBUTES) for k in then):  # written before attributes had digests
        now = {k: v for k, v in now.items() if not k.endswith(ATTRIBUTES)}
    bad = sorted(k for k in then.keys() | now.keys() if now.get(k) != then.get(k))
    if bad:
        named = ", ".join(bad[:20]) + " ..." * (len(bad) > 20)
        raise ValueError(f"{path} is damaged: {named} differ from what was written; measure again or restore it")
    check(loaded)
    return loaded


def target(path: str | Path, name: str = "path") -> Path:
    """Return where a result can be written, through a link to what it points to.

    Raises
    ------
    ValueError, TypeError, ImportError
        As `local_path`; if netCDF is asked for and not installed.
    """
    path = local_path(path, name)
    if path.suffix == ".nc":
        _need_netcdf()
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def exists(path: Path) -> bool:
    """Whether a result is there; one that a killed `replace_folder` had moved aside is put back first."""
    if not os.path.lexists(path):
        for old in leftovers(path, "old")[-1:]:
            with suppress(OSError):
                os.rename(old, path)
    return path.exists()


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if exists(path) and not overwrite:
        raise FileExistsError(f"{path} exists: give another name or overwrite=True")


ATTRIBUTES = "(attributes)"


def attributes_digest(attrs: Mapping[Any, Any]) -> str:
    """Return a hash of attributes that is the same for numpy's and Python's numbers, as files give back either."""

    def plain(value: Any) -> Any:
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(value, list | tuple):
            return plain(value[0]) if len(value) == 1 else [plain(v) for v in value]
        return value if isinstance(value, str | int | float) else str(value)

    text = json.dumps({str(k): plain(v) for k, v in attrs.items() if k != "digests"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digests(tree: xr.DataTree) -> dict[str, str]:
    """Return a hash of the values of every variable of a tree, and of the attributes of every variable and group."""
    found = {}
    for node in tree.subtree:
        found[node.path.rstrip("/") + "/" + ATTRIBUTES] = attributes_digest(node.attrs)
        for name, v in node.to_dataset(inherit=False).variables.items():
            found[f"{node.path.rstrip('/')}/{name} {ATTRIBUTES}"] = attributes_digest(v.attrs)
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


def _need_netcdf() -> None:
    try:
        import h5netcdf  # noqa: F401
    except ImportError as error:
        raise ImportError("netCDF files need h5netcdf: pip install 'tokinterp[netcdf]', or use .zarr") from error


def _strings(ds: xr.Dataset, kind: Any) -> xr.Dataset:
    """Return a dataset with its string variables in one kind of array, without encodings of an earlier file."""
    out = ds.copy()
    for name, v in ds.variables.items():
        if v.dtype.kind in "UOT":
            out[name] = v.copy(data=v.values.astype(kind))
    return out.drop_encoding()
