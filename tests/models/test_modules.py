"""Parts of a model: found by the names of families, read by what they do."""

import pytest
import torch
from tiny import FAMILIES, tiny, tiny_lm
from torch import nn

from tokinterp.models.modules import (
    Head,
    Modules,
    candidates,
    find_modules,
    numbers_of,
    rows_of,
    size_of,
    submodule,
    vectors_of,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_norm_attention_and_mlp_of_every_family_are_found(family):
    lm = tiny(family).lm
    found = find_modules(lm)
    blocks = submodule(lm, found.blocks)
    assert len(blocks) == 3
    assert found.attn
    assert found.mlp
    assert (submodule(lm, found.norm) is None) == (family == "opt_post_norm")
    parts = candidates(blocks[0], found)
    assert parts[0][0]
    assert all(submodule(blocks[0], p) is not None for pair in parts for p in pair if p)


def test_an_unknown_architecture_is_told_what_to_name():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"unknown architecture Sequential: .*\(the model has: 0\)"):
        find_modules(net)
    assert submodule(net, "0.weight") is net[0].weight
    assert submodule(net, "0.nothing.at.all") is None
    assert submodule(net, None) is None


def test_vectors_are_what_a_module_does_not_what_its_weight_says():
    embed, head = nn.Embedding(7, 4), nn.Linear(4, 7)
    assert torch.equal(vectors_of(embed, rows=7), embed.weight)
    assert torch.equal(vectors_of(head, width=4), head.weight)

    class Adapted(nn.Module):
        def __init__(self, base, factor):
            super().__init__()
            self.base, self.factor = base, factor

        def forward(self, x):
            return self.factor * self.base(x)

    torch.testing.assert_close(vectors_of(Adapted(embed, 3.0), rows=7), 3 * embed.weight)
    torch.testing.assert_close(vectors_of(Adapted(head, 3.0), width=4), 3 * head.weight)
    assert rows_of(Adapted(head, 3.0), 4) == rows_of(head, 4) == 7
    assert numbers_of(Adapted(head, 3.0)) is head.weight


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "opt", "gpt2"])
@pytest.mark.slow
def test_the_head_gives_the_logits_of_the_model(family):
    lm = tiny_lm(family)
    head = Head(lm, find_modules(lm), lm.config)
    ids = torch.tensor([[5, 9, 11]])
    with torch.no_grad():
        out = lm(ids, output_hidden_states=True)
    found = head.logits(out.hidden_states[-1])  # the last state is normed already
    torch.testing.assert_close(found, out.logits, rtol=1e-4, atol=1e-5)


def test_gradients_go_through_the_head_where_its_input_asks():
    lm = tiny_lm()
    head = Head(lm, find_modules(lm), lm.config)
    x = torch.randn(1, 32, requires_grad=True)
    assert head.logits(head.normed(x)).requires_grad
    assert not head.logits(head.normed(x.detach())).requires_grad


def test_sizes():
    assert size_of(nn.Embedding(7, 4).double()) == (torch.float64, torch.device("cpu"), 4)
    assert size_of(nn.Linear(3, 9))[2] == 3
    assert Modules(blocks="a", norm=None).attn is None
