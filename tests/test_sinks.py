"""Attention to the first token."""

import numpy as np
import pytest
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.capture import Site
from tokinterp.measurements.norms import TokenNorms
from tokinterp.measurements.sinks import FirstTokenAttention


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
