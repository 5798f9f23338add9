"""Match3: labels, partners and corruptions against loops."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.fillers.tasks import match3
from tokinterp.fillers.tasks.task import Task


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def brute(rows, m):
    """Triples (i, j, k) of one example that sum to zero, one by one."""
    rows = np.asarray(rows)
    return [t for t in combinations(range(len(rows)), 3) if not (rows[list(t)].sum(0) % m).any()]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 8), st.integers(1, 3), st.integers(2, 10), st.sampled_from(match3.MODES), st.integers(0, 99))
def test_labels_partners_and_near_misses_are_those_of_a_loop(n, d, m, mode, seed):
    x = match3.draw(20, n, d, m, draw(seed), mode=mode, reject=False)
    first = match3.partner(x.rows, m)
    near = match3.near_misses(x.rows, m)
    pairs = list(combinations(range(n), 2))
    for e, rows in enumerate(x.rows.tolist()):
        found = brute(rows, m)
        assert bool(x.label[e]) == bool(found)
        for p, (i, j) in enumerate(pairs):
            assert int(first[e, p]) == min([k for a, b, k in found if (a, b) == (i, j)], default=-1)
        zeros = [(np.array(rows)[list(t)].sum(0) % m == 0).sum() for t in combinations(range(n), 3)]
        assert int(near[e]) == sum(z == d - 1 for z in zeros)
    assert x.label[x.planted].all()
    assert 0 <= int(x.rows.min()) <= int(x.rows.max()) < m


PUBLISHED = [  # n, d, m, P(True) of the released generator, simulated with 20,000 draws per arm
    (3, 1, 10, 0.550), (4, 1, 10, 0.660), (4, 2, 10, 0.556), (5, 2, 10, 0.580), (6, 1, 10, 0.908), (6, 3, 10, 0.550),
    (8, 2, 10, 0.725), (8, 3, 10, 0.567), (8, 6, 10, 0.540), (10, 3, 10, 0.592), (12, 3, 10, 0.628), (14, 3, 10, 0.680),
    (6, 3, 5, 0.643), (8, 3, 5, 0.728),
]  # fmt: skip


@pytest.mark.parametrize(("n", "d", "m", "share"), PUBLISHED)
def test_released_share_of_true(n, d, m, share):
    count = 20_000
    found = float(match3.draw(count, n, d, m, draw(n), mode="released").label.double().mean())
    error = np.sqrt(0.25 / count + 0.25 / 40_000)
    assert abs(found - share) < 4 * error


@pytest.mark.slow
def test_strict_labels_are_balanced_and_a_corruption_is_one_cell():
    for count in (1000, 1001):
        x = match3.draw(count, 8, 2, 10, draw())
        assert abs(2 * int(x.label.sum()) - count) <= 1
        assert torch.equal(x.label, x.planted)
    with pytest.raises(ValueError, match=r"n=20, d=1, m=3: almost every corrupted example"):
        match3.draw(50, 20, 1, 3, draw())


def test_released_corruption_writes_one_digit_into_the_first_k_rows():
    # With K = 2 at d = 1 the two rows that are corrupted are equal: far more often than by chance.
    equal = {}
    for mode in match3.MODES:
        x = match3.draw(40_000, 3, 1, 10, draw(), mode=mode, reject=False)
        rows = x.rows[~x.planted, :, 0]
        equal[mode] = float(sum((rows[:, a] == rows[:, b]).double().mean() for a, b in ((0, 1), (0, 2), (1, 2))))
    assert equal["strict"] < 0.36
    assert equal["released"] - equal["strict"] == pytest.approx(0.1875 * 0.9 + 0.0625 * 2.7, abs=0.03)


def test_strict_corrupted_rows_never_all_match():
    found = {m: Task("match2", n=4, d=1, m=3, mode=m).test_set("none", 400).stratum for m in match3.MODES}
    assert (found["released"] == 2).any()
    assert not (found["strict"] == 2).any()
    x = Task("match2", n=4, d=1, m=3, true_rate=0.4).sample("none", 3000, draw(), strata=True)
    assert float((x.stratum == 1).double().mean()) == pytest.approx(0.4, abs=0.04)


def test_positions_of_planted_rows_and_of_true_examples_are_random():
    x = match3.draw(4000, 6, 3, 10, draw(1))
    assert float(x.label[:2000].double().mean()) == pytest.approx(0.5, abs=0.05)
    total = x.rows[:, match3.triples(6)].sum(1) % 10  # (example, triple, d)
    share = (total == 0).all(-1)[x.planted].double().mean(0)
    assert (abs(share - share.mean()) < 0.03).all()
