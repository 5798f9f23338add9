"""The overview of tokenizers: equal to plain counts of their entries, tokens and words."""

from collections import Counter

import numpy as np
import pytest
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.tokenizers import tokenizer_overview

TEXTS = {"en": ["The river and the river bank.", "A riverbank, and the sea."], "ru": ["Вот река и море, вот река."]}


def test_ranks_words_and_entries_are_those_of_plain_counts():
    made = {"bytes": byte_tokenizer(), "bundled": ti.load_tokenizer()}
    ds = tokenizer_overview(made, TEXTS, worst=3)
    ti.check(ds)
    for name, tok in made.items():
        for lang, texts in TEXTS.items():
            ids = Counter(i for t in texts for i in tok(t, add_special_tokens=False)["input_ids"])
            known = [n / ids.total() for _, n in ids.most_common()]
            found = ds["frequency"].sel(tokenizer=name, lang=lang)
            for rank in (1, 2, 3):
                assert found.sel(token_rank=rank).item() == pytest.approx(known[rank - 1])
        words = Counter((lang, w) for lang, texts in TEXTS.items() for t in texts for w in t.split())
        cost = {k: (len(tok(" " + k[1], add_special_tokens=False)["input_ids"]) - 1) * n for k, n in words.items()}
        got = ds.sel(tokenizer=name)
        rows = zip(got["n_tokens"].values, got["count"].values, strict=True)
        listed = [(n - 1) * k for n, k in rows]
        assert listed == sorted(cost.values(), reverse=True)[:3]
        assert got["share_length"].sum().item() == pytest.approx(1)
        assert got["share_script"].sum().item() == pytest.approx(1)
    one = ds["share_script"].sel(tokenizer="bundled")
    assert one.sel(script="LATIN") > 0.9
    largest = ds["share_script"].max("tokenizer").values
    assert ds["script"].values[0] == "LATIN"
    assert (np.diff(largest) <= 0).all()
    entries = [t for t in ("Ġthe", "Ġand", "Ġriver", "ing", "Ġto", "Ġin") if t in byte_tokenizer().get_vocab()]
    assert entries
    assert ds["share_length"].sel(tokenizer="bytes", n_chars=6).item() > 0


def test_a_language_without_words_is_named():
    with pytest.raises(ValueError, match="corpora, texts, de: no word"):
        tokenizer_overview({"bytes": byte_tokenizer()}, {"en": ["a"], "de": [" "]})


def test_words_kept_are_bounded(monkeypatch):
    monkeypatch.setattr("tokinterp.tokenizers.overview.KNOWN", 2)
    ds = tokenizer_overview({"bytes": byte_tokenizer()}, {"en": ["ab cd ef ab"]}, worst=9)
    assert dict(zip(ds["word"].values[0], ds["count"].values[0], strict=True)) == {"ab": 2, "cd": 1}
    assert np.isfinite(ds["frequency"].sel(token_rank=1)).all()
    ds = tokenizer_overview({"bytes": byte_tokenizer()}, {"en": ["ab cd ef ab"], "de": ["gh ij"]}, worst=9)
    assert sorted(ds["word"].values[0]) == ["ab", "gh"], "a large language leaves room for the others"
