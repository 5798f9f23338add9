"""Every reduction of the filler measurements against a loop of a few lines, on tiny models and made-up results."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention import separators as parts
from tokinterp.attention.masks import Policy, default_policies, keep_only, policy_loss
from tokinterp.attention.massive import _ordinary, massive_effects, massive_roles, registers
from tokinterp.attention.sentinel import _text_loss, reads_own_chunk, sentinels
from tokinterp.fillers.decision import best_head
from tokinterp.fillers.insertion import insertion_tests
from tokinterp.fillers.read_out import deranged, read_fillers
from tokinterp.fillers.residual import filler_states, shift, slots_of
from tokinterp.fillers.tasks.evaluation import evaluate
from tokinterp.kernels.massive import massive_rows
from tokinterp.run import edits as E
from tokinterp.stats.resample import mean_interval, simultaneous_interval
from tokinterp.text.items import build_items

PAIRS = [("The river", " in"), ("One and", " to"), ("Go", " the"), ("Let it be", " and")]
ASKED = {"n_fillers": 3, "kind": " x", "exact": False}


def long_tiny(seed=0, **weights):
    """A tiny llama with room for more text."""
    return ti.wrap(tiny_lm("llama", seed=seed, max_position_embeddings=256), byte_tokenizer(), id=f"long {seed}")


@pytest.fixture(scope="module")
def model():
    return long_tiny()


@pytest.fixture(scope="module")
def items(model):
    return build_items(model, PAIRS, n_fillers=6, kind=" x")


def streams(model, ids, edits=()):
    """(layer, position, d) float64 stream of one prompt."""
    sites = ti.resid(range(model.info.n_layers + 1))
    with torch.no_grad():
        got = model.run(torch.as_tensor(ids)[None], sites, edits=edits)
    return torch.stack([got[s][0].double() for s in sites])


def losses(model, ids, edits=()):
    """(position,) cross-entropy of the next token of one prompt."""
    last = streams(model, ids, edits)[-1]
    with torch.no_grad():
        logp = model.unembed(last.float()).log_softmax(-1)
    return np.array([-float(logp[t, ids[t + 1]]) for t in range(len(ids) - 1)])


# -- insertion ------------------------------------------------------------------------------------------------
def made_insertion():
    """Twelve items, three kinds, two placements, four numbers of fillers, of which the results are made up."""
    rng = np.random.default_rng(0)
    shape = (12, 3, 2, 4)
    logp = 0.3 * rng.normal(size=shape) + np.array([0, 0.4, 1.5, 2.0])
    logp[:, 1] = logp[:, 1, :, :1] - np.array([0, 1, 2, 3])  # loses with every filler
    dims = ("prompt", "filler", "placement", "n_fillers")
    ds = xr.Dataset(
        {"log_prob": (dims, logp), "correct": (dims, rng.integers(0, 2, shape).astype(float)),
         "rank": (dims, rng.integers(0, 9, shape).astype(float)),
         "announced_log_prob": ("prompt", logp[:, 0, 0, 0] + 1)},
        {"n_fillers": [0, 2, 5, 10], "placement": ["pre", "post"], "filler": ["a", "b", "c"]},
        {"fingerprint": "f", "measurement": "insert"},
    )  # fmt: skip
    return ds, logp


def test_insertion_tests_are_those_of_loops(monkeypatch):
    from tokinterp.fillers import insertion

    monkeypatch.setattr(insertion, "derived", lambda ds, *_a, **_k: ds)
    ds, logp = made_insertion()
    found = insertion_tests(ds, n_boot=50)
    change = (logp - logp[..., :1]).mean(0)
    right = ds["correct"].values
    for f in range(3):
        for p in range(2):
            at = {"filler": f, "placement": p}
            curve = change[f, p]
            half = [k for k, c in zip((0, 2, 5, 10), curve, strict=True) if c >= max(curve) / 2]
            wanted = half[0] if max(curve) > 0 else np.nan
            np.testing.assert_equal(float(found["half_k"].isel(at)), wanted)
            trend = stats.spearmanr([0, 2, 5, 10], curve).statistic
            assert float(found["monotonicity"].isel(at)) == pytest.approx(trend)
            for k in range(4):
                one = found.isel(at | {"n_fillers": k})
                assert float(one["reciprocal_rank"]) == pytest.approx(np.mean(1 / (1 + ds["rank"].values[:, f, p, k])))
                above, below = ((s * (logp[:, f, p, k] - logp[:, f, p, 0]) > 0).sum() for s in (1, -1))
                if above + below:
                    p_sign = stats.binomtest(int(above), int(above + below)).pvalue
                    assert float(one["sign_p"]) == pytest.approx(p_sign)
                else:
                    assert np.isnan(one["sign_p"])
                helped = ((right[:, f, p, k] > 0) & (right[:, f, p, 0] == 0)).sum()
                assert int(one["helped"]) == helped
    gain = (right - right[..., :1]).mean(0)
    for p in range(2):
        for k in range(4):
            wanted = np.var(gain[:, p, k], ddof=1)
            assert float(found["type_variance"].isel(placement=p, n_fillers=k)) == pytest.approx(wanted)
    special = found["placement_specificity"].transpose("filler", "n_fillers").values
    np.testing.assert_allclose(special, change[:, 1] - change[:, 0], atol=1e-12)
    assert float(found["announced_change"]) == pytest.approx(1)


# -- stream ---------------------------------------------------------------------------------------------------
def test_filler_states_are_those_of_a_loop(model, items):
    ds = filler_states(model, PAIRS, n_fillers=6, kind=" x")
    at = slots_of(items)
    h = torch.stack([streams(model, ids)[:, where] for ids, where in zip(items.ids, at, strict=True)]).numpy()
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


def test_shift_is_that_of_a_loop(model):
    ds = shift(model, PAIRS, n_fillers=[2, 6], kind=" x")
    made = [build_items(model, PAIRS, n_fillers=k, kind=" x") for k in (0, 2, 6)]
    h = [[streams(model, ids)[:, -1].numpy() for ids in one.ids] for one in made]
    closed = []
    for ids, (_, stop) in zip(made[2].ids, made[2].filler, strict=True):
        place = torch.arange(len(ids))
        with torch.no_grad():
            got = model.run(
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


def test_filler_probes_read_what_they_say(model, monkeypatch):
    """States of each source, embeddings of each target, a shuffle that moves answers, folds and draws over items."""
    from tokinterp.fillers import residual

    asked, drawn = [], []

    def held(x, y, fold, folds, ridge):
        asked.append((x, y, fold))
        return np.ones((2, len(x)))

    def share(error, total, unit, **options):
        drawn.append(unit.tolist())
        return np.zeros((3, *error.shape[1:]))

    monkeypatch.setattr(residual, "held_out", held)
    monkeypatch.setattr(residual, "share_explained", share)
    ends = (" in", " to", " the", " and", " of", " on")
    pairs = [(f"{word} {n} go", ends[n]) for n, word in enumerate(("The", "One", "Two", "A", "No", "It"))]
    ds = residual.filler_probes(model, pairs, n_fillers=4, kind=" x", cue=" then go?", folds=3)
    items = build_items(model, pairs, n_fillers=4, kind=" x", cue=" then go?")
    table = model.lm.get_input_embeddings().weight.detach().double()
    answers = table[[int(a[0]) for a in items.answers]]
    inputs = table[[int(ids[b - 1]) for ids, (_, b) in zip(items.ids, items.question, strict=True)]]
    h = [streams(model, ids) for ids in items.ids]
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


# -- read-out -------------------------------------------------------------------------------------------------
def test_read_out_is_that_of_a_loop(items, monkeypatch):
    from tokinterp.fillers import read_out

    lm = tiny_lm("llama", max_position_embeddings=256)
    filler = int(items.ids[0][items.filler[0, 1] - 1])
    with torch.no_grad():  # one of the two tokens of a filler is read where it stands
        lm.lm_head.weight[filler] = lm.model.embed_tokens.weight[filler]
    model = ti.wrap(lm, byte_tokenizer(), id="reads itself")
    monkeypatch.setattr(read_out, "TOP_CELL", 40)
    monkeypatch.setattr(read_out, "TOP_ITEM", 60)
    ds = read_fillers(model, PAIRS, n_fillers=6, kind=" x")
    n, layers, slots = len(PAIRS), model.info.n_layers + 1, 6
    answer = np.array([a[0] for a in items.answers])
    target = [answer, deranged(answer, 0)]
    p = np.zeros((n, layers, slots, model.info.d_vocab))
    for i, (ids, where) in enumerate(zip(items.ids, slots_of(items), strict=True)):
        with torch.no_grad():
            p[i] = model.unembed(streams(model, ids)[:, where].float()).softmax(-1).numpy()
    filler = [items.ids[i][slots_of(items)[i]] for i in range(n)]
    for layer in range(layers):
        for s in range(slots):
            q, one = p[:, layer, s], ds.sel(layer=layer, slot=s)
            assert float(one["entropy"]) == pytest.approx(np.mean([stats.entropy(x) for x in q]), rel=1e-4)
            assert float(one["own_share"]) == np.mean([q[i].argmax() == filler[i][s] for i in range(n)])
            own = [max(answer, key=lambda t, i=i: q[i, t]) == answer[i] for i in range(n)]
            assert float(one["choice"]) == np.mean(own)
            for t in range(2):
                ranks = [(q[i] > q[i, target[t][i]]).sum() for i in range(n)]
                assert float(one["reciprocal_rank"][t]) == pytest.approx(np.mean([1 / (1 + r) for r in ranks]))
                assert float(one["median_rank"][t]) == np.median(ranks)
    assert 0 < float(ds["choice"].mean()) < 1
    assert 0 < float(ds["own_share"].mean()) < 1
    assert float(ds["choice_chance"]) == 1 / 4
    kinds = []
    for t in range(2):
        for i in range(n):
            best = [((p[i, layer] > p[i, layer, :, target[t][i], None]).sum(-1)).min() for layer in range(layers)]
            first = next((layer for layer in range(layers) if best[layer] < 10), np.nan)
            np.testing.assert_equal(float(ds["first_layer"][t, i]), first)
            kinds.append(first)
            for v, taken in enumerate((p.mean(0), 0 * p[0])):
                total = np.zeros(p.shape[-1])
                for cell in (p[i] - taken).reshape(-1, p.shape[-1]):
                    best = np.argsort(-cell, kind="stable")[:40]
                    total[best] += cell[best]
                at = total[target[t][i]]
                assert float(ds["fingerprint"][v, t, i]) == float((total > at).sum() < 60 and at > 0), (v, t, i)
    assert len(set(kinds)) > 1
    assert (ds["fingerprint"][0] != ds["fingerprint"][1]).any()


def test_the_chance_of_a_choice_is_the_commonest_answer(model):
    ds = read_fillers(model, [*PAIRS, ("It is", " to"), ("We", " to")], n_fillers=2, kind=" x", layers=[1])
    assert float(ds["choice_chance"]) == 3 / 6


# -- verdict --------------------------------------------------------------------------------------------------
def test_the_best_head_is_that_of_the_largest_lower_bound():
    rng = np.random.default_rng(0)
    each = rng.normal(1.0, 0.1, (20, 2, 2))
    each[:, 0, 1] += 1.0
    noise = rng.normal(size=20)
    each[:, 1, 0] = 3 + 30 * (noise - noise.mean())  # the largest mean and upper bound, and nothing sure
    head, value, (low, high) = best_head(each)
    assert head == (0, 1)
    assert value == pytest.approx(each[:, 0, 1].mean())
    assert low < value < high
    bounds = simultaneous_interval(each)
    assert (low, high) == tuple(bounds[:, 0, 1])
    assert best_head(np.ones((20, 2, 2)))[0] is None


def test_intervals_that_hold_together_are_as_wide_as_they_have_to_be():
    """One column: Student's interval. Forty: all of them hold in 95 % of the samples, the plain ones in few."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=(15, 1))
    wide = stats.t.ppf(0.975, 14) * one.std(ddof=1) / np.sqrt(15)
    low, high = simultaneous_interval(one, n_boot=20_000)[:, 0]
    np.testing.assert_allclose([low, high], [one.mean() - wide, one.mean() + wide], rtol=0.05)
    samples = rng.normal(size=(120, 15, 40))
    together = [np.prod(simultaneous_interval(x, n_boot=400, seed=s) * [[-1], [1]] > 0) for s, x in enumerate(samples)]
    assert np.mean(together) > 0.87
    assert np.mean([np.prod(mean_interval(x, n_boot=200) * [[-1], [1]] > 0) for x in samples[:30]]) < 0.4
    holes = samples[0].copy()
    holes[3:, 5] = holes[2:, 6] = np.nan
    found = simultaneous_interval(holes)
    assert np.isfinite(found[:, 5]).all()
    assert np.isnan(found[:, 6]).all()
    few = simultaneous_interval(samples[0, :5])
    wide = stats.t.isf(0.025 / 40, 4) * samples[0, :5, 0].std(ddof=1) / np.sqrt(5)
    assert float(few[1, 0] - few[0, 0]) == pytest.approx(2 * wide)


