"""Hashes of a network: one value, entry, attribute or hook more is another network."""

import pytest
import torch
from tiny import tiny_lm
from torch import nn

from tokinterp.models.fingerprint import (
    config_facts,
    fixed_ids,
    fixed_logits,
    hooks_facts,
    logits_agree,
    look,
    state_hash,
    weights_hash,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_value_of_every_parameter_is_in_the_hash(dtype):
    net = nn.Linear(40, 60).to(dtype)
    before = weights_hash(net)
    with torch.no_grad():
        for place in ((0, 0), (59, 39), (31, 7)):
            old = float(net.weight[place])
            net.weight[place] = old + 1
            assert weights_hash(net) != before
            net.weight[place] = old
        assert weights_hash(net) == before
        net.weight[[0, 1]] = net.weight[[1, 0]]  # the same values at other places
        assert weights_hash(net) != before


def test_entries_that_decide_nothing_are_left_out_of_a_config():
    config = tiny_lm().config
    facts = config_facts(config)
    assert not {"_name_or_path", "dtype", "use_cache", "architectures"} & set(facts)
    other = tiny_lm().config
    other.name_or_path, other.use_cache = "elsewhere", False
    assert config_facts(other) == facts
    other.rms_norm_eps = 0.1
    assert config_facts(other) != facts


def test_state_is_buffers_attributes_and_code():
    def net():
        out = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        out[1].note = "a"
        return out

    one = net()
    before = state_hash(one)
    assert state_hash(net()) == before
    changes = [
        lambda m: m[0].running_mean.add_(1), lambda m: setattr(m[1], "p", 0.1), lambda m: setattr(m[1], "note", "b"),
        lambda m: setattr(m[1], "forward", lambda x: x),
    ]  # fmt: skip
    marks = {before}
    for change in changes:
        other = net()
        change(other)
        marks.add(state_hash(other))
    assert len(marks) == 1 + len(changes)
    one.train(not one.training)
    assert state_hash(one) == before


def test_hooks_of_others_are_told_by_code_and_what_they_hold():
    def facts(factor):
        net = nn.Sequential(nn.Linear(2, 2))
        net[0].register_forward_hook(lambda m, a, out: factor * out)
        return hooks_facts(net)

    assert hooks_facts(nn.Linear(2, 2)) == []
    assert facts(2.0) == facts(2.0) != facts(3.0)
    net, running = nn.Linear(2, 2), (n for n in [1])
    net.register_forward_hook(lambda m, a, out: next(running, None))
    with pytest.raises(ValueError, match=r"a hook on the model, .*cannot be described"):
        hooks_facts(net)


def test_logits_of_fixed_ids_tell_models_apart_up_to_rounding():
    lm = tiny_lm()
    ids = fixed_ids(320, 64)
    assert ids.shape == (3, 48)
    assert int(ids.max()) < 320
    _, passes = look(lm, 320, 64, "cpu")
    with torch.no_grad():
        again = fixed_logits(lm(ids).logits)
        assert logits_agree(passes["logits"], again, "float32")
        other = fixed_logits(tiny_lm(seed=1)(ids).logits)
    assert not logits_agree(again, other, "float32")
    assert logits_agree(again, [v * (1 + 1e-5) for v in again], "float32")
    assert not logits_agree(again, [v * (1 + 1e-2) for v in again], "float32")
    assert not logits_agree(again, again[:-1], "float32")
    assert logits_agree(["nan"], ["nan"], "float32")
