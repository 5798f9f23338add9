"""What can be read at fillers: planted codes, the question, clusters of cells."""

import numpy as np
import pytest
import torch
from by_hand import PAIRS, streams
from scipy import stats
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.fillers.read_out import cell_clusters, cluster_cells, deranged, read_fillers
from tokinterp.fillers.residual import filler_probes, slots_of
from tokinterp.stats.explained import share_explained
from tokinterp.text.items import build_items

QUESTIONS = ti.bundled_questions("cloze")[:12]


def test_probes_find_a_planted_code_and_no_shuffled_one():
    from tokinterp.stats.linear import held_out

    g = np.random.default_rng(0)
    x = g.normal(size=(100, 8))
    y = x @ g.normal(size=(8, 5))
    fold = np.arange(100) % 5
    unit = np.arange(100)
    value, low, high = share_explained(*held_out(x, y, fold, 5, 1e-6), unit)
    assert 0.999 < low <= value <= high <= 1
    value, low, high = share_explained(*held_out(x, y[g.permutation(100)], fold, 5, 1.0), unit)
    assert low <= value <= high
    assert value < 0.1


@pytest.mark.slow
def test_probes_read_the_question_where_it_stands(bundled):
    ds = filler_probes(bundled, ti.bundled_questions("cloze")[:40], n_fillers=4)
    ti.check(ds)
    widths = [ds[n].sel(target="answer").diff("bound").values for n in ("explained_interval", "explained_band")]
    assert (widths[1] > widths[0]).mean() > 0.9
    own = ds["explained"].sel(target="input", source="last of question", layer=0)
    assert float(own) > 0.5
    assert float(ds["explained"].sel(target="shuffled answer").max()) < 0.2


def test_lens_on_fillers(bundled):
    ds = read_fillers(bundled, QUESTIONS, n_fillers=4)
    ti.check(ds)
    assert ((ds["entropy"] >= 0) & (ds["entropy"] <= np.log(bundled.info.d_vocab) + 1e-6)).all()
    for name in ("own_share", "choice", "reciprocal_rank"):
        assert ((ds[name] >= 0) & (ds[name] <= 1)).all()
    answers = np.array([3, 3, 5, 6, 7, 7])
    for seed in range(20):
        assert (deranged(answers, seed) != answers).all()
        assert sorted(deranged(answers, seed)) == sorted(answers)


def test_cells_of_one_hidden_variable_cluster_together():
    """Two planted variables under other names in each cell, noise, and cells that compare with nothing."""
    rng = np.random.default_rng(0)
    hidden = rng.integers(0, 3, (2, 60))
    rows = [(rng.permutation(50)[hidden[v]]) for v in (0, 1, 0, 1, 0, 1)]
    noisy = [np.where(rng.random(60) < 0.1, rng.integers(0, 50, 60), r) for r in rows]
    labels = np.array([*noisy, np.full(60, 7), np.arange(60)])
    ami, cluster = cluster_cells(labels, 2)
    assert len(set(cluster[[0, 2, 4]])) == len(set(cluster[[1, 3, 5]])) == 1
    assert cluster[0] != cluster[1]
    assert cluster[6:].tolist() == [-1, -1]
    assert np.isnan(ami[6:]).all()
    assert abs(ami[0, 1]) < 0.15
    assert ami[0, 2] > 0.5
    with pytest.raises(ValueError, match="6 cells that can be compared"):
        cluster_cells(labels, 6)


def test_likeness_is_that_of_a_loop():
    from tokinterp.fillers.read_out import likeness

    ami = np.random.default_rng(0).random((6, 6))
    ami[2] = ami[:, 2] = np.nan
    cluster = [0, 1, -1, 0, 1, 1]
    cells = [(i, j) for i in range(6) for j in range(6) if i != j and -1 not in (cluster[i], cluster[j])]
    same = [ami[c] for c in cells if cluster[c[0]] == cluster[c[1]]]
    apart = [ami[c] for c in cells if cluster[c[0]] != cluster[c[1]]]
    assert likeness(ami, np.array(cluster)) == pytest.approx((np.mean(same), np.mean(apart)))


