"""What a store may be made of: looked at before any library opens it, so that nothing in it decides what runs."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

ITEM_BYTES = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "string": 16,
}  # fmt: skip
"""Types of values that `tokinterp.write` writes, and what one takes in memory (a string at least)."""
CODECS = {"bytes", "vlen-utf8", "zstd"}
OLD_ZARR = {".zarray", ".zattrs", ".zgroup", ".zmetadata"}
MOST_METADATA = 2**28
MOST_TEXT = 2**28
"""Bytes of text in one chunk, whatever the number of its strings; and 4 KiB more for each."""
ZSTD = 0xFD2FB528


class RefusedError(ValueError):
    """A store that is not opened, with the reason."""


def check_zarr(path: Path) -> None:
    """Refuse a folder that is no plain zarr store of format 3 with the types and codecs that `tokinterp.write` uses.

    Raises
    ------
    ValueError
        Naming what is there: files of zarr format 2 (whose filters can run code), another codec or type of values, a
        link to a folder, a device, more values than fit into memory, or a chunk that unpacks to more than its values.
    """
    if not path.is_dir():
        raise RefusedError(f"{path} is no folder: a zarr store is one, and a netCDF file ends in .nc")
    room = memory_bytes()
    arrays: dict[Path, Chunks | None] = {}
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        if found := OLD_ZARR & {*names, *folders}:
            raise RefusedError(f"{here / min(found)} is of zarr format 2, which can run code: only format 3 is read")
        for name in folders:
            if (here / name).is_symlink():
                raise RefusedError(f"{here / name} is a link to a folder: copy the store with what its links name")
        for name in names:
            if not stat.S_ISREG(os.stat(here / name).st_mode):
                raise RefusedError(f"{here / name} is no plain file")
        arrays[here] = chunks = arrays.get(here.parent)
        if "zarr.json" in names:
            size, chunks = _node_bytes(here / "zarr.json")
            room, arrays[here] = room - size, chunks
        if chunks is not None:
            room -= sum(_chunk_bytes(here / n, chunks) for n in names if n != "zarr.json")
        if room < 0:
            raise RefusedError(f"{here} says that it holds more values than this machine has memory for")


class Chunks(NamedTuple):
    """What a chunk of an array holds: values, bytes of them where that is known, and whether it is compressed."""

    items: int
    size: int | None
    packed: bool


def _node_bytes(file: Path) -> tuple[int, Chunks | None]:
    """Return what the values of a node take in memory, by its own account, and what its chunks are to hold.

    What `write` does not write is refused.
    """
    if file.stat().st_size > MOST_METADATA:
        raise RefusedError(f"{file} has {file.stat().st_size} bytes, far more than metadata take")
    node = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(node, dict) or type(node.get("zarr_format")) is not int or node["zarr_format"] != 3:
        raise RefusedError(f"{file} is no metadata of zarr format 3, the only one that is read")
    if node.get("node_type") == "group":
        return 0, None
    try:
        kind, shape = node["data_type"], node["shape"]
        chunks = node["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = [c["name"] for c in node["codecs"]]
        usual = node["node_type"] == "array" and node["chunk_grid"]["name"] == "regular"
        lengths = [*shape, *chunks]
    except (KeyError, TypeError) as error:
        raise RefusedError(f"{file} is damaged ({error!r})") from None
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise RefusedError(f"{file} has values of type {kind!r}: read are {', '.join(ITEM_BYTES)}")
    if other := [c for c in codecs if not isinstance(c, str) or c not in CODECS]:
        raise RefusedError(f"{file} asks for the codec {other[0]!r}: read are {', '.join(sorted(CODECS))}")
    text = kind == "string"
    usual = usual and codecs[0:1] == ["vlen-utf8" if text else "bytes"] and codecs[1:] in ([], ["zstd"])
    if not usual or node.get("storage_transformers") or any(type(n) is not int or n < 0 for n in lengths):
        raise RefusedError(f"{file} describes an array of another kind than those that tokinterp writes")
    of_chunk = Chunks(prod(chunks), None if text else ITEM_BYTES[kind] * prod(chunks), "zstd" in codecs)
    return ITEM_BYTES[kind] * max(prod(shape), prod(chunks)), of_chunk


def _chunk_bytes(file: Path, chunks: Chunks) -> int:
    """Return what the strings of a chunk take in memory; refuse one that holds more than the chunks of its array.

    Numbers are counted with their array already.
    """
    if chunks.packed:
        found = zstd_size(file.read_bytes())
        if found is None:
            raise RefusedError(f"{file} is damaged, or does not say what it unpacks to: copy the store anew")
    else:
        found = file.stat().st_size
    if chunks.size is None and found > MOST_TEXT + 2**12 * chunks.items:
        raise RefusedError(f"{file} unpacks to {found} bytes, far more than {chunks.items} strings take")
    if chunks.size is not None and found != chunks.size:
        raise RefusedError(
            f"{file} unpacks to {found} bytes, but a chunk of its array has {chunks.size}: copy the store anew"
        )
    return found if chunks.size is None else 0


def zstd_size(data: bytes) -> int | None:
    """Return how many bytes a zstd frame (RFC 8878) says it unpacks to; None where it says nothing, or is not alone.

    A frame that unpacks to more than it says is noticed when it is unpacked; frames behind it are unpacked too.

    Examples
    --------
    >>> one = bytes.fromhex("28b52ffd2003190000616263")
    >>> zstd_size(one), zstd_size(one + one), zstd_size(b"what?")
    (3, None, None)
    """
    if len(data) < 6 or int.from_bytes(data[:4], "little") != ZSTD:
        return None
    flags = data[4]
    single, begin = flags >> 5 & 1, 6 - (flags >> 5 & 1) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    at, last = begin + width, 0
    while not last:
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)
        if at > len(data):
            return None
    if not width or at + 4 * (flags >> 2 & 1) != len(data):
        return None
    return int.from_bytes(data[begin : begin + width], "little") + 256 * (width == 2)


def check_netcdf(path: Path) -> None:
    """Refuse a netCDF (HDF5) file with links to other files, values kept elsewhere, or types that `write` does not use.

    Raises
    ------
    ValueError
        Naming what is there.
    """
    import h5py

    room = memory_bytes()
    if not path.is_file():
        raise RefusedError(f"{path} is no plain file")
    with h5py.File(path) as file:
        for name, v in _datasets(file["/"], {hash(file["/"].id)}):
            made = v.id.get_create_plist()
            if v.is_virtual or v.external:
                raise RefusedError(f"{path}: {name} keeps its values in other files")
            if v.dtype.kind not in "biuf" and h5py.check_string_dtype(v.dtype) is None:
                raise RefusedError(f"{path}: {name} has values of type {v.dtype}: read are numbers and strings")
            if other := {made.get_filter(i)[0] for i in range(made.get_nfilters())} - BUILT_IN_FILTERS:
                raise RefusedError(f"{path}: {name} asks for the HDF5 filter {min(other)}, which is no built-in one")
            room -= v.size * max(v.dtype.itemsize, 1) if v.size else 0
            if room < 0:
                raise RefusedError(f"{path}: {name} says that it holds more values than this machine has memory for")


BUILT_IN_FILTERS = {1, 2, 3}
"""Deflate, shuffle, checksum; others are found as plugins."""


def _datasets(group: Any, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """Yield every dataset under a group; refuse all links but plain ones, and a group under two names."""
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise RefusedError(f"{group.file.filename}: {group.name}/{name} is a link")
        item = group[name]
        if isinstance(item, h5py.Group):
            if hash(item.id) in seen:
                raise RefusedError(f"{group.file.filename}: {item.name} is a group under two names")
            seen.add(hash(item.id))
            yield from _datasets(item, seen)
        elif isinstance(item, h5py.Dataset):
            yield f"{group.name}/{name}", item
        else:
            raise RefusedError(f"{group.file.filename}: {item.name} is neither a group nor values")


def memory_bytes() -> int:
    """Return how much memory this machine has; without a limit where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**62


def plain_name(name: object, folder: Path) -> Path:
    """Return the file of a name that was read from a file; it must lie in the folder itself.

    Raises
    ------
    ValueError
        If the name leads elsewhere.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or {*name} & {"/", "\\", ":", "\0"}:
        raise ValueError(
            f"{folder} names a file {name!r}, which is not the name of a file in it: nothing is read there"
        )
    return folder / name


def pickled_tensors(file: Path) -> Any:
    """Return what a published ``.pt`` or ``.ckpt`` file holds: tensors in plain containers, and nothing that runs.

    Raises
    ------
    ValueError
        If there is more in it.
    """
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} holds more than tensors, or is damaged ({type(error).__name__}): it is not read; get it anew"
        ) from error
