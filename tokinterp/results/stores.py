"""Results in files: written whole, with digests of all that they hold, and checked when they are read."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import xarray as xr

from ..files.owner import discard, leftovers, sweep
from ..files.paths import local_path
from ..files.received import RefusedError, check_netcdf, check_zarr
from ..files.whole import new_folder, replace_folder
from ..settings import checked, count, mapping, none
from . import remote
from .dataset import blocks, check


@checked()
def write(data: xr.Dataset | xr.DataTree, path: str | Path, *, overwrite: bool = False) -> Path | str:
    """Write a result: a zarr folder, or one netCDF file where the name ends in ``.nc``.

    The file appears under its name only when it is complete, and carries a digest of every variable and of all
    attributes, so that :func:`read` notices a damaged, missing or changed piece.  With ``overwrite=True`` a kill at any
    moment leaves the old result or the new one.

    Parameters
    ----------
    data : Dataset or DataTree
        One result, or a whole run (zarr).
    path : path or URL
        Where to; ``memory://``, ``file://``, ``s3://bucket/run.zarr`` and others that fsspec writes to.  There it is
        copied when it is whole, its last piece being the one by which it counts as there.
    overwrite : bool
        Replace a result that is there.

    Returns
    -------
    Path or str
        Where it is: the path, or the URL.

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
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"lens": ti.lens.LogitLens(layers=[4])},
    ...     progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ti.read(ti.write(run, folder + "/lens.zarr"))["lens"].sizes["layer"]
    1
    """
    if (url := remote.address(path)) is not None:
        _refuse_existing(url, overwrite)
        with TemporaryDirectory() as folder:
            whole = Path(write(data, Path(folder, url.rsplit("/", 1)[1])))
            _refuse_existing(url, overwrite)
            remote.upload(whole, url)
        return url
    path = target(path)
    if isinstance(data, xr.DataTree) and not any(n.variables for n in data.subtree):
        raise ValueError("the tree holds no result to write; a share that is not the last to finish gives an empty one")
    check(data)
    sweep(path)
    _refuse_existing(path, overwrite)
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise FileExistsError(f"{path} is a folder, but no zarr store: it is not overwritten; give another name")
    tree = data.copy(deep=False) if isinstance(data, xr.DataTree) else xr.DataTree(data)  # a node becomes a root
    kind = object if path.suffix == ".nc" else np.dtypes.StringDType()
    nodes = {n.path: _strings(n.to_dataset(inherit=False), kind) for n in tree.subtree}
    root = nodes["/"]
    root.attrs = {**root.attrs, "digests": json.dumps(digests(tree))}
    out = xr.DataTree.from_dict(nodes)
    made: Path | None = None
    try:
        made = new_folder(path)
        whole = made / path.name
        if path.suffix == ".nc":
            out.to_netcdf(whole, engine="h5netcdf")
        else:
            with (
                warnings.catch_warnings()
            ):  # other readers want the facts of all arrays in one place, whatever zarr says
                warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
                out.to_zarr(whole, mode="w", zarr_format=3, consolidated=True)
        _refuse_existing(path, overwrite)
        if path.is_dir():
            replace_folder(whole, path)
        else:
            os.replace(whole, path)
        discard(made)
    except BaseException as error:
        if made is not None:
            discard(made)
        if isinstance(error, OSError) and not (isinstance(error, FileExistsError) and error.errno is None):
            raise OSError(
                error.errno, f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
            ) from error
        raise
    return path


@checked(chunks=mapping(count(1)) | none)
def read(path: str | Path, *, chunks: Mapping[str, int] | None = None) -> xr.DataTree:
    """Read a result that :func:`write` wrote, check its conventions and that no value was damaged.

    Parameters
    ----------
    path : path or URL
        A zarr folder or a netCDF file; one on an object store is copied to this machine first.
    chunks : mapping of str to int, optional
        Read lazily, for results larger than memory: the values stay in the file, as dask arrays of so many entries
        along each dimension (``{}``: the pieces in which they lie), and are read when something is computed of them.
        They are checked now all the same, chunk by chunk along the first dimension.

    Returns
    -------
    xarray.DataTree

    Raises
    ------
    FileNotFoundError
        If there is nothing, or only an unfinished run.
    ValueError
        If it is no tokinterp result, or a variable is damaged (named).
    ImportError
        For ``chunks`` if dask is not installed.

    Examples
    --------
    >>> import tokinterp as ti
    >>> import tempfile
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"n": ti.geometry.TokenNorms()}, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     list(ti.read(ti.write(run, folder + "/norms.zarr")).children)
    ['prompts', 'n']
    """
    if (url := remote.address(path)) is not None:
        folder = Path(mkdtemp(prefix="tokinterp-"))
        clear = partial(shutil.rmtree, folder, ignore_errors=True)
        if chunks is not None:
            atexit.register(clear)  # what is read lazily may be read until then
        try:
            return read(remote.download(url, folder / url.rsplit("/", 1)[1]), chunks=chunks)
        finally:
            if chunks is None:
                clear()
    path = local_path(path)
    if not exists(path):
        unfinished = path.with_name(path.name + ".partial")
        hint = (
            "; the run is unfinished: call measure() again with the same arguments to resume it"
            if unfinished.exists()
            else ""
        )
        raise FileNotFoundError(f"no result at {path}{hint}")
    if path.suffix == ".nc":
        _need_netcdf()
    if chunks is not None:
        _need_dask()
    try:
        if path.suffix == ".nc":
            check_netcdf(path)
            tree = xr.open_datatree(path, engine="h5netcdf", chunks=chunks)
        else:
            check_zarr(path)
            tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks=None if chunks is None else {})
        if chunks is None:
            with tree:
                tree.load()
        nodes = {n.path: _strings(n.to_dataset(inherit=False), object) for n in tree.subtree}
        if chunks:
            nodes = {k: ds.chunk({d: n for d, n in chunks.items() if d in ds.dims}) for k, ds in nodes.items()}
    except RefusedError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read (damaged, or no result): {type(error).__name__}: {error}") from error
    known = nodes["/"].attrs.pop("digests", None)
    if known is None:
        raise ValueError(f"{path} has no digests: it is no result that tokinterp wrote")
    then = json.loads(known)
    order = [name.rpartition("/")[0] or "/" for name in then]  # as written: a folder has no order
    nodes = {n: _ordered(nodes[n], n, [*then]) for n in sorted(nodes, key=lambda n: [*order, n].index(n))}
    loaded = xr.DataTree.from_dict(nodes)
    now = digests(loaded)
    if not any(k.endswith(ATTRIBUTES) for k in then):  # written before attributes had digests
        now = {k: v for k, v in now.items() if not k.endswith(ATTRIBUTES)}
    bad = sorted(k for k in then.keys() | now.keys() if now.get(k) != then.get(k))
    if bad:
        named = ", ".join(bad[:20]) + " ..." * (len(bad) > 20)
        raise ValueError(f"{path} is damaged: {named} differ from what was written; measure again or restore it")
    check(loaded)
    return loaded


def _ordered(ds: xr.Dataset, path: str, known: list[str]) -> xr.Dataset:
    """Return a dataset with its variables in the order in which they were written."""
    place = {name: i for i, name in enumerate(known)}
    names = sorted(ds.variables, key=lambda n: place.get(f"{path.rstrip('/')}/{n}", len(place)))
    values, labels = ({n: ds.variables[n] for n in names if (n in ds.coords) == coord} for coord in (False, True))
    return xr.Dataset(values, labels, ds.attrs)


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


def _refuse_existing(path: Path | str, overwrite: bool) -> None:
    if not overwrite and (remote.exists(path) if isinstance(path, str) else exists(path)):
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
            if v.dtype.kind not in "UOT":
                h.update(v.dtype.str.encode())
            for n, part in enumerate(blocks(v)):
                if v.dtype.kind in "UOT":
                    text = "\0".join(map(str, part.ravel().tolist()))
                    h.update(("\0" * bool(n) + text).encode("utf-8", "surrogatepass"))
                    continue
                values = np.ascontiguousarray(part)
                if v.dtype.kind == "f":  # files keep neither the sign of a zero nor the bits of a NaN
                    values = np.where(np.isnan(values), np.asarray(np.nan, v.dtype), values + np.asarray(0, v.dtype))
                h.update(values.tobytes())
            found[f"{node.path.rstrip('/')}/{name}"] = h.hexdigest()[:16]
    return found


def _need_netcdf() -> None:
    try:
        import h5netcdf  # noqa: F401
    except ImportError as error:
        raise ImportError("netCDF files need h5netcdf: pip install 'tokinterp[netcdf]', or use .zarr") from error


def _need_dask() -> None:
    if find_spec("dask") is None:
        raise ImportError("chunks= needs dask: pip install 'tokinterp[distributed]', or read it whole")


def _strings(ds: xr.Dataset, kind: Any) -> xr.Dataset:
    """Return a dataset with its string variables in one kind of array, without encodings of an earlier file."""
    out = ds.copy()
    for name, v in ds.variables.items():
        if v.dtype.kind in "UOT":
            out[name] = v.astype(kind)
    return out.drop_encoding()
