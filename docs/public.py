"""The public names by topic, and what each says of itself: what the reference, the tables and a test are made of."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from tokinterp import scan

CORE = ("", "edits", "text", "results", "plots", "sklearn")
CALLED = {"": "tokinterp", "edits": "tokinterp.edits"}
SURNAME = r"[A-ZÀ-Ž][\w'’-]+"
AUTHOR = rf"(?<![\w-])({SURNAME})(?: et al\.?|,? (?:&|and) {SURNAME})*,? \(?((?:19|20)\d\d)\b"


class Name(NamedTuple):
    """A public name: where it is called from, what it is called, and what it stands for."""

    space: str
    name: str
    value: Any

    @property
    def full(self) -> str:
        """The whole name, ``tokinterp.geometry.Spectrum``."""
        return f"{CALLED.get(self.space, f'tokinterp.{self.space}')}.{self.name}"

    @property
    def doc(self) -> str:
        """Its docstring."""
        return inspect.getdoc(self.value) or ""

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        return self.doc.partition("\n\n")[0].replace("\n", " ")

    @property
    def made(self) -> bool:
        """Whether it is a class of results, which functions make and users only read."""
        return inspect.isclass(self.value) and not _fields(self.value) and not _checked(self.value)


def spaces() -> tuple[str, ...]:
    """Return the namespaces of the reference: the package, what is shared, the topics and their pictures."""
    topics = [t for topic in scan.topics() for t in (topic, f"{topic}.plots", f"{topic}.tasks")]
    return (*CORE, *[t for t in topics if _there(t)])


def _there(space: str) -> bool:
    topic, _, part = space.partition(".")
    return not part or (f"{topic}.{part}" in scan.modules() and hasattr(module_of(space), "__all__"))


@cache
def module_of(space: str) -> Any:
    """Return the module of a namespace."""
    return import_module({"": "tokinterp", "edits": "tokinterp.run.edits"}.get(space, f"tokinterp.{space}"))


def names(space: str) -> Iterator[Name]:
    """Yield the public functions and classes of a namespace, in order of the alphabet, modules left out."""
    module = module_of(space)
    own = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__]
    for name in sorted(getattr(module, "__all__", own), key=lambda n: (not n[0].isupper(), n.lower())):
        value = getattr(module, name)
        if callable(value) and not inspect.ismodule(value):
            yield Name(space, name, value)


@cache
def every() -> tuple[Name, ...]:
    """Return all public names; what is in several namespaces, in each."""
    return tuple(n for space in spaces() for n in names(space))


def fields(value: Any) -> dict[str, Any]:
    """Return the fields that a measurement declares and users see; none for all else."""
    return {n: f for n, f in _fields(value).items() if not n.startswith("_")}


def _fields(value: Any) -> dict[str, Any]:
    found = getattr(value, "fields", None) if inspect.isclass(value) else None
    return found if isinstance(found, dict) else {}


def _checked(value: Any) -> dict[str, Any]:
    return getattr(value.__init__ if inspect.isclass(value) else value, "__kinds__", {})


def refusals(value: Any) -> dict[str, str]:
    """Return what each argument has to be: of any other the function says so in one line, before it computes."""
    return {n: kind.says for n, kind in _checked(value).items() if kind.says}


def returned(value: Any) -> str:
    """Return what a function gives, as it is annotated; empty where it is not."""
    found = inspect.signature(value).return_annotation
    return "" if found is inspect.Signature.empty else str(found)


def sources(name: Name) -> list[str]:
    """Return the papers that a name is from, ``Feucht 2024``: as it says, or else its module, or else its topic."""
    said = " ".join([name.doc, *[f.references or "" for f in fields(name.value).values()]])
    module, topic = sys.modules[name.value.__module__], module_of(name.space)
    for text in (said, _source(module), topic.__doc__ or "" if name.space else ""):
        if found := list(dict.fromkeys(f"{a} {year}" for a, year in re.findall(AUTHOR, text))):
            return found
    return []


@cache
def _source(module: Any) -> str:
    return inspect.getsource(module)
