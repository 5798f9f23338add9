"""The cloud of a corpus has each state once, and its neighbours are those of brute force without those kept apart."""

import numpy as np
import pytest
import torch
from planted_clouds import MODEL, corpus, flat, planted, search

import tokinterp as ti
from tokinterp.geometry.corpus.neighbours import same_beginning
from tokinterp.geometry.kernels.corpus import Apart
from tokinterp.kernels.duplicates import first_of_kind
from tokinterp.results.dataset import variable

IDS = [[7, 8, 9, 7], [7, 8, 5], [7, 8, 9, 7, 7], [9]]


def test_tokens_with_the_same_beginning_are_those_of_a_loop():
    random = np.random.default_rng(0)
    ids = [random.integers(5, 8, n).tolist() for n in random.integers(1, 9, 60)]
    known, want = {}, []
    for row in ids:
        for p in range(len(row)):
            want.append(known.setdefault(tuple(row[: p + 1]), len(want)))
    np.testing.assert_array_equal(same_beginning(ti.Prompts.from_ids(ids)), want)


def test_the_cloud_has_no_token_whose_state_another_has_by_construction():
    prompts = ti.Prompts.from_ids(IDS, MODEL)
    cloud = ti.geometry.corpus_cloud(MODEL, prompts, [0, 1], progress=False)
    assert cloud["prompt"].values.tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert cloud["position"].values.tolist() == [0, 1, 2, 3, 2, 4, 0]
    assert cloud.attrs["n_same_beginning"] == 6
    alone = ti.states(MODEL, prompts, [0, 1])
    np.testing.assert_array_equal(cloud["state"], alone["state"].isel(token=[0, 1, 2, 3, 6, 11, 12]))
    late = np.arange(13) >= 4  # the first of those that are asked for stays
    some = ti.geometry.corpus_cloud(MODEL, prompts, [1], late, progress=False)
    assert some["prompt"].values.tolist() == [1, 1, 1, 2, 2, 2, 3]


def test_a_draw_is_one_of_its_seed_and_of_tokens_that_are_there():
    prompts = corpus(6, 8)
    draws = [ti.geometry.corpus_cloud(MODEL, prompts, [0], n_tokens=10, seed=s, progress=False) for s in (0, 0, 1)]
    places = [list(zip(d["prompt"].values, d["position"].values, strict=True)) for d in draws]
    assert places[0] == places[1] != places[2]
    assert len(set(places[0])) == 10
    with pytest.raises(ValueError, match=r"n_tokens=49: 48 tokens with states of their own are there"):
        ti.geometry.corpus_cloud(MODEL, prompts, [0], n_tokens=49, progress=False)


@pytest.mark.parametrize("apart", [{}, {"apart": ["prompt"]}, {"apart": ["token"], "window": 2}, {"window": 3},
                                   {"apart": ["document"]}])  # fmt: skip
def test_neighbours_are_those_of_brute_force(apart):
    random = np.random.default_rng(0)
    cloud = planted(random.integers(0, 3, (60, 2, 4)), corpus(6, 10))  # most states are there several times
    document = variable("token", cloud["prompt"].values // 2, "number of the document", "1")
    cloud = cloud.assign_coords(token_document=document)
    near = search(cloud, 8, **apart)
    rule = Apart(*(n in apart.get("apart", ()) for n in ("token", "prompt", "document")), apart.get("window", 0))
    at, p, t, d = (cloud[n].values for n in ("position", "prompt", "token_id", "token_document"))
    for layer in (0, 1):
        x = cloud["state"].values[:, layer].astype(np.float64)
        first = first_of_kind(torch.from_numpy(x)[None])[0].numpy()
        assert int(near["n_unique"][layer]) == len(set(first))
        np.testing.assert_array_equal(near["distinct"][:, layer], first == np.arange(60))
        for q in range(60):
            barred = np.zeros(60, bool)
            barred |= (t == t[q]) if rule.token else False
            barred |= (p == p[q]) if rule.prompt else False
            barred |= (d == d[q]) if rule.document else False
            barred |= (p == p[q]) & (abs(at - at[q]) <= rule.window) if rule.window else False
            left = [g for g in sorted(set(first)) if g != first[q] and not barred[first == g].all()]
            order = sorted(left, key=lambda g: (((x[g] - x[q]) ** 2).sum(), g))[:8]
            found, far = near["neighbour"].values[q, layer], near["distance"].values[q, layer]
            kept = np.isin(found, left)  # two rules together may bar all tokens of a state, and neither alone
            assert kept[found >= 0].all() or (rule.token and rule.window)
            assert found[kept].tolist() == order[: kept.sum()]
            assert kept.sum() > 3
            np.testing.assert_allclose(far[kept], np.sqrt(((x[found[kept]] - x[q]) ** 2).sum(1)), rtol=1e-9)


def test_some_tokens_look_at_all_in_any_memory(device):
    cloud = planted(flat(400, 5, 12).reshape(400, 1, 12), corpus(20, 20))
    whole = search(cloud, 10)
    some = search(cloud, 10, n_tokens=50, seed=3, memory=2**20, device=device)
    np.testing.assert_array_equal(some["neighbour"], whole["neighbour"].isel(token=some["place"].values))
    np.testing.assert_allclose(some["distance"], whole["distance"].isel(token=some["place"].values), rtol=1e-12)
    assert not np.array_equal(some["place"], search(cloud, 10, n_tokens=50, seed=4)["place"])
    assert some.attrs["fingerprint"] != whole.attrs["fingerprint"]


def test_tokens_without_finite_states_take_no_part():
    x = flat(60, 3, 8).reshape(60, 1, 8)
    x[7, 0, 2] = np.nan
    near = search(planted(x, corpus(6, 10)), 8)
    assert near.attrs["n_points"] == 59
    assert 7 not in near["place"].values
    assert not (near["neighbour"] == 7).any()


def test_an_index_says_what_it_misses(extras):
    cloud = planted(flat(600, 8, 12).reshape(600, 1, 12), corpus(30, 20))
    assert search(cloud, 10, method="faiss")["recall"].item() == 1
    found = search(cloud, 10, method="faiss-ivf")
    hit = np.mean(found["distance"].values <= search(cloud, 10)["distance"].values[..., -1:] * (1 + 1e-12))
    assert abs(found["recall"].item() - hit) < 0.08
    assert 0.3 < hit < 1


def test_what_makes_no_sense_is_refused():
    cloud = planted(flat(60, 3, 8).reshape(60, 1, 8), corpus(6, 10))
    for wrong, says in (
        ({"k": 60}, r"k=60: layer 0 has 60 distinct states: take fewer neighbours"),
        ({"method": "faiss", "window": 1}, r"method='faiss': apart= and window= go with method='exact'"),
        ({"apart": ["word"]}, r"apart="),
    ):
        with pytest.raises(ValueError, match=says):
            search(cloud, **wrong)
    with pytest.raises(ValueError, match=r"cloud: it has no state \(token, layer, channel\)"):
        search(cloud.drop_vars("state"))
