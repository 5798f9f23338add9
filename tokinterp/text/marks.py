"""Named marks of tokens: which tokens of the prompts are fillers, the question, the answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..settings import checked, mapping, short
from .prompts import Prompts


@checked(marks=mapping())
def mark(prompts: Prompts, **marks: Any) -> Prompts:
    """Return prompts some of whose tokens have names, which edits and measurements understand.

    Parameters
    ----------
    prompts : Prompts
        They stay as they are.
    **marks
        Name and (token,) bool over all prompts, or (prompt, 2) half-open ranges of positions.

    Raises
    ------
    ValueError
        For flags or ranges that do not fit the prompts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.text.mark(ti.Prompts.from_texts(["The Nile flows north."], model), river=[[2, 3]])
    >>> str(ti.edits.knock_out("river", slice(-1, None)))
    'knock_out(keys river, queries -1::)'
    """
    out = copy.copy(prompts)
    out.__dict__.pop("hash", None)
    out.marks = {**prompts.marks, **{name: _flags(name, given, prompts) for name, given in marks.items()}}
    return out


def _flags(name: str, given: Any, prompts: Prompts) -> np.ndarray:
    """Return (token,) bool."""
    flags = np.array(given)  # of its own: the hash of the prompts is worked out once
    if flags.dtype != bool and flags.shape == (len(prompts), 2) and flags.dtype.kind in "iu":
        lengths = np.asarray(prompts.lengths)
        if (flags < 0).any() or (flags > lengths[:, None]).any():
            raise ValueError(f"{name}={short(given)}: a range lies beyond its prompt")
        if (flags[:, 0] > flags[:, 1]).any():
            raise ValueError(f"{name}={short(given)}: a range ends before it starts: give start, stop")
        flags = in_ranges(flags, lengths)
    if flags.dtype != bool or flags.shape != (prompts.n_tokens,):
        raise ValueError(
            f"{name}={short(given)}: give one bool for each of {prompts.n_tokens} tokens, or a start and a stop for "
            f"each of {len(prompts)} prompts"
        )
    flags.flags.writeable = False
    return flags


def in_ranges(ranges: np.ndarray, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return (token,) bool over sequences of these lengths, true in the half-open range of positions of each."""
    place = np.concatenate([np.arange(n) for n in lengths])
    start, stop = np.repeat(np.asarray(ranges), lengths, axis=0).T
    return (place >= start) & (place < stop)
