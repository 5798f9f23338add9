"""What a path may be, before anything expensive is done for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path of this file system, with ``~`` as the home folder.

    Parameters
    ----------
    path : str or path
        What a caller gave.
    name : str
        Of the parameter, for messages.

    Raises
    ------
    ValueError
        For a URL such as ``s3://bucket/run.zarr``, an empty name, or an unknown ``~user``.
    TypeError
        For anything else than text or a path.

    Examples
    --------
    >>> local_path("runs/lens.zarr").as_posix()
    'runs/lens.zarr'
    >>> local_path("s3://bucket/lens.zarr", "store")
    Traceback (most recent call last):
    ValueError: store='s3://bucket/lens.zarr' is a URL: give a file or folder of this machine, ...
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        raise TypeError(f"{name}={path!r}: give a path as text or pathlib.Path")
    if not text.strip() or "\0" in text:
        raise ValueError(f"{name}={text!r}: give the name of a file or folder")
    if _URL.match(text):
        text = re.sub(":/+", "://", text, count=1)  # pathlib takes one of the two away
        raise ValueError(f"{name}={text!r} is a URL: give a file or folder of this machine, and copy from there")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{name}={text!r}: there is no such home folder; give the whole path") from None


def new_file(path: str | os.PathLike[str], overwrite: bool, name: str = "--output") -> Path:
    """Return where a command writes one file, if it may, before the command does anything else.

    Raises
    ------
    FileExistsError
        If a folder is there, or a file that may not be overwritten.
    ValueError, OSError
        As `new_path`.
    """
    found = new_path(path, name)
    if found.is_symlink() or (found.exists() and not found.is_file()):
        raise FileExistsError(f"{name} {found} is no plain file but a folder, link or device: give another name")
    if found.exists() and not overwrite:
        raise FileExistsError(f"{name} {found} is there already: give another name, or --overwrite to replace it")
    return found


def new_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return where something is to be written, as `local_path`, if it can be.

    Raises
    ------
    ValueError, TypeError
        As `local_path`; if no file or folder is named.
    OSError
        If the nearest folder that exists is a file or cannot be written.
    """
    found = local_path(path, name)
    if not found.name:
        raise ValueError(f"{name}={str(path)!r} names no file or folder: give for example {name}='fits/probes'")
    above = next(p for p in found.absolute().parents if p.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{name}={str(path)!r}: {above} is a file, not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}={str(path)!r}: the folder {above} cannot be written; choose another place")
    return found


def new_place(path: str | Path, overwrite: bool, name: str = "--output") -> Path:
    """Return where the result of a command goes, if it may go there, before the command does anything else.

    Raises
    ------
    FileExistsError
        If something is there and may not be overwritten.
    ValueError, OSError
        As `new_path`.
    """
    found = new_path(path, name)
    if found.is_dir() and not (found / "zarr.json").is_file():
        raise FileExistsError(f"{name} {found}: there is a folder that is no result: give another name")
    if found.exists() and not overwrite:
        raise FileExistsError(f"{name} {found} is there already: give another name, or --overwrite to replace it")
    return found
