"""Registers: a planted sink moves to them, and what they cost."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.sentinel import registers


# -- registers ------------------------------------------------------------------------------------------------
def blank():
    """Id of the blank token of the byte tokenizer."""
    return byte_tokenizer()("\n", add_special_tokens=False)["input_ids"][0]


def test_a_planted_sink_moves_to_the_registers():
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.model.embed_tokens.weight[blank(), 5] = 300.0
    model = ti.wrap(lm, byte_tokenizer(), id="planted blank")
    prompts = ti.Prompts.from_ids([[1, *range(20, 34)], [1, *range(40, 50)]], model)
    ds = registers(model, prompts, n_registers=[2])
    ti.check(ds)
    assert ds["massive_share"].sizes["prompt"] == 2
    share = ds["massive_share"].sel(layer=0).isel(prompt=1)
    assert share.sel(n_fillers=2).values.tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(share.sel(n_fillers=0, key_set="registers"))
    assert float(share.sel(n_fillers=0, key_set=["first", "other"]).max()) == 0
    assert float(ds["relative_norm"].sel(n_fillers=2, key_set="registers", layer=0).min()) > 50
    np.testing.assert_allclose(ds["mass"].sum("key_set"), 1, atol=1e-5)
    assert float(ds["mass"].sel(n_fillers=0, key_set="registers").max()) == 0
    assert float(abs(ds["loss_change"].sel(n_fillers=0)).max()) == 0


@pytest.mark.parametrize("behind_bos", [False, True])
@pytest.mark.slow
def test_loss_with_registers_is_that_of_the_text(bundled, behind_bos):
    prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts()[:2]], bundled, max_tokens=40)
    ds = registers(bundled, prompts, n_registers=[3], behind_bos=behind_bos)
    one = registers(bundled, prompts, n_registers=[3], behind_bos=behind_bos, batch_tokens=1)
    for name in ds.data_vars:
        np.testing.assert_allclose(one[name], ds[name], rtol=1e-3, atol=1e-4, err_msg=name)
    newline = bundled.tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids = np.asarray(prompts.ids(1))
    whole = np.insert(ids, 1 if behind_bos else 0, newline * 3)
    with torch.no_grad():
        logp = bundled.lm(torch.from_numpy(whole)[None]).logits[0].log_softmax(-1)
    own = [-float(logp[t - 1, whole[t]]) for t in range(4, len(whole))]
    got = ds["loss"][1] + ds["loss_change"].sel(n_fillers=3)[1]
    assert float(got) == pytest.approx(np.mean(own), abs=1e-4)


def test_registers_need_room_and_bos(bundled):
    prompts = ti.Prompts.from_ids([[1, *range(20, 80)]], tiny())
    with pytest.raises(ValueError, match="4 registers before 61 tokens"):
        registers(tiny(), prompts)
    with pytest.raises(ValueError, match="do not begin with BOS"):
        registers(tiny(), ti.Prompts.from_ids([[20, 30, 40]], tiny()), behind_bos=True)


@pytest.mark.parametrize("behind_bos", [False, True])
def test_registers_are_those_of_a_loop(long_model, behind_bos):
    prompts = some_prompts([9, 12], model=long_model)
    ds = registers(long_model, prompts, n_registers=[2], kind=" x", behind_bos=behind_bos)
    blank = long_model.tokenizer("a x", add_special_tokens=False)["input_ids"][1:]
    sites = [*ti.resid(range(4)), *(ti.Site("pattern", b) for b in range(3))]
    for i in range(2):
        ids = np.insert(prompts.ids(i), 1 if behind_bos else 0, blank)
        first, at = (0, [1, 2]) if behind_bos else (2, [0, 1])
        parts = [at, [first], [*range(3, len(ids))]]
        with torch.no_grad():
            got = long_model.run(torch.from_numpy(ids)[None], sites)
        for k, part in enumerate(parts):
            one = ds.sel(n_fillers=2).isel(prompt=i, key_set=k)
            for layer in range(4):
                norm = got[ti.Site("resid", layer)][0].double().norm(dim=-1)
                wanted = float(norm[part].mean() / norm[parts[2]].mean())
                assert float(one["relative_norm"].sel(layer=layer)) == pytest.approx(wanted, rel=1e-4)
            for b in range(3):
                wanted = float(got[ti.Site("pattern", b)][0][:, parts[2]][..., part].sum(-1).mean())
                assert float(one["mass"].sel(block=b)) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
