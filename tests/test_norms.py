"""Norms, massive activations, attention to the first token, and the states themselves."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.capture import Site
from tokinterp.measurements.norms import TokenNorms
from tokinterp.measurements.pooled import PooledStates
from tokinterp.measurements.sinks import FirstTokenAttention


# -- norms ----------------------------------------------------------------------------------------------------
def test_norms_equal_numpy(device):
    model = StandIn(device=device)
    ds = model.measured(TokenNorms(tokens=None)).result()
    for n in range(5):
        rows = ds.isel(token=(ds["token_prompt"] == n).values)
        for layer in range(4):
            x = model.streams[n][layer]
            norm = np.linalg.norm(x, axis=1)
            np.testing.assert_allclose(rows["norm"].sel(layer=layer), norm, rtol=1e-5)
            one = ds.sel(prompt=n, layer=layer)
            assert float(one["max_norm"]) == pytest.approx(norm.max(), rel=1e-5)
            assert int(one["top_position"]) == norm.argmax()
            top = x[norm.argmax()]
            assert float(one["top_channels"]) == pytest.approx((top**2).sum() ** 2 / (top**4).sum(), rel=1e-5)
            np.testing.assert_allclose(one["top_magnitude"], np.sort(np.abs(x).ravel())[::-1][:3], rtol=1e-5)
    assert (ds["massive_rows"] == 0).all()
    assert ds.sizes["entry"] == 0


def test_planted_massive_activations_are_listed():
    model = StandIn(lengths=(20, 20))
    model.streams[1][2, 7, 4] = 5000.0
    ds = model.measured(TokenNorms(), [[0], [1]]).result()
    assert ds.sizes["entry"] == 1
    entry = ds.isel(entry=0)
    found = [int(entry[f"entry_{k}"]) for k in ("layer", "prompt", "position", "channel")]
    assert found == [2, 1, 7, 4]
    assert float(entry["entry_value"]) == 5000
    one = ds.sel(prompt=1, layer=2)
    assert float(one["top_channels"]) == pytest.approx(1, abs=1e-3)
    assert int(one["top_position"]) == 7
    assert one["massive_rows"].values.tolist() == [1, 1]
    assert int(ds["massive_rows"].sum()) == 2


@pytest.mark.parametrize("options", [{}, {"tokens": 0, "layers": [1]}, {"rule": "sun2024", "factor": 1.5, "keep": 3}])
def test_contract_of_norms(options):
    ds = assert_contract(lambda: TokenNorms(**options))
    assert ("token" in ds.dims) == (options.get("tokens") != 0)


def test_a_low_factor_lists_rows_in_any_order():
    ds = assert_contract(lambda: TokenNorms(factor=1.2, keep=5))
    assert ds.sizes["entry"] > 4
    each = [ds["entry_ratio"].values[ds["entry_layer"].values == n] for n in range(4)]
    assert all((np.diff(r) <= 0).all() for r in each)


# -- attention ------------------------------------------------------------------------------------------------
def test_first_token_mass_is_that_of_the_pattern():
    model, prompts = tiny(), some_prompts([9, 5, 12, 2])
    run = ti.measure(model, prompts, {"s": FirstTokenAttention(), "n": TokenNorms()}, progress=False)
    ds = run["s"].to_dataset()
    for n in range(4):
        batch = ti.capture(model, prompts, [n], [Site("pattern", b) for b in range(3)])
        for b in range(3):
            p = batch.get("pattern", b)[0].double().numpy()
            np.testing.assert_allclose(ds["first_token_mass"].sel(prompt=n, block=b), p[:, 1:, 0].mean(1), rtol=1e-4)
        even = np.mean([1 / (t + 1) for t in range(1, prompts.lengths[n])])
        assert float(ds["uniform"].sel(prompt=n)) == pytest.approx(even)
    rate = (ds["first_token_mass"] > 0.3).mean("head")
    np.testing.assert_allclose(ds["sink_rate"], rate)


def test_first_token_attention_and_sinks_are_the_same_reduction():
    """T alpha_0 counts the query 0, whose weight is 1; the mean over later positions does not."""
    model, prompts = tiny(), some_prompts([20, 20, 20])
    asked = {"first": FirstTokenAttention(), "sinks": ti.AttentionSinks(tokens=20, norms=False)}
    run = ti.measure(model, prompts, asked, progress=False)
    wanted = (20 * run["sinks"]["first_received"] - 1) / 19
    np.testing.assert_allclose(run["first"]["first_token_mass"], wanted, rtol=1e-6)


def test_contract_of_first_token_attention():
    ds = assert_contract(lambda: FirstTokenAttention(blocks=[0, 2], threshold=0.05))
    assert ds["block"].values.tolist() == [0, 2]
    assert 0 < float(ds["sink_rate"].mean()) <= 1


def test_refusals_of_attention():
    with pytest.raises(ValueError, match="blocks=\\[7\\]"):
        ti.measure(tiny(), some_prompts([9]), {"s": FirstTokenAttention(blocks=[7])}, progress=False)
    with pytest.raises(ValueError, match="only look at itself"):
        ti.measure(tiny(), some_prompts([1]), {"s": FirstTokenAttention()}, progress=False)


# -- states ---------------------------------------------------------------------------------------------------
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
        ti.measure(tiny(), some_prompts([9]), {"p": PooledStates(max_bytes=10)}, progress=False)
    with pytest.raises(ValueError, match="no token of the prompts"):
        ti.measure(tiny(), some_prompts([3]), {"p": PooledStates(classes="middle piece")}, progress=False)
    assert torch.get_num_threads() == 1
