"""A tokenizer alone, where the weights are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.paths import local_path
from ..settings import checked
from .bundled import bundled_folder
from .hf import _hub_message, check_tokenizer
from .sentencepiece import read_tokenizer


@checked()
def load_tokenizer(
    name_or_folder: str | Path | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a model.

    Parameters
    ----------
    name_or_folder : str or path, optional
        Name on the hub or local folder; the bundled one by default, or ``"bundled"``.
    revision, trust_remote_code
        As for `load_model`.

    Raises
    ------
    ValueError
        If there is none of that name.

    Examples
    --------
    >>> load_tokenizer()("The Nile")["input_ids"][0]
    0
    """
    name = bundled_folder() if name_or_folder is None or name_or_folder == "bundled" else name_or_folder
    folder = local_path(name, "model")
    if folder.is_dir():
        check_tokenizer(folder)
    try:
        source = str(folder) if folder.is_dir() else str(name)
        return read_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(_hub_message(name, error)) from error
