"""Augmented prompts: readings of the same prompts with some tokens deleted, replaced or swapped."""

from __future__ import annotations

import hashlib

import numpy as np

from ..settings import checked, count, level, one_of
from .prompts import Prompts
from .tokenise import Tokenised

KINDS = ("delete", "replace", "swap")


@checked(q=count(1), rate=level, kind=one_of(*KINDS))
def augment_prompts(
    prompts: Prompts, q: int = 2, rate: float = 0.1, kind: str = "delete", seed: int = 0
) -> list[Prompts]:
    """Return q augmented readings of all prompts, aligned: prompt i of each stands for prompt i.

    Special tokens stay as they are, and at least one other token of each prompt is left.

    Parameters
    ----------
    prompts : Prompts
        What to augment.
    q : int
        Number of readings.
    rate : float
        Share of the tokens that are edited, each by its own throw.
    kind : str
        ``"delete"`` the token; ``"replace"`` it by one drawn from all tokens of the prompts; ``"swap"`` it with the one
        after it.
    seed : int
        The edits are drawn for each prompt from this seed, the reading and the prompt's ids, so that they depend
        neither on the other prompts nor on their order.

    Returns
    -------
    list of Prompts
        Each prompt is a document of its own; ``origin`` says where each token came from.

    Examples
    --------
    >>> prompts = Prompts.from_ids([range(40), range(100, 130)])
    >>> one, two = augment_prompts(prompts, rate=0.2)
    >>> len(one), one.n_tokens < prompts.n_tokens, one.hash != two.hash
    (2, True, True)
    """
    ordinary = ~prompts.special_mask
    return [_reading(prompts, ordinary, kind, float(rate), int(seed), r) for r in range(q)]


def _reading(prompts: Prompts, ordinary: np.ndarray, kind: str, rate: float, seed: int, reading: int) -> Prompts:
    note = f"augment({kind}, rate={rate!r}, seed={seed}, reading={reading})"
    ids, origins, pool = [], [], prompts.token_ids[ordinary]
    for i in range(len(prompts)):
        own, origin = prompts.ids(i).copy(), np.arange(len(prompts.ids(i)))
        digest = hashlib.sha256(note.encode() + own.astype("<i4").tobytes()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        free = ordinary[prompts.starts[i] : prompts.starts[i + 1]]
        edited = (random.random(len(own)) < rate) & free
        if kind == "delete":
            if free.any() and not (free & ~edited).any():
                edited[random.choice(np.flatnonzero(free))] = False
            own, origin = own[~edited], origin[~edited]
        elif kind == "replace":
            if edited.any():
                own[edited] = random.choice(pool, edited.sum())
        else:
            for place in np.flatnonzero(edited):
                if place + 1 < len(own) and free[place + 1]:
                    origin[[place, place + 1]] = origin[[place + 1, place]]
            own = own[origin]
        ids.append(own)
        origins.append(origin)
    starts = np.concatenate([[0], np.cumsum([len(x) for x in ids])]).astype(np.int64)
    parts = Tokenised.bare(np.concatenate(ids), starts, prompts.truncated)
    notes = "; ".join(n for n in (prompts.note, note) if n)
    origin = np.concatenate(origins).astype(np.int32)
    return Prompts(parts, prompts.vocabulary, bos=prompts.bos, note=notes, origin=origin)