# -- massive activations --------------------------------------------------------------------------------------
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
        ordinary = _ordinary(prompts, batch, hot, seed)
        assert ordinary.sum(1).tolist() == [2, 2, 0]
        assert not (ordinary & (hot | ~batch.mask)).any()
        assert not ordinary[:, 0].any()  # BOS
        alone = ti.capture(model, prompts, [1], ti.resid([1]))
        own = _ordinary(prompts, alone, massive_rows(alone.resid(1), alone.mask), seed)
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
    both = {"": hot, ", ordinary rows": _ordinary(prompts, batch, hot, 3)}
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


@pytest.mark.parametrize("behind_bos", [False, True])
def test_registers_are_those_of_a_loop(model, behind_bos):
    prompts = some_prompts([9, 12], model=model)
    ds = registers(model, prompts, n_registers=[2], kind=" x", behind_bos=behind_bos)
    blank = model.tokenizer("a x", add_special_tokens=False)["input_ids"][1:]
    sites = [*ti.resid(range(4)), *(ti.Site("pattern", b) for b in range(3))]
    for i in range(2):
        ids = np.insert(prompts.ids(i), 1 if behind_bos else 0, blank)
        first, at = (0, [1, 2]) if behind_bos else (2, [0, 1])
        parts = [at, [first], [*range(3, len(ids))]]
        with torch.no_grad():
            got = model.run(torch.from_numpy(ids)[None], sites)
        for k, part in enumerate(parts):
            one = ds.sel(n_fillers=2).isel(prompt=i, key_set=k)
            for layer in range(4):
                norm = got[ti.Site("resid", layer)][0].double().norm(dim=-1)
                wanted = float(norm[part].mean() / norm[parts[2]].mean())
                assert float(one["relative_norm"].sel(layer=layer)) == pytest.approx(wanted, rel=1e-4)
            for b in range(3):
                wanted = float(got[ti.Site("pattern", b)][0][:, parts[2]][..., part].sum(-1).mean())
                assert float(one["mass"].sel(block=b)) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


