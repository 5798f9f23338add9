"""Texts in other tokens: they spell the same, spans find them, marks and conditions fit, agreement is by hand's."""

import numpy as np
import pytest
import torch
from tiny import sentencepiece, tiny, tiny_lm

import tokinterp as ti
from tokinterp.tokenizers import agreement, resegment, segmentations
from tokinterp.tokenizers.segmentation import WAYS

TEXTS = ["The temperature of the river fell, naïvely.", "“Mountains” and rivers: 1990s."]
TOK = ti.load_tokenizer()
PROMPTS = ti.Prompts.from_texts(TEXTS, TOK)
GIVEN = {"temperature": ["temper", "ature"]}


def spelled(prompts, i):
    ids = prompts.ids(i)
    return b"".join(prompts.vocabulary.bytes(ids[~prompts.special(i)]))


@pytest.mark.parametrize("way", WAYS)
def test_the_new_tokens_spell_the_text_and_say_where_they_lie(way):
    new = resegment(PROMPTS, way, given=GIVEN if way == "given" else None)
    assert new.hash != PROMPTS.hash
    for i, text in enumerate(TEXTS):
        assert spelled(new, i) == text.encode()
        assert new.text(i) == text
        strings, places, origin = new.strings(i), new.offsets(i), new.origin[new.starts[i] : new.starts[i + 1]]
        old = PROMPTS.offsets(i)
        for string, (a, b), o in zip(strings, places, origin, strict=True):
            if a >= 0 and "\\" not in string:
                assert text[a:b] == string
                assert old[o][0] <= a < old[o][1]
    assert new.documents.tolist() == [0, 1]
    words = ti.Spans.words(TEXTS).align(new)
    assert len(words.unaligned) == len(ti.Spans.words(TEXTS).align(PROMPTS).unaligned)


def test_ways_are_what_they_say():
    assert resegment(PROMPTS, "given", given=GIVEN).strings(0)[1:4] == ["The", " temper", "ature"]
    chars = resegment(PROMPTS, "characters", words=["The", "naïvely"]).strings(0)
    assert chars[1:4] == ["T", "h", "e"]
    assert chars[-9:-1] == ["n", "a", "\\xc3", "\\xaf", "v", "e", "l", "y"], "no token for ï"
    single = resegment(PROMPTS, "bytes", words=["naïvely"]).strings(0)
    assert "\\xc3" in single
    two = resegment(PROMPTS, "drawn", pieces=2, words=["river"])
    assert two.marks["resplit"].sum() == 2
    assert two.ids(0).tolist() != PROMPTS.ids(0).tolist()
    own = {w: len(t) for w, t in zip(["rivers"], [TOK(" rivers", add_special_tokens=False)["input_ids"]], strict=True)}
    drawn = {tuple(resegment(PROMPTS, "drawn", words=["rivers"], seed=s).ids(1).tolist()) for s in range(6)}
    assert len(drawn) > 2, own
    assert tuple(PROMPTS.ids(1).tolist()) not in drawn


def test_a_share_of_the_words_is_cut_whatever_the_way():
    texts = ["one two three four five six seven eight nine ten " * 4]
    prompts = ti.Prompts.from_texts(texts, TOK)
    cut = [resegment(prompts, way, share=0.5, min_letters=3, seed=3) for way in ("bytes", "characters")]
    origins = [{int(o) for o, c in zip(p.origin, p.marks["resplit"], strict=True) if c} for p in cut]
    assert origins[0] == origins[1]
    assert 8 < len(origins[0]) < 32
    again = resegment(prompts, "bytes", share=0.5, min_letters=3, seed=3)
    assert again.hash == cut[0].hash
    assert resegment(prompts, "bytes", share=0.5, min_letters=3, seed=4).hash != cut[0].hash
    with_other = resegment(ti.Prompts.from_texts(["a first text", *texts], TOK), "bytes", share=0.5, min_letters=3,
                           seed=3)  # fmt: skip
    assert with_other.ids(1).tolist() == cut[0].ids(0).tolist()


