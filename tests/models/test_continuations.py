"""What follows sequences that begin alike: the same with what they share cached as run whole, in every family."""

import numpy as np
import pytest
import torch
from tiny import FAMILIES, VOCAB, byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.models.continuations import Continuations
from tokinterp.run.sites import Site

BEGINNINGS = {"a": [1, 40, 50, 60, 70, 80, 90], "b": [1, 44, 45]}
ASKED = [
    ("a", (1, 40, 50, 60, 70, 80, 90, 33)), ("a", (1, 40, 50, 99)), ("b", (1, 44, 45, 46, 47)), ("a", (1,)),
    ("b", (5, 6)), ("none", (1, 2, 3)), ("a", (1, 40, 50)),
]  # fmt: skip


def by_hand(model, ids):
    site = Site("resid", model.info.n_layers)
    x = model.run(torch.tensor([list(ids)]), [site])[site]
    return model.unembed(x[0, -1]).double().log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_beginnings_give_what_whole_sequences_give(family):
    model = tiny(family)
    after = Continuations(model)
    for key, ids in BEGINNINGS.items():
        after.begin(key, ids)
    found = torch.stack(list(after.log_probs(ASKED)))
    assert found.shape == (len(ASKED), VOCAB)
    assert found.dtype == torch.float64
    want = torch.stack([by_hand(model, ids) for _, ids in ASKED])
    np.testing.assert_allclose(found.numpy(), want.numpy(), atol=1e-4)
    assert after.cached


def test_what_is_shared_is_run_once():
    after = Continuations(tiny())
    assert (after.rows, after.tokens) == (0, 0)
    after.begin("a", BEGINNINGS["a"])
    after.begin("a", BEGINNINGS["a"])
    assert (after.rows, after.tokens) == (1, 7)
    list(after.log_probs([("a", (*BEGINNINGS["a"], 5)), ("a", (1, 40, 7, 7))]))
    assert (after.rows, after.tokens) == (3, 7 + 1 + 2)
    after.end("a")
    list(after.log_probs([("a", (*BEGINNINGS["a"], 5))]))
    assert after.tokens == 10 + 8


def test_batches_of_any_size_give_the_same(monkeypatch):
    model = tiny("gpt2")
    whole = torch.stack(list(Continuations(model).log_probs(ASKED)))
    after = Continuations(model)
    after.begin("a", BEGINNINGS["a"])
    monkeypatch.setattr("tokinterp.models.continuations.BUDGET", 1)
    np.testing.assert_allclose(torch.stack(list(after.log_probs(ASKED))).numpy(), whole.numpy(), atol=1e-5)


def test_a_model_whose_cache_is_wrong_is_run_whole(monkeypatch):
    model = tiny("llama")
    right = Continuations._run

    def other(self, ids, mask, places, past):
        return right(self, ids, torch.ones_like(mask), places, past)  # padding before the beginnings is seen

    monkeypatch.setattr(Continuations, "_run", other)
    after = Continuations(model)
    assert not after.cached
    after.begin("a", BEGINNINGS["a"])
    found = torch.stack(list(after.log_probs(ASKED)))
    want = torch.stack([by_hand(model, ids) for _, ids in ASKED])
    np.testing.assert_allclose(found.numpy(), want.numpy(), atol=1e-5)
    assert after.tokens == sum(len(ids) for _, ids in ASKED)


def test_too_long_or_empty_sequences_are_refused():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer())
    with pytest.raises(ValueError, match="a sequence of 65 tokens: LlamaForCausalLM has a context of 64"):
        list(Continuations(model).log_probs([("a", [1] * 65)]))
    with pytest.raises(ValueError, match="a sequence of 0 tokens"):
        list(Continuations(model).log_probs([("a", [])]))
