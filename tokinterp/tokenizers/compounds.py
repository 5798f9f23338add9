"""Compounds: whether tokens split them where their parts meet, and scores of what is said to be their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import bound_coord, check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import checked, pair, refuse, several, string, tokenizer
from ..settings.describe import hash_json
from ..stats.resample import mean_interval, ratio
from .inference import Inference
from .morphology import LABELS, MINIXHOFER, Word, gold_parts, inner_places


@checked(tokenizer=tokenizer, compounds=several(pair(string, several(string, 1)), 1))
def compound_splits(tokenizer: Any, compounds: Sequence[Word], *, space: bool = True) -> xr.Dataset:
    """Say of compounds whether tokens end where their parts meet.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    compounds : sequence of (str, sequence of str)
        A word and its parts, which make up the word; see `tokinterp.text.read_compounds`.
    space : bool
        Whether words are cut as they are after a space.

    Returns
    -------
    xarray.Dataset
        On ``item``: ``split``, one of ``whole`` (a single token), ``easy`` (all parts meet where tokens do), ``mixed``
        (some do), ``hard`` (none does; two or more tokens), empty for words that their tokens do not spell;
        ``n_tokens`` and ``n_parts``.  On ``label``: ``n_compounds`` and ``share``.

    Raises
    ------
    ValueError
        If parts do not make up their word, or a word has one part only.

    References
    ----------
    Minixhofer et al. 2023, arXiv 2305.14214, from whose idea of hard compounds (no public code) the labels are.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.compound_splits(ti.load_tokenizer(), [("bookshelf", ["book", "shelf"])])
    >>> ds["split"].values.tolist()
    ['hard']
    """
    gold = gold_parts("compounds", compounds)
    if single := [w for w, parts in compounds if len(parts) < 2]:
        refuse("compounds", single[0], "it has one part: leave out words that are no compounds")
    inference = Inference(tokenizer, None, space)
    cuts = inference.cut([w for w, _ in compounds])
    labels = []
    for cut, parts in zip(cuts, gold, strict=True):
        if cut is None:
            labels.append("")
            continue
        made = {place - len(inference.before) for place in inner_places(cut)} - {0}
        met = len(made & inner_places(parts))
        part = "whole" if not made else "easy" if met == len(parts) - 1 else "mixed" if met else "hard"
        labels.append(part)
    counts = np.array([labels.count(x) for x in LABELS])
    ds = xr.Dataset(
        {
            "split": variable("item", np.array(labels), "whether tokens end where parts meet", "1", MINIXHOFER),
            "n_tokens": variable("item", [0 if c is None else len(c) for c in cuts], "tokens of the word", "token"),
            "n_parts": variable("item", [len(p) for p in gold], "parts of the compound", "1"),
            "n_compounds": variable("label", counts, "compounds", "word"),
            "share": variable("label", ratio(counts, counts.sum()), "share of the compounds that tokens spell", "1"),
        },
        {
            "item": variable("item", np.arange(len(gold)), "number of the word", "1"),
            "word": variable("item", np.array([w for w, _ in compounds]), "word", "1"),
            "label": variable("label", np.array(LABELS), "how tokens split a compound", "1"),
        },
        {"dimensions": "item, label"},
    )
    texts = hash_json([[w, list(p)] for w, p in compounds])
    ds = stamped_tokenizers(ds, "compound_splits", [tokenizer], {"space": space}, texts)
    check(ds)
    return ds


def _parts(name: str, given: Sequence[Sequence[str]]) -> list[list[str]]:
    out = [[given_one] if isinstance(given_one, str) else list(given_one) for given_one in given]
    for n, parts in enumerate(out):
        if not parts or not all(isinstance(p, str) and p for p in parts):
            refuse(name, parts, f"number {n} has an empty part: give the parts of each word")
    return out


@checked(
    tokenizer=tokenizer, found=several(string | several(string, 1), 1), gold=several(string | several(string, 1), 1)
)
def decompounding_scores(
    tokenizer: Any,
    found: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Score what a model or program says are the parts of words, apart by how tokens split them.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        That of the model, by which compounds are hard or easy.
    found, gold : sequence of sequence of str
        Parts of each word; one part for a word that is no compound.
    level, n_boot, seed
        Of the intervals, over words.

    Returns
    -------
    xarray.Dataset
        On ``subset`` (compounds, not compounds, all, and compounds by their ``split``, see `compound_splits`):
        ``accuracy``, the share of words whose parts are all right, its interval, and ``n_words``.

    Raises
    ------
    ValueError
        If the lists are not of one length.

    References
    ----------
    Minixhofer et al. 2023, arXiv 2305.14214.

    Examples
    --------
    >>> import tokinterp as ti
    >>> gold = [["book", "shelf"], ["water"]]
    >>> ds = ti.tokenizers.decompounding_scores(ti.load_tokenizer(), [["books", "helf"], ["water"]], gold)
    >>> ds["accuracy"].sel(subset=["compounds", "not compounds", "all"]).values.tolist()
    [0.0, 1.0, 0.5]
    """
    said, wanted = _parts("found", found), _parts("gold", gold)
    if len(said) != len(wanted):
        refuse("found", len(said), f"as many words as in gold are needed, {len(wanted)}")
    right = np.array([a == b for a, b in zip(said, wanted, strict=True)], dtype=np.float64)
    compound = np.array([len(parts) > 1 for parts in wanted])
    label = np.full(len(wanted), "", dtype=object)
    if compound.any():
        pairs = [("".join(parts), parts) for parts in wanted if len(parts) > 1]
        label[compound] = compound_splits(tokenizer, pairs)["split"].values
    subsets = {"compounds": compound, "not compounds": ~compound, "all": np.ones(len(wanted), bool)}
    subsets |= {x: label == x for x in LABELS}
    values = [right[s].mean() if s.any() else np.nan for s in subsets.values()]
    draw: dict[str, Any] = {"level": level, "n_boot": n_boot, "seed": seed}
    bounds = [mean_interval(right[s], **draw) if s.any() else np.full(2, np.nan) for s in subsets.values()]
    said_of = f"{level:.0%} bootstrap interval of the accuracy over words"
    ds = xr.Dataset(
        {
            "accuracy": variable("subset", values, "share of words whose parts are all right", "1", MINIXHOFER),
            "accuracy_interval": variable(("subset", "bound"), np.array(bounds), said_of, "1"),
            "n_words": variable("subset", [int(s.sum()) for s in subsets.values()], "words", "word"),
        },
        {"subset": variable("subset", np.array(list(subsets)), "which words", "1"), "bound": bound_coord()},
    )
    settings = {"level": level, "n_boot": n_boot}
    ds = stamped_tokenizers(ds, "decompounding_scores", [tokenizer], settings, hash_json([said, wanted]), seed)
    check(ds)
    return ds
