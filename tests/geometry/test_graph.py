"""The neighbour graph: chance is the density of the graph; reciprocity, transitivity and hubs by hand."""

import numpy as np
import pytest
import torch
from standin import StandIn

import tokinterp as ti
from tokinterp.geometry.kernels.membership import graph_numbers
from tokinterp.kernels.neighbours import nearest


def gauss(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_chance_is_the_share_of_all_arrows_that_are_there():
    model = StandIn((14, 9))
    model.streams[1][1][3] = model.streams[1][1][5]  # two equal states count once
    ds = model.measured(ti.geometry.NeighbourGraph((1, 4), tokens=None)).result()
    for prompt in (0, 1):
        of = ds["token_prompt"].values == prompt
        for layer in range(4):
            degree = ds["in_degree"].values[of][:, layer]
            n = int((degree[:, 0] >= 0).sum())
            assert n == int(ds["n_unique"].sel(prompt=prompt, layer=layer))
            for i, _ in enumerate((1, 4)):
                there = degree[degree[:, i] >= 0, i].sum()
                assert float(ds["chance"].sel(prompt=prompt, layer=layer)[i]) == pytest.approx(there / (n * (n - 1)))


def test_reciprocity_of_random_arrows_is_at_chance():
    n, k, rng = 80, 6, np.random.default_rng(0)
    arrow = np.zeros((n, n), bool)
    found = []
    for _ in range(200):
        arrow[:] = False
        for i in range(n):
            arrow[i, rng.choice(np.delete(np.arange(n), i), k, replace=False)] = True
        found.append((arrow & arrow.T).sum() / arrow.sum())
    model = StandIn((n + 1,))
    chance = float(model.measured(ti.geometry.NeighbourGraph((k,))).result()["chance"][0, 0, 0])
    assert chance == pytest.approx(np.mean(found), rel=0.03)


def test_reciprocity_and_transitivity_by_hand():
    x = gauss(60, 3, seed=4)
    near = nearest(torch.from_numpy(x), 5)
    found = graph_numbers(near, 5, memory=20_000)  # several blocks of rows
    to = near.indices[0].numpy()
    arrow = np.zeros((60, 60), bool)
    np.put_along_axis(arrow, to, True, 1)
    assert float(found.reciprocity) == pytest.approx((arrow & arrow.T).sum() / arrow.sum())
    paths = [(i, m) for i in range(60) for j in to[i] for m in to[j] if m != i]
    assert float(found.transitivity) == pytest.approx(np.mean([arrow[i, m] for i, m in paths]))
    degree = arrow.sum(0)
    np.testing.assert_array_equal(found.in_degree[0], degree)
    from scipy.stats import skew

    assert float(found.skewness) == pytest.approx(skew(degree))
    assert float(found.orphans) == pytest.approx((degree == 0).mean())
    assert int(found.largest) == degree.max()
    alone = graph_numbers(nearest(torch.from_numpy(x[:5]), 4), 4)  # everybody points at everybody
    assert float(alone.reciprocity) == float(alone.transitivity) == 1
    assert bool(alone.skewness.isnan())


def test_hubs_appear_with_dimension():
    skew = [
        float(graph_numbers(nearest(torch.from_numpy(gauss(800, d, seed=3)), 10), 10).skewness) for d in (3, 30, 200)
    ]
    assert skew[0] < skew[1] < skew[2]
    assert skew[2] > 2


def test_degrees_are_kept_of_the_prompts_below_the_number():
    model = StandIn((12, 15, 9))
    for tokens, numbers in ((1, [0]), (2, [0, 1]), (None, [0, 1, 2])):
        ds = model.measured(ti.geometry.NeighbourGraph(k=(2, 3), tokens=tokens)).result()
        assert sorted(set(ds["token_prompt"].values.tolist())) == numbers
    x = model.streams[1][2][1:]
    apart = np.linalg.norm(x[:, None] - x, axis=-1) + np.diag(np.full(len(x), np.inf))
    for k in (2, 3):
        degree = np.bincount(np.argsort(apart, 1)[:, :k].ravel(), minlength=len(x))
        got = ds["in_degree"].sel(layer=2, k=k).values[ds["token_prompt"].values == 1]
        assert got.tolist() == [-1, *degree.tolist()]  # the special token takes no part
