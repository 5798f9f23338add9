"""Attention compared with the block before: a loop, planted patterns, chance, batches."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.attention import AttentionMass
from tokinterp.attention.kernels import row_similarity


def random_pattern(prompts=2, heads=3, n=9, seed=0):
    scores = 2 * torch.randn(prompts, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)


def by_hand(pattern, before, length):
    out = np.zeros((pattern.shape[0], 2))
    for h, a in enumerate(pattern.numpy()):
        values = []
        for q in range(3, length):
            x, y = a[q, 1:q], before[q, 1:q].numpy()
            values.append([x @ y / np.linalg.norm(x) / np.linalg.norm(y), x.mean() / np.sqrt((x**2).mean())])
        out[h] = np.mean(values, 0)
    return out


def test_cosines_are_those_of_a_loop_over_queries():
    pattern, before = random_pattern(), random_pattern(seed=1).mean(1)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    found = row_similarity(pattern, before, mask)
    for p, length in enumerate((9, 6)):
        np.testing.assert_allclose(found[p], by_hand(pattern[p], before[p], length), atol=1e-6)


def test_the_same_pattern_is_alike_and_sink_and_self_make_nothing_alike():
    pattern = random_pattern(heads=1, n=40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    assert row_similarity(pattern, pattern[:, 0], mask)[..., 0].min() > 1 - 1e-6
    other = random_pattern(heads=1, n=40, seed=5)
    alike = row_similarity(pattern, other[:, 0], mask)
    for a in (pattern, other):
        a *= 0.01
        a[..., 0] += 0.5
        a[..., range(40), range(40)] += 0.49
    torch.testing.assert_close(row_similarity(pattern, other[:, 0], mask), alike, atol=1e-4, rtol=0)
    assert float(alike[..., 0].mean()) < 0.5
    even = torch.ones(1, 1, 40, 40).tril() / torch.arange(1, 41)[:, None]
    found = row_similarity(pattern[:1], even[0], mask[:1])
    assert float(found[0, 0, 0]) == pytest.approx(float(found[0, 0, 1]), abs=1e-6)


def test_measured_blocks_are_compared_with_the_one_before_in_any_batches():
    model, prompts = tiny(), some_prompts([9, 7, 9, 8])
    ask = {"it": AttentionMass(similarity=True)}
    found = [ti.measure(model, prompts, ask, batch_tokens=n, progress=False)["it"].to_dataset() for n in (9, 40)]
    for name in ("similarity", "similarity_even"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-6)
    assert found[0]["similarity"].sel(block=0).isnull().all()
    batch = ti.capture(model, prompts, [0], ["pattern"])
    for b in (1, 2):
        own, before = (batch.activations[ti.Site("pattern", n)][0] for n in (b, b - 1))
        wanted = by_hand(own, before.mean(0), 9)
        np.testing.assert_allclose(found[0]["similarity"].sel(prompt=0, block=b), wanted[:, 0], atol=1e-5)
        np.testing.assert_allclose(found[0]["similarity_even"].sel(prompt=0, block=b), wanted[:, 1], atol=1e-5)
    plain = ti.measure(model, prompts, {"it": AttentionMass()}, progress=False)["it"].to_dataset()
    assert "similarity" not in plain
    np.testing.assert_array_equal(plain["mass"], found[1]["mass"])
