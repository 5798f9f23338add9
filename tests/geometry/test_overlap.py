"""Overlap and information imbalance: theorems, peers, ties and copies, one search for all."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from contract import assert_contract
from golden import token_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.kernels.membership import membership, neighbour_lists, rank_rows
from tokinterp.kernels.neighbours import nearest

GOLDEN = ROOT / "tests" / "golden"
_spec = importlib.util.spec_from_file_location("dadapy_overlap", GOLDEN / "dadapy_overlap.py")
RECIPE = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(RECIPE)
DADAPY = json.loads((GOLDEN / "dadapy_overlap.json").read_text())
KS = RECIPE.KS
VISWANATHAN = json.loads((GOLDEN / "token_geometry.json").read_text(encoding="utf-8"))


def near_lists(x, k, mask=None):
    x = torch.as_tensor(np.asarray(x, np.float64))
    mask = torch.ones(len(x), dtype=torch.bool) if mask is None else mask
    near = nearest(x, k, mask)
    return neighbour_lists(near.indices, near.first, mask)


def overlap(x, y, k):
    a, b = (membership(near_lists(z, k), k)[0].double() for z in (x, y))
    return float((a * b).sum() / k / len(a))


def imbalance(x, y, k):
    y = torch.as_tensor(np.asarray(y, np.float64))
    first = nearest(y, 1).first[0]
    rank = rank_rows(y - y.mean(0), first, torch.ones(len(y), dtype=torch.bool))
    return float((membership(near_lists(x, k), k)[0].double() * rank).sum() * 2 / k / len(y) ** 2)


def gauss(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


# -- theory -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 10, 30])
def test_identical_clouds_and_unrelated_ones(k):
    n = 600
    x, y = gauss(n, 6), gauss(n, 6, seed=1)
    turn = np.linalg.qr(gauss(6, 6, seed=2))[0]
    assert overlap(x, 3 * x @ turn + 7, k) == 1
    chance = k / (n - 1)
    spread = 4 * (chance * (1 - chance) / (n * k)) ** 0.5
    assert overlap(x, y, k) == pytest.approx(chance, abs=spread)
    assert imbalance(x, 3 * x @ turn, k) == pytest.approx((k + 1) / n, rel=1e-9)  # 2 / N for k = 1
    assert imbalance(x, y, k) == pytest.approx(1, abs=0.1)


def test_less_information_cannot_tell_more():
    x = gauss(500, 4)
    x[:, 2:] *= 3
    assert imbalance(x, x[:, :2], 1) > imbalance(x, x, 1)
    assert imbalance(x[:, 2:], x, 1) < imbalance(x[:, :2], x, 1)  # the large coordinates decide distances


def brute(x, k):
    """Probability of being among the k nearest over random orders of equal distances, by its definition."""
    out = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        d = ((x - x[i]) ** 2).sum(1)
        for j in range(len(x)):
            if j != i:
                nearer = sum(d[m] < d[j] for m in range(len(x)) if m != i)
                equal = sum(d[m] == d[j] for m in range(len(x)) if m != i)
                out[i, j] = np.clip((k - nearer) / equal, 0, 1)
    return out


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99),
    n=st.integers(4, 14),
    kinds=st.integers(2, 9),
    k=st.integers(1, 3),
    hidden=st.integers(0, 2),
)
def test_copies_share_their_places(seed, n, kinds, k, hidden):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((kinds, 3))[rng.integers(0, kinds, n)]
    kept = np.arange(n) >= hidden
    mask = torch.from_numpy(kept)
    if kept.sum() <= k:
        return
    found = membership(near_lists(x, min(k, n - 1), mask), k)[0].numpy()
    np.testing.assert_allclose(found[np.ix_(kept, kept)], brute(x[kept], k), atol=1e-6)
    assert not found[~kept].any()
    assert not found[:, ~kept].any()
    np.testing.assert_allclose(found[kept].sum(1), k, atol=1e-5)
    order = rng.permutation(n)
    again = membership(near_lists(x[order], min(k, n - 1), mask[order]), k)[0].numpy()
    np.testing.assert_allclose(again, found[np.ix_(order, order)], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), n=st.integers(3, 12))
def test_ranks_are_counts(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (n, 2)).astype(float)  # many ties
    y = torch.from_numpy(x)
    found = rank_rows(y, nearest(y, 1).first[0], torch.ones(n, dtype=torch.bool)).numpy()
    d = ((x[:, None] - x) ** 2).sum(-1)
    for i in range(n):
        for j in range(n):
            others = [m for m in range(n) if m not in (i, j)]
            rank = 1 + sum(d[i, m] < d[i, j] for m in others) + sum(d[i, m] == d[i, j] for m in others) / 2
            assert found[i, j] == (0 if i == j else rank)


def test_ties_are_decided_the_same_way_every_time():
    grid = np.stack(np.meshgrid(range(9), range(9)), -1).reshape(-1, 2).astype(float)
    runs = [membership(near_lists(grid, 3), 3) for _ in range(2)]
    assert torch.equal(*runs)
    assert bool((runs[0][0, 40] > 0).nonzero()[:, 0].tolist() == [31, 39, 41])  # of four at distance 1, by place


# -- peers --------------------------------------------------------------------------------------------------------
def test_dadapy_on_two_views():
    a, b, _ = RECIPE.views()
    for k in KS:
        assert overlap(a, b, k) == pytest.approx(DADAPY["views"]["overlap"][str(k)], rel=1e-6)
        assert imbalance(a, b, k) == pytest.approx(DADAPY["views"]["there"][str(k)], rel=1e-9)
        assert imbalance(b, a, k) == pytest.approx(DADAPY["views"]["back"][str(k)], rel=1e-9)


def test_dadapy_and_scikit_learn_on_token_clouds(bundled):
    from sklearn.neighbors import NearestNeighbors

    text = next(t.text for t in ti.bundled_texts() if len(t.text) > 6 * RECIPE.TOKENS)
    prompts = ti.Prompts.from_texts([text], bundled, max_tokens=RECIPE.TOKENS)
    layers = list(RECIPE.LAYERS)
    batch = ti.capture(bundled, prompts, [0], ti.resid(layers))
    states = [batch.rows(n)[1:].double().numpy() for n in layers]
    for x in states:
        _, theirs = NearestNeighbors(n_neighbors=31).fit(x).kneighbors(x)
        np.testing.assert_array_equal(nearest(torch.from_numpy(x), 30).indices[0], theirs[:, 1:])
    asked = {
        "overlap": ti.geometry.NeighbourOverlap(KS, layers, labels=()),
        "imbalance": ti.geometry.InformationImbalance(KS, layers),
    }
    run = ti.measure(bundled, prompts, asked, progress=False)
    n = RECIPE.TOKENS - 1
    for block in layers[:-1]:
        wanted = DADAPY[f"layers {block} {block + 1}"]
        for k in KS:
            one = {"prompt": 0, "block": block, "k": k}
            flips = 2.5 / (n * k)  # other processors round float32 states otherwise: two neighbours may change places
            assert float(run["overlap"]["overlap"].sel(one)) == pytest.approx(wanted["overlap"][str(k)], abs=flips)
            for way, key in (("forward", "there"), ("backward", "back")):
                found = float(run["imbalance"][f"imbalance_{way}"].sel(one))
                assert found == pytest.approx(wanted[key][str(k)], rel=3e-3)


def test_overlap_is_that_of_the_function_of_viswanathan():
    for k, wanted in VISWANATHAN["overlap"].items():
        assert overlap(*token_geometry.clouds(), int(k)) == pytest.approx(wanted, rel=1e-12)


# -- labels -------------------------------------------------------------------------------------------------------
def test_labels_against_dadapy():
    a, _, labels = RECIPE.views()
    model = StandIn((300,), n_layers=1, d=12)
    model.ids = [np.ones(300, int)]  # no special token
    model.streams = [np.stack([a, a])]
    model.prompts.n_tokens, model.prompts.starts = 300, np.array([0, 300])
    m = ti.geometry.NeighbourOverlap(KS, labels=(), classes={"view": labels})
    ds = model.measured(m).result().sel(prompt=0, layer=0, label="view")
    for k in KS:  # float32 states
        assert float(ds["label_overlap"].sel(k=k)) == pytest.approx(
            DADAPY["views"]["labels"]["plain"][str(k)], abs=1e-6
        )
        wanted = DADAPY["views"]["labels"]["balanced"][str(k)]
        assert float(ds["label_overlap_balanced"].sel(k=k)) == pytest.approx(wanted, abs=1e-6)


def test_labels_of_unrelated_points_are_at_chance_and_of_own_clusters_at_one():
    n = 400
    rng = np.random.default_rng(0)
    ids = rng.choice([2, 3, 4], n, p=[0.7, 0.2, 0.1])
    model = StandIn((n,), n_layers=1, d=5)
    model.ids = [ids]
    model.streams[0][1] = 100 * np.eye(5)[ids] + rng.standard_normal((n, 5))  # layer 1: clusters by token
    ds = (
        model.measured(ti.geometry.NeighbourOverlap((1, 10, 60), labels=("token_id",))).result().isel(prompt=0, label=0)
    )
    for way in ("", "_balanced", "_corrected"):
        value, luck = ds[f"label_overlap{way}"], ds[f"label_chance{way}"]
        np.testing.assert_allclose(value.sel(layer=0), luck, atol=0.06)
    np.testing.assert_allclose(ds["label_overlap_corrected"].sel(layer=1), 1, rtol=1e-6)
    size = np.bincount(ids)[2:]
    most = (np.minimum(60, size - 1) * size).sum() / n / 60
    assert float(ds["label_overlap"].sel(layer=1, k=60)) == pytest.approx(most, rel=1e-6)
    assert most < 1


def test_next_token_and_class_labels():
    model = tiny()
    prompts = ti.Prompts.from_texts(["the river and the river and the river and the end"] * 2, model)
    m = ti.geometry.NeighbourOverlap((2,), labels=("next_token", "token_class"))
    ds = ti.measure(model, prompts, {"m": m}, progress=False)["m"].to_dataset()
    assert ds["label"].values.tolist() == ["next_token", "token_class"]
    assert bool(ds["label_overlap"].notnull().all())
    targets = prompts.ids(0)[2:]  # BOS is left out, and the last token has none
    luck = np.mean([(targets == t).sum() - 1 for t in targets]) / len(targets)
    assert float(ds["label_chance"].sel(label="next_token", k=2)[0]) == pytest.approx(luck)


# -- the measurements ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_contracts():
    assert_contract(lambda: ti.geometry.NeighbourOverlap(k=(1, 3, 10), tokens=3))
    assert_contract(lambda: ti.geometry.InformationImbalance(k=(1, 5)))
    assert_contract(lambda: ti.geometry.NeighbourGraph(k=(2, 5), tokens=None))
    assert_contract(
        lambda: ti.geometry.NeighbourOverlap(k=(3,), exclude=("special", "massive"), pairs=False, labels=())
    )


def test_overlap_of_copies_is_what_chance_gives():
    model = StandIn((30, 30))
    model.streams[1][2][:] = 1.5  # a layer of equal states tells nothing
    ds = model.measured(ti.geometry.NeighbourOverlap((1, 5), labels=())).result()
    luck = ds["chance"].sel(prompt=1)
    for block in (1, 2):
        np.testing.assert_allclose(ds["overlap"].sel(prompt=1, block=block), luck, rtol=1e-6)
        np.testing.assert_allclose(ds["overlap_corrected"].sel(prompt=1, block=block), 0, atol=1e-6)
    assert ds["n_copies"].sel(prompt=1).values.tolist() == [0, 0, 28, 0]
    both = model.measured(ti.geometry.InformationImbalance((1,))).result().sel(prompt=1, block=1, k=1)
    assert float(both["imbalance_forward"]) == pytest.approx(1, abs=0.04)  # all ranks are 14.5 of 29
    graph = model.measured(ti.geometry.NeighbourGraph((1, 5))).result().sel(prompt=1, layer=2)
    assert bool(graph["reciprocity"].isnull().all())
    assert int(graph["n_unique"]) == 1


def test_a_layer_shares_all_neighbours_with_itself():
    model = StandIn((14, 9))
    ds = model.measured(ti.geometry.NeighbourOverlap((1, 3), labels=(), tokens=1)).result()
    for layer in range(4):
        np.testing.assert_allclose(ds["overlap_pair"].sel(layer=layer, other_layer=layer), 1)
    assert ds["token_prompt"].values.tolist() == [0] * 14  # of the prompts below 1


def test_repeated_tokens_at_layer_0_count_once_for_each_order():
    model = tiny()
    prompts = ti.Prompts.from_ids([[1, *range(5, 25), *range(5, 25)]], model)
    ds = ti.measure(model, prompts, {"m": ti.geometry.NeighbourOverlap((1,), tokens=None)}, progress=False)[
        "m"
    ].to_dataset()
    assert ds["n_copies"].sel(prompt=0).values.tolist() == [20, 0, 0, 0]
    assert float(ds["label_overlap"].sel(prompt=0, layer=0, k=1, label="token_id")) == 1  # its copy is the nearest
    x, y = (ti.capture(model, prompts, [0], ti.resid([n])).rows(n)[1:].double().numpy() for n in (0, 1))
    wanted = (brute(x, 1) * brute(y, 1)).sum() / 40
    assert float(ds["overlap"].sel(prompt=0, block=0, k=1)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ti.geometry.NeighbourOverlap(k=()), "k="), (lambda: ti.geometry.NeighbourOverlap(k=(3, 1)),
        "ascending"),
        (lambda: ti.geometry.NeighbourOverlap(labels=("pos",)), "pos.*classes="),
        (lambda: ti.geometry.NeighbourOverlap(small="x"), "'x'"), (lambda: ti.geometry.NeighbourGraph(k=(0,)), "k="),
        (lambda: ti.geometry.NeighbourOverlap(classes={"pos": [0.5]}), "whole numbers"),
        (lambda: ti.geometry.InformationImbalance(exclude=("bos",)), "bos"),
    ],
)  # fmt: skip
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_that_do_not_fit_the_prompts():
    with pytest.raises(ValueError, match="has 3 labels for 40 tokens"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.geometry.NeighbourOverlap((1,), classes={"pos": [1, 2, 3]})})
    with pytest.raises(ValueError, match="between two layers"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.geometry.InformationImbalance(layers=[2])})
