"""How evenly tokens are used, of plain counts."""

from __future__ import annotations

import numpy as np

from ..stats.resample import ratio


def average_rank(counts: np.ndarray) -> float:
    """Return the mean rank of the tokens of a text, the most frequent of rank 0.

    Examples
    --------
    >>> average_rank(np.array([1, 3]))
    0.25
    """
    ordered = np.sort(np.asarray(counts, np.float64))[::-1]
    return float(ratio(ordered @ np.arange(len(ordered)), ordered.sum()))


def renyi_entropy(counts: np.ndarray, alpha: float) -> float:
    """Return the Renyi entropy of counts in nat; Shannon's for alpha = 1."""
    p = counts[counts > 0] / counts.sum()
    return float(-p @ np.log(p) if alpha == 1 else np.log((p**alpha).sum()) / (1 - alpha))


def renyi_efficiency(counts: np.ndarray, alpha: float = 2.5) -> float:
    """Return the Renyi entropy of counts over the logarithm of the number of types that occur; NaN for one type.

    Examples
    --------
    >>> round(renyi_efficiency(np.array([5, 5, 0])), 6)
    1.0
    """
    n = int((counts > 0).sum())
    return renyi_entropy(counts, alpha) / float(np.log(n)) if n > 1 else float("nan")


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two arrays of counts, in bits.

    Examples
    --------
    >>> divergence(np.array([1, 0]), np.array([0, 5])), divergence(np.array([1, 2]), np.array([2, 4]))
    (1.0, 0.0)
    """
    if not a.any() or not b.any():
        return float("nan")
    p, q = a / a.sum(), b / b.sum()
    parts = [-x[x > 0] @ np.log2(x[x > 0]) for x in ((p + q) / 2, p, q)]
    return float(max(parts[0] - (parts[1] + parts[2]) / 2, 0.0))
