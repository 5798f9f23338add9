"""Shares of sources from merges: own tokenizers trained on known mixtures, and the program by hand."""

import json
import string
from itertools import pairwise

import numpy as np
import pytest
from tiny import byte_tokenizer, unigram_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tokinterp as ti
from tokinterp.tokenizers import infer_mixture
from tokinterp.tokenizers.mixture import replay, solve, without_pair_zero

TEXTS = [t.text.lower() for t in ti.bundled_texts()]


def ciphered(n):
    """Texts in which letters stand for other letters: another language of the same statistics."""
    letters = string.ascii_lowercase
    return [t.translate(str.maketrans(letters, letters[n * 5 :] + letters[: n * 5])) for t in TEXTS[n::5]]


def trained(sources, shares, size=60_000, merges=300):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    parts = ["".join(texts)[: int(size * share)] for texts, share in zip(sources.values(), shares, strict=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, show_progress=False, initial_alphabet=alphabet)
    inner.train_from_iterator(parts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner), {k: [p] for k, p in zip(sources, parts, strict=True)}


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.4, 0.25, 0.15, 0.12, 0.08)])
def test_known_mixtures_are_recovered(shares):
    sources = {f"source {n}": ciphered(n) for n in range(len(shares))}
    tok, parts = trained(sources, shares)
    ds = infer_mixture(tok, sources, folds=0)
    ti.check(ds)
    assert ds["share_bytes"].values == pytest.approx(shares, abs=0.02)
    assert float(ds["share"].sum()) == pytest.approx(1)
    same = infer_mixture(tok, parts, folds=0)
    assert same["share_bytes"].values == pytest.approx(shares, abs=0.02)
    assert same.attrs["objective"] < 1e-3 < ds.attrs["objective"], "the texts themselves explain every merge"


def test_counts_are_those_of_a_plain_merge():
    words = {"aabab": np.array([2, 1]), "ab": np.array([0, 3]), "caab": np.array([1, 0])}
    merges = [("a", "b"), ("x", "y"), ("a", "ab"), ("aab", "ab")]
    steps = replay(words, merges)
    assert steps.n_absent == 1
    assert [s[3] for s in steps.steps] == [0, 2, 3]
    now, cut = steps.first.copy(), {w: list(w) for w in words}
    for pair, which, new, rank in steps.steps:
        if len(which):
            now[which] = new
        plain = {}
        for w, symbols in cut.items():
            for one in pairwise(symbols):
                plain[one] = plain.get(one, 0) + words[w]
        assert sorted(map(tuple, now[now.any(1)].tolist())) == sorted(tuple(n.tolist()) for n in plain.values())
        assert now[pair].tolist() == plain[merges[rank]].tolist()
        for w, symbols in cut.items():
            joined = " ".join(symbols)
            left, right = merges[rank]
            cut[w] = joined.replace(f"{left} {right}", left + right).split()


def test_merges_of_a_converted_list_are_asked_about_once():
    """SentencePiece has tokens, not merges: a conversion writes every way to make one, the learned one among them."""
    sources = {f"source {n}": ciphered(n) for n in range(2)}
    tok, _ = trained(sources, (0.7, 0.3))
    state = json.loads(tok.backend_tokenizer.to_str())
    learned, pieces = [tuple(m) for m in state["model"]["merges"]], set(state["model"]["vocab"])
    every = []
    for left, right in learned:
        token = left + right
        every += [(token[:i], token[i:]) for i in range(1, len(token)) if {token[:i], token[i:]} <= pieces]
    assert len(every) > 1.2 * len(learned)
    state["model"]["merges"] = every
    converted = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    one, two = (infer_mixture(t, sources, folds=0) for t in (tok, converted))
    assert (int(one["n_silent"]), int(two["n_silent"])) == (0, len(every) - len(learned))
    assert two["share_bytes"].values == pytest.approx((0.7, 0.3), abs=0.02)
    assert two.sizes["merge"] > 0.97 * one.sizes["merge"]


