"""Classes and scripts of tokens: one of each kind, and shares that are those of plain counts."""

import numpy as np
import pytest
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.tokenizers import token_categories
from tokinterp.tokenizers.categories import CLASSES, classify

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
