"""Numbers of tokenizers on texts: equal to plain loops, whatever the batches, shards and processes."""

import numpy as np
import pytest
from tiny import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tokinterp as ti
from tokinterp.stats.resample import ratio_interval
from tokinterp.tokenizers import tokenizer_metrics

EN = [t.text[:300] for t in ti.bundled_texts("story")[:8]]
DE = [t.text[100:350].replace("the", "däß") for t in ti.bundled_texts("story")[:8]]
TWO = {"en": EN, "de": DE}


def both():
    return {"bundled": ti.load_tokenizer(), "bytes": byte_tokenizer()}


def words_only(**names):
    inner = Tokenizer(models.WordLevel({"[?]": 0, "sea": 1, "the": 2, "a": 3}, unk_token="[?]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[?]", **names)


def one(ds, name, **at):
    return ds[name].sel(corpus="texts", **at).values


def test_ratios_are_those_of_a_plain_count():
    tokenizers = both()
    ds = tokenizer_metrics(tokenizers, TWO, base="bytes", base_lang="en", n_boot=200)
    ti.check(ds)
    for name, tok in tokenizers.items():
        lengths = {
            lang: np.array([len(tok(t, add_special_tokens=False)["input_ids"]) for t in ts]) for lang, ts in TWO.items()
        }
        for lang, texts in TWO.items():
            n, joined = lengths[lang], " ".join(texts)
            at = {"tokenizer": name, "lang": lang}
            assert one(ds, "n_tokens", **at) == n.sum()
            assert one(ds, "fertility", **at) == pytest.approx(n.sum() / len(joined.split()))
            assert one(ds, "chars_per_token", **at) == pytest.approx(sum(map(len, texts)) / n.sum())
            assert one(ds, "bytes_per_token", **at) == pytest.approx(sum(len(t.encode()) for t in texts) / n.sum())
            assert one(ds, "tokens_per_text", **at) == n.mean()
            assert one(ds, "premium", **at) == pytest.approx(n.sum() / lengths["en"].sum())
            assert one(ds, "parity", **at) == pytest.approx((n / lengths["en"]).mean())
            interval = ratio_interval(n.astype(float), lengths["en"].astype(float), n_boot=200)
            assert one(ds, "premium_interval", **at) == pytest.approx(interval)
            single = [len(tok(" " + w, add_special_tokens=False)["input_ids"]) == 1 for w in joined.split()]
            assert one(ds, "single_words", **at) == pytest.approx(np.mean(single))
            byte = [len(byte_tokenizer()(t, add_special_tokens=False)["input_ids"]) for t in texts]
            assert one(ds, "nsl", **at) == pytest.approx(n.sum() / sum(byte))
            assert one(ds, "coverage", **at) == 1
    assert one(ds, "premium_interval", tokenizer="bytes", lang="en").tolist() == [1, 1]
    assert float(one(ds, "premium", tokenizer="bundled", lang="de")) != 1


def test_how_tokens_are_used_is_that_of_a_plain_count():
    tok = ti.load_tokenizer()
    ds = tokenizer_metrics({"bundled": tok}, TWO)
    p = {}
    for lang, texts in TWO.items():
        n = np.bincount([i for t in texts for i in tok(t, add_special_tokens=False)["input_ids"]], minlength=len(tok))
        p[lang] = n / n.sum()
        at = {"tokenizer": "bundled", "lang": lang}
        assert one(ds, "n_types", **at) == (n > 0).sum()
        ranked = sorted(p[lang], reverse=True)
        assert one(ds, "average_rank", **at) == pytest.approx(sum(r * q for r, q in enumerate(ranked)))
        renyi = np.log((p[lang] ** 2.5).sum()) / (1 - 2.5) / np.log((n > 0).sum())
        assert one(ds, "renyi_efficiency", **at) == pytest.approx(renyi)
        low, high = one(ds, "renyi_efficiency_interval", **at)
        assert low < renyi < high
    half = (p["en"] + p["de"]) / 2
    jsd = sum((q[q > 0] * np.log2(q[q > 0] / half[q > 0])).sum() / 2 for q in p.values())
    assert one(ds, "jsd", tokenizer="bundled", lang="en", other_lang="de") == pytest.approx(jsd)
    assert one(ds, "jsd", tokenizer="bundled", lang="en", other_lang="en") == 0
    low, high = one(ds, "jsd_interval", tokenizer="bundled", lang="en", other_lang="de")
    assert low < jsd < high


@pytest.mark.slow
def test_same_numbers_in_two_processes():
    one_process = tokenizer_metrics({"bytes": byte_tokenizer()}, TWO, base_lang="en")
    two = tokenizer_metrics({"bytes": byte_tokenizer()}, TWO, base_lang="en", n_jobs=2)
    assert two.attrs["fingerprint"] == one_process.attrs["fingerprint"]


def test_unknown_words_are_counted_by_characters():
    texts = {"en": ["the sea", "a  ship"], "de": ["das meer", "the sea"]}
    ds = tokenizer_metrics({"words": words_only()}, texts, base_lang="en", max_unknown=0.5)
    assert one(ds, "coverage", tokenizer="words").tolist() == [0.75, 0.5]
    assert one(ds, "unknown_chars", tokenizer="words").tolist() == [4 / 14, 7 / 15]
    assert one(ds, "single_words", tokenizer="words").tolist() == [0.75, 0.5]
    assert one(ds, "premium", tokenizer="words", lang="de") == 1
    dropped = tokenizer_metrics({"words": words_only()}, texts, base_lang="en", max_unknown=0.4)
    assert np.isnan(one(dropped, "premium", tokenizer="words", lang="de"))
    assert np.isnan(one(dropped, "parity", tokenizer="words", lang="de"))


class Slow:
    """A tokenizer without offsets."""

    is_fast, unk_token_id, name_or_path = False, 0, "slow"

    def get_vocab(self):
        return {"[?]": 0, "sea": 1}

    def __len__(self):
        return 2

    def convert_ids_to_tokens(self, ids):
        return [["[?]", "sea"][i] for i in ids]

    def __call__(self, texts, **settings):
        texts = [texts] if isinstance(texts, str) else texts
        return {"input_ids": [[int(w == "sea") for w in t.split()] for t in texts]}


def test_a_tokenizer_without_offsets_says_no_characters():
    ds = tokenizer_metrics({"slow": Slow()}, {"en": ["sea sea"], "de": ["sea meer"]}, base_lang="en")
    assert one(ds, "coverage", tokenizer="slow").tolist() == [1, 0.5]
    assert one(ds, "unknown_chars", tokenizer="slow", lang="en") == 0
    for name in ("unknown_chars", "premium"):
        assert np.isnan(one(ds, name, tokenizer="slow", lang="de")), name


def test_vocabularies_are_compared_by_bytes_and_as_written():
    ds = tokenizer_metrics({**both(), "words": words_only()}, {"en": EN[:1]})
    left, right = (ti.text.Vocabulary(t) for t in both().values())
    a, b = ({*v.bytes(np.flatnonzero(v.there))} for v in (left, right))
    table = ds["vocab_jaccard"].to_series()
    assert table["bundled", "bytes"] == table["bytes", "bundled"] == len(a & b) / len(a | b) > 0
    assert table["words", "words"] == 1
    assert ds["vocab_jaccard_raw"].to_series()["bytes", "words"] == 1 / (len(byte_tokenizer()) + 3)


def test_corpora_may_lack_languages():
    ds = tokenizer_metrics({"b": byte_tokenizer()}, {"x": {"en": EN, "de": DE}, "y": {"en": EN[:2]}})
    assert np.isnan(ds["n_tokens"].sel(corpus="y", lang="de").item())
    assert np.isnan(ds["fertility_interval"].sel(corpus="y", lang="en").values).all()
    assert ds["n_texts"].sel(corpus="y", lang="en") == 2


def test_bad_input_is_refused_in_one_line():
    tokenizers = {"bytes": byte_tokenizer()}
    with pytest.raises(ValueError, match=r"8 texts of 'en' and 3 of 'de'|3 texts of 'de' and 8 of 'en'"):
        tokenizer_metrics(tokenizers, {"en": EN, "de": DE[:3]}, base_lang="en")
    assert tokenizer_metrics(tokenizers, {"en": EN, "de": DE[:3]})["n_texts"].values.tolist() == [[8, 3]]
    with pytest.raises(ValueError, match=r"no text in 'en'"):
        tokenizer_metrics(tokenizers, {"en": iter_nothing()})
    with pytest.raises(ValueError, match=r"text 1 of a batch, .* cannot be encoded by 'bytes'"):
        tokenizer_metrics(tokenizers, {"en": ["good", "\ud800"]})
    with pytest.raises(ValueError, match=r"^base='gpt2': give one of the tokenizers 'bytes'"):
        tokenizer_metrics(tokenizers, TWO, base="gpt2")
    with pytest.raises(ValueError, match=r"^base_lang='fr': corpus 'texts' has 'en', 'de'"):
        tokenizer_metrics(tokenizers, TWO, base_lang="fr")


def iter_nothing():
    class Nothing:
        column_names = ("text",)

        def __iter__(self):
            return iter(())

    return Nothing()
