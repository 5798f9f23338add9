"""What a token means in each text, told by single codes: chosen in some texts, scored in others."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from ..kernels.roc import auroc
from ..results.dataset import variable

if TYPE_CHECKING:
    from ..text.prompts import Prompts

PERMUTED = 20  # draws of senses without codes


def tell_senses(
    codes: np.ndarray, senses: np.ndarray, fitted: np.ndarray, seed: int = 0, document: np.ndarray | None = None
) -> np.ndarray:
    """Return (3, sense) the AUROC of held-out texts by the best code of the fitted ones, that of permuted senses, code.

    Parameters
    ----------
    codes : numpy.ndarray
        (sample, concept).
    senses : numpy.ndarray
        (sample,) strings; "" takes no part.
    fitted : numpy.ndarray
        (sample,) bool, the samples in which the code (and its sign) is chosen.
    seed : int
        Of the permutations.
    document : numpy.ndarray, optional
        (sample,) whose senses are permuted together, and are the same; each sample by itself by default.

    Examples
    --------
    >>> codes = np.array([[1.0, 0], [2, 1], [0, 1], [0, 0], [3, 1], [0, 2]])
    >>> senses = np.array(["a", "a", "b", "b", "a", "b"])
    >>> tell_senses(codes, senses, np.arange(6) < 4)[[0, 2]].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    used = senses != ""
    group = np.arange(int(used.sum())) if document is None else document[used]
    codes, senses, fitted = codes[used], senses[used], fitted[used]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rng, names = np.random.default_rng(seed), sorted({*senses.tolist()})
    found = np.array([_best_code(codes, senses == n, fitted) for n in names]).T
    drawn = [[_best_code(codes, p == n, fitted)[0] for n in names]
             for p in (rng.permutation(senses[first])[group] for _ in range(PERMUTED))]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a sense that no draw has on both sides
        return np.stack([found[0], np.nanmean(drawn, 0), found[1]])


def _best_code(codes: np.ndarray, yes: np.ndarray, fitted: np.ndarray) -> tuple[float, int]:
    """Return the AUROC of held-out samples by the code that tells the fitted ones apart best, and that code; or NaN."""
    if min(np.unique(yes[side]).size for side in (fitted, ~fitted)) < 2:
        return float("nan"), -1
    area = area_of(codes[fitted], yes[fitted])
    best = int(np.abs(area - 0.5).argmax())
    return float(area_of(codes[~fitted][:, [best]] * np.sign(area[best] - 0.5), yes[~fitted])[0]), best


def area_of(scores: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """Return (column,) the AUROC of each column of scores for the rows that are, against the others."""
    there = torch.from_numpy(yes)[None]
    return auroc(torch.from_numpy(scores.T), there, ~there).numpy()


def sense_variables(found: Sequence[np.ndarray]) -> dict[str, xr.Variable]:
    """Return the variables of a result from what `tell_senses` found by each dictionary."""
    v, each, table = variable, ("dictionary", "sense"), np.stack(found)
    return {
        "auroc": v(each, table[:, 0], "AUROC of the best code for the sense in other texts", "1", range=(0, 1),
                   chance=0.5, beside=["auroc_null"]),
        "auroc_null": v(each, table[:, 1], "the same for permuted senses", "1", range=(0, 1), short="permuted senses"),
        "sense_concept": v(each, table[:, 2].astype(int), "concept that tells the sense, -1 without both", "1"),
    }  # fmt: skip


def senses_told(senses: Sequence[str], prompts: Prompts, number: np.ndarray) -> np.ndarray:
    """Return (sample,) the senses of the documents of some prompts, if two different ones at least have samples."""
    n = int(prompts.documents.max()) + 1
    if len(senses) != n or len({*senses} - {""}) < 2:
        raise ValueError(f"senses: {len(senses)} of them, {len({*senses} - {''})} different: give one for each of {n} "
                         "texts, of two or more senses")  # fmt: skip
    told = np.array(list(senses), object)[prompts.documents[number]]
    if len(found := {*told.tolist()} - {""}) < 2:
        raise ValueError(f"senses: the token stands in texts of {len(found)} of them: give texts of two or more")
    return told
