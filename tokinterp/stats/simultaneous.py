"""Intervals of many columns that hold together, so that the best column may be chosen by what it shows."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from .resample import LEAST, Draws, as_columns, blocks, check_draws, mean_sums, ratio, weights

SKEW = 10  # groups from which draws show on which side a skewed mean lies farther
MAXIMUM = 30  # groups from which the distribution of a maximum over columns can be drawn


def simultaneous_interval(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Return (2, ...) intervals of all means over the first axis that hold together, so that the best may be chosen.

    Parameters
    ----------
    values : numpy.ndarray
        (unit, ...); NaN is left out.
    groups : (unit,) array, optional
        See `mean_interval`.
    level : float
        Chance that all intervals hold at once.
    n_boot, seed
        Draws and their seed.

    Returns
    -------
    numpy.ndarray
        NaN where fewer than 3 groups have a value or all have the same: such columns count for nothing.

    Notes
    -----
    By the maximum statistic: groups get random normal weights, the same for all columns (multiplier bootstrap), and of
    each draw the largest distance of a mean counts, in standard errors.  The quantile of that is carried over from the
    normal to Student's t of n - 1, so that a single column of normal values has its usual interval.  Fewer than 30
    groups cannot show how columns vary together: the level is then divided by their number (Bonferroni).  Skewed
    values push the farthest mean to one side: among several columns of 10 groups or more no bound is nearer than that
    of the largest studentised distance, of either sign, in draws with replacement.  64 columns of lognormal values
    (sigma 1) at 20 groups all hold together in 95 % of samples, without this in 13 %; below 10 groups in fewer.

    References
    ----------
    Hall 1988, Annals of Statistics 16, 927 (bootstrap-t);
    Chernozhukov, Chetverikov and Kato 2013, arXiv 1212.6906 (multiplier bootstrap of a maximum).

    Examples
    --------
    >>> low, high = simultaneous_interval(np.random.default_rng(0).normal(size=(30, 50)))
    >>> bool(((low < 0) & (high > 0)).all())
    True
    """
    from scipy import special

    check_draws(level, n_boot)
    above, below = mean_sums(values, groups)
    n, shape = len(above), above.shape[1:]
    a, b = as_columns(above), as_columns(below)
    have, total = (b > 0).sum(0), b.sum(0)
    mean = ratio(a.sum(0), total)
    apart = np.where(b > 0, a - mean * b, 0.0)
    length = np.sqrt((apart**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = length * np.sqrt(have / (have - 1.0)) / total
        use = (have >= LEAST) & (error > 1e-12 * np.abs(mean))
    out = np.full((2, a.shape[1]), np.nan)
    if use.any():
        if n < MAXIMUM:
            tail = (1 - level) / 2 / use.sum()
        else:
            unit, rng = apart[:, use] / length[use], np.random.default_rng(seed)
            sizes = [part.stop - part.start for part in blocks(n_boot, max(unit.shape))]
            largest = np.concatenate([np.abs(rng.standard_normal((k, n)) @ unit).max(1) for k in sizes])
            tail = special.ndtr(-np.quantile(largest, level))
        half = np.broadcast_to(-special.stdtrit(have[use] - 1.0, tail), (2, int(use.sum()))).copy()
        many = have[use] >= SKEW
        if use.sum() > 1 and many.any():
            chosen = np.flatnonzero(use)[many]
            skewed = _studentised(apart[:, chosen], b[:, chosen], level, n_boot, seed)
            half[:, many] = np.maximum(half[:, many], skewed[:, None])
        out[:, use] = mean[use] - half[0] * error[use], mean[use] + half[1] * error[use]
    return out.reshape(2, *shape)


def ratio_parts(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return (group, ...) values whose mean is sum(above) / sum(below) and whose spread is that of it (delta method).

    NaN where a group has 0 below: it has no part.  With them `simultaneous_interval` does for ratios of sums what it
    does for means.

    Examples
    --------
    >>> ratio_parts(np.array([1.0, 3.0, 0.0]), np.array([1.0, 3.0, 0.0])).tolist()
    [1.0, 1.0, nan]
    >>> float(ratio_parts(np.array([1.0, 3.0]), np.array([4.0, 4.0])).mean())
    0.5
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(above, below))
    total = b.sum(0)
    value = ratio(a.sum(0), total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(b != 0, value + (b != 0).sum(0) * (a - value * b) / total, np.nan)


def simultaneous_band(values: np.ndarray, **draws: Unpack[Draws]) -> np.ndarray:
    """Return (2, ..., column) intervals that hold together for all columns of each place of the other axes.

    For a curve over layers of which the best is looked at: see `simultaneous_interval`.

    Parameters
    ----------
    values : numpy.ndarray
        (group, ..., column); NaN is left out.
    **draws
        See `simultaneous_interval`.

    Examples
    --------
    >>> simultaneous_band(np.random.default_rng(0).normal(size=(30, 2, 9))).shape
    (2, 2, 9)
    """
    out = np.full((2, *values.shape[1:]), np.nan)
    for place in np.ndindex(*values.shape[1:-1]):
        rows = (slice(None), *place)
        out[rows] = simultaneous_interval(values[rows], **draws)
    return out


def _studentised(apart: np.ndarray, below: np.ndarray, level: float, n_boot: int, seed: int) -> np.ndarray:
    """Return (2,) how many of its standard errors the farthest mean of a draw lies above and below, at most.

    Parameters
    ----------
    apart, below : numpy.ndarray
        (group, column) what a mean is the ratio of: sums about the mean, and numbers.
    """
    squares = apart**2, apart * below, below**2
    n, far = (below > 0).sum(0), []
    for w in weights(len(apart), n_boot, seed):
        total = w @ below
        off = ratio(w @ apart, total)
        spread = np.maximum(w @ squares[0] - 2 * off * (w @ squares[1]) + off**2 * (w @ squares[2]), 0)
        t = ratio(off * total, np.sqrt(spread * n / (n - 1)))  # NaN in a draw of one value
        far.append(np.stack([np.fmax.reduce(t, axis=1), np.fmax.reduce(-t, axis=1)], 1))
    return np.nanquantile(np.concatenate(far), (1 + level) / 2, axis=0)
