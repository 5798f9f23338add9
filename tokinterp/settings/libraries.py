"""Functions and classes of libraries, which are described by their names and versions instead of by their code."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

KNOWN = frozenset(
    ("tokinterp", "torch", "numpy", "scipy", "sklearn", "xarray", "pandas", "transformers", "tokenizers", "peft",
     "transformer_lens", "nnsight", "accelerate", "safetensors", "zarr", "dask", "distributed")
) | sys.stdlib_module_names - {"__main__"}  # fmt: skip
"""Packages whose functions and classes are described by their names; all others by their code."""


def on_touch(package: str, *modules: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that loads some of its modules when they are first touched."""

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def in_library(value: Any) -> bool:
    """Return whether a function or class belongs to a library, which is named with its version instead of its code."""
    return library_version(top_of(value)) is not None


@functools.cache
def library_version(top: str) -> str | None:
    """Return the version of an installed library (empty for those whose versions are not told apart), else None."""
    if top in KNOWN:
        return ""
    file = str(getattr(sys.modules.get(top), "__file__", None) or "")
    if not any(f"{sep}{folder}{sep}" in file for folder in ("site-packages", "dist-packages") for sep in "/\\"):
        return None
    try:
        return version(top)
    except PackageNotFoundError:
        return ""


def top_of(value: Any) -> str:
    """Return the package that a function or class comes from."""
    return str(getattr(value, "__module__", None) or "").partition(".")[0]


def full_name(value: Any) -> str:
    """Return the module and name of a function or class."""
    return (
        f"{getattr(value, '__module__', None) or ''}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
    )


def is_found(value: Any) -> bool:
    """Return whether the module of a function or class holds it under its name."""
    at: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        at = getattr(at, name, None)
    return at is value
