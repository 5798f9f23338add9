"""The spelling probe: a planted embedding of letters, random ones, areas against all pairs, and its controls."""

import numpy as np
import pytest
import torch
from tiny import tiny_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tokinterp as ti
from tokinterp.lexicon import spelling_probe, word_tokens
from tokinterp.lexicon.letters import LETTERS, Truth, WordTokens, _auc, _exchanged, _groups, _scores


def some_words(n, seed=0):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(3, 8, 4 * n)
    return list(dict.fromkeys("".join(draw.choice(list("abcdefgh"), k)) for k in sizes))[:n]


def planted(known=True):
    """A model with 60 one-token words, whose embeddings are sums of vectors of their letters, or random."""
    text = some_words(60)
    vocab = {
        t: n for n, t in enumerate(["<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{w}" for w in text)])
    }
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    lm, draw = tiny_lm("llama", vocab_size=320), torch.Generator().manual_seed(0)
    letters = torch.randn(26, 32, generator=draw)
    with torch.no_grad():
        for w in text if known else ():
            lm.model.embed_tokens.weight[vocab[f"Ġ{w}"]] = letters[[LETTERS.index(c) for c in set(w)]].sum(0)
    return ti.wrap(lm, tokenizer, id="letters"), text


def test_a_planted_embedding_of_letters_is_found_and_its_controls_are_not():
    model, text = planted()
    words = word_tokens(model, None)
    assert sorted(words.text) == sorted(text)
    ds = spelling_probe(model, words, [0, 3], letters="abcdz")
    ti.check(ds)
    assert (ds["auc"].sel(layer=0, letter=list("abcd")) > 0.9).all()
    assert np.isnan(ds["auc"].sel(letter="z")).all()
    assert ds["n_words"].sel(letter="a") == sum("a" in w for w in text)
    for kind in ("shuffled", "random"):
        assert abs(float(ds[f"mean_auc_{kind}"].sel(layer=0)) - 0.5) < 0.2
    for name in ("mean_auc", "mean_matched_auc"):
        low, high = ds[f"{name}_interval"].sel(layer=0).values
        assert 0.8 < low <= float(ds[name].sel(layer=0)) <= high
    assert (ds["mean_auc_length"] > ds["mean_auc_random"]).all()


def test_embeddings_that_know_nothing_are_at_chance():
    model, _ = planted(known=False)
    ds = spelling_probe(model, word_tokens(model, None), [0], letters="abcd")
    for name in ("mean_auc", "mean_matched_auc"):
        low, high = ds[f"{name}_interval"].sel(layer=0).values
        assert low - 0.05 < 0.5 < high + 0.05


def test_states_are_those_of_the_word_alone():
    model, _ = planted(known=False)
    words = word_tokens(model, None)
    ds = spelling_probe(model, words, [0, 2], letters="ab", folds=3)
    states = np.stack(
        [
            model.run(torch.tensor([[int(i)]]), [ti.Site("resid", 2)])[ti.Site("resid", 2)][0, 0].detach()
            for i in words.ids
        ]
    )
    group = _groups(words.text, "stem")
    draw = np.random.default_rng(0)
    fold = (draw.permutation(group.max() + 1) % 3)[group]
    wanted = _scores(states.astype(float), Truth.of(words.text, "ab"), fold=fold, folds=3, penalty=0.1, group=group)
    np.testing.assert_allclose(ds["auc"].sel(layer=2), wanted["auc"])
    assert np.isfinite(wanted["auc"]).all()


def test_areas_are_the_share_of_pairs_in_order():
    draw = np.random.default_rng(0)
    score, label = draw.integers(0, 6, (40, 3)).astype(float), draw.random((40, 3)) < [0.4, 0.5, 0.02]
    label[:, 2] = np.arange(40) < 4
    found = _auc(score, label)
    for k in range(2):
        pairs = [(a > b) + 0.5 * (a == b) for a in score[label[:, k], k] for b in score[~label[:, k], k]]
        assert found[k] == pytest.approx(np.mean(pairs))
    assert np.isnan(found[2])
    size = draw.integers(0, 3, 40)
    matched = _auc(score, label, size)
    for k in range(2):
        with_, without = np.flatnonzero(label[:, k]), np.flatnonzero(~label[:, k])
        pairs = [(score[a, k] > score[b, k]) + 0.5 * (score[a, k] == score[b, k])
                 for a in with_ for b in without if size[a] == size[b]]  # fmt: skip
        assert matched[k] == pytest.approx(np.mean(pairs))
    assert _auc(np.repeat(size[:, None].astype(float), 3, 1), label, size)[:2].tolist() == [0.5, 0.5]


def test_no_group_is_on_both_sides():
    text = ["river", "rivers", "riven", "road", "river"]
    assert _groups(text, "word").tolist() == [1, 2, 0, 3, 1]
    assert len(set(_groups(text, "stem"))) == 2
    short = ["run", "runs", "ride", "running", "rides", "ru"]
    assert _groups(short, "stem").tolist() == [2, 2, 0, 2, 0, 1]  # a word of three letters has forms too
    lemmas = {"river": "river", "rivers": "river", "riven": "rive", "road": "road"}
    assert len(set(_groups(text, lemmas))) == 3
    with pytest.raises(ValueError, match="it has no lemma of 'road'"):
        _groups(text, {"river": "river", "rivers": "river", "riven": "rive"})


def test_exchanged_labels_keep_the_length_and_twins():
    text = [*some_words(50), *some_words(10)]
    order = _exchanged(text, np.random.default_rng(0))
    assert [len(text[k]) for k in order] == [len(t) for t in text]
    assert len({text[k] for k in order}) == len(set(text))
    said = {}
    for k, t in zip(order, text, strict=True):
        assert said.setdefault(t, text[k]) == text[k]
    assert np.mean([text[k] == t for k, t in zip(order, text, strict=True)]) < 0.3


def test_a_probe_of_twins_gains_only_where_they_are_divided():
    """Two tokens of each word and random vectors that both share: known by word, unknown once words stay together."""
    draw, text = np.random.default_rng(0), some_words(60)
    x, twice = np.repeat(draw.normal(size=(60, 40)), 2, 0), [t for t in text for _ in range(2)]
    truth = Truth.of(twice, "abcd")
    means = []
    for group in (_groups(twice, "word"), np.arange(120)):
        fold = np.random.default_rng(1).permutation(group.max() + 1)[group] % 5
        means.append(np.nanmean(_scores(x, truth, fold=fold, folds=5, penalty=0.1, group=group)["auc"]))
    assert means[0] < 0.65
    assert means[1] > 0.8


def test_what_does_not_fit_is_refused():
    model, _ = planted()
    with pytest.raises(ValueError, match="folds=5: the 2 words make 2 groups"):
        spelling_probe(model, WordTokens(np.array([300, 301]), ["abc", "def"]))
    with pytest.raises(ValueError, match=r"words=.*: 'né' is not of small letters a to z"):
        spelling_probe(model, WordTokens(np.array([300, 301]), ["ab", "né"]), folds=2)
    with pytest.raises(ValueError, match="min_letters=30: letters has no token"):
        word_tokens(model, min_letters=30)
