"""Writing files whole: under a new name beside the place, onto the disk, then given their name in one step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .owner import discard, private_name, sweep
from .paths import local_path

if TYPE_CHECKING:
    import torch

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file in one step; a kill leaves the old file or the new one.

    Parameters
    ----------
    path : path
        File to write, replaced if it is there; its folder is made.
    data : bytes
        All of it.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    OSError
        If the place cannot be written, or holds a folder, a link or a device; nothing is left behind.
    ValueError
        For a URL.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(folder + "/deep/a.bin", b"ab").read_bytes()
    b'ab'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return local_path(path)


def write_text(path: str | Path, text: str, errors: str = "strict") -> Path:
    """Write a UTF-8 file in one step, as `write_bytes`; ``errors`` says what becomes of a lone surrogate."""
    return write_bytes(path, text.encode("utf-8", errors))


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file in one step, as `write_bytes`.

    Parameters
    ----------
    path : path
        File to write.
    tensors : dict of str to Tensor
        On any device, of any layout in memory.
    notes : dict of str to str, optional
        The header's metadata.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(ready, temporary, None if notes is None else dict(notes))
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return local_path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield an empty new file beside a place, for a library that writes by name; at the end it gets the place's name.

    The new file has a random name that nothing had, so no link under it is followed, and the permissions that the
    umask (or the folder's default list) gives, whatever the library sets.
    """
    path = local_path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(f"{path} is no plain file but a folder, link or device: name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unused(path)
    with naming(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    mode = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDWR | _NO_LINK)
        try:
            if os.fstat(handle).st_mode & 0o777 != mode:
                os.chmod(temporary if os.chmod not in os.supports_fd else handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_folder(path: str | Path) -> Path:
    """Make and return an empty folder of a name that nothing had, beside a place, to be renamed to it when whole."""
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unused(path)
    with naming(path):
        temporary.mkdir()
    return temporary


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name the place that a caller gave, not the hidden file beside it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def reserve(handle: int, size: int) -> None:
    """Take the room of a file that will be mapped: writing to it ends the process where the disk is full.

    Raises
    ------
    OSError
        If it is full now.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder onto the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unused(path: Path) -> Path:
    sweep(path)
    return private_name(path, "writing")


def replace_folder(new: Path, path: Path) -> None:
    """Give a new folder the name of an old one in one step, where the system can exchange two names; delete the old."""
    if not path.exists():
        os.replace(new, path)
        return
    if not _exchange(new, path):
        old = private_name(path, "old")
        os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old, path)
            raise
        new = old
    sync_folder(path.parent)
    discard(new)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names of one file system at once; whether the system did."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a.absolute()), here, os.fsencode(b.absolute()), swap) == 0
