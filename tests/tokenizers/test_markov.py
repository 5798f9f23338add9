"""Markov sources: closed forms of their entropies, and losses of token models as known."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.tokenizers import MarkovSource, token_unigram_loss
from tokinterp.tokenizers.markov import token_model


def binary(p, q):
    return MarkovSource([[1 - p, p], [q, 1 - q]])


def entropy(x):
    return -x * np.log2(x) - (1 - x) * np.log2(1 - x)


@pytest.mark.parametrize(("p", "q", "rate", "symbol"), [(0.1, 0.1, 0.4690, 1.0), (0.2, 0.4, 0.8049, 0.9183)])
def test_entropies_in_closed_form(p, q, rate, symbol):
    source = binary(p, q)
    assert source.entropy_rate == pytest.approx((q * entropy(p) + p * entropy(q)) / (p + q))
    assert source.symbol_entropy == pytest.approx(entropy(p / (p + q)))
    assert [round(source.entropy_rate, 4), round(source.symbol_entropy, 4)] == [rate, symbol]


def test_sources_of_higher_order_draw_what_they_say():
    p = np.random.default_rng(0).dirichlet([1.0] * 3, size=(3, 3))
    source = MarkovSource(p)
    text = source.draw(400, 300, seed=1)
    seen = np.zeros((3, 3, 3))
    for t in text:
        ids = np.frombuffer(t.encode(), np.uint8) - ord("a")
        np.add.at(seen, (ids[:-2], ids[1:-1], ids[2:]), 1)
    n = seen.sum(-1, keepdims=True)
    assert (np.abs(seen / n - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-6).all()
    joint = seen / seen.sum()
    rate = -(joint * np.log2(p)).sum()
    assert source.entropy_rate == pytest.approx(rate, abs=0.01)
    assert np.allclose(joint.sum(-1).ravel(), source.stationary, atol=0.01)
    first = [t[:2] for t in source.draw(20_000, 2, seed=2)]
    assert first.count("ab") / 20_000 == pytest.approx(source.stationary[1], abs=0.01)


def test_losses_of_bpe_are_the_known_ones():
    ds = token_unigram_loss(binary(0.1, 0.1), [4, 16, 64, 256])
    ti.check(ds)
    assert ds["cross_entropy"].values[0] == pytest.approx([0.7779, 0.6412, 0.5845, 0.5502], abs=0.015)
    assert (ds["cross_entropy"] > ds["entropy_rate"]).all()
    other = token_unigram_loss(binary(0.2, 0.4), [4, 8, 16, 64, 256])
    assert other["cross_entropy"].values[0] == pytest.approx([1.0076, 1.0771, 0.9596, 0.8916, 0.8689], abs=0.015)
    assert float(other["cross_entropy"][0, 0]) > float(other["symbol_entropy"]), "few tokens are worse than symbols"


def test_symbols_alone_have_their_entropy_and_more_text_helps():
    source = binary(0.1, 0.1)
    for dictionary in ("bpe", "lzw", "blocks"):
        ds = token_unigram_loss(source, [2, 64], dictionary=dictionary, n_train=[4, 200], n_test=100)
        assert ds["cross_entropy"].values[1, 0] == pytest.approx(1, abs=0.01), dictionary
        assert float(ds["symbols_per_token"][1, 0]) == 1
        assert ds["cross_entropy"].values[1, 1] < min(0.75, ds["cross_entropy"].values[0, 1]), dictionary


def test_dictionaries_are_what_they_are_called():
    tokens, encode = token_model(["aabab"], 6, 2, "lzw")
    assert tokens == ["a", "b", "aa", "ab", "ba"]
    assert encode("aabab") == ["aa", "ba", "b"]
    tokens, encode = token_model([], 9, 2, "blocks")
    assert sorted(tokens) == sorted(["a", "b", *(x + y + z for x in "ab" for y in "ab" for z in "ab")])
    assert encode("abbaa") == ["abb", "a", "a"]


def test_what_is_no_source_is_refused():
    with pytest.raises(ValueError, match=r"^transition='its rows': they are no probabilities"):
        MarkovSource([[0.5, 0.6], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"^transition=\(2, 3\)"):
        MarkovSource(np.ones((2, 3)) / 3)
    with pytest.raises(ValueError, match=r"^transition='its states': they fall apart"):
        MarkovSource(np.eye(2))
    with pytest.raises(ValueError, match=r"^sizes=2: the source has 3 symbols"):
        token_unigram_loss(MarkovSource(np.ones((3, 3)) / 3), [2, 8])
