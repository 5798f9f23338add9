"""What a fit leaves in a file: named tensors, the facts they belong to, and a digest of both that reading checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .files import whole as files
from .files.paths import local_path

Tensors = dict[str, torch.Tensor]
KEY = "tokinterp"


def digest_of(tensors: Mapping[str, torch.Tensor], facts: Any = None) -> str:
    """Return the SHA-256 of named tensors (names, dtypes, shapes, bits) and of facts, which are JSON types.

    Examples
    --------
    >>> a = {"x": torch.zeros(2)}
    >>> digest_of(a) == digest_of({"x": torch.zeros(2)}), digest_of(a) == digest_of(a, {"n": 1})
    (True, False)
    """
    whole = hashlib.sha256(json.dumps(json.loads(json.dumps(facts)), sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        whole.update(f"\0{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        whole.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def nonfinite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or infinite numbers."""
    return [k for k, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, way_out: str) -> None:
    """Refuse NaN and infinity.

    Raises
    ------
    ValueError
        Names the tensors; ``what`` begins the message and ``way_out`` ends it.
    """
    if bad := nonfinite(tensors):
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise ValueError(f"{what}: NaN or infinite numbers in {', '.join(bad[:4])}{more}: {way_out}")


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], kind: str, facts: Any, *, finite: bool = True
) -> str:
    """Write one safetensors file in one step and return the digest that it carries.

    Parameters
    ----------
    path : path
        File to write, replaced if it is there; its folder is made.
    tensors : dict of str to Tensor
        What was fitted.
    kind : str
        Format that the file says it has.
    facts : dict
        What the tensors belong to, as JSON types.
    finite : bool
        Refuse NaN and infinity.

    Raises
    ------
    ValueError
        If there are NaN or infinite numbers.
    OSError
        If the place cannot be written; what was there before is kept.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_tensors(folder + "/a.safetensors", {"x": torch.ones(2)}, "example 1", {"n": 2})
    ...     facts, tensors = load_tensors(folder + "/a.safetensors", "example 1", "example")
    >>> facts, tensors["x"].tolist()
    ({'n': 2}, [1.0, 1.0])
    """
    if finite:
        check_finite(tensors, f"{path} is not written", "the fit failed; lower its learning rate, or use float32")
    digest = digest_of(tensors, facts)
    note = json.dumps({"format": kind, "facts": facts, "digest": digest})
    try:
        files.write_tensors(path, tensors, {KEY: note})
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"cannot write {path}: {reason}; free some space or choose another place") from error
    return digest


def read_note(path: str | Path, kind: str, what: str) -> dict[str, Any]:
    """Return the note of a file of `save_tensors` (``facts``, ``digest``) without reading its tensors.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is damaged, or of another kind than ``what``, whose format is ``kind``.
    """
    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no {what} ({error}): fit it again, or restore the file") from error
    if not isinstance(note, dict) or note.get("format") != kind:
        found = note.get("format", "no format") if isinstance(note, dict) else "no format"
        raise ValueError(f"{path} holds no {what}: {found!r}, not {kind!r}: fit it again with this version")
    return note


def load_tensors(
    path: str | Path, kind: str, what: str, *, finite: bool = True, digest: str | None = None
) -> tuple[Any, Tensors]:
    """Return facts and tensors of a file of `save_tensors`, checked.

    Parameters
    ----------
    path : path
        The file.
    kind, what : str
        Format, and its name in messages.
    finite : bool
        Refuse NaN and infinity.
    digest : str, optional
        What the digest must be, where another file says it.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it is of another kind, not what was written, or has NaN or infinite numbers.
    """
    note = read_note(path, kind, what)
    try:
        with safe_open(path, "pt") as file:
            # copies begin where new tensors do; where the file was read into, sums could be taken in another order
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): fit it again, or restore the file") from error
    now = digest_of(tensors, note.get("facts"))
    if now != note.get("digest") or (digest is not None and now != digest):
        raise ValueError(
            f"{path} is damaged: its numbers or facts are not those that were written: fit it again, or restore it"
        )
    if finite:
        check_finite(tensors, f"{path} cannot be used", "fit it again")
    return note["facts"], tensors


def check_shapes(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Refuse a tensor that is missing, of another shape, or not of floating point.

    Raises
    ------
    ValueError
        Names it.
    """
    for name, shape in shapes.items():
        t = tensors.get(name)
        if t is None or tuple(t.shape) != tuple(shape) or not t.is_floating_point():
            found = "is missing" if t is None else f"is {t.dtype} {tuple(t.shape)}".replace("torch.", "")
            raise ValueError(f"{where}: damaged, {name} {found} and should be floating point {tuple(shape)}: fit again")
