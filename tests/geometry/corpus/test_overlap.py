"""Overlap and imbalance in the cloud of a corpus are those of loops, and for one prompt those of the prompt."""

import numpy as np
import pytest
from planted_clouds import corpus, flat, planted, search

import tokinterp as ti

OVERLAP, IMBALANCE = ti.geometry.corpus_overlap, ti.geometry.corpus_imbalance


@pytest.mark.slow
def test_one_prompt_has_the_numbers_of_the_prompt(bundled):
    prompts = ti.Prompts.from_texts([ti.bundled_texts("article")[0].text], bundled, max_tokens=90)[[0]]
    layers = [0, 3, 4]
    asked = {
        "o": ti.geometry.NeighbourOverlap((1, 10), layers=layers, labels=("token_id",)),
        "i": ti.geometry.InformationImbalance((1, 5), layers=layers),
    }
    want = ti.measure(bundled, prompts, asked, progress=False)
    cloud = ti.geometry.corpus_cloud(bundled, prompts, layers, progress=False)
    near = search(cloud, 12)
    for memory in (2**20, 2**30):
        found = OVERLAP(cloud, near, (1, 10), memory=memory)
        np.testing.assert_allclose(found["overlap_pair"], want["o"]["overlap_pair"], atol=1e-6)
        np.testing.assert_allclose(found["chance"], want["o"]["chance"][0], rtol=1e-12)
        np.testing.assert_allclose(
            found["label_overlap"].sel(label="token_id"), want["o"]["label_overlap"][0, :, :, 0], atol=1e-6
        )
        np.testing.assert_allclose(found["label_chance"][:, 0], want["o"]["label_chance"][0, :, 0], rtol=1e-9)
        found = IMBALANCE(cloud, near, (1, 5), memory=memory)
        np.testing.assert_allclose(found["imbalance_pair"], want["i"]["imbalance_pair"], rtol=1e-6)
        np.testing.assert_allclose(found["least"], want["i"]["least"][0], rtol=1e-12)


@pytest.fixture(scope="module")
def three():
    """Two layers that are one turned, and one that has nothing to do with them; tokens of a prompt are near by."""
    x, y = flat(600, 4, 12), flat(600, 4, 12, seed=1)
    x += np.repeat(flat(30, 4, 12, seed=2), 20, 0) * 3
    return planted(np.stack([x, x[:, ::-1] * 2 + 1, y], 1), corpus(30, 20))


def test_turned_clouds_keep_their_neighbours_and_unrelated_ones_have_those_of_chance(three):
    near = search(three, 20)
    pair, delta = OVERLAP(three, near, (5, 20)), IMBALANCE(three, near, (1,))
    assert (pair["overlap_pair"].values[:, :2, :2] > 0.999).all()
    lone = pair["overlap_pair"].values[:, 2, :2].mean(1)
    np.testing.assert_allclose(lone, pair["chance"], atol=0.01)
    np.testing.assert_allclose(pair["chance"], np.array([5, 20]) / 599, rtol=1e-12)
    np.testing.assert_allclose(delta["imbalance_pair"].values[0, :2, :2], delta["least"].item(), rtol=1e-3)
    np.testing.assert_allclose(delta["imbalance_pair"].values[0, 2, :2], 1, atol=0.1)


def test_shares_of_neighbours_are_counted_among_those_that_may_be_neighbours(three):
    free, apart = (OVERLAP(three, search(three, 10, **h), (10,)) for h in ({}, {"apart": ["prompt"]}))
    near = search(three, 10)
    p, t = three["prompt"].values, three["token_id"].values
    same = p[near["neighbour"].values] == p[:, None, None]
    np.testing.assert_allclose(free["label_overlap"].sel(label="prompt")[:, 0], same.mean((0, 2)), atol=1e-6)
    assert free["label_overlap"].sel(label="prompt")[0, 0] > 3 * free["label_chance"].sel(label="prompt")
    assert float(apart["label_overlap"].sel(label="prompt").max()) == 0
    other = p[:, None] != p
    np.testing.assert_allclose(apart["chance"], 10 / 580, rtol=1e-12)
    luck = ((t[:, None] == t) & other).sum(1) / other.sum(1)
    np.testing.assert_allclose(apart["label_chance"].sel(label="token_id"), luck.mean(), rtol=1e-9)


