"""Prompts of exactly so many tokens, of texts that are long enough under every tokenizer, or joined until they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import tokinterp as ti


def long_in_all(texts: Sequence[str], tokenizers: Sequence[Any], n_tokens: int = 1024) -> np.ndarray:
    """Return the numbers of the texts with at least so many tokens, BOS not counted, under every tokenizer.

    Examples
    --------
    >>> long_in_all(["One.", "The Nile flows north to the sea."], [ti.load_model()], 5).tolist()
    [1]
    """
    kept = np.arange(len(texts))
    options: dict[str, Any] = {"max_tokens": n_tokens, "min_tokens": n_tokens, "bos": False, "on_empty": "drop"}
    for one in tokenizers:
        some = [texts[int(i)] for i in kept]
        tokenizer = ti.load_tokenizer(one) if isinstance(one, str) else one
        kept = kept[ti.Prompts.from_texts(some, tokenizer, progress=False, **options).documents]
    return kept


def make_prompts(
    model: ti.Model, texts: Sequence[str], n_tokens: int, limit: int | None = None, windows: bool = False
) -> ti.Prompts:
    """Return prompts of exactly so many tokens (or as many as the model takes), without BOS."""
    texts = [t.strip() for t in texts]
    n_tokens = min(n_tokens, model.info.max_tokens)
    if windows:
        texts = joined(model, texts, n_tokens)
    on_long = "window" if windows else "truncate"
    options: dict[str, Any] = {"max_tokens": n_tokens, "min_tokens": n_tokens, "on_long": on_long, "bos": False}
    prompts = ti.Prompts.from_texts(texts, model, **options, progress=False)
    return prompts[: limit or len(prompts)]


def joined(model: ti.Model, texts: Sequence[str], n_tokens: int) -> list[str]:
    r"""Return consecutive texts joined until they have so many tokens, and no further: intervals are over these texts.

    Examples
    --------
    >>> joined(ti.load_model(), ["The sea.", "A blue door.", "The Nile flows north to the sea.", "One."], 8)
    ['The sea.\n\nA blue door.', 'The Nile flows north to the sea.']
    """
    options: dict[str, Any] = {"max_tokens": n_tokens, "on_long": "window", "bos": False, "on_empty": "drop"}
    prompts = ti.Prompts.from_texts(texts, model, **options, progress=False)
    lengths = np.bincount(prompts.documents, prompts.lengths, len(texts))
    out, waiting, n = [], [], 0.0
    for text, length in zip(texts, lengths, strict=True):
        waiting.append(text)
        n += length
        if n >= n_tokens:
            out.append("\n\n".join(waiting))
            waiting, n = [], 0.0
    return out
