"""Tokenizers from single files: ``tokenizer.json``, SentencePiece models, ranks of tiktoken."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from .sentencepiece import proved_tokenizer

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _ENDS
_CL100K = (  # as tiktoken has it since 0.7; white space that ends a text differs from what Llama 3 and Qwen took over
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}|"
    + r"\p{N}{1,3}|"
    + _ENDS.replace(r"[\r\n]*", r"[\r\n/]*", 1)
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")
ENCODINGS: dict[str, tuple[int, str, dict[str, int]]] = {
    "r50k_base": (50_256, _GPT2, {"<|endoftext|>": 50_256}),
    "p50k_base": (50_280, _GPT2, {"<|endoftext|>": 50_256}),
    "cl100k_base": (100_256, _CL100K, {"<|endoftext|>": 100_257, "<|fim_prefix|>": 100_258, "<|fim_middle|>": 100_259,
                                     "<|fim_suffix|>": 100_260, "<|endofprompt|>": 100_276}),
    "o200k_base": (199_998, _GPT4O, {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
    "qwen": (151_643, _GPT4.replace("{1,3}", ""), {"<|endoftext|>": 151_643, "<|im_start|>": 151_644,
                                                    "<|im_end|>": 151_645}),
    "tokenizer": (128_000, _GPT4, {"<|begin_of_text|>": 128_000, "<|end_of_text|>": 128_001}),
}  # fmt: skip
"""Name of the file without its end -> ranks, pattern by which texts are divided, special tokens (Llama 3's is named
``tokenizer.model``)."""


def read_file(file: Path, pattern: str | None = None) -> Any:
    """Return the tokenizer of a file; what it is is seen from its first bytes.

    Raises
    ------
    ValueError
        If it is none of these, lacks its merges, or is one of tiktoken whose pattern is not known.
    """
    with file.open("rb") as stream:
        start = stream.read(400).lstrip()
    if not start:
        raise ValueError(f"name_or_folder={str(file)!r}: the file is empty")
    if start.startswith(b"{"):
        found = _read_json(file)
    elif _rank(start.split(b"\n")[0]) is not None:
        return read_tiktoken(file, pattern)
    else:
        found = proved_tokenizer(file)
    if pattern is not None:
        raise ValueError(f"pattern={pattern!r}: {file.name} is no file of tiktoken: leave it out")
    return found


def _read_json(file: Path) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        made = json.loads(file.read_text(encoding="utf-8"))
        if "model" not in made:
            raise ValueError(
                "it is no tokenizer.json (it has no 'model'; a vocabulary alone has no merges): give the folder with "
                "merges.txt and tokenizer_config.json"
            )
        inner = Tokenizer.from_str(json.dumps(made))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"name_or_folder={str(file)!r}: {' '.join(str(error).split())[:300]}") from None
    return check_merges(PreTrainedTokenizerFast(tokenizer_object=inner), str(file))


def check_merges(tokenizer: Any, name: str) -> Any:
    """Return the tokenizer, if a BPE has the merges of its entries.

    Raises
    ------
    ValueError
        If none of its entries of two characters is ever made.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if type(model).__name__ == "BPE":
        pairs = [t for t in tokenizer.get_vocab() if len(t) == 2][:200]
        if pairs and all(len(model.tokenize(t)) != 1 for t in pairs):  # type: ignore[union-attr]
            raise ValueError(
                f"name_or_folder={name!r}: the BPE has entries of several characters and no merges that make them: "
                "add merges.txt, or the merges of tokenizer.json"
            )
    return tokenizer


def check_parts(folder: Path, vocabulary: str) -> None:
    """Refuse a folder with the vocabulary of a BPE whose merges, or whose kind, are missing."""
    if (folder / "encoder.json").is_file():
        raise ValueError(
            f"name_or_folder={str(folder)!r}: encoder.json and vocab.bpe are OpenAI's names: call them vocab.json and "
            'merges.txt, and add tokenizer_config.json with {"tokenizer_class": "GPT2Tokenizer"}'
        )
    if not any((folder / f).is_file() for f in ("tokenizer_config.json", "config.json")):
        raise ValueError(
            f"name_or_folder={str(folder)!r}: {vocabulary} alone does not say how texts are divided: add "
            "tokenizer_config.json, or give a folder with tokenizer.json"
        )
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class", "") if settings.is_file() else ""
    if str(named).startswith(("GPT2", "Roberta", "Qwen2", "CodeGen")) and not (folder / "merges.txt").is_file():
        raise ValueError(f"name_or_folder={str(folder)!r}: {vocabulary} without merges.txt: copy the merges there too")


def is_tiktoken(file: Path) -> bool:
    """Return whether a file begins as one of tiktoken does."""
    with file.open("rb") as stream:
        return _rank(stream.readline(400)) is not None


def _rank(line: bytes) -> tuple[bytes, int] | None:
    """Return token and rank of a line of a tiktoken file, or None."""
    parts = line.split()
    try:
        return (base64.b64decode(parts[0], validate=True), int(parts[1])) if len(parts) == 2 else None
    except (ValueError, binascii.Error):
        return None


def read_tiktoken(file: Path, pattern: str | None = None) -> Any:
    """Return the tokenizer of a file of tiktoken, a token in base64 and its rank a line.

    Pairs are merged in the order of the ranks of what they make; what is a token as a whole is never divided.

    Raises
    ------
    ValueError
        If a line is something else, a byte has no rank, or the pattern is not known.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    name = f"name_or_folder={str(file)!r}"
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            if (one := _rank(line)) is None:
                raise ValueError(f"{name} line {number}: {line[:40]!r} is no token in base64 and its rank")
            ranks[one[0]] = one[1]
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise ValueError(f"{name}: the byte {missing[0]:#04x} has no rank, so not every text can be encoded")
    n, known, special = ENCODINGS.get(file.name.partition(".")[0], (0, "", {}))
    if pattern is None and len(ranks) != n:
        raise ValueError(
            f"{name}: {len(ranks)} ranks of no encoding known by this name ({', '.join(ENCODINGS)}): give the regular "
            "expression by which it divides texts as pattern="
        )
    if pattern is not None and (found := re.search(r"\{\d+(,\d*)?\}\+", pattern)):
        raise ValueError(f"pattern={pattern!r}: {found[0]!r} is possessive in tiktoken but not here: leave out its '+'")
    spelt = bytes_to_unicode()
    write = {token: "".join(spelt[b] for b in token) for token in ranks}
    merges = [
        (write[token[:k]], write[token[k:]])
        for token, _ in sorted(ranks.items(), key=lambda item: item[1])
        for k in range(1, len(token))
        if token[:k] in ranks and token[k:] in ranks
    ]
    special = special if pattern is None else {}
    inner = Tokenizer(models.BPE({**{write[t]: r for t, r in ranks.items()}, **special}, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern or known), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    roles = {"eos_token": ("<|endoftext|>", "<|end_of_text|>"), "bos_token": ("<|begin_of_text|>",)}
    named = {role: token for role, tokens in roles.items() for token in tokens if token in special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def check_tokenizer(folder: Path) -> None:
    """Refuse a local folder without a tokenizer."""
    if not any((folder / f).is_file() for f in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer: looked for {', '.join(TOKENIZER_FILES)}; copy the files there or pass "
            "tokenizer="
        )


def hub_message(name: Any, error: Exception) -> str:
    """Return what is said where a name is neither a folder nor on the hub."""
    first = str(error).strip().splitlines()[0]
    return f"name_or_folder={str(name)!r}: cannot load it: it is no local folder, and from the hub: {first}"
