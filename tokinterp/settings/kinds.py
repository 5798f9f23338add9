"""What a kind of setting is: words for what to give, and a test that returns the value as it is used."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

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


def is_tensor(value: Any) -> TypeGuard[Any]:
    """Return whether a value is a tensor of torch, which need not be loaded for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


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


# -- kinds that are made of limits, words or other kinds ------------------------------------------------------
def has(*attributes: str) -> Callable[[Any], bool]:
    """Return a test of whether a value has some attributes."""
    return lambda value: all(hasattr(value, name) for name in attributes)


LARGE = 10**9
"""More than anybody counts to: a size, a number of draws or of layers."""
LARGEST = 2**63 - 1


def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if above is not None and below is not None:
        return f" between {above:g} and {below:g}"
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [("of at least", low), ("above", above), ("of at most", high), ("below", below)]
    return "".join(f" {words} {limit:g}" for words, limit in parts if limit is not None)


def count(low: int = 0, high: int = LARGE, also: str = "") -> Kind:
    """A whole number: int or numpy integer, no bool, no float."""

    def take(value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise Refused
        if value > high >= LARGE:
            raise Refused(f"give a whole number of at most {high}")
        if value < low or value > high:
            raise Refused
        return int(value)

    limits = "" if low < -LARGE else _range(low, None if high >= LARGE else high, None, None)
    return Kind(f"a whole number{limits}{also}", take)


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None, below: float | None = None
) -> Kind:
    """A finite number in a range."""
    limits = (low, high, above, below)

    def take(value: Any) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise Refused
        outside = (low is not None and value < low) or (high is not None and value > high)
        if outside or (above is not None and value <= above) or (below is not None and value >= below):
            raise Refused
        if not np.isfinite(value) if not isinstance(value, int) else abs(value) > 2**1000:
            raise Refused
        return float(value)

    return Kind(f"a {'finite ' if limits == (None,) * 4 else ''}number{_range(*limits)}", take)


def one_of(*known: Any) -> Kind:
    """One of some words (or other fixed values)."""
    said = " or ".join(map(repr, known)) if len(known) < 3 else f"one of {', '.join(map(repr, known))}"

    def take(value: Any) -> Any:
        for one in known:
            if type(value) is type(one) and value == one:
                return one
        close = like(value, [k for k in known if isinstance(k, str)]) if isinstance(value, str) else ""
        raise Refused(f"give {said}{close}" if close else "")

    return Kind(said, take)


def names(*known: str, least: int = 0) -> Kind:
    """Several of some words, as a tuple; one word alone stands for itself."""

    def take(value: Any) -> tuple[str, ...]:
        given = (value,) if isinstance(value, str) else tuple(_items(value, "names"))
        wrong = [v for v in given if v not in known or not isinstance(v, str)]
        if wrong:
            raise Refused(f"{short(wrong[0])} is none of {', '.join(map(repr, known))}{like(wrong[0], known)}")
        if len(set(given)) < max(least, len(given)):
            raise Refused
        return given

    return Kind(f"one or more of {', '.join(map(repr, known))}, each once", take)


def several(kind: Kind, least: int = 0, *, ascending: bool = False, once: bool = False) -> Kind:
    """Several values of a kind, as a list (a tuple stays one); no string, mapping, table or single value."""

    def take(value: Any) -> Any:
        given = _items(value, kind.says)
        if isinstance(value, set | frozenset):
            if any(isinstance(v, str) for v in given):
                raise Refused("a set has no order: give a list")
            given = sorted(given)
        out = [kind.take(v) for v in given]
        if ascending and (out != sorted(set(out)) or not out):
            raise Refused
        if once and len({*out}) < len(out):
            raise Refused("give each once")
        if len(out) < least:
            raise Refused
        return tuple(out) if isinstance(value, tuple) else out

    size = f" of at least {least}" if least > 1 else ""
    return Kind(f"{'an ascending' if ascending else 'a'} list{size}, each {kind.says}", take)