# -- policies, sentinels, separators --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def texts(model):
    return ti.Prompts.from_texts(["Go in, then out. The river, wide. And so on; to", "One, two; three. No more"], model)


def test_policy_loss_is_that_of_a_loop(model, texts):
    marks = parts.separators_of(texts)
    policy = Policy("separators", 2, 4, marks)
    ds = policy_loss(model, texts, {"kept": policy})
    for i in range(2):
        ids = np.asarray(texts.ids(i))
        t = len(ids)
        keep = np.array([[k <= q and (k < 2 or q - k < 4 or ids[k] in marks) for k in range(t)] for q in range(t)])
        closed = [
            E.knock_out([k], [q for q in range(k, t) if not keep[q, k]]) for k in range(t) if not keep[k:, k].all()
        ]
        far = range(6, t - 1)
        change = (losses(model, ids, closed) - losses(model, ids))[list(far)]
        assert float(ds["loss_change"][i, 0]) == pytest.approx(change.mean(), abs=1e-4)
        assert float(ds["loss"][i]) == pytest.approx(losses(model, ids)[list(far)].mean(), rel=1e-5)
        assert float(ds["retention"][i, 0]) == pytest.approx(np.mean([keep[q, : q + 1].mean() for q in far]))
        assert int(ds["n_positions"][i]) == len(far)
    assert float(abs(ds["loss_change"]).min()) > 1e-4


