"""States at fillers: attribution sums to the logit, shifts and their variance."""

import numpy as np
import pytest
import torch
from by_hand import PAIRS, streams
from tiny import tiny

import tokinterp as ti
from tokinterp.fillers.residual import VARIANTS, filler_states, shift, slots_of
from tokinterp.text.items import build_items

QUESTIONS = ti.bundled_questions("cloze")[:12]


# -- stream and lens ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
def test_attribution_sums_to_the_logit(family):
    """With the scale of the final norm frozen at its value, the terms of all layers sum to the logit."""
    from tokinterp.fillers.residual import attribute

    model = tiny(family)
    ids = torch.randint(3, 300, (5, 7), generator=torch.Generator().manual_seed(1))
    sites = ti.resid(range(4))
    got = model.run(ids, sites)
    h = torch.stack([got[s][:, -1] for s in sites], 1)
    target = torch.tensor([4, 9, 100, 250, 17])
    parts, constant, logit = attribute(model, h, target)
    with torch.no_grad():
        own = model.lm(ids).logits[:, -1].gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logit.float(), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.sum(1) + constant, logit, rtol=1e-4, atol=1e-4)
    if family == "llama":  # no bias: the last block's term from the stream alone
        scale = h[:, -1].pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        weight = model.lm.model.norm.weight * model.lm.lm_head.weight[target]
        torch.testing.assert_close(parts[:, -1].float(), ((h[:, 3] - h[:, 2]) * scale * weight).sum(-1).detach())


def test_a_soft_cap_is_refused():
    from tokinterp.fillers.residual import attribute

    with pytest.raises(ValueError, match="soft cap"):
        attribute(tiny("gemma2"), torch.randn(2, 4, 32) * 5, torch.tensor([4, 9]))


def test_shift_without_fillers_is_zero(bundled):
    ds = shift(bundled, QUESTIONS, n_fillers=[4])
    ti.check(ds)
    assert float(ds["shift"].sel(n_fillers=0).max()) == 0
    np.testing.assert_allclose(ds["cosine"].sel(n_fillers=0), 1, atol=1e-6)
    later = ds["shift"].sel(n_fillers=4, layer=bundled.info.n_layers).mean("prompt")
    assert float(ds["shift"].sel(layer=0).max()) == 0  # the token is the same
    assert (later > 0.01).all()
    assert list(ds["variant"].values) == list(VARIANTS)
    share = ds["bias_share"].sel(n_fillers=4).isel(layer=slice(1, None))
    assert ((share > 0) & (share <= 1)).all()
    np.testing.assert_allclose(ds["attribution"].sum("layer") + ds["constant"], ds["logit"], atol=1e-3)


def test_filler_states_split_their_variance(bundled):
    ds = filler_states(bundled, QUESTIONS, n_fillers=6)
    ti.check(ds)
    np.testing.assert_allclose(ds["variance_share"].sum("component"), 1, atol=1e-9)
    assert float(ds["variance_share"].sel(layer=0, component="item")) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(ds["chance_share"].sum(), 1)
    assert float(ds["same_slot_cosine"].sel(layer=0)) == pytest.approx(1)


