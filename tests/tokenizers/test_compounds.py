"""Compounds that tokens split well or badly, and scores of their parts."""

import numpy as np
import pytest
from tiny import unigram_tokenizer as plain

import tokinterp as ti
from tokinterp.tokenizers import compound_splits, decompounding_scores

COMPOUNDS = [
    ("bookcoat", ["book", "coat"]), ("doorbell", ["door", "bell"]), ("rainwindmill", ["rain", "wind", "mill"]),
    ("windmill", ["wind", "mill"]),
]  # fmt: skip


def prefix_tokenizer():
    return plain(
        "book", "shelf", "door", "bell", "doorbell", "rain", "coat", "windm", "ill", "wind", "mill", "é",
        scores=[-1.0] * 9 + [-9.0] * 3,
    )  # fmt: skip


def test_labels_of_planted_compounds():
    ds = compound_splits(prefix_tokenizer(), [*COMPOUNDS, ("éx", ["é", "x"])])
    ti.check(ds)
    assert ds["split"].values.tolist() == ["easy", "whole", "mixed", "hard", ""]
    assert ds["n_compounds"].to_series().to_dict() == {"whole": 1, "easy": 1, "mixed": 1, "hard": 1}
    assert ds["n_tokens"].values.tolist() == [2, 1, 3, 2, 0]
    assert float(ds["share"].sum()) == 1
    assert np.isnan(compound_splits(prefix_tokenizer(), [("éx", ["é", "x"])])["share"]).all()  # none is spelt
    with pytest.raises(ValueError, match=r"^compounds='rain': it has one part"):
        compound_splits(prefix_tokenizer(), [*COMPOUNDS, ("rain", ["rain"])])


def test_scores_apart_by_how_tokens_split():
    gold = [p for _, p in COMPOUNDS] + [["rain"], "coat"]
    found = [["book", "coat"], ["doorbell"], ["rain", "wind", "mill"], ["windm", "ill"], ["rain"], ["co", "at"]]
    ds = decompounding_scores(prefix_tokenizer(), found, gold)
    ti.check(ds)
    known = {"compounds": 0.5, "not compounds": 0.5, "all": 0.5, "whole": 0, "easy": 1, "mixed": 1, "hard": 0}
    assert ds["accuracy"].to_series().to_dict() == known
    assert ds["n_words"].values.tolist() == [4, 2, 6, 1, 1, 1, 1]
    assert np.isnan(ds["accuracy_interval"].sel(subset="hard")).all()
    none = decompounding_scores(prefix_tokenizer(), ["rain"], ["rain"])
    assert np.isnan(none["accuracy"].sel(subset="compounds"))
    with pytest.raises(ValueError, match=r"^found=1: as many words as in gold"):
        decompounding_scores(prefix_tokenizer(), ["rain"], gold)
