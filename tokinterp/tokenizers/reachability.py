"""Which tokens a tokenizer can produce at all: the first step of the search for under-trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import checked, count, tokenizer
from ..text.vocabulary import Vocabulary

CATEGORIES = (
    "ok", "ok_special", "undecodable", "unreachable_special", "unreachable_single", "unreachable_multi", "no_token"
)  # fmt: skip
PREFIXES = (*"«»|~^§…", *"xqz079")
"""What is put before a token's text where the tokenizer changes the beginning of a text; the first that works."""
_LAND = "Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417, section 2.2.1"


@checked(tokenizer=tokenizer, size=count(1))
def token_reachability(tokenizer: Any, *, size: int | None = None) -> xr.Dataset:
    """Say of every token id whether the tokenizer can produce it, by writing it as text and encoding that again.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    size : int, optional
        Rows of the model's embedding, where they are more than the tokenizer's ids.

    Returns
    -------
    xarray.Dataset
        On ``vocab`` (token id): ``reachability``, one of

        - ``ok``, ``ok_special``: its text is encoded as this id alone; special as declared by the tokenizer,
        - ``unreachable_special``: another id or several, and the text is a mark in angle or square brackets,
        - ``undecodable``: its bytes are no whole UTF-8 characters, so no text is it alone (though a part of one),
        - ``unreachable_single``, ``unreachable_multi``: its text is encoded as another id, or as several (or none),
        - ``no_token``: the tokenizer has no token of this id;

        and ``n_reencoded``, the tokens its text is encoded as (-1 without a text), and ``n_bytes``.  On ``category``:
        ``n_ids``, the number of ids of each.

    Raises
    ------
    ValueError
        If ``size`` is less than the number of ids, or the tokenizer marks the ends of words (``</w>``).

    Notes
    -----
    Tokenizers that write a space before the text (Llama 2) are asked for the text after a prefix, whose tokens are then
    taken off: « as published, else », else other signs and letters, since a vocabulary may lack them or merge them with
    what follows; the published code goes on with the first prefix in front of the second.  Of WordPiece, continuing
    pieces are asked for after a letter.  Counts of published tokenizers are equal to those of the paper's reports.

    References
    ----------
    Land and Bartolo 2024, arXiv 2405.05417, section 2.2.1; github.com/cohere-ai/magikarp.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.token_reachability(ti.load_tokenizer())
    >>> ds["n_ids"].to_series().iloc[:3].to_dict()
    {'ok': 3960, 'ok_special': 3, 'undecodable': 133}
    """
    vocabulary = Vocabulary(tokenizer, size)
    check_supported(vocabulary, size)
    ids = np.arange(vocabulary.size)
    there = vocabulary.there
    pieces = vocabulary.bytes(ids)
    texts = [p.decode("utf-8", "replace") for p in pieces]
    found = _reencoded(vocabulary, ids[there].tolist(), texts)
    special = declared_special(vocabulary)
    category = [
        _category(i, found[i], texts[i], pieces[i], i in special) if i in found else "no_token" for i in ids.tolist()
    ]
    number = np.array([CATEGORIES.index(c) for c in category])
    n_reencoded = [len(found[i]) if i in found and _whole(pieces[i]) else -1 for i in ids.tolist()]
    ds = xr.Dataset(
        {
            "reachability": variable("vocab", np.array(category), "whether text can become this token", "1", _LAND),
            "n_reencoded": variable("vocab", np.array(n_reencoded), "tokens its text is encoded as", "token"),
            "n_bytes": variable("vocab", [len(p) if t else 0 for p, t in zip(pieces, there, strict=True)],
                                "bytes it stands for", "byte"),
            "n_ids": variable("category", np.bincount(number, minlength=len(CATEGORIES)), "token ids", "token", _LAND),
        },
        {
            "vocab": variable("vocab", ids, "token id", "1"),
            "token": variable("vocab", np.array(vocabulary.strings(ids)), "token", "1"),
            "category": variable("category", np.array(CATEGORIES), "whether text can become a token", "1"),
        },
        {"dimensions": "category"},
    )  # fmt: skip
    ds = stamped_tokenizers(ds, "token_reachability", [tokenizer], {"size": vocabulary.size})
    check(ds)
    return ds


def check_supported(vocabulary: Vocabulary, size: int | None = None) -> None:
    """Raise ValueError for a tokenizer whose tokens cannot be read, or a size below its number of ids."""
    if size is not None and size < vocabulary.known:
        raise ValueError(f"size={size}: the tokenizer has {vocabulary.known} ids: give at least as many")
    tokens = [t for t in vocabulary.tokenizer.get_vocab() if isinstance(t, str)]
    if vocabulary.kind == "plain" and sum(t.endswith("</w>") for t in tokens) > len(tokens) // 20:
        name = type(vocabulary.tokenizer).__name__
        raise ValueError(f"tokenizer={name}: its tokens mark ends of words (</w>), which is not read here: use another")


def declared_special(vocabulary: Vocabulary) -> set[int]:
    """Return the ids that the tokenizer declares special, the token for unknown words among them."""
    unknown = getattr(vocabulary.tokenizer, "unk_token_id", None)
    return {*vocabulary.special_ids.tolist(), *([] if unknown is None else [int(unknown)])}


def _category(i: int, reencoded: Sequence[int], text: str, piece: bytes, special: bool) -> str:
    if list(reencoded) == [i]:
        return "ok_special" if special else "ok"
    if len(text) >= 3 and text[0] in "<[" and text[-1] in ">]" and any(c.isalpha() for c in text):
        return "unreachable_special"
    if not _whole(piece):
        return "undecodable"
    return "unreachable_single" if len(reencoded) == 1 else "unreachable_multi"


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text, no special ones added."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _reencoded(vocabulary: Vocabulary, ids: list[int], texts: Sequence[str]) -> dict[int, list[int]]:
    """Return what the text of each id is encoded as, where tokenizers change the beginning of a text after a prefix."""
    tokenizer, wordpiece = vocabulary.tokenizer, vocabulary.kind == "wordpiece"
    changed = [i for i in ids if (not texts[i].startswith(" ") if wordpiece else vocabulary.prefix_space)]
    found = dict(zip(ids, encode(tokenizer, [texts[i].lstrip(" " * wordpiece) for i in ids]), strict=True))
    left, told = [i for i in changed if found[i] != [i]], set()
    unknown = getattr(tokenizer, "unk_token_id", None)
    for prefix in PREFIXES:
        before = encode(tokenizer, [prefix])[0]
        if not before or unknown in before or (wordpiece and not prefix.isalnum()):
            continue
        for i, all_of_it in zip(left, encode(tokenizer, [prefix + texts[i] for i in left]), strict=True):
            if all_of_it[: len(before)] != before:  # merged with the prefix
                continue
            rest = all_of_it[len(before) :]
            if rest == [i] or i not in told:
                found[i] = rest
                told.add(i)
        left = [i for i in left if found[i] != [i]]
    return found
