"""Topics and their measurements, found by looking at the folders: there is no table to keep."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

import tokinterp

if TYPE_CHECKING:
    from .run.measurement import Measurement

SHARED = ("cli", "files", "kernels", "models", "plots", "results", "run", "settings", "stats", "text")
"""Folders that topics stand on; every other folder is a topic."""


def topics() -> tuple[str, ...]:
    """Return the names of the topics.

    Examples
    --------
    >>> "geometry" in topics()
    True
    """
    found = pkgutil.iter_modules(tokinterp.__path__)
    return tuple(sorted(m.name for m in found if m.ispkg and m.name not in SHARED))


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
