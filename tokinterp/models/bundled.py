"""The small language models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data"
FOLDERS = {"bundled": "reader", "bundled/narrow": "narrow"}
"""The bundled models by name: the one that reads best, and one in whose stream little has room."""


def bundled_name(name: Any = None) -> str | None:
    """Return the name of the bundled model that is meant (the first without a name), or None for any other model.

    Raises
    ------
    ValueError
        If ``bundled/`` is followed by a name that is not there.

    Examples
    --------
    >>> bundled_name(), bundled_name("bundled/narrow"), bundled_name("gpt2")
    ('bundled', 'bundled/narrow', None)
    """
    if name is None:
        return "bundled"
    if not isinstance(name, str):
        return None
    if name.startswith("bundled/") and name not in FOLDERS:
        raise ValueError(f"there is no bundled model {name!r}: give one of {list(FOLDERS)}, or './{name}' for a folder")
    return name if name in FOLDERS else None


def bundled_folder(name: str = "bundled") -> Path:
    """Return the folder of a bundled model (Hugging Face format, with its model card README.md).

    Raises
    ------
    FileNotFoundError
        If this copy of the package was built without it.
    """
    folder = DATA / FOLDERS[name]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            "this copy of tokinterp has no bundled model: reinstall it from a full source tree, or name a model"
        )
    return folder


def model_source(name: str | Path | None) -> str | Path:
    """Return the folder of a bundled model, or the name or folder itself."""
    bundled = bundled_name(name)
    return name or "" if bundled is None else bundled_folder(bundled)