def test_filler_states_are_those_of_a_loop(long_model):
    items = build_items(long_model, PAIRS, n_fillers=6, kind=" x")
    ds = filler_states(long_model, PAIRS, n_fillers=6, kind=" x")
    at = slots_of(items)
    h = torch.stack([streams(long_model, ids)[:, where] for ids, where in zip(items.ids, at, strict=True)]).numpy()
    n, layers, s, _ = h.shape  # (item, layer, slot, d)

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for layer in range(1, layers):
        x = h[:, layer]
        free = x - x.mean(0)
        for j in range(s - 1):
            one = ds.sel(layer=layer, slot=j)
            assert float(one["next_cosine"]) == pytest.approx(np.mean([cos(y[j], y[j + 1]) for y in x]), abs=1e-5)
            own = np.mean([cos(y[j], y[j + 1]) for y in free])
            assert float(one["next_cosine_centred"]) == pytest.approx(own, abs=1e-4)
        same = np.mean([cos(x[a, j], x[b, j]) for j in range(s) for a in range(n) for b in range(n) if a != b])
        assert float(ds["same_slot_cosine"].sel(layer=layer)) == pytest.approx(same, abs=1e-5)
        total = ((x - x.mean((0, 1))) ** 2).sum()
        slot = n * ((x.mean(0) - x.mean((0, 1))) ** 2).sum() / total
        item = s * ((x.mean(1) - x.mean((0, 1))) ** 2).sum() / total
        np.testing.assert_allclose(ds["variance_share"].sel(layer=layer), [slot, item, 1 - slot - item], atol=1e-6)
    assert np.isnan(ds["next_cosine"].isel(slot=-1)).all()
    np.testing.assert_allclose(ds["chance_share"], np.array([s - 1, n - 1, (s - 1) * (n - 1)]) / (n * s - 1))


def test_shift_is_that_of_a_loop(long_model):
    ds = shift(long_model, PAIRS, n_fillers=[2, 6], kind=" x")
    made = [build_items(long_model, PAIRS, n_fillers=k, kind=" x") for k in (0, 2, 6)]
    h = [[streams(long_model, ids)[:, -1].numpy() for ids in one.ids] for one in made]
    closed = []
    for ids, (_, stop) in zip(made[2].ids, made[2].filler, strict=True):
        place = torch.arange(len(ids))
        with torch.no_grad():
            got = long_model.run(
                torch.from_numpy(ids)[None], ti.resid(range(4)), position_ids=place[None] - 6 * (place >= stop)
            )
        closed.append([x[0, -1].double().numpy() for x in got.values()])
    for i in range(len(PAIRS)):
        for layer in range(1, 4):
            a, b, c = (h[k][i][layer] for k in range(3))
            one = ds.isel(prompt=i).sel(layer=layer)
            size = one["shift"].sel(variant="places as they are")
            assert float(size.sel(n_fillers=6)) == pytest.approx(np.linalg.norm(c - a) / np.linalg.norm(a), rel=1e-4)
            for variant, x in (("places as they are", c), ("places closed", closed[i][layer])):
                at = one.sel(n_fillers=6, variant=variant)
                assert float(at["shift"]) == pytest.approx(np.linalg.norm(x - a) / np.linalg.norm(a), rel=1e-4)
                cosine = x @ a / np.linalg.norm(x) / np.linalg.norm(a)
                assert float(at["cosine"]) == pytest.approx(cosine, abs=1e-5)
            assert float(one["increment"].sel(n_fillers=6)) == pytest.approx(
                np.linalg.norm(c - b) / np.linalg.norm(b), rel=1e-4
            )
            assert float(one["increment"].sel(n_fillers=2)) == pytest.approx(
                np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-4
            )
    assert np.isnan(ds["increment"].sel(n_fillers=0)).all()
    for layer in range(1, 4):
        move = np.array([h[2][i][layer] - h[0][i][layer] for i in range(len(PAIRS))])
        wanted = (move.mean(0) ** 2).sum() / (move**2).sum(1).mean()
        assert float(ds["bias_share"].sel(n_fillers=6, layer=layer)) == pytest.approx(wanted, rel=1e-4)


