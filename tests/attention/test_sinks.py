"""Sinks: the contract, attention of the library itself, a loop."""

import numpy as np
import torch
from contract import LENGTHS, assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.attention.sinks import AttentionSinks

S = ti.Site


def test_attention_sinks_keep_the_contract():
    ds = assert_contract(lambda: AttentionSinks(tokens=20, threshold=0.1), tiny("llama"))
    assert ds.sizes["prompt"] == sum(n >= 20 for n in LENGTHS)
    assert ((ds["largest_position"] >= 1) & (ds["n_queries"].values[ds["largest_position"].values] >= 16)).all()


def test_sinks_agree_with_eager_attention(bundled):
    text = ti.bundled_texts()[0].text
    prompts = ti.Prompts.from_texts([text], bundled, max_tokens=40)
    ds = ti.measure(bundled, prompts, {"s": AttentionSinks(tokens=32)}, progress=False)["s"]
    a = bundled.run(torch.from_numpy(prompts.padded([0])[0])[:, :32], [S("pattern", 2)])[S("pattern", 2)][0]
    seen = torch.stack([a[:, k:, k].mean(-1) for k in range(32)], -1)
    np.testing.assert_allclose(ds["received"].isel(block=2), seen, atol=1e-6)
    np.testing.assert_allclose(ds["first_received"].isel(prompt=0, block=2), seen[:, 0], atol=1e-6)
    np.testing.assert_array_equal(ds["sink_rate"].isel(block=2), (seen > 0.3).numpy())


def test_marked_queries_are_those_of_each_prompt():
    """Sink scores by a loop: the mean over the queries from a place on, of the first tokens of long prompts only."""
    model, prompts = tiny("llama"), some_prompts([12, 7, 10])
    run = ti.measure(model, prompts, {"s": AttentionSinks(tokens=9, threshold=0.12)}, progress=False)
    ds = run["s"].to_dataset()
    assert ds["prompt"].values.tolist() == [0, 2]
    scores, keys = [], []
    for p in (0, 2):
        acts = model.run(torch.from_numpy(prompts.ids(p).astype(np.int64))[None], [S("pattern", 2), S("key", 2)])
        a = acts[S("pattern", 2)][0, :, :9, :9].double().numpy()
        scores.append(np.array([[head[k:, k].sum() / (9 - k) for k in range(9)] for head in a]))
        keys.append(acts[S("key", 2)][0, :9].double().norm(dim=-1).numpy())
    got = ds.isel(block=2)
    np.testing.assert_allclose(got["received"], np.mean(scores, 0), rtol=1e-5)
    np.testing.assert_allclose(got["sink_rate"], np.mean([s > 0.12 for s in scores], 0))
    np.testing.assert_allclose(got["first_received"], [s[:, 0] for s in scores], rtol=1e-5)
    np.testing.assert_allclose(got["key_norm"], np.mean(keys, 0), rtol=1e-5)
    later = [s[:, 1:2] for s in scores]  # position 1 alone is seen by 8 queries, as many as there are
    np.testing.assert_allclose(got["largest_later"], [x.max(1) for x in later], rtol=1e-5)
    assert (got["largest_position"] == 1).all()
    every = np.array([[(s > 0.12) for s in ds["first_received"].sel(prompt=p).values] for p in (0, 2)])
    np.testing.assert_allclose(ds["first_above"], every.mean((1, 2)))
