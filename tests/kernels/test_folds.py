"""Held-out ridge regression against a loop."""

import numpy as np
import pytest
import torch

from tokinterp.kernels.folds import held_out


def test_held_out_ridge_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)) + 3, rng.normal(size=(20, 2)) - 1
    fold = np.arange(20) % 4
    error, total = held_out(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(fold), 4, 0.5)
    for i in range(20):
        train = fold != fold[i]
        a = x[train] - x[train].mean(0)
        gram = a.T @ a
        weight = np.linalg.solve(gram + 0.5 * np.trace(gram) / 4 * np.eye(4), a.T @ (y[train] - y[train].mean(0)))
        said = y[train].mean(0) + (x[i] - x[train].mean(0)) @ weight
        assert error[i] == pytest.approx(((y[i] - said) ** 2).sum())
        assert total[i] == pytest.approx(((y[i] - y[train].mean(0)) ** 2).sum())
