"""Does the answer reach the question through the fillers, or directly?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ..attention.mass import AttentionMass
from ..models.steady import steady
from ..results.dataset import block_coords, variable
from ..results.stamp import finish
from ..run.engine import measure
from ..settings import checked, count
from ..text.items import Items, build_items
from .asked import Asked, asked_questions, parted, settings_of
from .results import numbers

if TYPE_CHECKING:
    from ..models.base import Model


@checked(n_fillers=count(1))
@steady
def routing(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Compare attention from the answer position on the question by way of the fillers with that directly.

    Parameters
    ----------
    model, questions, n_fillers
        See `build_items`; the fillers follow the question.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        By item and block, means over heads: ``fillers_to_question``, ``answer_to_fillers``, ``direct`` (M, the mean
        attention of the first on the second); ``product`` = fillers_to_question * answer_to_fillers of the same block;
        ``routed`` = answer_to_fillers times the mean of fillers_to_question over the blocks *before*, the only ones
        whose result can be read there (NaN in the first); ``direct_change``, direct with fillers less direct without,
        and ``chance_change``, the same of the question's share of the visible positions, which more tokens lower by
        themselves.

    Raises
    ------
    ValueError
        Without fillers, and see `build_items`.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = routing(ti.load_model(), [("The capital of France is", " Paris")], n_fillers=4)
    >>> bool((ds["direct_change"] < 1).all())
    True
    """
    how, _ = parted(asked, kind="dots")
    questions = asked_questions(questions)
    items = build_items(model, questions, n_fillers=n_fillers, **how)
    plain = build_items(model, questions, cue=how["cue"])
    whole, bare = (_masses(model, i) for i in (items, plain))
    mass = whole["mass"].mean("head").transpose("prompt", "block", "query_set", "key_set")
    reads = mass.sel(query_set="fillers", key_set="question").values
    asks = mass.sel(query_set="answer", key_set="fillers").values
    direct, before = (
        ds["mass"].mean("head").sel(query_set="answer", key_set="question").transpose("prompt", "block").values
        for ds in (whole, bare)
    )
    chance, least = (ds["chance"].sel(query_set="answer", key_set="question").values for ds in (whole, bare))
    earlier = np.full(reads.shape, np.nan)
    earlier[:, 1:] = reads.cumsum(1)[:, :-1] / np.arange(1, reads.shape[1])
    each = ("prompt", "block")
    data = {
        "fillers_to_question": variable(each, reads, "attention of the fillers on the question", "1"),
        "answer_to_fillers": variable(each, asks, "attention of the answer position on the fillers", "1"),
        "direct": variable(each, direct, "attention of the answer position on the question", "1"),
        "product": variable(each, reads * asks, "filler to question times answer to filler, same block", "1"),
        "routed": variable(each, earlier * asks, "answer to filler times filler to question in blocks before", "1"),
        "direct_change": variable(each, direct - before, "change of the direct attention by the fillers", "1"),
        "chance_change": variable("prompt", chance - least, "change of the question's share of the tokens", "1"),
    }
    coords = {"prompt": numbers(len(items)), **block_coords(range(model.info.n_layers), model.info, "pattern")}
    settings = settings_of(questions, how, n_fillers=n_fillers)
    return finish(xr.Dataset(data, coords), model, "routing", settings, how["seed"])


def _masses(model: Model, items: Items) -> xr.Dataset:
    sets: dict[str, Any] = {"fillers": items.mark("filler")} if items.n_fillers else {}
    asked = AttentionMass({**sets, "question": items.mark("question")}, {**sets, "answer": "last"},
                          value_weighted=False)  # fmt: skip
    return measure(model, items.prompts, {"a": asked}, progress=False)["a"].to_dataset()
