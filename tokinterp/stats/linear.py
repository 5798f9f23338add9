"""Linear models of scikit-learn as probes use them: penalties in units of what is measured, errors of held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np


def held_out(x: np.ndarray, y: np.ndarray, fold: np.ndarray, folds: int, ridge: float) -> np.ndarray:
    """Return (2, row) squared error of each row under a ridge regression on the other folds, and from their mean.

    Parameters
    ----------
    x, y : numpy.ndarray
        (row, channel) inputs, (row, target) outputs.
    fold : numpy.ndarray
        (row,) int fold of each row, below ``folds``.
    folds : int
        Number of folds.
    ridge : float
        Penalty, in units of the mean sum of squares of an input about its mean.

    Returns
    -------
    numpy.ndarray
        Squared distance from what is predicted, and from the mean of the other folds: what `share_explained` takes.
        Rows that are not finite take no part in any fit, and both are 0 for them.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(12, 2))
    >>> error, total = held_out(x, 2 * x + 1, np.arange(12) % 3, 3, 1e-6)
    >>> bool((error < 1e-6 * total).all())
    True
    """
    out, (said, mean) = np.zeros((2, len(x))), predicted(x, y, fold, folds, ridge)
    known = np.isfinite(said).all(1)
    for row, found in zip(out, (said, mean), strict=True):
        row[known] = np.square(y[known] - found[known]).sum(1)
    return out


def predicted(x: np.ndarray, y: np.ndarray, fold: np.ndarray, folds: int, ridge: float) -> np.ndarray:
    """Return (2, row, target) what a ridge regression on the other folds predicts of each row, and their mean.

    Parameters
    ----------
    x, y, fold, folds, ridge
        See `held_out`.

    Returns
    -------
    numpy.ndarray
        NaN for rows that are not finite.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(12, 2))
    >>> said, mean = predicted(x, 2 * x + 1, np.arange(12) % 3, 3, 1e-6)
    >>> bool(np.allclose(said, 2 * x + 1, atol=1e-3))
    True
    """
    from sklearn.linear_model import Ridge

    out, known = np.full((2, *y.shape), np.nan), np.isfinite(x).all(1) & np.isfinite(y).all(1)
    for f in range(folds):
        train, test = (fold != f) & known, (fold == f) & known
        if not test.any():
            continue
        penalty = ridge * max(float(x[train].var(0).mean()) * int(train.sum()), 1e-12)
        found = Ridge(penalty, solver="cholesky").fit(x[train], y[train])
        out[0, test], out[1, test] = found.predict(x[test]).reshape(-1, y.shape[1]), y[train].mean(0)
    return out


def logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> Any:
    """Return a logistic regression on standardised inputs, as a fitted pipeline of scikit-learn.

    Parameters
    ----------
    x : numpy.ndarray
        (row, channel) inputs.
    y : numpy.ndarray
        (row,) bool.
    ridge : float
        Penalty on the squared weights, per row; the intercept is free.  Of rows of one class alone the most frequent
        one is said.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> bool((logistic(x, x[:, 0] > 0, 1e-2).predict(x) == (x[:, 0] > 0)).mean() > 0.95)
    True
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) < 2:
        return DummyClassifier().fit(x, y)
    found = LogisticRegression(C=1 / (ridge * len(x)), tol=1e-6, max_iter=10_000)
    return make_pipeline(StandardScaler(), found).fit(x, y)