def test_a_space_before_the_text_that_is_no_character_of_it():
    tok, vocab = sentencepiece(["▁", "t", "a", "▁t", "▁ta", "at"])
    prompts = ti.Prompts.from_texts(["ta ta"], tok)
    new = resegment(prompts, "characters")
    assert new.ids(0).tolist() == [vocab[c] for c in ("▁", "t", "a", "▁", "t", "a")]
    assert new.offsets(0).tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_kept_tokens_are_the_same_under_all_conditions():
    model = ti.load_model()
    prompts = ti.Prompts.from_texts(TEXTS, model)
    conditions = segmentations(prompts, ["drawn", "bytes"], share=0.5, seed=1)
    assert [*conditions] == ["canonical", "drawn", "bytes"]
    kept = [c.prompts.token_ids[c.prompts.marks["kept"]].tolist() for c in conditions.values()]
    assert kept[0] == kept[1] == kept[2]
    for c in conditions.values():
        marks, special = c.prompts.marks, c.prompts.special_mask
        assert (marks["kept"] ^ marks["resplit"] ^ special).all()
    run = ti.measure_conditions(model, conditions, {"loss": ti.behaviour.TokenLoss("kept")}, progress=False)
    loss = run["loss"]["loss"]
    assert float(loss.sel(condition="bytes").mean()) != float(loss.sel(condition="canonical").mean())


def test_agreement_is_that_of_whole_texts():
    model = tiny("llama")
    pairs = [("the river is to", "the river and to"), ("in the", "to the"), ("to in", "to in")]
    ds = agreement(model, pairs, ["bytes"], words=["river", "the"])
    ti.check(ds)
    site = ti.Site("resid", model.info.n_layers)

    def total(ids):
        x = model.run(torch.tensor([ids]), [site])[site][0, :-1]
        return float(model.unembed(x).double().log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum())

    prompts = ti.Prompts.from_texts([t for p in pairs for t in p], model)
    both = [prompts, resegment(prompts, "bytes", words=["river", "the"])]
    for k, p in enumerate(both):
        t = [total(p.ids(i).tolist()) for i in range(6)]
        np.testing.assert_allclose(ds["log_odds"].values[:, k], [t[0] - t[1], t[2] - t[3], 0], atol=1e-4)
    assert ds["correct"].values[2].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(ds["accuracy"], ds["correct"].mean("prompt"))


def test_agreement_of_a_model_that_knows_nothing_is_chance():
    draw = np.random.default_rng(0)
    words = ["the", "and", "river", "to", "in", "ing", "a", "e"]
    pairs = [(" ".join(draw.choice(words, 4)), " ".join(draw.choice(words, 4))) for _ in range(80)]
    ds = agreement(ti.wrap(tiny_lm("llama", seed=5), tiny("llama").tokenizer), pairs, ["drawn"])
    low, high = ds["accuracy_interval"].values
    assert (low <= 0.5).all()
    assert (high >= 0.5).all()


def test_without_bos_the_first_tokens_of_a_pair_are_the_same(monkeypatch):
    model = tiny("llama")
    made = ti.Prompts.from_texts
    monkeypatch.setattr(ti.Prompts, "from_texts", lambda *a, **k: made(*a, **{**k, "bos": False}))
    with pytest.raises(ValueError, match=r"^pairs=\('in the', 'to the'\): the first tokens differ \(canonical\)"):
        agreement(model, [("the river", "the and"), ("in the", "to the")], ["bytes"])
    assert agreement(model, [("the river", "the and")], ["bytes"])["accuracy"].notnull().all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r'^given=None: how="given" needs the pieces'):
        resegment(PROMPTS, "given")
    with pytest.raises(ValueError, match=r"^given\['river'\]=\['ri', 'er'\]: the pieces do not join"):
        resegment(PROMPTS, "given", given={"river": ["ri", "er"]})
    with pytest.raises(ValueError, match=r"is no token of the vocabulary$"):
        resegment(PROMPTS, "given", given={"temperature": ["temperatu", "re"]})
    with pytest.raises(ValueError, match=r"^pieces=2: only words cut at random"):
        resegment(PROMPTS, "bytes", pieces=2)
    with pytest.raises(ValueError, match=r"^how='bytes': no word of the 2 prompts was cut"):
        resegment(PROMPTS, "bytes", words=["absent"])
