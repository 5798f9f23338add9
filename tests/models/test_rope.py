"""Rotary embeddings that follow the longest prompt: steps, batches across them, and going back to the start."""

from types import SimpleNamespace

import pytest
import torch
from tiny import some_ids, tiny_lm

import tokinterp as ti
from tokinterp.models.rope import check_lengths, dynamic_ropes, length_steps, reset


def test_steps_are_those_of_long_rope_alone():
    long = {"rope_type": "longrope", "original_max_position_embeddings": 16}
    assert length_steps(SimpleNamespace(rope_parameters=long)) == (16,)
    both = {"full": {**long, "original_max_position_embeddings": 8}, "sliding": long}
    assert length_steps(SimpleNamespace(rope_parameters=both)) == (8, 16)
    old = SimpleNamespace(rope_scaling={"type": "su"}, original_max_position_embeddings=4)
    assert length_steps(old) == (4,)
    assert length_steps(SimpleNamespace(rope_parameters={**long, "rope_type": "linear"})) == ()


def test_prompts_on_both_sides_of_a_step_are_refused():
    check_lengths((8,), torch.tensor([3, 8]), 8)
    check_lengths((8,), torch.tensor([9, 12]), 12)
    check_lengths((), torch.tensor([1, 100]), 100)
    with pytest.raises(ValueError, match="a prompt of 8 tokens in a batch 12 wide"):
        check_lengths((8,), torch.tensor([12, 8]), 12)


def test_a_pass_does_not_depend_on_longer_ones_before_it():
    lm = tiny_lm(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    ropes = dynamic_ropes(lm)
    assert ropes
    short, long = some_ids(8), torch.cat([some_ids(60), some_ids(60)], 1)
    with torch.no_grad():
        first = lm(short).logits
        lm(long)
        assert ropes[0].max_seq_len_cached > 64
        reset(ropes)
        assert torch.equal(lm(short).logits, first)
    assert dynamic_ropes(tiny_lm("gpt2")) == []
    assert isinstance(ti.wrap(lm, id="dynamic").length_steps, tuple)
