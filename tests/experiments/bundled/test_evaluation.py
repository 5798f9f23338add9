"""Nats and bits of a text: windows, bytes, and the 5-gram against a count by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

from experiments.bundled.evaluation import KneserNey, model_bits, token_nats


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama", max_position_embeddings=256)


def test_each_token_has_half_a_window_before_it(lm):
    ids = np.random.default_rng(0).integers(3, 300, 50).tolist()
    found = token_nats(lm, ids, 16, 1)
    for t in range(50):
        start = 0 if t < 16 else (t // 8 - 1) * 8
        with torch.no_grad():
            logp = lm(torch.tensor([[1, *ids[start:t]]])).logits[0, -1].log_softmax(-1)
        assert found[t] == pytest.approx(-float(logp[ids[t]]), abs=1e-4), t


def test_bits_are_nats_over_two_and_bytes(lm):
    texts = ["The river ran – é.", "And to the north"]
    found = model_bits(lm, byte_tokenizer(), texts, 64)
    nats = tokens = 0
    for text in texts:
        ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
        nats += token_nats(lm, ids, 64, 1).sum()
        tokens += len(ids)
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in texts))


def test_kneser_ney_is_that_of_counting():
    """Interpolated, one discount an order, continuation counts below the highest: word by word."""
    rng = np.random.default_rng(1)
    stream = (rng.integers(0, 4, 400) * rng.integers(0, 3, 400)).astype(np.uint16)
    order, vocab = 3, 7
    model = KneserNey(stream, vocab, order)
    grams = Counter(tuple(stream[i : i + order].tolist()) for i in range(len(stream) - order + 1))
    levels = [grams]
    for _ in range(order - 1):
        levels.append(Counter(g[1:] for g in levels[-1]))

    def probability(word, history):
        if len(history) == 0:
            below = 1 / vocab
        else:
            below = probability(word, history[1:])
        counts = levels[order - 1 - len(history)]
        here = {g: c for g, c in counts.items() if g[:-1] == history}
        if not here:
            return below
        ones, twos = (sum(c == k for c in counts.values()) for k in (1, 2))
        discount = ones / (ones + 2 * twos) if ones else 0.5
        own = max(here.get((*history, word), 0) - discount, 0)
        return (own + discount * len(here) * below) / sum(here.values())

    ids = np.array([0, 1, 2, 6, 5, 3])
    text = [0, 2, *ids.tolist()]
    wanted = [-math.log(probability(text[t], tuple(text[t - 2 : t]))) for t in range(2, len(text))]
    np.testing.assert_allclose(model.nats(ids, (0, 2)), wanted)
