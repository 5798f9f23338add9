"""A tokenizer alone, where the weights are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.paths import local_path
from ...settings import checked, none, string
from ..bundled import model_source
from .files import check_merges, check_parts, check_tokenizer, hub_message, is_tiktoken, read_file
from .sentencepiece import read_tokenizer


@checked(pattern=string | none)
def load_tokenizer(
    name_or_folder: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    pattern: str | None = None,
) -> Any:
    """Load the tokenizer of a model, or one from a file.

    Parameters
    ----------
    name_or_folder : str or path, optional
        Name on the hub, local folder, or a file: ``tokenizer.json``, a SentencePiece model such as ``tokenizer.model``,
        or ranks of tiktoken.  That of the bundled model by default; ``"bundled/narrow"`` as for `load_model`.
    revision, trust_remote_code
        As for `load_model`.
    pattern : str, optional
        The regular expression by which tiktoken divides texts (its ``pat_str``), for files of tiktoken other than
        ``r50k_base``, ``p50k_base``, ``cl100k_base``, ``o200k_base``, ``qwen`` and Llama 3's ``tokenizer.model``.

    Raises
    ------
    ValueError
        If there is none of that name, a BPE lacks its merges, a SentencePiece model is converted to other ids than its
        own, or the pattern of a file of tiktoken is not known.

    Notes
    -----
    A ``tokenizer.json`` given as a file does not say which tokens begin, end and fill up texts: give its folder where
    that matters.

    Examples
    --------
    >>> load_tokenizer()("The Nile")["input_ids"][0]
    0
    """
    name = model_source(name_or_folder)
    folder = local_path(name, "model")
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        single = [*folder.glob("*.tiktoken"), folder / "tokenizer.model"]
        if found := next((f for f in single if f.is_file() and is_tiktoken(f)), None):
            return read_file(found, pattern)
        vocabularies = [f for f in ("vocab.json", "encoder.json") if (folder / f).is_file()]
        if vocabularies and not (folder / "tokenizer.model").is_file() and not (folder / "spiece.model").is_file():
            check_parts(folder, vocabularies[0])
    if folder.is_file():
        return read_file(folder, pattern)
    if pattern is not None:
        raise ValueError(f"pattern={pattern!r}: {str(name)!r} is no file of tiktoken: leave it out")
    if folder.is_dir():
        check_tokenizer(folder)
    try:
        source = str(folder) if folder.is_dir() else str(name)
        made = read_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(hub_message(name, error)) from error
    return check_merges(made, str(name))
