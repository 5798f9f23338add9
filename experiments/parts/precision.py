"""How much more of the vocabulary of a text are words than of that of shuffled text, over documents."""

from __future__ import annotations

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.erasure.vocabulary import token_ids
from tokinterp.results.dataset import bound_coord, variable
from tokinterp.results.stamp import derived
from tokinterp.stats.jackknife import jackknife_interval, left_out

Scored = tuple[xr.Dataset, ti.Prompts]
"""Erasure scores, and the prompts that they are of."""


def precision_difference(
    text: tuple[xr.Dataset, ti.Prompts],
    shuffled: tuple[xr.Dataset, ti.Prompts],
    units: ti.text.TokenSpans,
    min_count: int,
) -> xr.Dataset:
    """Return the word precision of the vocabulary of a text less that of the shuffled text, with its interval.

    A jackknife over some 20 groups of documents, each left out of both and of the known words: draws with replacement
    would count what occurs once in a document twice, and so let it into the vocabulary.

    Parameters
    ----------
    text, shuffled : (Dataset, Prompts)
        Erasure scores and what they are of.
    units : TokenSpans
        Known words of the text.
    min_count : int
        Occurrences of a unit of the vocabulary.
    """
    prompts = text[1]
    documents = np.unique(prompts.documents)
    removed = left_out(len(documents)) if len(documents) > 1 else np.zeros((0, 1), dtype=int)

    def difference(out: np.ndarray) -> float:
        stays = ~np.isin(prompts.documents, documents[out])
        one, other = (word_precision(ds, of, prompts, units, stays, min_count) for ds, of in (text, shuffled))
        return one - other

    whole = difference(np.array([], dtype=int))
    parts = np.array([difference(out) for out in removed])
    bounds = np.full(2, np.nan)
    if np.isfinite(parts).all():
        bounds = jackknife_interval(whole, parts, removed.shape[1], len(documents))
    what = "precision of words in the vocabulary of text less that of shuffled text"
    data = {
        "difference": variable((), whole, what, "1"),
        "difference_interval": variable("bound", bounds, f"95% jackknife interval over documents of the {what}", "1"),
    }
    ds = xr.Dataset(data, {"bound": bound_coord()}, {"n_groups": len(documents), "groups": "documents"})
    return derived(ds, "precision difference", [text[0], shuffled[0]], {"min_count": min_count})


def word_precision(
    ds: xr.Dataset, of: ti.Prompts, prompts: ti.Prompts, units: ti.text.TokenSpans, stays: np.ndarray, min_count: int
) -> float:
    """Return which share of the vocabulary of some prompts (bool, prompt) are words of these prompts; NaN of none.

    The vocabulary is that of the scores of ``of``, the words are those of ``prompts``: the same, or shuffled.
    """
    if ds.attrs.get("prompts", of.hash) != of.hash:
        raise ValueError("the scores are of other prompts")
    spans = ds[["psi", "seen", "start", "stop", "span_prompt"]]
    spans.attrs = ds.attrs
    try:
        kept = spans.isel(span=np.flatnonzero(stays[ds["span_prompt"].values]))
        vocabulary = ti.erasure.read_out(kept, of, min_count=min_count, min_psi=None, n_boot=1)
    except ValueError:  # no unit occurs often enough
        return np.nan
    rows = np.flatnonzero((units.kind == "word") & (units.n_tokens >= 2) & stays[units.prompt])
    first = prompts.starts[units.prompt[rows]] + units.start[rows]
    ends = first + units.n_tokens[rows]
    words = {tuple(prompts.token_ids[a:b].tolist()) for a, b in zip(first.tolist(), ends.tolist(), strict=True)}
    return float(np.mean([ids in words for ids in token_ids(vocabulary)]))
