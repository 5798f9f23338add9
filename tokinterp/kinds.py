"""What a kind of setting is: words for what to give, and a test that returns the value as it is used."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np


class Refused(Exception):  # noqa: N818
    """A value is not of a kind; the text says what to do, the kind's own words if it is empty."""


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes
    ----------
    says : str
        What to give, as words after "give".
    take : callable
        Returns the value as it is used (a numpy integer as int), or raises `Refused`.
    error : type
        What is raised: TypeError where the value is of a wrong type altogether.
    """

    says: str
    take: Callable[[Any], Any]
    error: type[Exception] = ValueError

    def __call__(self, name: str, value: Any) -> Any:
        """Return the value as it is used, or raise one line."""
        try:
            return self.take(value)
        except Refused as way:
            raise self.error(f"{name}={short(value)}: {str(way) or 'give ' + self.says}") from None

    def __or__(self, other: Kind) -> Kind:
        """Either of two kinds."""

        def take(value: Any) -> Any:
            try:
                return self.take(value)
            except Refused as first:
                try:
                    return other.take(value)
                except Refused as second:
                    single = value is None or isinstance(value, bool | int | float)  # no hint about lists for it
                    raise Refused("" if single else str(first) or str(second)) from None

        return Kind(f"{self.says}, or {other.says}", take, self.error)


def refuse(name: str, value: Any, way: str) -> NoReturn:
    """Raise ValueError for a value of a parameter, with the way out."""
    raise ValueError(f"{name}={short(value)}: {way}")


def short(value: Any, most: int = 60) -> str:
    """Return a value on one line, shortened; large objects by type and size."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if (not isinstance(value, np.generic) and hasattr(value, "shape")) or hasattr(value, "data_vars"):
        size = tuple(getattr(value, "shape", None) or getattr(value, "sizes", ()))
        return f"a {type(value).__name__} of shape {size}"
    text = " ".join(repr(value.item() if isinstance(value, np.generic) else value).split())
    if " at 0x" in text or (len(text) > most and not isinstance(value, str | bytes | list | tuple | int | float)):
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def like(word: Any, known: Iterable[str]) -> str:
    """Return "; did you mean X?" where a known word is close."""
    close = difflib.get_close_matches(str(word), list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def of(says: str, test: Callable[[Any], Any], use: Callable[[Any], Any] | None = None, wrong: Any = ValueError) -> Kind:
    """What passes a test; ``use`` makes of it what is used."""

    def take(value: Any) -> Any:
        if isinstance(value, type) or not test(value):
            raise Refused
        return use(value) if use else value

    return Kind(says, take, wrong)
