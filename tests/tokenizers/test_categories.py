"""Classes and scripts of tokens: one of each kind, and shares that are those of plain counts."""

import json

import numpy as np
import pytest
import tokenizers
import transformers
from tiny import byte_tokenizer, unigram_tokenizer

import tokinterp as ti
from tokinterp.tokenizers import token_categories
from tokinterp.tokenizers.categories import CLASSES, classify, cut_of

KNOWN = {
    "a": ("pure_byte", ""), "é": ("pure_byte", ""), "ж": ("char_alpha", "CYRILLIC"), "…": ("char_other", ""),
    " ": ("char_other", ""), "\n": ("char_error", ""), " the": ("spaced_alpha", "LATIN"), " a1": ("spaced_other", ""),
    " été": ("spaced_alpha", "LATIN"), " \n": ("spaced_error", ""), "ing": ("inner_alpha", "LATIN"),
    "жa": ("inner_other", ""), "12": ("inner_other", ""), "\n\n": ("inner_error", ""), "日本": ("inner_alpha", "CJK"),
    "</s>": ("control", ""), "[PAD]": ("control", ""), "<br/>": ("inner_other", ""), "</H1>": ("inner_other", ""),
    " <s>": ("spaced_other", ""), "�": ("fragment", ""),
}  # fmt: skip


def test_tokens_of_every_class():
    assert {text: classify(text.encode()) for text in KNOWN} == KNOWN
    assert classify(b"\xe2\x80") == classify(b"a\x80b") == classify(b"<\x80>") == ("fragment", "")
    assert classify(b"\x80", is_byte=True) == classify(b" ", is_byte=True) == ("pure_byte", "")
    assert {c for c, _ in KNOWN.values()} == {*CLASSES} - {"no_token"}


def test_shares_are_of_ids_that_have_a_token():
    tok = byte_tokenizer()
    ds = token_categories(tok, size=len(tok) + 5)
    ti.check(ds)
    n = ds["n_ids"].to_series()
    assert n["no_token"] == 5
    assert n.sum() == len(tok) + 5
    assert n["control"] == 3
    assert n["fragment"] == 128
    assert float(ds["share"].sum()) == pytest.approx(1)
    assert np.isnan(ds["share"].sel(kind="no_token"))
    assert float(ds["share_script_alpha"].sum()) == pytest.approx(1)
    table = ds["n_ids_script"].sel(script="LATIN").to_series().to_dict()
    assert table == {"char": 0, "spaced": n["spaced_alpha"], "inner": n["inner_alpha"]}
    assert float(ds["share_script"].sum()) == pytest.approx(sum(table.values()) / len(tok))


def digits(*pieces):
    """A byte-level tokenizer that also has these digit strings."""
    tok = byte_tokenizer()
    inner = json.loads(tok.backend_tokenizer.to_str())
    vocab, merges = inner["model"]["vocab"], inner["model"]["merges"]
    for piece in pieces:
        merges += [[piece[:-1], piece[-1]], *([[piece[0], piece[1:]]] if len(piece) > 2 else [])]
        vocab[piece] = len(vocab)
    inner["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\d{1,3}(?=(\d{3})*\b)"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]}  # fmt: skip
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(inner)))


def test_numbers_are_cut_as_their_tokens_are():
    ds = token_categories(byte_tokenizer())
    assert ds["number_tokens"].values.tolist() == pytest.approx(range(1, 13))
    assert ds["number_cut"].sel(cut="single")[1:].values.tolist() == [1] * 11
    assert float(ds["number_cut"].sel(cut="whole", digits=1)) == 1
    np.testing.assert_allclose(ds["number_cut"].sum("cut"), 1)
    two = [f"{n:02}" for n in range(100)]
    three = [f"{n:03}" for n in range(1000)]
    right = token_categories(digits(*two, *three))
    for n in range(1, 13):
        assert float(right["number_tokens"].sel(digits=n)) == pytest.approx(-(-n // 3))
        cut = "whole" if n < 4 else "right" if n % 3 else "threes"  # from which end is not to be seen of whole threes
        assert float(right["number_cut"].sel(digits=n, cut=cut)) == pytest.approx(1)
    assert cut_of([3, 1]) == "left"
    assert cut_of([2, 2]) == "other"
    few = token_categories(unigram_tokenizer("7", "a"))  # it spells the number 7 alone
    assert few["number_tokens"].values[:2].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert float(few["number_cut"].sel(digits=1, cut="whole")) == 1
    assert np.isnan(few["number_cut"].sel(digits=5)).all()


def test_used_shares_are_those_of_a_count():
    tok = byte_tokenizer()
    prompts = ti.Prompts.from_texts(["the the river", "the ring é"], tok, progress=False)
    ds = token_categories(tok, prompts)
    kinds = ds["token_kind"].values
    for kind in ("spaced_alpha", "pure_byte", "fragment", "control"):
        used = [i for i in {*prompts.token_ids.tolist()} if kinds[i] == kind]
        all_uses = [i for i in prompts.token_ids.tolist() if kinds[i] == kind]
        assert float(ds["share_used"].sel(kind=kind)) == pytest.approx(len(used) / len({*prompts.token_ids.tolist()}))
        assert float(ds["share_text"].sel(kind=kind)) == pytest.approx(len(all_uses) / len(prompts.token_ids))
    assert ds.attrs["prompts"] == prompts.hash
    with pytest.raises(ValueError, match=r"^prompts=.*made with another tokenizer"):
        token_categories(ti.load_tokenizer(), prompts)
