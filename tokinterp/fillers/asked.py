"""How items with fillers are made of questions: the options that all experiments on them share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..text.bundled import bundled_questions
from ..text.items import _pair


class Asking(TypedDict, total=False):
    """How questions become items, see `tokinterp.text.build_items`.

    Attributes
    ----------
    cue : str, optional
        What follows the fillers; by default the last word of the prompt.
    exact : bool
        Whether the text of the item must be tokenised into the very ids of the item; it must by default.
    seed : int
        Of random words and shuffles, and of all that is drawn; 0 by default.
    """

    cue: str | None
    exact: bool
    seed: int


class Asked(Asking, total=False):
    """How questions become items with fillers of one kind: `Asking`, and

    Attributes
    ----------
    kind : str
        Kind of filler, ``"dots"`` by default.
    """

    kind: str


class AskingRuns(Asking, total=False):
    """How items are made and answered under several conditions: `Asking`, and

    Attributes
    ----------
    demonstrations : iterable of Question or (prompt, answer)
        Solved before every item, with as many fillers of the same kind and place as the item; none by default.
    batch_tokens : int
        Padded tokens per batch.
    store : path, optional
        See `tokinterp.run.conditions.measure_conditions`: the same call after a crash goes on.
    """

    demonstrations: Iterable[Any]
    batch_tokens: int
    store: str | Path | None


class AskedRuns(Asked, AskingRuns, total=False):
    """How items with fillers of one kind are made and answered: `Asked` and `AskingRuns`."""


def parted(given: Mapping[str, Any], **defaults: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how items are made, with the defaults, as `build_items` takes it, and how they are run.

    Examples
    --------
    >>> parted({"cue": " Answer:", "store": "a.zarr"}, kind="dots")
    ({'cue': ' Answer:', 'exact': True, 'seed': 0, 'kind': 'dots'}, {'store': 'a.zarr'})
    """
    how = {"cue": None, "exact": True, "seed": 0, **defaults, **given}
    run = {k: how.pop(k) for k in ("batch_tokens", "store") if k in how}
    if "demonstrations" in how:
        how["demonstrations"] = [_pair(d) for d in how["demonstrations"]]
    return how, run


def asked_questions(questions: Iterable[Any] | None) -> list[Any]:
    """Return questions as a list, the bundled ones where none are given."""
    return list(bundled_questions() if questions is None else questions)


def settings_of(questions: Iterable[Any], how: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return the settings of a result: its own, how items were made, and a hash in the place of the questions."""
    made = {k: v for k, v in how.items() if k != "seed"}
    if "demonstrations" in made:
        made["demonstrations"] = [list(d) for d in made["demonstrations"]]
    pairs = [list(_pair(q)) for q in questions]
    mark = hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]
    return {**own, **made, "questions": f"{len(pairs)} questions, {mark}"}
