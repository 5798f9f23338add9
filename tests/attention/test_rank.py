"""Ranks of attention: the known bounds, a loop, the null of independent tokens, refusals."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention import AttentionRank
from tokinterp.attention.rank import _independent, _values, effective_rank
from tokinterp.run.stream import capture

S = ti.Site


def test_ranks_keep_the_contract_and_their_bounds():
    ds = assert_contract(lambda: AttentionRank([6, 20]))
    assert (ds["rank_bound"].sel(length=6, prompt=0) == 6).all()
    assert (ds["rank_bound"].sel(length=20, prompt=0) == 8).all(), "four heads of 8"
    assert (ds["rank_logits"].sel(length=20, prompt=0) == 8).all(), "random weights use it all"
    short = ds["eff_rank"].sel(length=20).isnull().values.all((1, 2))
    assert short.tolist() == [n < 20 for n in (22, 30, 17, 30, 25, 19, 28)]
    assert (ds["eff_rank"] <= ds["rank_logits"] + 1e-6).sel(length=6).all()
    assert (ds["stable_rank"] <= ds["eff_rank"] + 1e-6).sel(length=6).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ranks_are_those_of_a_loop(family):
    model, n = tiny(family), 12
    prompts = some_prompts([12, 15], model=model)
    ds = ti.measure(model, prompts, {"r": AttentionRank([n], blocks=[1])}, progress=False)["r"]
    for p in range(2):
        batch = capture(model, prompts, [p], [S(name, 1) for name in ("query", "key", "pattern")])
        q, k, a = (batch.activations[S(name, 1)][0].double() for name in ("query", "key", "pattern"))
        for h in range(4):
            own = k.reshape(len(k), -1, 8)
            logits = q.reshape(len(q), 4, 8)[:n, h] @ own[:n, h * own.shape[1] // 4].T
            s = np.linalg.svd(logits.numpy(), compute_uv=False)
            w = np.linalg.svd(a[h, :n, :n].numpy(), compute_uv=False)
            one = ds.sel(prompt=p, length=n, block=1, head=h)
            share, used = s / s.sum(), w / w.sum()
            assert float(one["eff_rank"]) == pytest.approx(np.exp(-(share * np.log(share + 1e-300)).sum()), rel=1e-4)
            assert float(one["eff_rank_pattern"]) == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-4)
            assert float(one["stable_rank"]) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
            assert int(one["rank_logits"]) == 8
            assert float(one["eff_rank_share"]) == pytest.approx(float(one["eff_rank"]) / 8)


def test_independent_tokens_have_the_rank_of_the_null_and_one_repeated_token_has_one():
    draw = torch.Generator().manual_seed(1)
    x = 0.3 + torch.randn(1, 3, 40, 8, generator=draw, dtype=torch.float64)
    free = _independent(x, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(free.mean(2), x.mean(2), atol=0.6)
    np.testing.assert_allclose(free.std(2), x.std(2), rtol=0.4)
    own, null = (effective_rank(torch.linalg.svdvals(y @ y.mT)) for y in (x, free))
    np.testing.assert_allclose(own, null, rtol=0.15)
    same = x[:, :, :1].expand_as(x)
    np.testing.assert_allclose(effective_rank(torch.linalg.svdvals(same @ same.mT)), 1, atol=1e-6)
    assert float(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0]))) == pytest.approx(3)


def test_logits_of_a_small_head_are_low_in_rank_and_their_softmax_is_not():
    ds = ti.measure(tiny(), some_prompts([30]), {"r": AttentionRank([30])}, progress=False)["r"]
    assert float(ds["eff_rank_pattern"].min()) > float(ds["eff_rank"].max())


def test_a_rank_in_half_precision_does_not_fall_with_the_length():
    model = ti.wrap(tiny_lm("llama").to(torch.bfloat16), id="half")
    ds = ti.measure(model, some_prompts([30], model=model), {"r": AttentionRank([16, 30])}, progress=False)["r"]
    assert (ds["rank_logits"] == 8).all(), "random weights use it all"


def test_what_is_not_finite_has_no_rank():
    x = torch.eye(3).repeat(3, 1, 1)
    x[0, 1, 1], x[1, 0, 2] = torch.nan, torch.inf
    assert effective_rank(_values(x)).isnan().tolist() == [True, True, False]


def test_prompts_that_are_all_too_short_are_refused():
    with pytest.raises(ValueError, match=r"lengths=\[20\]: the longest prompt has 9 tokens: give longer prompts"):
        ti.measure(tiny(), some_prompts([9]), {"r": AttentionRank([20])}, progress=False)
    with pytest.raises(ValueError, match=r"lengths=\[8, 4\]: give an ascending list"):
        AttentionRank([8, 4])
