"""Text from the bigrams of a corpus: only its pairs, as often as there, within a prompt, by the seed."""

from collections import Counter

import numpy as np
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.text import Prompts
from tokinterp.text.bigrams import sample_bigrams


def test_pairs_are_those_of_the_corpus_and_never_cross_its_prompts():
    prompts = Prompts.from_ids([[5, 6, 5, 6, 5, 6], [7, 8, 7, 8], [1, 2, 4, 1, 3, 9, 1, 2, 4, 1, 3, 9]])
    pairs = {(a, b) for i in range(3) for a, b in np.stack([prompts.ids(i)[:-1], prompts.ids(i)[1:]], 1).tolist()}
    for seed in range(20):
        drawn = sample_bigrams(prompts, seed)
        assert drawn.lengths == prompts.lengths
        for i in range(3):
            ids = drawn.ids(i)
            assert ids[0] == prompts.ids(i)[0]
            assert {*map(tuple, np.stack([ids[:-1], ids[1:]], 1).tolist())} <= pairs


def test_a_token_is_followed_as_often_as_in_the_corpus():
    prompts = Prompts.from_ids([[5, 6, 5, 6, 5, 6, 5, 7, 5]])  # 5 is followed by 6 three times of four
    draws = np.array([sample_bigrams(prompts, seed).ids(0) for seed in range(400)])
    assert (draws[:, ::2] == 5).all()
    share = (draws[:, 1::2] == 6).mean()
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 1600)
    assert len(np.unique(draws, axis=0)) == 16  # all orders of four draws


def test_special_tokens_stay_and_each_seed_is_another_text():
    rng = np.random.default_rng(1)
    prompts = Prompts.from_ids([np.append(1, rng.integers(3, 270, 29)) for _ in range(2)], byte_tokenizer())
    one, again, other = (sample_bigrams(prompts, seed) for seed in (3, 3, 4))
    assert one.hash == again.hash != other.hash
    np.testing.assert_array_equal(one.special_mask, prompts.special_mask)
    dense = Prompts.from_ids([np.arange(40) % 7, np.arange(40) % 5])
    assert (sample_bigrams(dense, 3).token_ids != sample_bigrams(dense, 4).token_ids).any()


def pairs(prompts):
    return Counter(p for i in range(len(prompts)) for p in zip(prompts.ids(i)[:-1], prompts.ids(i)[1:], strict=True))


def test_pairs_are_those_of_the_corpus_in_their_proportions():
    rng = np.random.default_rng(0)
    given = ti.Prompts.from_ids([rng.choice([3, 3, 3, 4, 5], 300) for _ in range(20)])
    drawn = sample_bigrams(given, seed=1)
    assert list(drawn.lengths) == list(given.lengths)
    assert [drawn.ids(i)[0] for i in range(20)] == [given.ids(i)[0] for i in range(20)]
    before, after = pairs(given), pairs(drawn)
    assert set(after) <= set(before)
    share = {k: v / sum(after.values()) for k, v in after.items()}
    assert all(abs(share[k] - v / sum(before.values())) < 0.03 for k, v in before.items())
    assert drawn.ids(0).tolist() != given.ids(0).tolist()


def test_longer_patterns_are_gone():
    given = ti.Prompts.from_ids([[3, 4, 5, 3, 6, 7] * 100])  # 4 after 3 exactly every other time
    drawn = sample_bigrams(given).ids(0)
    assert set(pairs(sample_bigrams(given))) <= set(pairs(given))
    after = drawn[1:][drawn[:-1] == 3]
    assert 0 < np.mean(after[1:] == after[:-1]) < 1  # never the same twice in the corpus
    assert sample_bigrams(given, 1).ids(0).tolist() != drawn.tolist()


def test_special_tokens_stay_and_the_chain_begins_anew_after_them(bundled):
    given = ti.Prompts.from_texts([t.text[:400] for t in ti.bundled_texts()[:4]], bundled)
    drawn = sample_bigrams(given)
    for i in range(4):
        assert drawn.ids(i)[:2].tolist() == given.ids(i)[:2].tolist()
        assert not drawn.special(i)[1:].any()


def test_a_token_that_nothing_follows_is_followed_by_any():
    assert set(sample_bigrams(ti.Prompts.from_ids([[9], [8]])).token_ids.tolist()) == {8, 9}
    drawn = sample_bigrams(ti.Prompts.from_ids([[3, 4], [4, 3], [5, 6]] * 3 + [[3, 6, 3]]))
    assert set(drawn.token_ids.tolist()) <= {3, 4, 5, 6}
