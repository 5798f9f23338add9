"""Massive rows: planted ones are found, and what they are worth."""

import numpy as np
import pytest
import torch
from by_hand import losses, streams
from scipy import stats
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.kernels import rank_correlation
from tokinterp.attention.massive import _ordinary, massive_effects, massive_roles
from tokinterp.kernels.massive import massive_rows
from tokinterp.run import edits as E


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


@pytest.fixture(scope="module")
def massive():
    """A model whose token 7 has a massive channel, and prompts in which it adjoins itself, ends, is most, or lacks."""
    lm = tiny_lm("llama", max_position_embeddings=256)
    with torch.no_grad():
        lm.model.embed_tokens.weight[7, 5] = 300.0
    model = ti.wrap(lm, byte_tokenizer(), id="massive")
    ids = [[1, 7, 7, *range(10, 22)], [1, 30, 31, 7, *range(40, 50), 7], [1, *range(60, 75)]]
    return model, ti.Prompts.from_ids(ids, model)


def test_ordinary_rows_are_as_many_and_none_massive_or_special(massive):
    model, prompts = massive
    chosen = []
    for seed in range(30):
        rows = [0, 1, 2]
        batch = ti.capture(model, prompts, rows, ti.resid([1]))
        hot = massive_rows(batch.resid(1), batch.mask)
        assert hot.sum(1).tolist() == [2, 2, 0]
        ordinary = _ordinary(batch, hot, seed)
        assert ordinary.sum(1).tolist() == [2, 2, 0]
        assert not (ordinary & (hot | ~batch.mask)).any()
        assert not ordinary[:, 0].any()  # BOS
        alone = ti.capture(model, prompts, [1], ti.resid([1]))
        own = _ordinary(alone, massive_rows(alone.resid(1), alone.mask), seed)
        assert own[0].tolist() == ordinary[1, : own.shape[1]].tolist()
        chosen.append(ordinary)
    assert any(not torch.equal(chosen[0], c) for c in chosen)


def test_effects_of_massive_rows_are_those_of_a_loop(massive):
    model, prompts = massive
    ds = massive_effects(model, prompts, seed=3)
    ti.check(ds)
    assert ds["n_massive"].values.tolist() == [2, 2, 0]
    channels = [int(c) for c in ds.attrs["note"].split("[")[1].rstrip("]").split(",")]
    assert 5 in channels
    assert len(channels) < 10  # of 32
    batch = ti.capture(model, prompts, [0, 1, 2], ti.resid([1]))
    x = batch.resid(1)
    hot = massive_rows(x, batch.mask)
    both = {"": hot, ", ordinary rows": _ordinary(batch, hot, 3)}
    for ending, where in both.items():
        mean = x[where][:, channels].mean(0)
        for kind, value in (("zero", torch.zeros(len(channels))), ("mean", mean)):
            for i in range(3):
                ids = prompts.ids(i)
                new = x[i : i + 1, : len(ids)].clone()
                new[..., channels] = value
                rows = where[i, : len(ids)].nonzero()[:, 0].tolist()
                edits = [E.replace(ti.Site("resid", 1), new, rows)] if rows else []
                wanted = (losses(model, ids, edits) - losses(model, ids)).mean()
                got = ds["loss_change"].sel(intervention=kind + ending)[i]
                assert float(got) == pytest.approx(wanted, abs=1e-4), (kind, ending, i)
    rough = ["zero", "zero, ordinary rows", "mean, ordinary rows"]  # the mean of massive rows is like each of them
    assert (abs(ds["loss_change"].sel(intervention=rough).isel(prompt=slice(2))) > 1e-4).all()
    assert (ds["loss_change"].isel(prompt=2) == 0).all()
    for i in range(2):  # the sink with the massive entries at zero
        sinks = []
        ids = torch.from_numpy(np.array(prompts.ids(i)))[None].long()
        new = x[i : i + 1, : ids.shape[1]].clone()
        new[..., channels] = 0
        zeroed = E.replace(ti.Site("resid", 1), new, hot[i, : ids.shape[1]].nonzero()[:, 0].tolist())
        for edits in ([], [zeroed]):
            pattern = model.run(ids, [ti.Site("pattern", 2)], edits=edits)[ti.Site("pattern", 2)]
            sinks.append(float(pattern[0, :, 1:, 0].mean()))
        assert float(ds["sink_mass"].isel(prompt=i).sel(block=2)) == pytest.approx(sinks[0], abs=1e-5)
        change = ds["sink_change"].sel(intervention="zero", block=2).isel(prompt=i)
        assert float(change) == pytest.approx(sinks[1] - sinks[0], abs=1e-5)
        assert abs(sinks[1] - sinks[0]) > 1e-4
    assert (ds["sink_change"].isel(prompt=2) == 0).all()


