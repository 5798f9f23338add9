"""The small language model that ships with the package."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
ID = "tokinterp/bundled"


def bundled_folder() -> Path:
    """Return the folder of the bundled model (Hugging Face format, with its model card README.md).

    Raises
    ------
    FileNotFoundError
        If this copy of the package was built without it.
    """
    folder = DATA / "model"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            "this copy of tokinterp has no bundled model: reinstall it from a full source tree, or name a model"
        )
    return folder