def test_policies_are_compared_where_each_hides_something(model, texts):
    narrow, wide = Policy("window", 1, 2), Policy("window", 2, 9)
    ds = policy_loss(model, texts, {"narrow": narrow, "wide": wide, "all": Policy("all")})
    for i in range(2):
        ids = np.asarray(texts.ids(i))
        t = len(ids)
        assert int(ds["n_positions"][i]) == t - 1 - 11
        for name, p in (("narrow", narrow), ("wide", wide)):
            closed = [E.knock_out([k], list(range(k + p.window, t))) for k in range(p.initial, t - p.window)]
            change = (losses(model, ids, closed) - losses(model, ids))[11:]
            assert float(ds["loss_change"].sel(policy=name)[i]) == pytest.approx(change.mean(), abs=1e-4)
        assert float(ds["loss"][i]) == pytest.approx(losses(model, ids)[11:].mean(), rel=1e-5)


def test_policies_without_separators_need_none():
    model = tiny()
    prompts = ti.Prompts.from_ids([[1, *range(100, 118)]], model)
    asked = {"all": Policy("all"), "window": Policy("window", 1, 4)}
    ds = policy_loss(model, prompts, asked)
    assert ds["loss_change"].sel(policy="all").item() == 0
    assert abs(ds["loss_change"].sel(policy="window").item()) > 1e-4
    assert policy_loss(model, prompts, {"all": Policy("all")})["retention"].item() == 1
    marks = (100,)
    ids = torch.as_tensor([[1, *range(100, 112)], [1, *range(200, 212)]])  # the second has none of them
    mask = torch.ones_like(ids).bool()
    for kind in ("separators", "interval", "random"):
        assert Policy(kind, 0, 1, marks).extra(ids, mask).sum(1).tolist() == [1, 0]


