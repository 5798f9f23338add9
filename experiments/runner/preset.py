"""Settings of an experiment: which model, which texts, how much; and changes to them by ``key=value``."""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokinterp as ti
from tokinterp.text.readers.files import read_texts


@dataclass
class Preset:
    """Settings that every experiment has; an experiment adds its own.  Files may begin with ``$TOKINTERP_DATA``."""

    model: str = ""  # hub name or folder; the bundled model without one
    dtype: str | None = None
    device: str | None = None
    texts: tuple[str, ...] = ()  # files or names on the hub; the bundled texts without any
    split: str | None = None  # of a data set on the hub
    read_limit: int | None = None  # texts used
    seed: int = 0

    progress = False  # show bars; no setting, since it decides no number

    def __post_init__(self) -> None:
        self.found: dict[str, list[str]] = {}
        """The texts that were read, by name; tests put others there."""

    @cached_property
    def lm(self) -> Any:
        """The model, loaded when first asked for."""
        return ti.load_model(place(self.model) if self.model else None, dtype=self.dtype, device=self.device)

    def read(self) -> list[str]:
        """Return the texts."""
        if "texts" not in self.found:
            files = [t for f in self.texts for t in read_texts(place(f), split=self.split)]
            every = files if self.texts else [t.text for t in ti.bundled_texts()]
            self.found["texts"] = every[: self.read_limit]
        return self.found["texts"]

    def hashes(self) -> dict[str, Any]:
        """Return number and hash of the texts that were read, by name."""
        return {
            name: {"n": len(t), "sha256": hashlib.sha256(json.dumps(t).encode()).hexdigest()}
            for name, t in self.found.items()
        }

    def settings(self) -> dict[str, Any]:
        """Return all settings as JSON types."""
        return json.loads(json.dumps(asdict(self)))


def place(path: str) -> str:
    """Return a path with the variables of the environment in it filled in.

    Raises
    ------
    ValueError
        If a variable is not set.
    """
    out = os.path.expandvars(path)
    if "$" in out:
        raise ValueError(f"{path!r}: the variable is not set; export TOKINTERP_DATA=FOLDER with these files first")
    return str(Path(out)) if out != path else out


def change(preset: Preset, changes: Sequence[str]) -> Preset:
    """Return a preset with some settings changed.

    Parameters
    ----------
    preset : Preset
        What is changed; it stays as it is.
    changes : sequence of str
        ``"key=value"``; lists with commas, ``none`` for None.

    Raises
    ------
    ValueError
        For an unknown setting, or a value that is none of its kind.

    Examples
    --------
    >>> change(Preset(), ["texts=a.txt,b.txt", "seed=3"]).settings()["texts"]
    ['a.txt', 'b.txt']
    """
    hints = typing.get_type_hints(type(preset))
    known = [f.name for f in fields(preset)]
    out: dict[str, Any] = {}
    for text in changes:
        key, sign, value = text.partition("=")
        if not sign or key not in known:
            raise ValueError(f"--set {text!r}: the settings are {', '.join(known)}; write key=value")
        try:
            out[key] = parse(value, hints[key])
        except (ValueError, TypeError):
            said = str(hints[key]).replace("typing.", "")
            said = hints[key].__name__ if isinstance(hints[key], type) and not typing.get_args(hints[key]) else said
            raise ValueError(f"--set {text!r}: {value!r} is no value of {key} ({said})") from None
    return replace(preset, **out)


def parse(text: str, hint: Any) -> Any:
    """Return the value that a text stands for, of the type that a setting has.

    Examples
    --------
    >>> parse("2,4,8", tuple[int, ...]), parse("none", int | None), parse("true", bool)
    ((2, 4, 8), None, True)
    """
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(parse(t, inner[0]) for t in text.split(",") if t)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if text.lower() == "none" and types.NoneType in inner:
            return None
        (hint,) = [h for h in inner if h is not types.NoneType]
        return parse(text, hint)
    if hint is bool:
        return {"true": True, "false": False}.get(text.lower()) if text.lower() in ("true", "false") else int("no")
    if hint not in (int, float, str):
        raise TypeError(hint)
    return hint(text)
