"""Attention to the first token."""

import numpy as np
import pytest
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.attention.first_token import FirstTokenAttention
from tokinterp.geometry.norms import TokenNorms
from tokinterp.run.sites import Site


def test_first_token_mass_is_that_of_the_pattern():
    model, prompts = tiny(), some_prompts([9, 5, 12, 2])
    run = ti.measure(model, prompts, {"s": FirstTokenAttention(), "n": TokenNorms()}, progress=False)
    ds = run["s"].to_dataset()
    for n in range(4):
        batch = ti.capture(model, prompts, [n], [Site("pattern", b) for b in range(3)])
        for b in range(3):
            p = batch.activations[ti.Site("pattern", b)][0].double().numpy()
            np.testing.assert_allclose(ds["first_token_mass"].sel(prompt=n, block=b), p[:, 1:, 0].mean(1), rtol=1e-4)
        even = np.mean([1 / (t + 1) for t in range(1, prompts.lengths[n])])
        assert float(ds["uniform"].sel(prompt=n)) == pytest.approx(even)
    rate = (ds["first_token_mass"] > 0.3).mean("head")
    np.testing.assert_allclose(ds["sink_rate"], rate)


def test_first_token_attention_and_sinks_are_the_same_reduction():
    """T alpha_0 counts the query 0, whose weight is 1; the mean over later positions does not."""
    model, prompts = tiny(), some_prompts([20, 20, 20])
    asked = {"first": FirstTokenAttention(), "sinks": ti.attention.AttentionSinks(tokens=20, norms=False)}
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


def test_at_the_threshold_is_not_above_it():
    model, prompts = tiny(), some_prompts([9, 12])
    run = ti.measure(model, prompts, {"s": FirstTokenAttention()}, progress=False)["s"]
    mass = run["first_token_mass"].values
    threshold = float(np.sort(mass[0, 1])[1])  # that of a head
    again = ti.measure(model, prompts, {"s": FirstTokenAttention(threshold=threshold)}, progress=False)["s"]
    assert float(again["sink_rate"][0, 1]) == (mass[0, 1] > threshold).mean()
    assert (mass[0, 1] == threshold).any()


def test_largest_later_position_is_seen_by_enough_queries_and_not_the_first():
    model, prompts = tiny(), some_prompts([24, 12])  # the second is too short
    ds = ti.measure(model, prompts, {"s": ti.attention.AttentionSinks(tokens=24)}, progress=False)["s"].to_dataset()
    assert ds["prompt"].values.tolist() == [0]
    assert ds["n_queries"].values.tolist() == list(range(24, 0, -1))
    later = ds["received"].isel(position=slice(1, 9))  # position 8 is the last that 16 queries see
    np.testing.assert_allclose(ds["largest_later"].sel(prompt=0), later.max("position"), rtol=1e-6)
    np.testing.assert_array_equal(ds["largest_position"].sel(prompt=0), later.argmax("position") + 1)
    np.testing.assert_allclose(ds["first_received"].sel(prompt=0), ds["received"].isel(position=0), rtol=1e-6)
    batch = ti.capture(model, prompts, [0], [Site("pattern", 1)])
    pattern = batch.activations[ti.Site("pattern", 1)][0].double().numpy()
    wanted = np.stack([pattern[:, k:, k].mean(1) for k in range(24)], 1)
    np.testing.assert_allclose(ds["received"].sel(block=1), wanted, rtol=1e-5)