def test_a_prompt_without_as_many_ordinary_rows_has_no_control():
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.model.embed_tokens.weight[7, 5] = 300.0
    model = ti.wrap(lm, byte_tokenizer(), id="massive")
    many = ti.Prompts.from_ids([[1, 1, 1, 1, 1, 1, 1, 7, 7, 8], [1, 7, *range(20, 30)]], model)
    ds = massive_effects(model, many)
    assert ds["n_massive"].values.tolist() == [2, 1]
    control = ds["loss_change"].sel(intervention=["zero, ordinary rows", "mean, ordinary rows"])
    assert np.isnan(control.isel(prompt=0)).all()
    assert np.isfinite(control.isel(prompt=1)).all()
    assert np.isfinite(ds["loss_change"].sel(intervention=["zero", "mean"])).all()


def test_where_nothing_is_massive_the_model_runs_as_often_as_it_has_to(monkeypatch):
    lm = tiny_lm("llama")
    model, runs = ti.wrap(lm, byte_tokenizer(), id="counted"), []
    prompts = some_prompts([12, 12], model=model)
    run = type(model).run
    monkeypatch.setattr(type(model), "run", lambda self, *a, **k: (runs.append(1), run(self, *a, **k))[1])
    massive_effects(model, prompts)
    assert len(runs) == 2  # one for all layers, one for the loss


def test_roles_of_massive_rows_are_those_of_loops(massive):
    model, prompts = massive
    marks = np.asarray(prompts.token_ids) == 7
    ds = massive_roles(model, prompts, {"planted": marks, "rest": ~marks})
    sites = [ti.Site("pattern", b) for b in range(3)]
    for i in range(3):
        ids = torch.as_tensor(prompts.ids(i))[None]
        h = streams(model, prompts.ids(i))
        with torch.no_grad():
            patterns = [p[0].double().numpy() for p in model.run(ids, sites).values()]
        for b, a in enumerate(patterns):
            t = a.shape[-1]
            received = [a[:, k:, k].mean() for k in range(t)]
            wanted = stats.spearmanr(np.linalg.norm(h[b].numpy(), axis=-1), received).statistic
            assert float(ds["norm_rank_correlation"][i, b]) == pytest.approx(wanted, abs=1e-6)
            for head in range(a.shape[0]):
                taken = a[head, 2:, 0]
                wanted = np.sqrt(np.mean((taken - taken.mean()) ** 2)) / taken.mean()
                assert float(ds["update_variation"][i, b, head]) == pytest.approx(wanted, rel=1e-4)
    assert float(abs(ds["norm_rank_correlation"]).mean()) > 0.1


def test_rank_correlations_are_those_of_scipy_prompt_by_prompt():
    """With ties, and with padding that holds anything."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 6, (2, 5, 12), generator=draw, dtype=torch.int64, device="cpu").float()
    mask = torch.arange(12, device="cpu") < torch.tensor([12, 9, 7, 5, 4], device="cpu")[:, None]
    x, y = x.masked_fill(~mask, torch.nan), y.masked_fill(~mask, -7)
    found = rank_correlation(x, y, mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        assert float(found[i]) == pytest.approx(float(stats.spearmanr(x[i, :n], y[i, :n]).statistic))
