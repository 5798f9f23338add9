"""The neighbour graph: chance is the density of the graph."""

import numpy as np
import pytest
from standin import StandIn

import tokinterp as ti


def test_chance_is_the_share_of_all_arrows_that_are_there():
    model = StandIn((14, 9))
    model.streams[1][1][3] = model.streams[1][1][5]  # two equal states count once
    ds = model.measured(ti.NeighbourGraph((1, 4), tokens=None)).result()
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
    chance = float(model.measured(ti.NeighbourGraph((k,))).result()["chance"][0, 0, 0])
    assert chance == pytest.approx(np.mean(found), rel=0.03)
