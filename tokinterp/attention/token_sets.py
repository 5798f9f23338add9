"""Named sets of tokens: which positions of each prompt belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..settings import short
from ..text.classes import CLASSES

if TYPE_CHECKING:
    from ..run.batch import Batch
    from ..text.prompts import Prompts
    from ..text.vocabulary import Vocabulary

RULES = ("all", "first", "last", "special", "separators", "other")
MARKS = ".,?!;:"


class Marked:
    """Tokens chosen one by one: a bool array over the tokens of all prompts, which prints as a hash.

    Parameters
    ----------
    mask : array_like
        (token,) bool, in the order of the token stream (``prompts.token_ids``).
    """

    def __init__(self, mask: Any) -> None:
        self.mask = np.asarray(mask)
        if self.mask.dtype != bool or self.mask.ndim != 1:
            raise ValueError(
                f"tokens are marked by one bool per token of all prompts, not {self.mask.dtype} {self.mask.shape}"
            )

    def __repr__(self) -> str:
        mark = hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()[:12]
        return f"Marked({int(self.mask.sum())} of {len(self.mask)} tokens, {mark})"


def separator_ids(vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
    """Return those of the ids that are separators: ``. , ? ! ; :``, several of them, or white space alone.

    Found by decoding and stripping, so that variants with a space or a line break count too (SepLLM, arXiv 2412.12094).
    """
    found = np.unique(ids)
    texts = vocabulary.strings(found)
    special = vocabulary.special(found)
    keep = [all(c in MARKS or c.isspace() for c in t) and bool(t) for t in texts]
    return found[np.array(keep, dtype=bool) & ~special]


def check_sets(what: str, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Return sets by name, arrays as `Marked`; raise ValueError for what can be no rule."""
    if not isinstance(sets, Mapping) or not sets:
        raise ValueError(f"{what}={short(sets)}: give a dictionary of names and rules, for example {{'sink': 'first'}}")
    out = {}
    for name, rule in sets.items():
        if isinstance(rule, str):
            out[str(name)] = rule
        else:
            try:
                out[str(name)] = rule if isinstance(rule, Marked) else Marked(rule)
            except ValueError as error:
                raise ValueError(f"{what}[{name!r}]={short(rule)}: {error}") from None
    return out


def resolve(prompts: Prompts, sets: Mapping[str, Any], what: str = "sets") -> np.ndarray:
    """Return (set, token) bool, which tokens of all prompts belong to each set.

    Parameters
    ----------
    prompts : Prompts
        With the marks (`tokinterp.text.mark`) that are named.
    sets : mapping
        From `check_sets`.
    what : str
        Name of the argument, for messages.

    Raises
    ------
    ValueError
        If a mask has another number of tokens than the prompts; for a name that is no rule and no mark, or both.
    """
    for name, rule in sets.items():
        if isinstance(rule, str) and (rule in prompts.marks) == (rule in (*RULES, *CLASSES)):
            where = f"{what}[{name!r}]={rule!r}"
            if rule in prompts.marks:
                raise ValueError(f"{where}: a rule and a mark of the prompts: give the mark another name")
            raise ValueError(
                f"{where}: give a rule ({', '.join(RULES)}), a class of tokens ({', '.join(CLASSES)}), a mark of the "
                f"prompts ({', '.join(prompts.marks) or 'they have none'}), or one bool per token of all prompts"
            )
    out = np.zeros((len(sets), prompts.n_tokens), dtype=bool)
    lengths = np.asarray(prompts.lengths)
    place = np.arange(prompts.n_tokens) - np.repeat(prompts.starts[:-1], lengths)
    for row, (name, rule) in zip(out, sets.items(), strict=True):
        if isinstance(rule, Marked):
            if len(rule.mask) != prompts.n_tokens:
                raise ValueError(
                    f"set {name!r} marks {len(rule.mask)} tokens, the prompts have {prompts.n_tokens}: one bool per "
                    "token of all prompts is needed"
                )
            row[:] = rule.mask
        elif rule in prompts.marks:
            row[:] = prompts.marks[rule]
        elif rule == "all":
            row[:] = True
        elif rule == "first":
            row[:] = place == 0
        elif rule == "last":
            row[:] = place == np.repeat(lengths, lengths) - 1
        elif rule == "special":
            row[:] = prompts.special_mask
        elif rule == "separators":
            row[:] = np.isin(prompts.token_ids, separator_ids(prompts.vocabulary, prompts.token_ids))
        elif rule != "other":
            row[:] = prompts.classes.mask(rule)
    rest = ~out.any(0)
    for row, rule in zip(out, sets.values(), strict=True):
        if isinstance(rule, str) and rule == "other":
            row[:] = rest
    return out


def padded(packed: np.ndarray, batch: Batch) -> torch.Tensor:
    """Return (prompt, set, position) bool for the prompts of a batch, false on padding."""
    return batch.tokens.of_stream(packed.T).mT.contiguous()
