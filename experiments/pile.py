"""The prompts of Viswanathan et al. 2025: texts of pile-10k that are long enough under every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import tokinterp as ti
from tokinterp.text.files import read_texts

NAME = "NeelNanda/pile-10k"
TOKENIZERS = (
    "meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1", "EleutherAI/pythia-6.9b-deduped", "facebook/opt-6.7b",
)  # fmt: skip
COUNT, FIRST, LAST = 2244, (0, 19, 22, 28, 29, 40, 42, 45, 51, 53, 54, 56), 9998
"""What the authors' selection has: number of texts, the first of them, the last (from their released arrays)."""
SHUFFLED = (587, 718, 1110, 1218, 1257, 1387, 1475, 1553)
"""The first eight of the 50 texts that they shuffled; the others are not published as a list."""


def read_pile(limit: int | None = None) -> list[str]:
    """Return the texts of pile-10k without the space around them, as the authors tokenise them (needs the hub)."""
    return [text.strip() for text in read_texts(NAME, split="train", limit=limit)]


def long_in_all(texts: Sequence[str], tokenizers: Sequence[Any], n_tokens: int = 1024) -> np.ndarray:
    """Return the numbers of the texts with at least ``n_tokens`` tokens, BOS not counted, under every tokenizer.

    Parameters
    ----------
    texts : sequence of str
        The texts.
    tokenizers : sequence of str, tokenizer or Model
        Hub names are loaded.
    n_tokens : int
        Tokens of the prompts.

    Examples
    --------
    >>> long_in_all(["One.", "The Nile flows north to the sea."], [ti.load_model()], 5).tolist()
    [1]
    """
    kept = np.arange(len(texts))
    for one in tokenizers:
        tokenizer = _load(one) if isinstance(one, str) else one
        some = [texts[int(i)] for i in kept]
        options: dict[str, Any] = {"max_tokens": n_tokens, "min_tokens": n_tokens, "bos": False, "on_empty": "drop"}
        kept = kept[ti.Prompts.from_texts(some, tokenizer, **options).documents]
    return kept


def difference_from_authors(kept: Sequence[int] | np.ndarray) -> str:
    """Return in which way a selection from pile-10k is not the authors'; an empty string where it agrees.

    Examples
    --------
    >>> difference_from_authors([0, 19, 22])
    '3 texts, where the authors have 2244'
    """
    numbers = [int(n) for n in kept]
    if len(numbers) != COUNT:
        return f"{len(numbers)} texts, where the authors have {COUNT}"
    if tuple(numbers[: len(FIRST)]) != FIRST or numbers[-1] != LAST:
        return f"texts {numbers[: len(FIRST)]} ... {numbers[-1]}, where the authors have {list(FIRST)} ... {LAST}"
    return ""


def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)
