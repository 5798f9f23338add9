"""How redundant tokens are: energy, pivots, MaxSim of the halves; by definition, planted, by chance."""

import numpy as np
import pytest
import torch
from standin import StandIn

import tokinterp as ti
from tokinterp.geometry.kernels.cosine import redundancy, unit_rows

NAMES = ("energy", "pivot_cosine", "pivot_cosine_even", "maxsim", "maxsim_mean", "maxsim_spread", "maxsim_spread_null")


def by_hand(x, k, margin):
    norm = np.linalg.norm(x, axis=1)
    c = (x / norm[:, None]) @ (x / norm[:, None]).T
    n, half = len(x), len(x) // 2
    elu = np.where(c > margin, c - margin, np.exp(c - margin) - 1)
    longest = np.argsort(-norm)[:k]
    even = [((2 * i + 1) * n) // (2 * k) for i in range(k)]
    nearest = c[half:, :half].argmax(1)
    share = np.bincount(nearest, minlength=half) / (n - half)
    return {
        "energy": (elu.sum() - elu.trace()) / n / (n - 1),
        "pivot_cosine": np.mean([c[i, longest].max() for i in range(n) if i not in longest]),
        "pivot_cosine_even": np.mean([c[i, even].max() for i in range(n) if i not in even]),
        "maxsim": c[half:, :half].max(1).mean(), "maxsim_mean": c[half:, :half].mean(),
        "maxsim_spread": 1 / (share**2).sum() / half,
    }  # fmt: skip


def test_every_number_is_what_its_name_says():
    model = StandIn((40, 33, 52), d=8)
    ds = model.measured(ti.geometry.CosineSimilarity(pivots=3), [[2, 0], [1]]).result()
    for layer in range(4):
        for p in range(3):
            wanted = by_hand(model.streams[p][layer][1:].astype(float), 3, 0.9 * (1 - layer / 3))
            for name, value in wanted.items():
                assert float(ds[name].sel(prompt=p, layer=layer)) == pytest.approx(value, abs=1e-5), name


def test_what_is_said_twice_is_found_again_and_longest_tokens_are_the_pivots():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 30, 64))
    twice = torch.from_numpy(np.concatenate([x, 2 * x], 1)).float()
    unit, directed = unit_rows(twice, torch.ones(1, 60, dtype=torch.bool))
    found = redundancy(unit, directed, twice.norm(dim=2), 4, 0.5)
    assert float(found["maxsim"]) == pytest.approx(1, abs=1e-6)
    assert float(found["maxsim_spread"]) == pytest.approx(1), "each token is found once"
    assert abs(float(found["maxsim_mean"])) < 0.1
    one = torch.from_numpy(rng.standard_normal((1, 40, 64))).float()
    one[0, 24:] = one[0, 7] + 0.3 * one[0, 24:]
    one[0, 7] *= 9
    unit, directed = unit_rows(one, torch.ones(1, 40, dtype=torch.bool))
    found = redundancy(unit, directed, one.norm(dim=2), 1, 0.5)
    assert float(found["pivot_cosine"]) > float(found["pivot_cosine_even"]) + 0.1
    assert 1 / 20 < float(found["maxsim_spread"]) < 0.1, "one token is found by sixteen of twenty"
    alike = redundancy(*unit_rows(torch.ones(1, 9, 4), torch.ones(1, 9, dtype=torch.bool)), torch.ones(1, 9), 1, 0.9)
    assert float(alike["energy"]) == pytest.approx(0.1, abs=1e-6), "1 - margin, the most there can be"


def test_chance_is_that_of_tokens_found_at_random():
    n, half = 60, 30
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(3000):
        share = np.bincount(rng.integers(0, half, n - half), minlength=half) / (n - half)
        drawn.append((share**2).sum())
    x = torch.randn(40, n, 300, generator=torch.Generator().manual_seed(0))
    found = redundancy(*unit_rows(x, torch.ones(40, n, dtype=torch.bool)), x.norm(dim=2), 2, 0.9)
    assert float(found["maxsim_spread_null"][0]) == pytest.approx(1 / np.mean(drawn) / half, rel=0.01)
    assert float(found["maxsim_spread"].mean()) == pytest.approx(float(found["maxsim_spread_null"][0]), rel=0.12)
    turned = x @ torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(2))).Q
    again = redundancy(*unit_rows(3 * turned, torch.ones(40, n, dtype=torch.bool)), 3 * x.norm(dim=2), 2, 0.9)
    for name in NAMES:
        torch.testing.assert_close(again[name], found[name], rtol=1e-3, atol=1e-4, msg=name)


def test_no_second_token_gives_nan_and_none_is_asked_for_by_default():
    model = StandIn((1, 2, 30), n_layers=1)
    ds = model.measured(ti.geometry.CosineSimilarity(pivots=2), [[0], [1], [2]]).result()
    for name in NAMES:
        assert bool(ds[name].isel(prompt=[0, 1]).isnull().all()), name
        assert bool(ds[name].sel(prompt=2).notnull().all()), name
    assert not set(NAMES) & set(model.measured(ti.geometry.CosineSimilarity(), [[2]]).result())
