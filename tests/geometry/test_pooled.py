"""The states themselves: rows, means and last tokens."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.pooled import PooledStates


def test_states_are_the_rows_of_the_model(device):
    model = StandIn(device=device)
    whole = {p: model.measured(PooledStates(pooling=p)).result() for p in ("mean", "last", "tokens")}
    for n, ids in enumerate(model.ids):
        x = np.stack([model.streams[n][layer][ids != 0] for layer in range(4)])
        np.testing.assert_allclose(whole["mean"]["state"].sel(prompt=n), x.mean(1), atol=1e-5)
        np.testing.assert_allclose(whole["last"]["state"].sel(prompt=n), x[:, -1], atol=1e-5)
        rows = whole["tokens"].isel(token=(whole["tokens"]["token_prompt"] == n).values)
        np.testing.assert_allclose(rows["state"].transpose("layer", ...), x, atol=1e-5)


def test_classes_choose_tokens(bundled):
    from tokinterp.text import token_classes

    prompts = ti.Prompts.from_texts(["The cat sat, and looked.", "No! Why?"], bundled)
    asked = {"w": PooledStates(layers=[2], classes="punctuation"), "t": PooledStates([2], "tokens", "punctuation")}
    run = ti.measure(bundled, prompts, asked, progress=False)
    marks = token_classes(prompts).mask("punctuation")
    assert run["t"].sizes["token"] == marks.sum() == run["w"]["n_rows"].sum()
    first = run["t"]["state"].values[run["t"]["token_prompt"].values == 0].mean(0)
    np.testing.assert_allclose(run["w"]["state"].sel(prompt=0), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "tokens"])
def test_contract_of_states(pooling):
    assert_contract(lambda: PooledStates(layers=[0, 2], pooling=pooling))


def test_a_prompt_without_tokens_is_nan():
    model = StandIn(lengths=(1, 4))
    ds = model.measured(PooledStates(pooling="last")).result()
    assert np.isnan(ds["state"].sel(prompt=0)).all()
    assert np.isfinite(ds["state"].sel(prompt=1)).all()
    assert np.isnan(model.measured(PooledStates()).result()["state"].sel(prompt=0)).all()


def test_refusals_of_states():
    with pytest.raises(ValueError, match="pooling='max'"):
        PooledStates(pooling="max")
    with pytest.raises(ValueError, match="choose fewer layers="):
        ti.measure(tiny(), some_prompts([9]), {"p": PooledStates()}, memory=10, progress=False)
    with pytest.raises(ValueError, match="no token of the prompts"):
        ti.measure(tiny(), some_prompts([3]), {"p": PooledStates(classes="middle piece")}, progress=False)
    assert torch.get_num_threads() == 1


def test_centred_rows_of_length_one_are_averaged_without_padding():
    model = StandIn()
    asked = ti.geometry.PooledStates(exclude=(), centred_unit=True)
    ds = model.measured(asked).result()
    for n, stream in enumerate(model.streams):
        rows = stream - stream.mean(1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        np.testing.assert_allclose(ds["state"].sel(prompt=n), rows.mean(1), atol=1e-5)