def _items(value: Any, what: str) -> list[Any]:
    """Return the entries of a list, tuple, range, set, array or iterator; nothing that only looks like one."""
    if isinstance(value, str | bytes | bytearray | Mapping) or hasattr(value, "data_vars") or hasattr(value, "read"):
        raise Refused
    if hasattr(value, "columns") or isinstance(value, type) or not isinstance(value, Iterable):
        if isinstance(value, int | float | np.number) and not isinstance(value, bool):
            raise Refused(f"write [{value}] for a single one; a list is needed, each {what}")
        raise Refused
    if getattr(value, "ndim", 1) != 1:
        raise Refused
    return value.tolist() if isinstance(value, np.ndarray) or is_tensor(value) else list(value)


def pair(*kinds: Kind) -> Kind:
    """A tuple of so many values, each of its own kind."""

    def take(value: Any) -> tuple[Any, ...]:
        given = _items(value, "of its kind")
        if len(given) != len(kinds) or isinstance(value, set | frozenset):
            raise Refused
        return tuple(k.take(v) for k, v in zip(kinds, given, strict=True))

    return Kind(f"({', '.join(k.says for k in kinds)})", take)


def numbered(what: str) -> Kind:
    """Layers, blocks or prompts by their numbers, each once: ``[0, 4]``."""

    def take(value: Any) -> list[int]:
        one = isinstance(value, int | np.integer) and not isinstance(value, bool)
        given = [value] if one else _items(value, f"the number of a {what}")
        if any(isinstance(v, bool | np.bool_) or not isinstance(v, int | np.integer) or v > LARGEST for v in given):
            raise Refused
        if any(v < 0 for v in given):
            raise Refused(f"{what}s are counted from 0, and negative numbers do not count from the end")
        if not given:
            raise Refused(f"an empty list names no {what}; None means all")
        return [int(v) for v in given]

    return Kind(f"a list of whole numbers of at least 0, such as [0, 4]", take)  # noqa: F541


def mapping(value_kind: Kind | None = None, least: int = 0) -> Kind:
    """A dictionary with strings as keys."""

    def take(value: Any) -> Any:
        named = isinstance(value, Mapping) and not hasattr(value, "data_vars") and not hasattr(value, "columns")
        if not named or not all(isinstance(k, str) for k in value):
            raise Refused
        if len(value) < least:
            raise Refused(f"give at least {least}, in a dictionary with strings as keys")
        if value_kind is None:
            return value
        return {k: value_kind.take(v) for k, v in value.items()}

    return Kind("a dictionary with strings as keys" + (f", each {value_kind.says}" if value_kind else ""), take)


def instance(*classes: str) -> Kind:
    """An object of a class, or of one of several, known by name (so that nothing is imported for it)."""

    def take(value: Any) -> Any:
        if isinstance(value, type) and classes != ("type",):
            raise Refused(f"that is a class; write {value.__name__}(...)")
        mro: Any = type(value).__mro__
        if not {c.__name__ for c in mro} & {*classes}:
            raise Refused
        return value

    said = (f"{'an' if c[0] in 'AEIO' else 'a'} {c}{f' ({SOURCES[c]})' if c in SOURCES else ''}" for c in classes)
    return Kind(" or ".join(said), take, TypeError)


SOURCES = {
    "Prompts": "ti.Prompts.from_texts(texts, model)", "ContextDecoder": "ti.memory.fit_context_decoder",
    "LinearMaps": "LinearMaps.load(path)", "TunedLens": "ti.lens.fit_tuned_lens or TunedLens.load(path)",
    "TokenProbes": "ti.erasure.fit_probes or TokenProbes.load(path)", "Item": "ti.behaviour.read_mmlu",
    "Lexicon": "Lexicon.of(prompts)", "Cases": "ti.lexicon.split_cases", "TokenSpans": "spans.align(prompts)",
    "Removal": "ti.text.remove(text, what)", "Target": "Target.make(template, model)",
}  # fmt: skip
"""Where objects of a class come from."""