def test_intervals_are_wider_where_the_tokens_of_a_prompt_are_alike(three):
    """One prompt in two keeps its neighbours: twenty tokens each, not twenty times the evidence."""
    x = three["state"].values.copy()
    half = np.arange(600) // 20 % 2 == 0
    x[half, 1] = x[half, 2]
    ds = OVERLAP(planted(x, corpus(30, 20)), search(planted(x, corpus(30, 20)), 10), (10,), groups=30)
    low, high = ds["overlap_pair_interval"].values[:, 0, 0, 1]
    value = float(ds["overlap_pair"][0, 0, 1])
    assert low < value < high
    spread = 2 * 1.96 * np.sqrt(value * (1 - value) / 600)  # as if tokens were independent and all or nothing
    assert high - low > 2 * spread
    assert ds.attrs["n_groups"] == 30


def test_what_is_not_there_is_refused(three):
    near = search(three, 4)
    with pytest.raises(ValueError, match=r"k=\(1, 10\): near has 4 neighbours"):
        OVERLAP(three, near, (1, 10))
    with pytest.raises(ValueError, match="neighbours in another cloud"):
        OVERLAP(three.isel(layer=[0, 1]), near, (1,))
    with pytest.raises(ValueError, match="neighbours in another cloud"):
        OVERLAP(three, search(three[{"token": slice(0, 300)}], 4), (1,))
    other = three.copy()
    other["state"] = three["state"] * np.array([1, 1.1, 1], np.float32)[:, None]  # as of another model
    with pytest.raises(ValueError, match="neighbours in another cloud"):
        OVERLAP(other, near, (1,))
    with pytest.raises(ValueError, match="overlaps need method='exact'"):
        OVERLAP(three, near.assign_attrs(method="faiss"), (1,))
    with pytest.raises(ValueError, match="between two layers at least"):
        IMBALANCE(three.isel(layer=[0]), near)


def test_tokens_without_enough_neighbours_take_no_part():
    """Two prompts, of which one has three tokens: the tokens of the other have three neighbours."""
    x = flat(24, 3, 6).reshape(24, 1, 6)
    other = flat(24, 3, 6, seed=1).reshape(24, 1, 6)
    cloud = planted(np.concatenate([x, other], 1), corpus(2, 12))[{"token": slice(0, 15)}]
    near = search(cloud, 8, apart=["prompt"])
    assert near["distance"].isnull().sum("k").values[:, 0].tolist() == [5] * 12 + [0] * 3
    assert (near["neighbour"].values[:12, :, 3:] == -1).all()
    ds = OVERLAP(cloud, near, (3, 8), groups=0)
    assert ds["overlap_pair"].notnull().all()
    late = OVERLAP(cloud, near[{"token": slice(12, 15)}], (3, 8), groups=0)["overlap_pair"]
    np.testing.assert_array_equal(ds["overlap_pair"].sel(k=8), late.sel(k=8))
    assert (ds["overlap_pair"].sel(k=3) > late.sel(k=3)).any()
    assert OVERLAP(cloud, near[{"token": slice(0, 12)}], (8,), groups=0)["overlap_pair"].isnull().all()


def test_chance_is_that_of_the_tokens_that_take_part():
    """Twelve tokens have three possible neighbours, three have twelve: of 8 only the latter know chance."""
    x = flat(24, 3, 6).reshape(12, 2, 6)
    cloud = planted(np.concatenate([x, x]), corpus(2, 12))[{"token": slice(0, 15)}]
    cloud["token_id"] = ("token", [0] * 6 + [1] * 6 + [0, 0, 1], cloud["token_id"].attrs)
    near = search(cloud, 8, apart=["prompt"])
    ds, delta = OVERLAP(cloud, near, (3, 8), groups=0), IMBALANCE(cloud, near, (3, 8), groups=0)
    np.testing.assert_allclose(ds["chance"], [(12 * 3 / 3 + 3 * 3 / 12) / 15, 8 / 12], rtol=1e-12)
    assert (ds["overlap_pair"] <= 1).all()
    np.testing.assert_allclose(delta["least"], [(12 * 4 / 4 + 3 * 4 / 13) / 15, 9 / 13], rtol=1e-12)
    luck = ds["label_chance"].sel(label="token_id")
    np.testing.assert_allclose(luck, [(6 * 2 / 3 + 6 / 3 + 3 / 2) / 15, 1 / 2], rtol=1e-12)
    assert ds["label_chance"].dims == ("k", "label")