@pytest.mark.slow
def test_cell_clusters_of_a_model(bundled, monkeypatch):
    from tokinterp.fillers import read_out

    given = []

    def cluster(labels, n_clusters, seed=0):
        given.append(labels.copy())
        return cluster_cells(labels, n_clusters, seed)

    monkeypatch.setattr(read_out, "cluster_cells", cluster)
    ds = cell_clusters(bundled, ti.bundled_questions("cloze")[:30], n_fillers=4, layers=[2, 6])
    ti.check(ds)
    known = ds["cluster"].values >= 0
    assert np.isfinite(ds["ami"].values[np.ix_(known, known)]).all()
    assert ds["cell_layer"].values.tolist() == [2] * 4 + [6] * 4
    assert float(ds["contrast"]) == pytest.approx(float(ds["within"]) - float(ds["between"]))
    low, high = ds["contrast_interval"].values
    assert low < float(ds["contrast"]) < high
    assert float(ds["contrast_shuffled"]) < float(ds["contrast"])
    plain, shuffled = given
    np.testing.assert_array_equal(np.sort(plain, 1), np.sort(shuffled, 1))  # each cell's labels over other items
    assert (plain != shuffled).any(1).all()
    one, two = read_out.likeness(*cluster_cells(shuffled, 3))
    assert float(ds["contrast_shuffled"]) == pytest.approx(one - two)
    items = build_items(bundled, ti.bundled_questions("cloze")[:30], n_fillers=4)
    where = torch.from_numpy(slots_of(items))
    states = [bundled.run(torch.from_numpy(ids)[None], ti.resid([2, 6])) for ids in items.ids]
    for cell, (layer, slot) in enumerate((n, s) for n in (2, 6) for s in range(4)):
        with torch.no_grad():
            h = torch.stack([x[ti.Site("resid", layer)][0, where[i, slot]] for i, x in enumerate(states)])
            p = bundled.unembed(h).softmax(-1)
        assert int(ds["n_labels"][cell]) == len((p - p.mean(0)).argmax(-1).unique())


def test_read_out_is_that_of_a_loop(long_model, monkeypatch):
    from tokinterp.fillers import read_out

    items = build_items(long_model, PAIRS, n_fillers=6, kind=" x")
    lm = tiny_lm("llama", max_position_embeddings=256)
    filler = int(items.ids[0][items.filler[0, 1] - 1])
    with torch.no_grad():  # one of the two tokens of a filler is read where it stands
        lm.lm_head.weight[filler] = lm.model.embed_tokens.weight[filler]
    reads = ti.wrap(lm, byte_tokenizer(), id="reads itself")
    monkeypatch.setattr(read_out, "TOP_CELL", 40)
    monkeypatch.setattr(read_out, "TOP_ITEM", 60)
    ds = read_fillers(reads, PAIRS, n_fillers=6, kind=" x")
    n, layers, slots = len(PAIRS), reads.info.n_layers + 1, 6
    answer = np.array([a[0] for a in items.answers])
    target = [answer, deranged(answer, 0)]
    p = np.zeros((n, layers, slots, reads.info.d_vocab))
    for i, (ids, where) in enumerate(zip(items.ids, slots_of(items), strict=True)):
        with torch.no_grad():
            p[i] = reads.unembed(streams(reads, ids)[:, where].float()).softmax(-1).numpy()
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
    for v, taken in enumerate((p.mean(0), 0 * p[0])):
        more, part = p - taken, np.sort(p - taken, -1)[..., -40]
        for t in range(2):
            own = np.take_along_axis(more, np.asarray(target[t])[:, None, None, None], -1)[..., 0]
            held = ((own >= part) & (own > 1e-7)).mean(0)
            np.testing.assert_allclose(ds["cell_fingerprint"][v, t], held)
    assert len(set(kinds)) > 1
    assert (ds["fingerprint"][0] != ds["fingerprint"][1]).any()


def test_an_item_that_is_not_finite_takes_no_part(long_model, monkeypatch):
    """Its logits are NaN, above which no token is: its answer must not count as the first of all."""
    from tokinterp.fillers import read_out

    given = [*PAIRS, ("It is", " to"), ("We", " to")]
    rest = read_fillers(long_model, [*given[:2], *given[3:]], n_fillers=2, kind=" x")
    real = read_out.states

    def spoilt(model, items, *args):
        h = real(model, items, *args)
        h[2] = torch.nan
        return h

    monkeypatch.setattr(read_out, "states", spoilt)
    ds = read_fillers(long_model, given, n_fillers=2, kind=" x")
    assert ds.sizes["prompt"] == len(given)
    for name in ("first_layer", "fingerprint"):
        assert np.isnan(ds[name].sel(prompt=2)).all()
        np.testing.assert_array_equal(ds[name].drop_sel(prompt=2), rest[name])
    for name in ("entropy", "own_share", "choice", "choice_chance", "median_rank", "reciprocal_rank"):
        np.testing.assert_allclose(ds[name], rest[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(ds["cell_fingerprint"], rest["cell_fingerprint"])
    with pytest.raises(ValueError, match="9 finite items: at least 10 are needed"):
        cell_clusters(long_model, given[:1] * 10, n_fillers=2, kind=" x")


def test_the_chance_of_a_choice_is_the_commonest_answer(long_model):
    ds = read_fillers(long_model, [*PAIRS, ("It is", " to"), ("We", " to")], n_fillers=2, kind=" x", layers=[1])
    assert float(ds["choice_chance"]) == 3 / 6