def test_a_wider_window_keeps_as_many_keys(model, texts):
    made = default_policies(texts, parts.separators_of(texts), 1, 5)
    kept = policy_loss(model, texts, made)["retention"].mean("prompt")
    assert float(kept.sel(policy="wider window")) == pytest.approx(float(kept.sel(policy="separators")), rel=0.2)
    assert float(kept.sel(policy="window")) < float(kept.sel(policy="separators"))


def test_the_loss_of_a_chunked_text_is_that_of_a_loop(model, texts):
    """Tokens from the second chunk on, each predicted by a token of its own chunk, no sentinel among them."""
    for size, extra in ((4, 0), (4, 1), (3, 0)):
        found = _text_loss(model, texts, size, extra, (), 4096)
        for i in range(2):
            ids = texts.ids(i)
            own = losses(model, ids)
            counted = []
            for t in range(1, len(ids)):  # the token that is predicted
                chunk, place = divmod(t - 1, size + extra)
                if chunk >= 1 and 1 <= place < size:
                    counted.append(own[t - 1])
            assert found[i] == pytest.approx(np.mean(counted), rel=1e-5)


def test_changes_by_sentinels_are_those_of_a_loop(model, texts):
    """What each token may read is closed edge by edge: all but its own chunk, or all but that and the sentinels."""
    size = 5
    ds = sentinels(model, texts, kinds=(" x",), chunk=size)
    sign = model.tokenizer("a x", add_special_tokens=False)["input_ids"][-1]

    def run(ids, period, sees):
        """Loss of the tokens from the second chunk on that a token of the same chunk predicts."""
        chunk = [-1 if t == 0 else (t - 1) // period for t in range(len(ids))]
        mark = [t > 0 and (t - 1) % period == size for t in range(len(ids))]
        closed = [(k, q) for q in range(len(ids)) for k in range(q) if not sees(k, q, chunk, mark)]
        edits = [E.knock_out([k], [q for kk, q in closed if kk == k]) for k in sorted({k for k, _ in closed})]
        own = losses(model, ids, edits)
        counted = [own[t - 1] for t in range(2, len(ids)) if chunk[t] == chunk[t - 1] >= 1 and not mark[t]]
        return np.mean(counted)

    for i in range(2):
        whole = (texts.lengths[i] - 1) // size
        ids = np.asarray(texts.ids(i))[: 1 + size * whole]
        full = run(ids, size, lambda *_: True)
        hidden = run(ids, size, lambda k, q, chunk, mark: chunk[k] in (-1, chunk[q]))
        assert float(ds["loss"][i]) == pytest.approx(full, rel=1e-5)
        assert float(ds["hidden_change"][i]) == pytest.approx(hidden - full, abs=1e-4)
        marked = np.append(ids[:1], np.insert(ids[1:].reshape(-1, size), size, sign, axis=1))
        read = run(marked, size + 1, lambda k, q, chunk, mark: not mark[q] or chunk[k] == chunk[q])
        only = run(marked, size + 1, lambda k, q, chunk, mark: chunk[k] in (-1, chunk[q]) or (mark[k] and not mark[q]))
        one = ds.sel(filler=" x").isel(prompt=i)
        assert float(one["sentinel_change"]) == pytest.approx(read - full, abs=1e-4)
        assert float(one["kept_change"]) == pytest.approx(only - full, abs=1e-4)
        assert abs(read - only) > 1e-3
        # by head and block: what text reads on sentinels beside position 0 and itself, over their share of these keys
        n = len(marked)
        mark = np.array([t > 0 and (t - 1) % (size + 1) == size for t in range(n)])
        edit = keep_only(partial(reads_own_chunk, size=size))
        patterns = [ti.Site("pattern", b) for b in range(3)]
        with torch.no_grad():
            got = model.run(torch.from_numpy(marked)[None], patterns, edits=[edit])
        ratios = []
        for a in (x for v in got.values() for x in v[0].double().numpy()):
            left, share = [], []
            for q in [q for q in range(n) if not mark[q] and q >= 2]:
                keys = np.arange(1, q)
                left.append(a[q, keys[mark[1:q]]].sum() / a[q, keys].sum())
                share.append(mark[1:q].mean())
            ratios.append(np.mean(left) / np.mean(share))
        assert float(one["enrichment"]) == pytest.approx(np.mean(ratios), rel=1e-4)


def test_what_sentinels_leave_is_a_ratio_of_sums(model, texts, monkeypatch):
    from tokinterp.attention import sentinel

    fake = iter([np.array([1.0, 1.0]), np.array([3.0, 1.001]), np.array([1.5, 1.5]), np.array([2.0, 1.5])])
    monkeypatch.setattr(sentinel, "_text_loss", lambda *_: next(fake))
    ds = sentinels(model, texts, kinds=("dots",), chunk=5)
    np.testing.assert_allclose(ds["hidden_change"], [2, 0.001])
    np.testing.assert_allclose(ds["kept_change"][:, 0], [1, 0.5])
    assert float(ds["gap_left"][0]) == pytest.approx(1.5 / 2.001)
    assert ds["gap_left"].dims == ("filler",)


def test_hiding_separators_is_that_of_a_loop(model, texts):
    n = model.info.n_layers
    ds = parts.separator_windows(model, texts, width=n)
    np.testing.assert_allclose(ds["kl"].isel(intervention=0), ds["kl"].isel(intervention=1), atol=1e-6)
    marks = parts.separators_of(texts)
    ids = np.asarray(texts.ids(0))
    places = [int(k) for k in np.flatnonzero(np.isin(ids, marks))]
    edits = [E.knock_out([k], list(range(k + 1, len(ids)))) for k in places if k + 1 < len(ids)]
    behind = list(range(places[0], len(ids) - 1))
    change = (losses(model, ids, edits) - losses(model, ids))[behind]
    one = ds.sel(policy="separators").isel(intervention=0, prompt=0)
    assert float(one["loss_change"]) == pytest.approx(change.mean(), abs=1e-4)
    assert ds["n_hidden"].isel(prompt=0).values.tolist() == [len(places)] * 2
    with torch.no_grad():
        p, q = (model.unembed(streams(model, ids, e)[-1][behind].float()).log_softmax(-1) for e in (edits, ()))
    assert float(one["kl"]) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    by = parts.separator_windows(model, texts, width=2)
    assert by["intervention"].values.tolist() == ["all blocks", "blocks 0-1", "blocks 2-2"]


def test_coverage_is_that_of_a_loop(model, texts):
    ds = parts.segment_coverage(model, texts)
    marks = parts.separators_of(texts)
    ids = np.asarray(texts.ids(1))
    with torch.no_grad():
        a = model.run(torch.as_tensor(ids)[None], [ti.Site("pattern", 1)])[ti.Site("pattern", 1)][0].double().numpy()
    mark = np.isin(ids, marks)
    segment = np.cumsum(mark) - mark
    for head in range(a.shape[0]):
        mass, share, chance = [], [], []
        for q in range(len(ids)):
            far = [k for k in range(1, q + 1) if segment[k] < segment[q]]
            if far:
                mass.append(a[head, q, far].sum())
                share.append(a[head, q, [k for k in far if mark[k]]].sum() / mass[-1])
                chance.append(mark[far].mean())
        one = ds.isel(prompt=1, block=1, head=head)
        assert float(one["far_mass"]) == pytest.approx(np.mean(mass), rel=1e-5)
        assert float(one["separator_share"]) == pytest.approx(np.mean(share), rel=1e-5)
        assert float(one["chance"]) == pytest.approx(np.mean(chance))
        assert float(one["enrichment"]) == pytest.approx(np.mean(share) / np.mean(chance), rel=1e-5)
        assert int(one["n_queries"]) == len(share)


# -- answers of trained networks ------------------------------------------------------------------------------
def test_scores_of_a_network_are_those_of_a_loop():
    from tokinterp.fillers.tasks.task import Task

    task = Task(n=4, d=2, m=3)
    test = task.test_set("filler", 60)
    true, false = task.words.true, task.words.false
    draw = torch.Generator().manual_seed(0)
    at = test.sequences.answer_at
    logits = torch.randn(*test.sequences.ids.shape, len(task.words), generator=draw)
    ahead = torch.arange(60) < 45  # says True more often than it is
    logits[torch.arange(60), at, true] += torch.where(ahead, 6.0, 0.0)

    class Fake(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            first = int(self.done)
            self.done += len(input_ids)
            return SimpleNamespace(logits=logits[first : first + len(input_ids)])

    fake = Fake()
    fake.done = 0
    found = evaluate(fake, task, test, batch=25)
    said = logits[torch.arange(60), at].argmax(-1)
    right = (said == test.answer).numpy()
    assert found.accuracy[0] == pytest.approx(right.mean())
    for number in range(1, len(task.strata)):
        here = test.stratum.numpy() == number
        assert found.count[number] == here.sum()
        if here.any():
            assert found.accuracy[number] == pytest.approx(right[here].mean())
    targets = test.sequences.targets
    asked = [(e, p) for e in range(60) for p in range(targets.shape[1]) if targets[e, p] >= 0]
    each = [-float(logits[e, p].log_softmax(-1)[targets[e, p]]) for e, p in asked]
    assert found.loss == pytest.approx(np.mean(each), rel=1e-5)
    is_true = test.answer == true
    bias = float((said == true).double().mean() - is_true.double().mean())
    assert found.true_bias == pytest.approx(bias)
    assert found.true_bias > 0.2
    score = (logits[torch.arange(60), at, true] - logits[torch.arange(60), at, false]).tolist()
    pairs = [(a > b) + 0.5 * (a == b) for a, x in zip(score, is_true, strict=True) if x
             for b, y in zip(score, is_true, strict=True) if not y]  # fmt: skip
    assert found.auc == pytest.approx(np.mean(pairs))


# -- figures --------------------------------------------------------------------------------------------------
def test_a_point_outside_of_its_interval_is_drawn_beside_it():
    from tokinterp.plots.fillers import intervals
    from tokinterp.plots.fillers_text import hidden_in_windows

    said = {"long_name": "share", "units": "1"}
    made = {
        "gap_left": ("filler", [2.0, 0.5], said),
        "gap_left_interval": (("bound", "filler"), [[0.1, 0.2], [1.0, 0.9]]),
    }
    ds = xr.Dataset(made, {"filler": ["dots", "words"], "bound": ["lower", "upper"]})
    ax = intervals(ds, "gap_left", "filler")
    bars = np.concatenate([c.get_segments() for c in ax.collections])
    np.testing.assert_allclose(bars[:, :, 0], [[0.1, 1.0], [0.2, 0.9]])
    assert any(2.0 in line.get_xdata() for line in ax.lines)
    kl = xr.DataArray(np.array([[[0.0] * 99 + [500.0]]]), dims=("intervention", "policy", "prompt"), attrs=said)
    coords = {"intervention": ["all blocks"], "policy": ["separators"]}
    assert hidden_in_windows(xr.Dataset({"kl": kl}, coords)).collections
