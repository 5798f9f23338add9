"""Attention to the dots: sums to one, that of a loop, chance as stated."""

import numpy as np
import pytest
import torch
from contract import assert_contract

import tokinterp as ti
from tokinterp.fillers.tasks import match3
from tokinterp.fillers.tasks.contents import filler_prompts
from tokinterp.fillers.tasks.dot_attention import DotAttention
from tokinterp.fillers.tasks.network import Network, as_model, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=3)


SLOTS = 12


@pytest.fixture(scope="module")
def lm():
    net = build(TASK, Network(2, 32, 2, 64), 0)
    with torch.no_grad():  # weights of size .02 make attention uniform and all answers alike
        for p in net.parameters():
            if p.ndim == 2:
                p *= 6
    return net


# -- attention ------------------------------------------------------------------------------------------------
def test_attention_holds_the_contract_and_sums_to_one(lm):
    model = as_model(lm, TASK)
    ds = assert_contract(lambda: DotAttention(4, 2, 3), model, filler_prompts(TASK, model, 9))
    np.testing.assert_allclose(ds["mass"].sum("key_set"), 1, atol=1e-5)
    np.testing.assert_allclose(ds["chance"].sum("key_set"), 1, atol=1e-12)


def test_attention_is_that_of_a_loop(lm):
    model = as_model(lm, TASK)
    prompts = filler_prompts(TASK, model, 30)
    ds = ti.measure(model, prompts, {"a": DotAttention(4, 2, 3)}, progress=False)["a"].to_dataset()
    test = TASK.test_set("filler", 30, 200)
    ids = torch.from_numpy(np.stack([prompts.ids(e) for e in range(30)]))
    patterns = model.run(ids, [ti.Site("pattern", 1)])[ti.Site("pattern", 1)].double().numpy()
    pairs, partner = match3.pairs(4).T.tolist(), match3.partner(test.rows, 3)
    first, cue = 5, 5 + TASK.n_fillers
    seen = 0
    for e in range(30):
        for h in range(2):
            a = patterns[e, h]
            one = ds.sel(prompt=e, block=1, head=h)
            ask = one["mass"].sel(query_set="answer")
            wanted = [a[cue, :4].sum(), a[cue, 4], a[cue, first:cue].sum(), a[cue, cue]]
            np.testing.assert_allclose(ask, wanted, atol=1e-6)
            own = np.mean([a[q, q] for q in range(first, cue)])
            assert float(one["mass"].sel(query_set="fillers", key_set="self")) == pytest.approx(own, abs=1e-6)
            mine = [a[first + t, list(pairs[t // 2])].sum() for t in range(SLOTS)]
            rest = [a[first + t, :4].sum() for t in range(SLOTS)]
            assert float(one["own_rows"]) == pytest.approx(np.mean(mine), abs=1e-6)
            assert float(one["two_other_rows"]) == pytest.approx(np.mean(rest) - np.mean(mine), abs=1e-6)  # n = 4
            hit = [a[cue, first + t] for t in range(SLOTS) if partner[e, t // 2] >= 0]
            plain = [a[cue, first + t] for t in range(SLOTS) if partner[e, t // 2] < 0]
            assert int(one["n_matches"]) == len(hit)
            assert float(one["slot_plain"]) == pytest.approx(np.mean(plain), abs=1e-6)
            if hit:
                seen += 1
                assert float(one["slot_match"]) == pytest.approx(np.mean(hit), abs=1e-6)
            else:
                assert np.isnan(one["slot_match"])
    assert 0 < seen < 60


@pytest.mark.parametrize("n", [4, 6])
def test_uniform_attention_has_the_chance_that_is_stated(n):
    task = Task(n=n, d=2, m=3)
    flat = build(task, Network(1, 32, 2, 64), 0)
    with torch.no_grad():
        flat.model.layers[0].self_attn.q_proj.weight.zero_()
    model = as_model(flat, task)
    run = ti.measure(model, filler_prompts(task, model, 4), {"a": DotAttention(n, 2, 3)}, progress=False)
    ds = run["a"].to_dataset()
    np.testing.assert_allclose(ds["mass"].mean(("prompt", "block", "head")), ds["chance"], atol=1e-6)
    np.testing.assert_allclose(ds["own_rows"], ds["two_other_rows"], atol=1e-6)


def test_attention_refuses_other_prompts(lm):
    model = as_model(lm, TASK)
    chain = ti.Prompts.from_ids(TASK.test_set("parallel", 3).sequences.ids.tolist(), model)
    with pytest.raises(ValueError, match="prompt 0 has no fillers"):
        ti.measure(model, chain, {"a": DotAttention(4, 2, 3)}, progress=False)
    ids = TASK.test_set("filler", 3).sequences.ids.clone()
    for prompt, place, word in ((2, 6, TASK.words.answer), (1, 4, TASK.words.filler), (1, 0, TASK.words.filler)):
        mixed = ids.clone()
        mixed[prompt, place] = word
        with pytest.raises(ValueError, match=f"prompt {prompt} has no fillers"):
            ti.measure(model, ti.Prompts.from_ids(mixed.tolist(), model), {"a": DotAttention(4, 2, 3)}, progress=False)
    with pytest.raises(ValueError, match="blocks=\\[7\\]"):
        ti.measure(model, filler_prompts(TASK, model, 2), {"a": DotAttention(4, 2, 3, blocks=[7])}, progress=False)