def test_an_item_that_is_not_finite_takes_no_part(long_model, monkeypatch):
    """One NaN would make every number over items NaN: the others are counted, and their values stand."""
    from tokinterp.fillers import residual

    ends = (" in", " to", " the", " and", " of", " on")
    given = [(f"{word} go", ends[n]) for n, word in enumerate(("The", "One", "Two", "A", "No", "It"))]
    calls = {
        "shift": lambda q: shift(long_model, q, n_fillers=[2], kind=" x"),
        "filler_states": lambda q: filler_states(long_model, q, n_fillers=4, kind=" x"),
        "filler_probes": lambda q: residual.filler_probes(long_model, q, n_fillers=2, folds=2, kind=" x"),
    }
    rest = {name: call([*given[:2], *given[3:]]) for name, call in calls.items()}
    real = residual.states

    def spoilt(*args, bad=(2,), **options):
        h = real(*args, **options)
        h[list(bad), :, -1, 0] = torch.nan
        return h

    monkeypatch.setattr(residual, "states", spoilt)
    for name, call in calls.items():
        ds = call(given)
        ti.check(ds)
        assert ds.attrs["n_groups"] == 5
        if "prompt" in ds.dims:
            each = [n for n, v in ds.data_vars.items() if "prompt" in v.dims]
            assert all(np.isnan(ds[n].sel(prompt=2)).all() for n in each)
            ds, rest[name] = ds.drop_sel(prompt=2), rest[name].drop_vars("prompt")
        for n in ds.data_vars:
            np.testing.assert_allclose(ds[n].values, rest[name][n].values, rtol=1e-4, atol=1e-5, err_msg=n)
    monkeypatch.setattr(residual, "states", lambda *a, **o: spoilt(*a, bad=range(6), **o))
    for call in calls.values():
        with pytest.raises(ValueError, match="6 items, 0 of them finite"):
            call(given)


def test_filler_probes_read_what_they_say(long_model, monkeypatch):
    """States of each source, embeddings of each target, a shuffle that moves answers, folds and draws over items."""
    from tokinterp.fillers import residual

    asked, drawn = [], []

    def held(x, y, fold, folds, ridge):
        asked.append([torch.from_numpy(v) for v in (x, y, fold)])
        return np.ones((2, len(x)))

    def share(error, total, unit, **options):
        drawn.append(unit.tolist())
        return np.zeros((3, *error.shape[1:]))

    monkeypatch.setattr(residual, "held_out", held)
    monkeypatch.setattr(residual, "share_explained", share)
    ends = (" in", " to", " the", " and", " of", " on")
    pairs = [(f"{word} {n} go", ends[n]) for n, word in enumerate(("The", "One", "Two", "A", "No", "It"))]
    ds = residual.filler_probes(long_model, pairs, n_fillers=4, kind=" x", cue=" then go?", folds=3)
    items = build_items(long_model, pairs, n_fillers=4, kind=" x", cue=" then go?")
    table = long_model.lm.get_input_embeddings().weight.detach().double()
    answers = table[[int(a[0]) for a in items.answers]]
    inputs = table[[int(ids[b - 1]) for ids, (_, b) in zip(items.ids, items.question, strict=True)]]
    h = [streams(long_model, ids) for ids in items.ids]
    shape = (ds.sizes["source"], 4, ds.sizes["target"])
    for n, (x, y, fold) in enumerate(asked):
        source, layer, target = np.unravel_index(n, shape)
        a, b = items.filler.T, (items.question[:, 1:] - 1, items.cue[:, :1], items.last[:, None])
        where = [[*range(s, e)] for s, e in zip(*a, strict=True)] if source == 0 else b[source - 1].tolist()
        wanted = torch.stack([one[layer, at].mean(0) for one, at in zip(h, where, strict=True)])
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-5)
        if target < 2:
            torch.testing.assert_close(y, (answers, inputs)[target])
        else:
            assert sorted(y[:, 0].tolist()) == sorted(answers[:, 0].tolist())
            assert not torch.equal(y, answers)
        assert fold.bincount().tolist() == [2, 2, 2]
    assert len(asked) == np.prod(shape)
    assert ds["target"].values.tolist() == ["answer", "input", "shuffled answer"]
    assert ds["source"].values.tolist() == ["mean filler", "last of question", "first of cue", "answer position"]
    assert drawn == [[*range(6)]]