def test_merges_added_by_hand_are_made_and_say_nothing():
    words = {"aab": np.array([9, 0]), "cd": np.array([0, 5]), "ab": np.array([0, 1])}
    plain = replay(words, [("a", "b"), ("c", "d")])
    added = replay(words, [("a", "a"), ("a", "b"), ("c", "d")], leave_out=[0])
    assert [s[3] for s in added.steps] == [1, 2]
    assert added.n_silent == 1
    pair, which, new, _ = added.steps[0]
    now = added.first.copy()
    now[which] = new
    assert now[pair].tolist() == [0, 1]  # aab is aa b now
    assert plain.first[plain.steps[0][0]].tolist() == [9, 1]
    tok, parts = trained({"one": ciphered(0), "two": ciphered(1)}, (0.5, 0.5), 20_000, 20)
    with pytest.raises(ValueError, match="leave_out=20: there are 20 merges"):
        infer_mixture(tok, parts, leave_out=[3, 20])
    assert int(infer_mixture(tok, parts, folds=0, leave_out=[3])["n_silent"]) == 1


def test_the_program_by_hand():
    """Two pairs, two sources: the merge says that the first pair is at least as frequent as the second."""
    steps = replay({"ab": np.array([3, 0]), "cd": np.array([0, 1])}, [("a", "b"), ("c", "d")])
    found = solve(steps, np.eye(2))
    assert found.objective == pytest.approx(0)
    assert 3 * found.share[0] >= found.share[1] - 1e-6
    turned = solve(replay({"ab": np.array([3, 1]), "cd": np.array([4, 3])}, [("a", "b")]), np.eye(2))
    assert turned.objective == pytest.approx(1)  # 3 x + 1 (1 - x) + v >= 4 x + 3 (1 - x): least at x = 1
    assert turned.share == pytest.approx([1, 0])


def test_intervals_are_over_folds():
    sources = {f"source {n}": ciphered(n) for n in range(2)}
    tok, _ = trained(sources, (0.7, 0.3), merges=60)
    ds = infer_mixture(tok, sources, folds=4)
    low, high = ds["share_bytes_interval"].values.T
    assert (low < ds["share_bytes"].values).all()
    assert (ds["share_bytes"].values < high).all()
    assert ((low < [0.7, 0.3]) & (high > [0.7, 0.3])).all()
    assert np.isnan(infer_mixture(tok, sources, folds=2, n_merges=20)["share_interval"]).all()


def test_the_published_bug_leaves_out_the_merge_of_pair_zero():
    sources = {f"source {n}": ["abab cd ef"] * (n + 1) for n in range(2)}
    inner = Tokenizer(models.BPE({c: n for n, c in enumerate([*"abcdef", "ab", "cd"])}, [("a", "b"), ("c", "d")]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert infer_mixture(tok, sources, folds=0)["merge"].values.tolist() == [0, 1]
    assert infer_mixture(tok, sources, folds=0, published_bug=True)["merge"].values.tolist() == [1]


def test_counts_before_the_other_merges_stay_when_pair_zero_is_left_out():
    words = {"xaab": np.array([2, 1]), "aabab": np.array([0, 3]), "caab": np.array([1, 0])}
    whole = replay(words, [("a", "b"), ("x", "a"), ("a", "ab"), ("aab", "ab")])
    assert [s[0] == 0 for s in whole.steps] == [False, True, False, False]

    def counts(steps):
        now = steps.first.copy()
        for pair, which, new, rank in steps.steps:
            if len(which):
                now[which] = new
            yield rank, pair, now.tolist()

    assert [*counts(without_pair_zero(whole))] == [c for c in counts(whole) if c[1] != 0]


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match=r"^tokenizer='TokenizersBackend': it has no list of merges"):
        infer_mixture(unigram_tokenizer("a"), {"a": ["b"], "b": ["a"]})
    with pytest.raises(ValueError, match=r"^sources='b': its texts have no pair of letters"):
        infer_mixture(byte_tokenizer(), {"a": ["the river"], "b": ["a"]})
    with pytest.raises(ValueError, match=r"^n_merges=1: none of the merges occurs"):
        infer_mixture(byte_tokenizer(), {"a": ["xyz"], "b": ["xyz"]}, n_merges=1)
