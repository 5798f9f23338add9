"""Contents of the dots: the contract, the chain where it was written, chance."""

import copy

import numpy as np
import pytest
import torch
from contract import assert_contract

import tokinterp as ti
from tokinterp.fillers.tasks import match3
from tokinterp.fillers.tasks.contents import FillerContents, _random_rows, filler_prompts, valid_words
from tokinterp.fillers.tasks.network import Network, as_model, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=5)


@pytest.fixture(scope="module")
def lm():
    return build(TASK, Network(2, 32, 2, 64), 0)


def test_contents_hold_the_contract(lm):
    model = as_model(lm, TASK)
    prompts = filler_prompts(TASK, model, 9)
    ds = assert_contract(lambda: FillerContents(4, 2, 5), model, prompts)
    assert ds["recovery"].dims == ("layer", "slot")
    assert ds.sizes["slot"] == 12


def test_contents_find_the_chain_of_thought_where_it_was_written(lm):
    """States replaced by the head's own rows of a chain of thought: recovery is 1 there, chance elsewhere."""
    model = as_model(lm, TASK)
    head = model.lm.lm_head
    with torch.no_grad():  # orthogonal rows, so that each word is read as itself
        head.weight[: len(TASK.words)] = torch.linalg.qr(torch.randn(32, 32))[0][: len(TASK.words)]
    prompts = filler_prompts(TASK, model, 40)
    chain = TASK.test_set("parallel", 40, 200).sequences.ids[:, 5:17]
    measurement = FillerContents(4, 2, 5, layers=[1, 2])
    measurement.begin(model.info, prompts)
    batch = ti.capture(model, prompts, range(40), measurement.sites(model.info))
    batch.activations[ti.Site("resid", 1)][:, 5:17] = head.weight[chain]
    measurement.update(batch)
    ds = measurement.result()
    assert (ds["recovery"].sel(layer=1) == 1).all()
    assert (ds["reciprocal_rank"].sel(layer=1) == 1).all()
    assert float(ds["match_recovery"].sel(layer=1)) == 1
    assert int(ds["n_matches"]) == int((match3.partner(TASK.test_set("filler", 40, 200).rows, 5) >= 0).sum())
    # Rows of the pair are the same in every prompt, digits are not.
    assert (ds["recovery_shuffled"].sel(layer=1)[::2] == 1).all()
    assert float(ds["recovery_shuffled"].sel(layer=1)[1::2].mean()) < 0.55
    assert float(ds["recovery"].sel(layer=2).mean()) < 0.9


def test_contents_are_those_of_a_loop(lm):
    loud = copy.deepcopy(lm)
    with torch.no_grad():
        for p in loud.parameters():
            p *= 6 if p.ndim == 2 else 1
        state = loud.model.embed_tokens(torch.tensor([[TASK.words.filler]]))[0, 0]
        loud.lm_head.weight[TASK.words.filler] = state / state.norm() / 4  # read at some of the dots
    model, w, number = as_model(loud, TASK), TASK.words, 25
    prompts = filler_prompts(TASK, model, number)
    ds = ti.measure(model, prompts, {"c": FillerContents(4, 2, 5)}, progress=False, batch_tokens=100)["c"]
    rows, pairs = TASK.test_set("filler", number, 200).rows.tolist(), match3.pairs(4).T.tolist()
    drawn = _random_rows(torch.arange(number), 4, 2, 5).tolist()
    ids = torch.from_numpy(np.stack([prompts.ids(e) for e in range(number)]))
    sites = ti.resid([0, 1, 2])
    with torch.no_grad():
        logits = [model.unembed(x)[:, 5:17, : len(w)].double() for x in model.run(ids, sites).values()]

    def could_be(x, slot):
        i, j = pairs[slot // 2]
        total = [(a + b) % 5 for a, b in zip(x[i], x[j], strict=True)]
        third = [k for k in range(j + 1, 4) if all((a + b) % 5 == 0 for a, b in zip(total, x[k], strict=True))]
        if slot % 2 == 0:
            return {w.slot + i, w.slot + j}
        return {w.slot + third[0]} if third else {w.digit + a for a in total}

    matched = [w.slot <= min(could_be(x, s)) < w.digit for x in rows for s in range(1, 12, 2)]
    assert int(ds["n_matches"]) == sum(matched) > 0
    for layer in range(3):
        found = np.zeros((4, 12, number))
        for e in range(number):
            for s in range(12):
                own = logits[layer][e, s].clone()
                is_filler = int(own.argmax()) == w.filler
                own[w.filler] = -np.inf
                best = int(own.argmax())
                top = max(float(own[word]) for word in could_be(rows[e], s))
                found[:, s, e] = (
                    best in could_be(rows[e], s), best in could_be(drawn[e], s), 1 / (1 + int((own > top).sum())),
                    is_filler,
                )  # fmt: skip
        names = ("recovery", "recovery_shuffled", "reciprocal_rank", "filler_share")
        for name, value in zip(names, found.mean(2), strict=True):
            np.testing.assert_allclose(ds[name].sel(layer=layer), value, err_msg=f"{name} {layer}")
        hits = found[0, 1::2].T.ravel()
        assert float(ds["match_recovery"].sel(layer=layer)) == pytest.approx(hits[matched].mean())
    assert 0 < float(ds["filler_share"].mean()) < 1
    assert ds["slot_kind"].values[:2].tolist() == ["row of the pair", "third row or digit of the sum"]


def test_the_rows_of_chance_are_uniform_and_other_ones_for_each_prompt():
    drawn = _random_rows(torch.arange(2000), 4, 2, 5)
    assert len(drawn.flatten(1).unique(dim=0)) > 1980
    for part in (drawn.flatten(1)[:, k] for k in range(8)):
        assert (abs(part.bincount(minlength=5) / 2000 - 0.2) < 0.05).all()
    assert torch.equal(_random_rows(torch.tensor([7]), 4, 2, 5), drawn[7:8])


def test_valid_words_are_those_of_a_loop():
    x = TASK.sample("parallel", 30, torch.Generator().manual_seed(4))
    valid = valid_words(x.rows, TASK.words)
    chain = x.sequences.ids[:, 5:17]
    assert valid.gather(2, chain[..., None]).all()
    assert (valid[:, ::2].sum(-1) == 2).all()
    assert (valid[:, 1::2].sum(-1) <= 2).all()


def test_contents_refuse_other_prompts(lm):
    model = as_model(lm, TASK)
    ids = TASK.test_set("parallel", 3).sequences.ids
    with pytest.raises(ValueError, match="prompt 0 has no fillers"):
        ti.measure(model, ti.Prompts.from_ids(ids.tolist(), model), {"c": FillerContents(4, 2, 5)}, progress=False)
    with pytest.raises(ValueError, match="give a network of that task"):
        ti.measure(model, filler_prompts(TASK, model, 2), {"c": FillerContents(4, 3, 5)}, progress=False)
