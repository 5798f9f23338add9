"""Held-out ridge regression against a loop, logistic regression against its own condition."""

import numpy as np
import pytest

from tokinterp.stats.linear import held_out, logistic


def test_held_out_ridge_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)) + 3, rng.normal(size=(20, 2)) - 1
    fold = np.arange(20) % 4
    error, total = held_out(x, y, fold, 4, 0.5)
    for i in range(20):
        train = fold != fold[i]
        a = x[train] - x[train].mean(0)
        gram = a.T @ a
        weight = np.linalg.solve(gram + 0.5 * np.trace(gram) / 4 * np.eye(4), a.T @ (y[train] - y[train].mean(0)))
        said = y[train].mean(0) + (x[i] - x[train].mean(0)) @ weight
        assert error[i] == pytest.approx(((y[i] - said) ** 2).sum())
        assert total[i] == pytest.approx(((y[i] - y[train].mean(0)) ** 2).sum())


def test_rows_that_are_not_finite_take_no_part():
    rng = np.random.default_rng(0)
    x, y, fold = rng.normal(size=(20, 4)), rng.normal(size=(20, 2)), np.arange(20) % 4
    expected = held_out(x[2:], y[2:], fold[2:], 4, 0.5)
    x[0], y[1, 1] = np.nan, np.inf
    found = held_out(x, y, fold, 4, 0.5)
    np.testing.assert_array_equal(found[:, 2:], expected)
    assert not found[:, :2].any()


def test_the_logistic_regression_is_where_the_penalised_loss_is_flat():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)) * [1, 10, 0.1, 3, 1] + 2
    y = rng.random(80) < 1 / (1 + np.exp(-x[:, 0] - x[:, 1] / 10))
    found = logistic(x, y, 0.05)
    z, weight = (x - x.mean(0)) / x.std(0), found[-1].coef_[0]
    off = 1 / (1 + np.exp(-found.decision_function(x))) - y
    np.testing.assert_allclose(z.T @ off + 0.05 * 80 * weight, 0, atol=1e-3)
    assert abs(off.sum()) < 1e-3  # the intercept is free


def test_of_one_class_alone_that_class_is_said():
    x = np.random.default_rng(0).normal(size=(6, 2))
    assert logistic(x, np.ones(6, dtype=bool), 0.1).predict(x).all()
    assert not logistic(x, np.zeros(6, dtype=bool), 0.1).predict(x).any()
