"""What tokenizers may hold or lack: added tokens, ids without strings, no offsets, texts that they cannot encode."""

import copy
import json

import numpy as np
import pytest
import transformers as tr
from tiny import byte_tokenizer, unigram_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tokinterp as ti

T = ti.tokenizers
WORDS = [("kindness", ["kind", "ness"])]


def with_added():
    made = copy.deepcopy(byte_tokenizer())
    made.add_tokens(["<eats>", "Nile"])
    return made


def with_gaps():
    """Ids 0, 1 and 4: none has the strings of 2 and 3."""
    inner = Tokenizer(models.WordLevel({"sea": 0, "blue": 4, "?": 1}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")


def slow():
    return tr.ByT5Tokenizer(extra_ids=0)


MADE = {"added": with_added, "gaps": with_gaps, "slow": slow}
TEXTS = {"en": ["sea blue", "blue Nile <eats>"], "de": ["sea", "blue sea"]}


@pytest.mark.parametrize("name", MADE)
def test_they_are_counted(name):
    tok = MADE[name]()
    ds = T.tokenizer_metrics({name: tok}, TEXTS, base_lang="en")
    plain = {lang: [i for t in ts for i in tok(t, add_special_tokens=False)["input_ids"]] for lang, ts in TEXTS.items()}
    for lang, ids in plain.items():
        at = ds.sel(lang=lang).isel(corpus=0, tokenizer=0)
        assert (int(at["n_tokens"]), int(at["n_types"])) == (len(ids), len({*ids}))
    reach, kinds = T.token_reachability(tok), T.token_categories(tok)
    n = 1 + max(tok.get_vocab().values())
    assert reach.sizes["vocab"] == kinds.sizes["vocab"] == n
    lacking = n - len({*tok.get_vocab().values()})
    assert int(reach["n_ids"].sel(category="no_token")) == int(kinds["n_ids"].sel(kind="no_token")) == lacking
    assert T.tokenizer_overview({name: tok}, TEXTS, worst=2)["word"].sizes["place"] == 2
    assert T.boundary_scores(tok, {"mine": WORDS})["n_unspelt"].item() == (name == "gaps")


def test_added_tokens_are_entries_of_the_vocabulary():
    tok = with_added()
    ds = T.token_reachability(tok)
    ids = [tok.convert_tokens_to_ids(t) for t in ("<eats>", "Nile")]
    assert ds["reachability"].values[ids].tolist() == ["ok", "ok"]
    assert T.token_categories(tok)["token_kind"].values[ids].tolist() == ["control", "inner_alpha"]
    one = T.tokenizer_metrics({"a": tok}, {"en": ["Nile"]})
    assert one["n_tokens"].item() == 1


def test_a_tokenizer_without_offsets_and_unknown_words_has_premiums():
    ds = T.tokenizer_metrics({"slow": slow()}, TEXTS, base_lang="en")
    assert np.isfinite(ds["premium"]).all()
    assert float(ds["unknown_chars"].max()) == 0


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    tok = byte_tokenizer()
    calls = [
        (lambda: T.tokenizer_metrics({"a": tok}, {"en": ["fine", "\udcff"]}), "cannot be encoded by 'a'"),
        (lambda: T.tokenizer_metrics({"a": tok}, {"en": ["x"], "de": ["y", "z"]}, base_lang="en"), "line by line"),
        (lambda: T.tokenizer_overview({"a": tok}, {"en": [" ", ""]}), "no word in its texts"),
        (lambda: T.infer_mixture(unigram_tokenizer("a"), {"a": ["b"], "b": ["a"]}), "no list of merges"),
        (lambda: T.segment_words(unigram_tokenizer("a"), ["a"], "merges"), "no list of merges"),
        (lambda: T.segment_words(tok, ["a"], "order"), "no scores of its tokens"),
        (lambda: T.tokenizer_metrics({"a": tok}, {"en": tmp_path / "absent.txt"}), "absent.txt"),
        (lambda: T.flores(tmp_path), "no files dev/LANG.dev"),
    ]
    made = json.loads(tok.backend_tokenizer.to_str())
    made["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    calls.append((lambda: ti.load_tokenizer(tmp_path), "no merges that make them"))
    for call, said in calls:
        with pytest.raises((ValueError, OSError), match=said) as error:
            call()
        assert "\n" not in str(error.value), said
