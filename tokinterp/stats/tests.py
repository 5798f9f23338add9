"""Exact tests, rank correlation and false discovery rates, as scipy has them, where NaN and ties are allowed."""

from __future__ import annotations

from typing import Any

import numpy as np


def binomial(a: int, b: int) -> float:
    """Return the two-sided exact p of a against b under equal chances; NaN where both are 0.

    Examples
    --------
    >>> binomial(5, 0)
    0.0625
    """
    from scipy import stats

    return float(stats.binomtest(a, a + b).pvalue) if a + b else float("nan")


def sign_test(differences: np.ndarray) -> float:
    """Return the two-sided exact p that as many of the differences are above, rather than below, zero by chance.

    Zeros are left out; NaN if nothing is left.

    Examples
    --------
    >>> sign_test(np.array([1.0, 2.0, 3.0, 0.5, 1.5]))
    0.0625
    """
    d = differences[np.isfinite(differences)]
    return binomial(int((d > 0).sum()), int((d < 0).sum()))


def ranks(x: np.ndarray) -> np.ndarray:
    """Return ranks from 1 along the first axis, ties at their mean.

    Examples
    --------
    >>> ranks(np.array([3.0, 1.0, 1.0])).tolist()
    [3.0, 1.5, 1.5]
    """
    from scipy import stats

    return stats.rankdata(x, axis=0)


def pearson(x: np.ndarray, y: np.ndarray, least: int = 3) -> float:
    """Return Pearson's correlation over the pairs that have both values; NaN for few pairs, or a constant.

    Parameters
    ----------
    x, y : numpy.ndarray
        (pair,); one whose spread is below its rounding counts as constant.
    least : int
        Fewest pairs.

    Examples
    --------
    >>> round(pearson(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])), 12)
    1.0
    """
    from scipy import stats

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ok = np.isfinite(x) & np.isfinite(y)
    if ok.sum() < least:
        return float("nan")
    a, b = (v[ok] - v[ok].mean() for v in (x, y))
    size = np.sqrt((a**2).sum() * (b**2).sum())
    floor = 1e-12 * len(a) * max(np.abs(x[ok]).max(), 1e-300) * max(np.abs(y[ok]).max(), 1e-300)
    if not size > floor:
        return float("nan")
    found: Any = stats.pearsonr(a, b)
    return float(found.statistic)


def spearman(x: np.ndarray, y: np.ndarray, least: int = 3) -> float:
    """Return Spearman's rank correlation, as `pearson` of the `ranks`.

    Examples
    --------
    >>> round(spearman(np.arange(5), np.array([1, 4, 9, 16, 25])), 12)
    1.0
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ok = np.isfinite(x) & np.isfinite(y)
    return pearson(ranks(x[ok]), ranks(y[ok]), least)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Return the false discovery rates at which each of several tests would be accepted; NaN takes no part.

    References
    ----------
    Benjamini and Hochberg 1995, Journal of the Royal Statistical Society B 57, 289.

    Examples
    --------
    >>> false_discovery(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    from scipy import stats

    out = np.full(len(p), np.nan)
    some = np.isfinite(p)
    if some.any():
        out[some] = stats.false_discovery_control(p[some])
    return out


def wilson(hits: np.ndarray, n: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Return (2, ...) Wilson interval of a share of independent cases.

    Parameters
    ----------
    hits, n : numpy.ndarray
        (...) how many of how many, 1 or more; broadcast.
    level : float
        Of the interval.

    Examples
    --------
    >>> wilson(np.array([5]), np.array([10])).round(3).tolist()
    [[0.237], [0.763]]
    """
    from scipy import stats

    a, b = np.broadcast_arrays(hits, n)
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    found = [stats.binomtest(int(k), int(of)).proportion_ci(level, "wilson") for k, of in pairs]
    return np.array([[i.low for i in found], [i.high for i in found]]).reshape(2, *a.shape)


def fisher(r: float, n: int, level: float = 0.95, variance: float = 1.0) -> tuple[float, float, float]:
    """Return the interval of a correlation of n independent pairs by Fisher's z, and the two-sided p of none.

    Parameters
    ----------
    r : float
        Correlation; NaN or fewer than 4 pairs have no interval.
    n : int
        Pairs, less the controls of a partial correlation.
    level : float
        Of the interval.
    variance : float
        1, or 1.06 for Spearman (Fieller, Hartley and Pearson 1957, Biometrika 44, 470), over n - 3.

    Examples
    --------
    >>> [round(x, 3) for x in fisher(0.5, 28)]
    [0.156, 0.736, 0.006]
    """
    from scipy import special

    if not np.isfinite(r) or n < 4:
        return np.nan, np.nan, np.nan
    error = np.sqrt(variance / (n - 3))
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    half = special.ndtri((1 + level) / 2) * error
    return float(np.tanh(z - half)), float(np.tanh(z + half)), float(2 * special.ndtr(-abs(z) / error))


__all__ = ["binomial", "false_discovery", "fisher", "pearson", "ranks", "sign_test", "spearman", "wilson"]
