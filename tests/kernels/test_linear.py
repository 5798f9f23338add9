"""Linear maps of independent clouds score what chance gives, and nothing once adjusted or held out."""

import pytest
import torch

from tokinterp.kernels import linear


def pair(x, y):
    a, b = x - x.mean(0), y - y.mean(0)
    return linear.Pair(torch.tensor(len(x)), x.mean(0), y.mean(0), a.T @ a, a.T @ b, (b * b).sum())


def test_chance_of_independent_clouds():
    g = torch.Generator().manual_seed(0)
    n, d, scores, fixed = 30, 10, [], []
    for _ in range(500):
        x, y = (torch.randn(n, w, generator=g, dtype=torch.float64) for w in (d, 3))
        one = pair(x, y)
        fit = linear.solve(one)
        scores.append(linear.linearity(one, fit))
        fixed.append(linear.adjusted(scores[-1], one.count, fit.rank))
    floor = linear.floor(torch.tensor(n), torch.tensor(d))
    assert float(torch.stack(scores).mean()) == pytest.approx(float(floor), abs=0.01)
    assert float(torch.stack(fixed).mean()) == pytest.approx(0, abs=0.015)


def test_held_out_residuals_are_those_of_the_map_on_other_rows():
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(40, w, generator=g, dtype=torch.float64) + 3 for w in (6, 4))
    one, two = pair(x[:25], y[:25]), pair(x[25:] + 1, y[25:] - 2)
    for ridge in (0.0, 0.5):
        fit = linear.solve(one, ridge=ridge)
        norms = linear.residual_norms(x[25:] + 1, y[25:] - 2, one.mean_in, one.mean_out, fit.weight)
        assert float(linear.held_out(fit, one, two)) == pytest.approx(float((norms**2).sum()))
        own = linear.residual_norms(x[:25], y[:25], one.mean_in, one.mean_out, fit.weight)
        assert float(fit.explained) == pytest.approx(float(one.total - (own**2).sum()))


def test_without_residual_is_the_pair_of_the_difference():
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(30, 5, generator=g, dtype=torch.float64) for _ in range(2))
    found, wanted = linear.without_residual(pair(x, y)), pair(x, y - x)
    for name in ("mean_out", "cross", "total"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
    assert float(linear.rotation_similarity(pair(x, 2 * x.flip(1)))) == pytest.approx(1)
