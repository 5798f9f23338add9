"""Massive rows and registers: planted ones are found and moved."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.massive import massive_effects, massive_roles, registers


# -- massive activations --------------------------------------------------------------------------------------
def planted(size=300.0):
    """A model whose token 7 has a massive channel from layer 0 on."""
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.model.embed_tokens.weight[7, 5] = size
    return ti.wrap(lm, byte_tokenizer(), id="planted")


def test_massive_rows_are_found_where_they_were_planted():
    model = planted()
    prompts = ti.Prompts.from_ids([[1, 7, *range(10, 22)], [1, 30, 31, 7, *range(40, 50)]], model)
    marks = np.asarray(prompts.token_ids) == 7
    ds = massive_roles(model, prompts, {"planted": marks, "rest": ~marks})
    ti.check(ds)
    share = ds["massive_share"].sel(layer=0)
    assert share.values.tolist() == [1.0, 0.0]
    effects = massive_effects(model, prompts)
    ti.check(effects)
    assert float(effects["onset"]) == 1
    assert "5" in effects.attrs["note"]
    change = abs(effects["loss_change"])
    assert float(change.sel(intervention="zero").max()) > float(change.sel(intervention="mean").max())


def test_without_massive_rows_the_effect_is_nan_and_says_why():
    prompts = ti.Prompts.from_ids([[1, *range(10, 22)]], tiny())
    ds = massive_effects(tiny(), prompts)
    assert np.isnan(ds["loss_change"]).all()
    assert "no row is massive" in ds.attrs["note"]


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
