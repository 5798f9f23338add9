"""Ranks of rows and votes of neighbours against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.lexicon.kernels import neighbour_votes, target_ranks


@given(st.integers(0, 10**6), st.sampled_from([200, 10**6]))
@settings(max_examples=20, deadline=None)
def test_ranks_equal_a_sort(seed, memory):
    g = torch.Generator().manual_seed(seed)
    matrix, points = torch.randn(13, 5, generator=g), torch.randn(7, 5, generator=g)
    target = torch.randint(0, 13, (7,), generator=g)
    dot, cosine = target_ranks(points, matrix, target, memory)
    for p, t, a, b in zip(points, target, dot, cosine, strict=True):
        for score, rank in ((matrix @ p, a), (matrix @ p / matrix.norm(dim=-1), b)):
            assert (-score).argsort().tolist().index(int(t)) == int(rank)


def test_what_is_not_finite_or_tied_is_never_retrieved():
    matrix = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    points = torch.tensor([[1.0, 0.0], [0.0, 2.0], [torch.nan, 0.0], [torch.inf, 1.0], [0.0, 0.0]])
    dot, cosine = target_ranks(points, matrix, torch.tensor([0, 2, 0, 0, 2]))
    assert dot.tolist() == [1, 0, -1, -1, 3]  # a state of zeros is as close to everything
    assert cosine.tolist() == [1, 0, -1, -1, 2]
    assert target_ranks(points[1:2], matrix, torch.tensor([3]))[1].tolist() == [-1]


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([300, 10**8]))
@settings(max_examples=20, deadline=None)
def test_votes_equal_brute_force(seed, k, memory):
    draw = np.random.default_rng(seed)
    x, label, fold = draw.normal(size=(30, 4)), draw.integers(0, 2, 30), draw.integers(0, 3, 30)
    found = neighbour_votes(torch.tensor(x) + 100, torch.tensor(label), torch.tensor(fold), k, memory)
    for n in range(30):
        others = np.flatnonzero(fold != fold[n])
        near = others[np.argsort(((x[others] - x[n]) ** 2).sum(1))[:k]]
        assert float(found[n]) == pytest.approx(label[near].mean())


def test_votes_of_planted_and_of_equal_classes():
    g = torch.Generator().manual_seed(0)
    label = torch.arange(2000) % 2
    fold = torch.randint(0, 5, (2000,), generator=g)
    noise = torch.randn(2000, 8, generator=g)
    apart = neighbour_votes(noise + 30 * label[:, None], label, fold, 4)
    assert ((apart > 0.5) == (label == 1)).all()
    votes = neighbour_votes(noise, label, fold, 4)
    right = torch.where(votes == 0.5, 0.5, ((votes > 0.5) == (label == 1)).double()).mean()
    assert abs(float(right) - 0.5) < 0.04
    noise[7] = torch.nan
    votes = neighbour_votes(noise, label, fold, 4)
    assert votes.isnan().nonzero().flatten().tolist() == [7]
    assert neighbour_votes(noise[:4], label[:4], torch.arange(4), 4).isnan().all()
