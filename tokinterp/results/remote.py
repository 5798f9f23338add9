"""Results on object stores (s3, gs, az, ...), through fsspec: made whole on this machine, and then copied.

An object store has neither locks nor a rename that happens at once.  So whatever is unfinished, and every lock, stays
on this machine; of a folder that is copied its ``zarr.json`` comes last, and without that it counts as not there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from ..files.owner import discard
from ..files.received import plain_name
from ..files.whole import new_folder

if TYPE_CHECKING:
    import xarray as xr

STORES = ("memory", "file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss")
"""What fsspec writes to; each needs its package (s3fs, gcsfs, adlfs, ...) except the first two."""
T = TypeVar("T", bound="xr.DataTree")


def address(path: str | os.PathLike[str] | None, name: str = "path") -> str | None:
    """Return the URL of a place on an object store, also of one that was a Path; None for anything else.

    Raises
    ------
    ValueError
        If the package that reads it is not installed.

    Examples
    --------
    >>> address(Path("memory://runs/lens.zarr")), address("runs/lens.zarr")
    ('memory://runs/lens.zarr', None)
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    found = re.match(r"([a-z0-9]+):/+", text) if isinstance(text, str) else None
    if found is None or found[1] not in STORES:
        return None
    rest = text[found.end() :].rstrip("/")
    if not rest:
        raise ValueError(f"{name}={text!r} names no result: give for example {found[1]}://bucket/run.zarr")
    url = f"{found[1]}://{'/' * (found[1] == 'file')}{rest}"
    try:
        _open(url)
    except ImportError as error:
        raise ValueError(
            f"{name}={url!r} is a URL: give a file or folder of this machine, and copy from there, or install what "
            f"reads it ({error})"
        ) from error
    return url


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(url, **({"auto_mkdir": True} if url.startswith("file:") else {}))
    return fs, root.rstrip("/")


def exists(url: str) -> bool:
    """Whether a whole result is there."""
    fs, root = _open(url)
    fs.invalidate_cache()
    return fs.isfile(root if root.endswith(".nc") else f"{root}/zarr.json")


def upload(whole: Path, url: str) -> None:
    """Copy a result to an object store, in place of the one that is there: that is gone meanwhile.

    Where no whole result is, nothing is deleted: there may be pieces of this one, which an earlier call has copied.

    Raises
    ------
    FileExistsError
        If something else is there.
    """
    fs, root = _open(url)
    if whole.is_file():
        fs.put_file(str(whole), root)
        return
    marker = f"{root}/zarr.json"
    files = sorted(p for p in whole.rglob("*") if p.is_file() and p != whole / "zarr.json")
    names = [f"{root}/{p.relative_to(whole).as_posix()}" for p in files]
    fs.invalidate_cache()
    there = fs.find(root)
    own = {n for n in there if _is_piece(n[len(root) :])} if marker in there else {*names}
    if other := [n for n in there if n not in own]:
        raise FileExistsError(
            f"{url} is a folder that is no result, or a part of another one ({other[0]}): choose another name, or "
            "delete it"
        )
    if marker in there:
        fs.rm([marker])
        if len(there) > 1:
            fs.rm([n for n in there if n != marker])
    fs.put([str(p) for p in files], names)
    fs.put_file(str(whole / "zarr.json"), marker)


def _is_piece(name: str) -> bool:
    """Whether an object has the name of a piece of a zarr store, seen from its root."""
    parts = name.split("/")
    return parts[-1] == "zarr.json" or "c" in parts


def download(url: str, place: Path) -> Path:
    """Copy a result to a place on this machine where nothing is, and return it.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the name of an object leads out of the folder.
    """
    if not exists(url):
        raise FileNotFoundError(f"no result at {url}")
    fs, root = _open(url)
    partial = new_folder(place)
    try:
        whole = partial / place.name
        if fs.isfile(root):
            fs.get_file(root, str(whole))
        else:
            names, files = fs.find(root), []
            for name in names:
                file = whole
                for part in name[len(root) :].strip("/").split("/"):
                    file = plain_name(part, file)
                file.parent.mkdir(parents=True, exist_ok=True)
                files.append(str(file))
            fs.get(names, files)
        os.replace(whole, place)
    finally:
        discard(partial)
    return place


def home(url: str) -> Path:
    """Return where the run of a result on an object store is kept until it is finished: in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tokinterp" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{url.rsplit('/', 1)[1]}"


def through(url: str, make: Callable[[Path], T]) -> T:
    """Return a result on an object store, or make it on this machine and copy it there.

    Parameters
    ----------
    url : str
        From `address`.
    make : callable
        Makes the result at a path of this machine, or reads what is there and checks what it is of; a later call goes
        on with what an earlier one has kept.

    Raises
    ------
    FileExistsError
        If there is something else, before anything is made; or if somebody else has written there meanwhile: the
        result is kept on this machine.
    """
    place = home(url)
    if exists(url):  # what this machine may have kept is another result until the facts have been compared
        with TemporaryDirectory() as folder:
            copy = Path(folder, place.name)
            try:
                tree = make(download(url, copy))
            except ValueError as error:
                error.args = (str(error).replace(str(copy), url),)
                raise
        discard(place)
        return tree
    fs, root = _open(url)
    if not place.exists() and (there := fs.find(root)):  # else pieces of what this machine has kept
        raise FileExistsError(
            f"{url} holds no whole result, but other things ({there[0]}): choose another name, or delete it"
        )
    tree = make(place)
    if exists(url):
        raise FileExistsError(f"{url} was written by another run meanwhile; the result of this one is {place}")
    upload(place, url)
    discard(place)
    return tree
