"""Shuffled prompts: what stays, what moves, and that the order is drawn fairly and reproducibly."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from golden import token_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import MAKERS, TEXTS, PieceTokenizer, byte_tokenizer, tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tokinterp.text import Prompts, Vocabulary, shuffle_blocks, shuffle_words
from tokinterp.text.shuffle import block_lengths, permute_units, random_ids

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=4)


def numbered(ns):
    """Prompts whose ids are the positions."""
    return Prompts.from_ids([np.arange(n) for n in ns])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 6))
def test_block_lengths(n, level):
    sizes = block_lengths(n, level)
    assert sizes.sum() == n
    assert len(sizes) == min(4**level, n)
    assert sizes.max() - sizes.min() <= 1


def test_blocks_of_the_paper():
    assert [block_lengths(1024, s)[0] for s in range(6)] == [1024, 256, 64, 16, 4, 1]
    assert [len(block_lengths(1024, s)) for s in range(6)] == [1, 4, 16, 64, 256, 1024]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, 5), st.integers(0, 3))
def test_blocks_move_whole(ns, level, seed):
    prompts = numbered(ns)
    shuffled = shuffle_blocks(prompts, level, seed)
    assert shuffled.lengths == prompts.lengths
    for i, n in enumerate(ns):
        ids = shuffled.ids(i)
        assert sorted(ids) == list(range(n))
        starts = np.concatenate([[0], np.cumsum(block_lengths(n, level))[:-1]])
        breaks = np.flatnonzero(np.diff(ids) != 1) + 1
        # every run between breaks is made of whole blocks: it begins at the start of one
        assert set(ids[breaks]) | {ids[0]} <= set(starts)
        if level == 0:
            assert ids.tolist() == list(range(n))
    np.testing.assert_array_equal(shuffled.origin, shuffled.token_ids)


def test_blocks_in_an_order_are_those_of_the_authors_function():
    found = json.loads(Path(token_geometry.__file__).with_suffix(".json").read_text(encoding="utf-8"))["shuffled"]
    assert [(c["level"], c["tokens"], c["seed"]) for c in found] == token_geometry.SHUFFLES
    for case in found:
        sizes = block_lengths(case["tokens"], case["level"])
        same = np.random.RandomState(case["seed"])  # draws what np.random.seed makes theirs draw
        assert permute_units(np.repeat(np.arange(len(sizes)), sizes), same).tolist() == case["order"]


def test_single_tokens_at_the_last_level():
    ids = shuffle_blocks(numbered([1024]), 5).ids(0)
    assert (np.diff(ids) == 1).sum() < 12  # one is expected by chance
    assert (ids == np.arange(1024)).sum() < 12


def test_every_order_is_as_likely_as_another():
    prompts = numbered([4])
    counts = Counter(tuple(shuffle_blocks(prompts, 1, seed).ids(0)) for seed in range(2400))
    assert len(counts) == 24
    chi2 = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert chi2 < 60  # 23 degrees of freedom: exceeded once in 40,000


def test_seeded_for_each_prompt_on_its_own():
    prompts = numbered([64, 100, 30, 100])
    shuffled = shuffle_blocks(prompts, 2, seed=7)
    assert shuffled.hash == shuffle_blocks(prompts, 2, seed=7).hash
    assert shuffled.hash != shuffle_blocks(prompts, 2, seed=8).hash != prompts.hash
    assert shuffle_blocks(prompts, 0).hash != prompts.hash
    assert "shuffle_blocks(level=2, seed=7)" in repr(shuffled)
    backwards = shuffle_blocks(prompts[::-1], 2, seed=7)
    for i in range(4):
        np.testing.assert_array_equal(shuffled.ids(i), backwards.ids(3 - i))
        np.testing.assert_array_equal(shuffled.ids(i), shuffle_blocks(prompts[i], 2, seed=7).ids(0))
    again = shuffle_blocks(shuffled, 3, seed=1)
    np.testing.assert_array_equal(again.origin, again.token_ids)
    assert again.note == "shuffle_blocks(level=2, seed=7); shuffle_blocks(level=3, seed=1)"


@pytest.mark.parametrize("shuffle", [lambda p: shuffle_blocks(p, 5), shuffle_words])
@pytest.mark.parametrize("name", MAKERS)
def test_bos_stays_first_and_tokens_stay_the_same(name, shuffle):
    prompts = Prompts.from_texts(TEXTS[:5], tokenizer(name), max_tokens=400)
    shuffled = shuffle(prompts)
    assert shuffled.bos == prompts.bos
    for i in range(5):
        assert sorted(shuffled.ids(i)) == sorted(prompts.ids(i))
        np.testing.assert_array_equal(shuffled.special(i), prompts.special(i))
        origin = shuffled.origin[shuffled.starts[i] : shuffled.starts[i + 1]]
        np.testing.assert_array_equal(shuffled.ids(i), prompts.ids(i)[origin])
        text, offsets = shuffled.text(i), shuffled.offsets(i)
        for string, (a, b) in zip(shuffled.strings(i), offsets, strict=True):
            assert a == -1 or "\\x" in string or text[a:b] == string


@pytest.mark.slow
def test_words_move_whole():
    marked = "The| old| light|house|,| O|'|Brien|'s|:| |z|oo|.| a|b-c"
    prompts = Prompts.from_texts([marked.replace("|", "")], PieceTokenizer(marked))
    units = [
        ["The"],
        [" old"],
        [" light", "house"],
        [","],
        [" O", "'", "Brien", "'s"],
        [":"],
        [" ", "z", "oo"],
        ["."],
        [" a", "b-c"],
    ]
    seen = set()
    for seed in range(20):
        left = shuffle_words(prompts, seed).strings(0)
        seen.add(tuple(left))
        while left:
            unit = next(u for u in units if left[: len(u)] == u)
            left = left[len(unit) :]
    assert len(seen) == 20
    firsts = Counter(shuffle_words(prompts, seed).strings(0)[0] for seed in range(900))
    assert set(firsts) == {u[0] for u in units}
    assert max(firsts.values()) < 150  # 100 expected, standard deviation 9.4


def test_characters_in_several_tokens_stay_whole():
    text = "one 😀 two 日本 three 😀 four"
    prompts = Prompts.from_texts([text], byte_tokenizer())
    for seed in range(10):
        shuffled = shuffle_words(prompts, seed).text(0)
        assert sorted(shuffled) == sorted(text)
        assert "�" not in shuffled


@pytest.mark.parametrize("level", [-1, 1.5, "2", True])
def test_levels_that_are_none(level):
    with pytest.raises(ValueError, match=f"level={level!r}: give a whole number"):
        shuffle_blocks(numbered([4]), level)


def test_shuffled_prompts_run_through_batches():
    shuffled = shuffle_words(Prompts.from_texts(TEXTS, byte_tokenizer(), max_tokens=9, on_long="window"))
    done = [n for batch in shuffled.batches(32) for n in batch]
    assert sorted(done) == list(range(len(shuffled)))
    assert shuffled[[2, 0]].text(1) == shuffled.text(0)


@pytest.mark.parametrize("shuffle", [shuffle_blocks, random_ids])
def test_prompts_have_other_orders_and_one_seed_another_than_the_next(shuffle):
    vocabulary = SimpleNamespace(info=SimpleNamespace(id="ids", max_tokens=99, d_vocab=300), tokenizer=None)
    prompts = Prompts.from_ids([np.arange(64), np.arange(100, 164)], vocabulary)
    make = partial(shuffle, prompts, 4) if shuffle is shuffle_blocks else partial(shuffle, prompts)
    first, again, other = make(1), make(1), make(2)
    assert (first.ids(0) == again.ids(0)).all()
    assert (first.ids(0) == other.ids(0)).mean() < 0.2
    assert (first.ids(0) == first.ids(1) - 100).mean() < 0.2
    assert (first.ids(0) == first.ids(1)).mean() < 0.2


def test_ids_that_no_token_has_are_not_drawn():
    """Rows of the embedding beyond the tokenizer, and the gaps between its ids."""
    inner = Tokenizer(models.WordLevel({"sea": 0, "blue": 4, "?": 1}, unk_token="?"))
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", eos_token="<e>")
    assert made.eos_token_id == 3
    vocabulary = Vocabulary(made, 9)
    assert vocabulary.ordinary.tolist() == [0, 1, 4]
    assert np.flatnonzero(vocabulary.there).tolist() == [0, 1, 3, 4]
    assert Vocabulary(made, 4).ordinary.tolist() == [0, 1]
    assert Vocabulary(None, 3).ordinary.tolist() == [0, 1, 2]
