"""Words against non-words: the interval is over tokens, the control at layer 0 says nothing."""

import numpy as np
import pytest
import torch
from tiny import tiny

import tokinterp as ti
from tokinterp.lexicon.word_ends import WordSet, word_probe


def items_by_token(n_tokens=60, each=8, seed=0):
    """Items of which those that end in the same token are all words, or all non-words, and in the same part."""
    rng = np.random.default_rng(seed)
    last = np.repeat(np.arange(10, 10 + n_tokens), each)
    is_word = (last % 2).astype(bool)
    ids = [(int(a), int(b)) for a, b in zip(rng.integers(100, 270, len(last)), last, strict=True)]
    return WordSet(ids, is_word, (last // 2) % 3)


def test_items_with_the_same_token_are_drawn_together():
    found = word_probe(tiny(), items_by_token(), [0], k=1, places=("last",), n_boot=2000)
    words, nonwords = float(found["words"][0, 0]), float(found["nonwords"][0, 0])
    assert 0.1 < words < 0.9
    assert 0.1 < nonwords < 0.9
    low, high = found["accuracy_interval"].values[:, 0, 0]
    se = np.sqrt(words * (1 - words) / 30 + nonwords * (1 - nonwords) / 30) / 2  # 30 tokens of each, not 240 items
    assert (high - low) / 2 == pytest.approx(1.96 * se, rel=0.15)
    assert float(found["accuracy"][0, 0]) == pytest.approx((words + nonwords) / 2)


def test_no_interval_where_a_class_has_fewer_than_three_tokens():
    items = items_by_token()
    some = np.flatnonzero(items.is_word | np.isin([i[-1] for i in items.ids], [10, 12]))  # 30 tokens of words, 2 not
    found = word_probe(
        tiny(), WordSet([items.ids[n] for n in some], items.is_word[some], items.part[some]), [0], k=1, places=("last",)
    )
    assert found["n_groups"].item() == 32
    assert np.isnan(found["accuracy_interval"]).all()


def test_classes_of_unequal_size_count_alike():
    items = items_by_token()
    few = np.flatnonzero(items.is_word | (np.arange(len(items.ids)) % 8 == 0))  # 240 words, 30 non-words
    items = WordSet([items.ids[n] for n in few], items.is_word[few], items.part[few])
    found = word_probe(tiny(), items, [0], k=1, places=("last",), n_boot=5)
    assert found["n_words"].item() == 240
    assert found["n_nonwords"].item() == 30
    both = (float(found["words"][0, 0]) + float(found["nonwords"][0, 0])) / 2
    assert float(found["accuracy"][0, 0]) == pytest.approx(both)


def test_the_penultimate_token_is_the_one_before_the_last():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 80)
    before = np.where(kind == 1, 20, 30)  # tells words from non-words
    ids = [(*map(int, w),) for w in np.stack([rng.integers(40, 90, 80), before, rng.integers(40, 90, 80)], 1)]
    found = word_probe(tiny(), WordSet(ids, kind.astype(bool), np.arange(80) % 4), [0], k=3, n_boot=5)
    assert float(found["accuracy"].sel(subset="penultimate")[0]) == 1
    assert float(found["accuracy"].sel(subset="last")[0]) < 0.8


def test_an_even_vote_counts_half():
    items = items_by_token(n_tokens=12, each=2)
    items = items._replace(part=np.arange(24) // 2 // 2 % 2)  # two parts, each of as many words as non-words
    assert [items.is_word[items.part == p].mean() for p in (0, 1)] == [0.5, 0.5]
    found = word_probe(tiny(), items, [0, 2], k=12, places=("last",), n_boot=5)
    assert (found["words"] == 0.5).all()
    assert (found["nonwords"] == 0.5).all()


def test_votes_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    ids = [tuple(map(int, row)) for row in rng.integers(10, 270, (40, 3))]
    is_word, part = rng.random(40) < 0.7, np.arange(40) % 4
    found = word_probe(tiny(), WordSet(ids, is_word, part), [1, 3], k=3, n_boot=5)
    for layer in (1, 3):
        states = []
        for item in ids:
            with torch.no_grad():
                got = tiny().run(torch.tensor([[1, *item]]), [ti.Site("resid", layer)])
            states.append(got[ti.Site("resid", layer)][0].double().numpy())
        for place, at in (("last", -1), ("penultimate", -2)):
            x = np.array([s[at] for s in states])
            right = []
            for i in range(40):
                others = [j for j in range(40) if part[j] != part[i]]
                near = sorted(others, key=lambda j, i=i, x=x: ((x[i] - x[j]) ** 2).sum())[:3]
                right.append((is_word[near].mean() > 0.5) == is_word[i])
            one = found.sel(subset=place, layer=layer)
            assert float(one["words"]) == pytest.approx(np.mean(np.array(right)[is_word]))
            assert float(one["nonwords"]) == pytest.approx(np.mean(np.array(right)[~is_word]))
    assert (abs(found["words"] - found["nonwords"]) > 0.01).any()
