"""Queries, keys and values at hook points: offered where the weights and what they mix prove them, however they lie."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from tokinterp.models.attention.points import FUSED, Point, find_points, keep_outs

PROMPTS, HEADS, KEPT, N, D = 2, 4, 2, 4, 8  # as many heads as positions: the layout is told by value


V, Z = "v.hook_out", "o.hook_in"


def fold(heads, layout):
    return Point(nn.Identity(), layout, heads.shape[1]).fold(heads, heads)


@pytest.fixture(scope="module")
def block():
    """Queries, keys and values of grouped heads, their weights with ALiBi-free causal softmax, and what they mix."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(PROMPTS, h, N, D, generator=draw) for h in (HEADS, KEPT, KEPT))
    scores = q @ k.repeat_interleave(2, 1).mT * D**-0.5
    weights = scores.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf).softmax(-1)
    return q, k, v, weights, (weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("layout", ["heads", "split", "flat"])
def test_points_are_found_in_every_layout(block, layout):
    q, k, v, weights, mixed = block
    outs = {"hook_rot_q": [fold(q, layout)], "hook_rot_k": [fold(k, layout)], V: [fold(v, layout)], Z: [mixed]}
    modules = {path: nn.Identity() for path in outs}
    found = find_points(modules, outs, weights, 1e-3)
    assert list(found) == ["query", "key", "value"]
    for point, path, true in zip(found.values(), outs, (q, k, v), strict=False):
        assert point.module is modules[path]
        assert (point.layout, point.n_heads) == (layout, true.shape[1])
        assert torch.equal(point.unfold(outs[path][0]), true)
        with ExitStack() as stack:
            point.listen(stack, lambda heads: heads * 2)
            assert torch.equal(point.module(outs[path][0]), outs[path][0] * 2)
        assert torch.equal(point.module(outs[path][0]), outs[path][0])


def test_what_cannot_be_proved_is_not_found(block):
    q, k, v, weights, mixed = block
    right = {"hook_rot_q": [q], "hook_rot_k": [k], V: [v], Z: [mixed]}
    modules = {path: nn.Identity() for path in right}

    def names(**changes):
        return set(find_points(modules, {**right, **changes}, weights, 1e-3))

    assert names() == {"query", "key", "value"}
    assert names(hook_rot_q=[-q]) == {"value"}  # a negative scale
    assert names(hook_rot_k=[k.flip(2)]) == {"value"}
    assert names(hook_rot_k=[k, k]) == {"value"}, "a point that is reached twice"
    assert names(hook_rot_q=[]) == {"value"}
    assert names(**{V: [v.flip(1)]}) == {"query", "key"}
    assert names(**{Z: [mixed * 1.01]}) == {"query", "key"}
    assert names(**{Z: []}) == {"query", "key"}
    even = torch.full_like(weights, 1 / N).tril()
    assert set(find_points(modules, right, even / even.sum(-1, keepdim=True), 1e-3)) == set(), (
        "weights that say nothing"
    )


@pytest.mark.parametrize("kept", [4, 2, 1])
def test_values_of_a_fused_projection_are_found_and_changed_alone(kept):
    """Queries, key and value of each group side by side, as in BLOOM (groups of one), Falcon-40B, Falcon-7B (one)."""
    draw = torch.Generator().manual_seed(kept)
    weights = torch.randn(PROMPTS, HEADS, N, N, generator=draw).tril().softmax(-1).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    whole = torch.randn(PROMPTS, N, kept, HEADS // kept + 2, D, generator=draw)
    value = whole[:, :, :, -1].transpose(1, 2)
    mixed = (weights @ value.repeat_interleave(HEADS // kept, 1)).transpose(1, 2).flatten(2)
    modules = {FUSED: nn.Identity(), "dense": nn.Linear(HEADS * D, HEADS * D)}
    with ExitStack() as stack:
        outs = keep_outs(stack, modules)
        out = modules[FUSED](whole.flatten(2))
        modules["dense"](mixed)
    assert torch.equal(outs["dense"][0], mixed), "what an output projection is given, not what it makes of it"
    found = find_points(modules, outs, weights, 1e-3)
    assert list(found) == ["value"]
    assert (found["value"].n_heads, found["value"].parts) == (kept, HEADS // kept + 2)
    assert torch.equal(found["value"].unfold(out), value)
    with ExitStack() as stack:
        found["value"].listen(stack, lambda heads: heads + 1)
        changed = modules[FUSED](out).unflatten(2, (kept, -1, D))
    assert torch.equal(changed[..., :-1, :], whole[..., :-1, :]), "queries and keys stay"
    assert torch.equal(changed[..., -1, :], whole[..., -1, :] + 1)
