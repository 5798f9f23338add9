"""Jacobians between layers: torch's own of one prompt at a time, padding, several families, nothing kept."""

import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.models.gradients import jacobians
from tokinterp.run.sites import resid


def by_hand(model, ids, layer, to, valid):
    """The mean over sources of the sum over targets of the whole Jacobian (position, d, position, d) of one prompt."""
    start = model.run(ids[None], resid([layer]))[resid([layer])[0]]

    def forward(x):
        edit = ti.edits.apply(resid([layer])[0], lambda old: x.to(old.dtype) if old.shape == x.shape else old)
        return model.run(ids[None], resid([to]), edits=[edit], graph=True)[resid([to])[0]]

    whole = torch.autograd.functional.jacobian(forward, start)[0, :, :, 0]
    return whole[valid][:, :, valid].sum(0).mean(1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_the_sums_are_those_of_whole_jacobians(family):
    model = ti.wrap(tiny_lm(family).double(), byte_tokenizer(), id=family)
    prompts = [torch.tensor([1, 40, 41, 42, 43, 44]), torch.tensor([1, 90, 91, 92])]
    ids = torch.zeros(2, 6, dtype=torch.int64)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    for n, p in enumerate(prompts):
        ids[n, : len(p)], mask[n, : len(p)] = p, True
    valid = mask & (torch.arange(6) >= 1) & (torch.arange(6) < mask.sum(1, keepdim=True) - 1)
    found = jacobians(model, ids, mask, [0, 2], 3, valid)
    for n, layer in enumerate([0, 2]):
        expected = sum(by_hand(model, p, layer, 3, v[: len(p)]) for p, v in zip(prompts, valid, strict=True))
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-5)  # norms count in float32
    assert all(p.grad is None for p in model.lm.parameters())


def test_a_prompt_without_positions_adds_nothing():
    model = ti.wrap(tiny_lm("llama").double(), byte_tokenizer(), id="a")
    ids = torch.tensor([[1, 40, 41, 42], [1, 50, 51, 52]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    valid = mask.clone()
    valid[1] = False
    one = jacobians(model, ids[:1], mask[:1], [1], 3, valid[:1])
    torch.testing.assert_close(jacobians(model, ids, mask, [1], 3, valid), one, rtol=1e-4, atol=1e-6)


def test_frozen_weights_give_the_same_sums():
    ids = torch.tensor([[1, 40, 41, 42]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    lms = [tiny_lm("llama"), tiny_lm("llama").requires_grad_(False), tiny_lm("llama")]
    lms[2].model.embed_tokens.requires_grad_(False)
    lms[2].model.layers[0].requires_grad_(False)
    free, frozen, partly = (
        jacobians(ti.wrap(lm, byte_tokenizer(), id="a"), ids, mask, [0, 1, 2], 3, mask) for lm in lms
    )
    assert free.abs().sum() > 0
    assert torch.equal(free, frozen)
    assert torch.equal(free, partly)


def test_a_run_without_a_graph_keeps_none():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="a")
    site = resid([1])[0]
    with torch.enable_grad():
        assert not model.run(torch.tensor([[1, 4]]), [site])[site].requires_grad
    assert model.run(torch.tensor([[1, 4]]), [site], graph=True)[site].requires_grad
