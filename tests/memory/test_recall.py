"""The linear proxy of contextual memory finds what is in the state."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from planted import PlantedModel, planted_texts
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run import batch


def test_proxy_equals_brute_force():
    model, prompts = tiny(), some_prompts([30, 25, 28, 31, 22, 26])
    asked = {"m": ti.memory.PrefixRecall(layers=[2], n_words=20, ridge=0.1, exclude=("special",))}
    ds = ti.measure(model, prompts, asked, progress=False).children["m"].to_dataset(inherit=False)
    asked["m"].begin(model.info, prompts)
    words = asked["m"].words
    rows = {h: [] for h in (0, 1)}
    for p in range(len(prompts)):
        ids = prompts.ids(p)
        x = model.run(torch.from_numpy(ids[None].astype(np.int64)), ti.resid([2]))[ti.Site("resid", 2)][0].double()
        for t in range(2, len(ids)):
            bag = np.isin(words, ids[1:t]).astype(float)
            rows[p % 2].append((p, t, int(np.log2(t - 1)), x[t].numpy(), bag))
    total = left = 0.0
    for h in (0, 1):
        bins, x, b = (np.array([r[k] for r in rows[h]]) for k in (2, 3, 4))
        mean = {k: (x[bins == k].mean(0), b[bins == k].mean(0)) for k in set(bins.tolist())}
        xc, bc = (np.array([z[i] - mean[k][j] for i, k in enumerate(bins)]) for j, z in ((0, x), (1, b)))
        s = xc.T @ xc
        w = np.linalg.solve(s + 0.1 * np.trace(s) / len(s) * np.eye(len(s)), xc.T @ bc)
        for p, t, k, state, bag in rows[1 - h]:
            base = mean[k][1]
            guess = base + (state - mean[k][0]) @ w
            left, total = left + ((bag - guess) ** 2).sum(), total + ((bag - base) ** 2).sum()
            one = ds.isel(token=((ds["token_prompt"] == p) & (ds["position"] == t)).values).isel(token=0, layer=0)
            r = int(bag.sum())
            assert int(one["n_seen"]) == r
            if r:
                top = np.argsort(-guess, kind="stable")[:r]
                assert float(one["recall"]) == pytest.approx(bag[top].mean(), abs=1e-6)
                usual = np.argsort(-base, kind="stable")[:r]
                assert float(one["recall_base"]) == pytest.approx(bag[usual].mean(), abs=1e-6)
            far = ((bag - base) ** 2).sum()
            if far > 1e-9:
                share = 1 - ((bag - guess) ** 2).sum() / far
                assert float(one["explained_token"]) == pytest.approx(share, abs=1e-4)
    assert float(ds["explained"][0]) == pytest.approx(1 - left / total, abs=1e-4)
    assert not np.allclose(ds["recall"][:, 0], ds["recall_base"], equal_nan=True)


def test_a_planted_memory_is_found_where_it_is_and_not_where_it_was_wiped():
    model = PlantedModel()
    prompts = ti.Prompts.from_texts(planted_texts(40), model)
    ds = (
        ti.measure(model, prompts, {"m": ti.memory.PrefixRecall(layers=[1, 4], n_words=11, ridge=0.01)}, progress=False)
        .children["m"]
        .to_dataset(inherit=False)
    )
    early = ds.isel(token=(ds["n_seen"] <= 3).values)  # the stream holds the last two tokens
    assert float(early["recall"].sel(layer=1).mean()) > float(early["recall_base"].mean()) + 0.1
    assert float(ds["explained"].sel(layer=1)) > float(ds["explained"].sel(layer=4)) > 0


def test_states_that_know_nothing_explain_nothing():
    model = PlantedModel()
    model.stream = lambda ids, late: torch.randn(
        *ids.shape, model.info.d_model, generator=torch.Generator().manual_seed(int(ids.sum()))
    )
    prompts = ti.Prompts.from_texts(planted_texts(60), model)
    ds = (
        ti.measure(model, prompts, {"m": ti.memory.PrefixRecall(layers=[0], n_words=11, ridge=0.01)}, progress=False)
        .children["m"]
        .to_dataset(inherit=False)
    )
    assert -0.1 < float(ds["explained"][0]) < 0.02
    assert abs(float(ds["recall"].mean() - ds["recall_base"].mean())) < 0.03


def test_massive_rows_are_not_fitted(monkeypatch):
    monkeypatch.setattr(batch, "by_norm", lambda sizes: ~sizes.norm.isnan() & (torch.arange(sizes.norm.shape[1]) == 3))
    model, prompts = tiny(), some_prompts([20, 15, 18, 17])
    asked = {n: ti.memory.PrefixRecall(layers=[2], n_words=12, exclude=e) for n, e in (("a", ()), ("b", ("massive",)))}
    run = ti.measure(model, prompts, asked, progress=False)
    assert int(run["a"]["n_fitted"]) == sum(prompts.lengths) - 2 * 4  # no prefix at BOS and after it
    assert int(run["b"]["n_fitted"]) == int(run["a"]["n_fitted"]) - 4
    assert run["a"].sizes["token"] == run["b"].sizes["token"]  # scored they are


def test_recall_contract():
    ds = assert_contract(lambda: ti.memory.PrefixRecall(n_words=16, tokens=5))
    assert int(ds["token_prompt"].max()) == 4
    with pytest.raises(ValueError, match="at least 2"):
        ti.measure(tiny(), some_prompts([20]), {"m": ti.memory.PrefixRecall()}, progress=False)
    with pytest.raises(ValueError, match="ridge=0"):
        ti.memory.PrefixRecall(ridge=0)


def test_special_tokens_take_no_part_whether_named_or_not():
    model, prompts = tiny(), some_prompts([30, 25, 28, 31])
    asked = {
        "a": ti.memory.PrefixRecall(layers=[2], n_words=12, exclude=()),
        "b": ti.memory.PrefixRecall(layers=[2], n_words=12, exclude=("special",)),
    }
    run = ti.measure(model, prompts, asked, progress=False)
    np.testing.assert_array_equal(run["a"]["explained"], run["b"]["explained"])
    assert prompts.special_mask.any()
    bos = set(prompts.token_ids[prompts.special_mask].tolist())
    asked["a"].begin(model.info, prompts)
    assert not bos & set(asked["a"].words.tolist())
