"""Boundaries, coverage and correlations: planted words whose numbers are plain."""

import numpy as np
import pytest
from tiny import byte_tokenizer
from tiny import unigram_tokenizer as plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tokinterp as ti
from tokinterp.tokenizers import boundary_scores, chunkability, derivational_coverage

PIECES = ["un", "do", "ing", "u", "n", "d", "o", "i", "g", "undo", "oing"]
WORDS = [("undoing", ["un", "do", "ing"]), ("doing", ["do", "ing"]), ("going", ["go", "ing"]), ("undo", ["un", "do"])]


def test_boundaries_of_planted_words():
    ds = boundary_scores(plain(*PIECES), {"mine": WORDS}, methods=["longest_prefix", "longest_suffix"])
    ti.check(ds)
    one = ds.sel(resource="mine")
    assert one["n_words"].sel(convention="all").values.tolist() == [4, 4]
    assert one["n_words"].sel(convention="greed").values.tolist() == [2, 2]  # undo is a token, go is none
    greed = one.sel(convention="greed", inference="longest_prefix")
    assert [float(greed[k]) for k in ("precision", "recall")] == pytest.approx([1, 2 / 3])  # undo ing, do ing
    assert float(greed["boundary_f1"]) == pytest.approx(2 / (2 + 0.5))
    suffix = one.sel(convention="greed", inference="longest_suffix")
    assert float(suffix["boundary_f1"]) == pytest.approx(1 / (1 + 0.5 * (2 + 2)))  # un d oing, d oing
    every = one.sel(convention="all", inference="longest_prefix")
    assert float(every["boundary_f1"]) == pytest.approx(2 / (2 + 0.5 * (1 + 3)))  # g oing, undo too
    assert float(ds["mean_f1"].sel(convention="greed", inference="longest_prefix")) == pytest.approx(0.8)


def test_marks_of_spaces_and_pieces_are_no_characters():
    vocab = {p: n for n, p in enumerate(["?", "un", "##do", "##ing", "do"])}
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="?"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    pieces = boundary_scores(ti.load_tokenizer().__class__(tokenizer_object=inner, unk_token="?"), {"x": WORDS[:2]})
    assert pieces["boundary_f1"].values.ravel().tolist() == [1, 1]
    assert pieces["n_words"].values.ravel().tolist() == [2, 2]
    spaced = boundary_scores(byte_tokenizer(), {"x": [("ab", ["a", "b"])]}, methods=["longest_prefix"])
    assert spaced["boundary_f1"].sel(convention="all").item() == 1


def test_words_that_tokens_do_not_spell_are_counted():
    ds = boundary_scores(plain(*PIECES), {"a": WORDS, "b": [("undö", ["un", "dö"])]}, methods=["own", "longest_prefix"])
    assert ds["n_unspelt"].sel(resource="b").values.tolist() == [1, 0]
    assert np.isnan(ds["boundary_f1"].sel(resource="b", convention="all", inference="own"))
    with pytest.raises(ValueError, match=r"^resources, a=.*: number 1: the parts do not make up 'doing'"):
        boundary_scores(plain(*PIECES), {"a": [WORDS[0], ("doing", ["do", "in"])]})


def test_interval_of_boundaries_is_over_words():
    ds = boundary_scores(plain(*PIECES), {"a": WORDS * 5}, methods=["longest_prefix"], n_boot=300)
    low, high = ds["boundary_f1_interval"].sel(convention="all").values.ravel()
    assert low < ds["boundary_f1"].sel(convention="all").item() < high
    three = boundary_scores(plain(*PIECES), {"a": WORDS[:2]}, methods=["longest_prefix"])
    assert np.isnan(three["boundary_f1_interval"]).all()


def test_coverage_is_of_frequent_morphemes():
    given = ["ing"] * 50 + ["UN"] * 30 + ["xx"] * 19 + ["rare"]
    ds = derivational_coverage(plain(*PIECES), given, least=0.01)
    assert ds["covered"].to_series().to_dict() == {"UN": True, "ing": True, "xx": False}
    assert float(ds["derivational_coverage"]) == pytest.approx(2 / 3)
    assert "rare" in derivational_coverage(plain(*PIECES), given, least=0.009)["morpheme"]
    with pytest.raises(ValueError, match=r"^least=0.9: no morpheme"):
        derivational_coverage(plain(*PIECES), given, least=0.9)


def test_chunkability_and_its_correlation():
    words, kinds = ["undo", "doing", "ing", "un", "gig", "dig", "undoing", "d"], list("WWWWNNNN")
    times = np.array([1.0, 2, 4, np.nan, 3, 5, 2, 2])
    ds = chunkability(plain(*PIECES), words, kinds, {"rt": times, "accuracy": -times}, method="longest_prefix")
    ti.check(ds)
    value = 1 - np.array([1, 2, 1, 1, 3, 3, 2, 1]) / [len(w) for w in words]
    assert ds["chunkability"].values == pytest.approx(value)
    assert ds["n_words"].sel(measure="rt").values.tolist() == [4, 3]
    assert float(ds["correlation"].sel(word_kind="N", measure="rt")) == pytest.approx(
        np.corrcoef(value[4:], times[4:])[0, 1]
    )
    assert float(ds["correlation"].sel(word_kind="W", measure="rt")) == pytest.approx(
        np.corrcoef(value[:3], times[:3])[0, 1]
    )
    assert float(ds["correlation"].sum()) == pytest.approx(0)
    assert float(ds["cognitive_score"]) == pytest.approx(float(np.abs(ds["correlation"]).mean()))
    with pytest.raises(ValueError, match=r"^kinds=.*: 7 values for 8 words"):
        chunkability(plain(*PIECES), words, kinds[:7], {"rt": times})
