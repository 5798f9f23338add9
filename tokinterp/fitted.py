"""What a fit leaves: named tensors, the facts they belong to, and a digest of both that reading a file checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import safe_open

from .files import whole as files
from .files.paths import local_path
from .results import dataset
from .settings import checked, instance, short

if TYPE_CHECKING:
    from .models.base import Model
    from .models.info import ModelInfo

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
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    kind: str,
    facts: Any,
    *,
    finite: bool = True,
    commits: Iterable[str] = (),
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
    commits : iterable of str
        Of the code that had a part in them, beside the present; the file lists them, and the digest is not of them.

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
    made = sorted({*commits, dataset.git_commit()} - {""})
    note = json.dumps({"format": kind, "facts": facts, "digest": digest, "commits": made})
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
    path: str | Path, kind: str, what: str, *, finite: bool = True, digest: str | None = None, mapped: bool = False
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
    mapped : bool
        Leave the tensors in the file, from which they are read where somebody looks at them.

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
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors = held if mapped else {name: t.clone() for name, t in held.items()}
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


def check_belongs(what: str, facts: Mapping[str, Any], info: ModelInfo) -> None:
    """Refuse a model that something was not fitted on; see `Fitted.check_model`."""
    wrong = f"{what} of another model: fitted on {facts.get('model')}"
    for name in ("d_model", "d_vocab"):
        if facts.get(name, getattr(info, name)) != getattr(info, name):
            raise ValueError(
                f"{wrong} with {name}={facts[name]}, but {info.id} has {getattr(info, name)}: load that model, or fit "
                "again"
            )
    for name, now in (("weights", info.identity), ("tokenizer", info.tokenizer)):
        if (then := facts.get(name)) and then != now:
            raise ValueError(
                f"{wrong} ({name} {then}), not on {info.id} ({now}): load that model, or fit again for this one"
            )


class Fitted:
    """What every fit leaves: tensors and facts, with one digest, one check against a model, and one kind of file.

    A subclass is a dataclass of tensors and ``facts``, or says itself what `tensors` are and how they are put
    together again.

    Attributes
    ----------
    facts : dict
        All that decided the numbers, and what the fit found beside them, as JSON types.  ``model`` is the id and
        ``weights`` the identity of the model that it was fitted on, an empty text where that is not known.
    commits : tuple of str
        Of the code that fitted it, as far as that is known; no part of the digest.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(repr=False, eq=False)
    ... class Scales(Fitted):
    ...     scale: torch.Tensor
    ...     facts: dict
    ...     KIND, WHAT = "example scales 1", "scales"
    ...
    ...     def __post_init__(self):
    ...         self.check()
    >>> Scales(torch.ones(2), {"model": "tiny", "weights": ""})
    Scales(tiny, ...)
    """

    KIND: ClassVar[str]
    """Format that a file says it has."""
    WHAT: ClassVar[str]
    """What it is called in messages."""
    NEEDS: ClassVar[tuple[str, ...]] = ()
    """Facts that it cannot do without, beside model and weights."""
    FOUND: ClassVar[tuple[str, ...]] = ()
    """Facts that the fit found: they follow from the others and are not compared with those of a new call."""
    facts: dict[str, Any]
    commits: tuple[str, ...] = ()

    # -- what it is -------------------------------------------------------------------------------------------
    def tensors(self) -> Tensors:
        """Return the numbers by name: the fields of a dataclass other than ``facts``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "facts"}  # pyright: ignore

    @classmethod
    def _put(cls, tensors: Tensors, facts: dict[str, Any], model: Model | None) -> Self:
        """Return the fitted thing of tensors and facts."""
        wanted = [f.name for f in fields(cls) if f.name != "facts"]  # pyright: ignore[reportArgumentType]
        return cls(**{name: tensors[name] for name in wanted}, facts=facts)  # pyright: ignore[reportCallIssue]

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape that tensors must have, by name."""
        return {}

    def _numbers(self) -> Tensors:
        """Return the tensors that may hold neither NaN nor infinity; all by default."""
        return self.tensors()

    def _about(self) -> str:
        """Return in a few words what the ``repr`` says beside model and digest."""
        return ""

    def __repr__(self) -> str:
        said = (self.facts.get("model"), self._about(), self.digest[:12])
        return f"{type(self).__name__}({', '.join(filter(None, said))})"

    def __describe__(self) -> str:
        """Return what it is as a setting: its digest."""
        return self.digest[:16]

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers and facts as they are now."""
        return digest_of(self.tensors(), self.facts)

    # -- what it must be --------------------------------------------------------------------------------------
    def check(self, where: object = None) -> None:
        """Refuse facts that are missing, tensors of other shapes, and numbers that are none.

        Raises
        ------
        ValueError
            Names them.
        """
        if lacking := [k for k in ("model", "weights", *self.NEEDS) if k not in self.facts]:
            raise ValueError(f"facts={short(self.facts)}: it has no {lacking[0]!r}, which {self.WHAT} need")
        check_shapes(self.tensors(), self._shapes(), where or self.WHAT)
        check_finite(self._numbers(), str(where or self.WHAT), "fit again, with a lower learning rate or in float32")

    @checked(info=instance("ModelInfo"))
    def check_model(self, info: ModelInfo) -> None:
        """Refuse a model that it was not fitted on.

        Raises
        ------
        ValueError
            If width, vocabulary, weights or tokenizer are others, as far as they are known.
        """
        check_belongs(self.WHAT, self.facts, info)

    # -- files ------------------------------------------------------------------------------------------------
    @checked()
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with the facts and the digest, in one step; return its path.

        Raises
        ------
        ValueError
            If there are NaN or infinite numbers.
        OSError
            If the place cannot be written; what was there before is kept.
        """
        path = local_path(path)
        self.check(f"{path} is not written")
        save_tensors(path, self.tensors(), self.KIND, self.facts, finite=False, commits=self.commits)
        return path

    @classmethod
    @checked()
    def load(cls, path: str | Path, model: Model | None = None) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        model : Model, optional
            Refuse what was fitted on another one at once.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If the file holds something else, is damaged (digest, shapes, NaN), or is of another model.
        """
        path = local_path(path)
        facts, tensors = load_tensors(path, cls.KIND, cls.WHAT, finite=False)
        if model is not None:
            check_belongs(cls.WHAT, facts, model.info)
        try:
            found = cls._put(tensors, facts, model)
        except KeyError as error:
            raise ValueError(f"{path} cannot be used: it has no {error}: fit again, or restore it") from error
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
        found.commits = tuple(read_note(path, cls.KIND, cls.WHAT).get("commits", ()))
        return found
