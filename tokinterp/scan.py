"""Topics, their measurements and fits, found by looking at the folders: there is no table to keep."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokinterp

if TYPE_CHECKING:
    from .run.measurement import Measurement

SHARED = ("cli", "files", "kernels", "models", "plots", "results", "run", "settings", "stats", "text")
"""Folders that topics stand on; every other folder is a topic."""


@cache
def homes() -> dict[str, str]:
    """Return where each name of ``tokinterp`` itself comes from, as names.py says; nothing is imported.

    Examples
    --------
    >>> homes()["measure"]
    'run.engine'
    """
    source = Path(tokinterp.__path__[0], "names.py").read_text(encoding="utf-8")
    froms = [n for n in ast.parse(source).body if isinstance(n, ast.ImportFrom)]
    return {a.name: str(n.module) for n in froms for a in n.names}


def parts() -> dict[str, bool]:
    """Return the modules and folders of the package by name, and whether each is a folder; none is imported."""
    return {m.name: m.ispkg for m in pkgutil.iter_modules(tokinterp.__path__)}


def topics() -> tuple[str, ...]:
    """Return the names of the topics.

    Examples
    --------
    >>> "geometry" in topics()
    True
    """
    return tuple(sorted(name for name, folder in parts().items() if folder and name not in SHARED))


def modules() -> dict[str, str]:
    """Return ``topic.module`` -> full name of every module of the topics, without importing any.

    Examples
    --------
    >>> modules()["geometry.dimension"]
    'tokinterp.geometry.dimension'
    """
    out = {}
    for topic in topics():
        folders = [f"{folder}/{topic}" for folder in tokinterp.__path__]
        out.update({f"{topic}.{m.name}": f"tokinterp.{topic}.{m.name}" for m in pkgutil.iter_modules(folders)})
    return out


def measurement_of(module: str) -> type[Measurement] | None:
    """Return the measurement that a module defines, the one class with a result; None where there is none or more."""
    from .run.measurement import Measurement

    there = [c for c in vars(import_module(module)).values() if inspect.isclass(c) and c.__module__ == module]
    own = [
        c
        for c in there
        if issubclass(c, Measurement) and (c.fields or "result" in vars(c)) and not c.__name__.startswith("_")
    ]
    return own[0] if len(own) == 1 else None


def measurements() -> dict[str, type[Measurement]]:
    """Return ``topic.module`` -> class of every measurement.

    Examples
    --------
    >>> measurements()["geometry.dimension"].__name__
    'IntrinsicDimension'
    """
    found = {name: measurement_of(module) for name, module in modules().items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def fits() -> dict[str, Callable[..., Any]]:
    """Return ``topic.what`` -> function of all that is fitted to a model: the ``fit_...`` that the topics offer.

    Examples
    --------
    >>> fits()["lens.tuned_lens"].__name__
    'fit_tuned_lens'
    """
    spaces = {topic: import_module(f"tokinterp.{topic}") for topic in topics()}
    named = [(t, n) for t, space in spaces.items() for n in getattr(space, "__all__", ()) if n.startswith("fit_")]
    return {f"{t}.{n.removeprefix('fit_')}": getattr(spaces[t], n) for t, n in named}


def measurement(name: str) -> type[Measurement] | None:
    """Return the measurement called ``topic.module``, or ``module`` where only one topic has a module of that name.

    Examples
    --------
    >>> measurement("curvature") is measurement("geometry.curvature")
    True
    """
    there = {full: m for full, m in modules().items() if name in (full, full.partition(".")[2])}
    found = [kind for kind in map(measurement_of, there.values()) if kind is not None]
    return found[0] if len(found) == 1 else None
