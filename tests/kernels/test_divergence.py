"""Divergences against their definitions."""

import numpy as np
import pytest
import torch

from tokinterp.kernels.divergence import compare, entropy


def test_differences_are_those_of_the_definitions():
    p, q = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = compare(p, q)
    a, b = p.double().exp(), q.double().exp()
    middle = (a + b) / 2
    torch.testing.assert_close(found["kl"], (a * (a / b).log()).sum(-1))
    both = ((a * (a / middle).log()).sum(-1) + (b * (b / middle).log()).sum(-1)) / 2
    torch.testing.assert_close(found["js"], both)
    torch.testing.assert_close(found["entropy_change"], -(a * a.log()).sum(-1) + (b * b.log()).sum(-1))
    assert found["flip"].tolist() == (a.argmax(-1) != b.argmax(-1)).double().tolist()
    same = compare(p, p)
    assert all(float(v.abs().max()) == 0 for v in same.values())
    sure = torch.tensor([[0.0, -torch.inf]])
    assert float(compare(sure, torch.tensor([[-torch.inf, 0.0]]))["js"]) == pytest.approx(np.log(2))
    assert float(entropy(sure)) == 0


def test_divergences_are_those_of_the_definition():
    p, q = (torch.randn(4, 9, generator=torch.Generator().manual_seed(s)).log_softmax(-1) for s in (0, 1))
    got, a, b = compare(p, q), p.exp().double(), q.exp().double()
    m = (a + b) / 2
    torch.testing.assert_close(got["kl"], (a * (a / b).log()).sum(-1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got["js"], ((a * (a / m).log() + b * (b / m).log()) / 2).sum(-1), rtol=1e-5, atol=1e-7)
    entropies = [-(x * x.log()).sum(-1) for x in (a, b)]
    torch.testing.assert_close(got["entropy_change"], entropies[0] - entropies[1], rtol=1e-5, atol=1e-7)
    assert all(float(v.abs().max()) == 0 for v in compare(p, p).values())
    spike = torch.tensor([[0.0, -torch.inf]])
    assert float(compare(spike, torch.tensor([[0.5, 0.5]]).log())["kl"]) == pytest.approx(np.log(2))
