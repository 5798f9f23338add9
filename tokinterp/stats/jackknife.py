"""Jackknife intervals, for statistics that draws with replacement would bias."""

from __future__ import annotations

import numpy as np

from .resample import LEAST, check_level


def left_out(n: int, groups: int = 20, seed: int = 0) -> np.ndarray:
    """Return (group, removed) disjoint random groups of equal size, to be left out in turn.

    Parameters
    ----------
    n : int
        Units (prompts).
    groups : int
        Least number of groups; fewer only where there are fewer units.  Each has ``max(1, n // groups)`` units, so that
        the statistic is always of as many; up to that many units less one are never left out.
    seed : int
        Of the order of the units.

    Raises
    ------
    ValueError
        For fewer than two groups.

    Examples
    --------
    >>> left_out(45, 20).shape, left_out(5).shape
    ((22, 2), (5, 1))
    """
    if n < 2 or groups < 2:
        raise ValueError(f"{groups} groups of {n} units: at least two of each are needed")
    size = max(1, n // groups)
    many = n // size
    return np.sort(np.random.default_rng(seed).permutation(n)[: many * size].reshape(many, size), axis=1)


def jackknife_error(parts: np.ndarray, removed: int, n: int) -> np.ndarray:
    """Return the standard error from values without each of disjoint groups.

    Parameters
    ----------
    parts : numpy.ndarray
        (group, ...) the statistic without each group.
    removed, n : int
        Units in each group, and in all.

    Returns
    -------
    numpy.ndarray
        (...) standard error, unbiased (its square) for a mean.

    Notes
    -----
    (n - d)^2 / (n d (g - 1)) times the sum of squared deviations, for g groups of d units: (g - 1) / g if the groups
    exhaust the units, the delete-one jackknife for d = 1.  A shift that all parts share, such as that of a statistic
    which grows with n, drops out.  For any symmetric statistic the expected square is no less than the variance at one
    group less, up to the same factor (Efron and Stein 1981, Annals of Statistics 9, 586): it errs to the wide side.

    Examples
    --------
    >>> x = np.arange(5.0)
    >>> parts = np.array([np.delete(x, i).mean() for i in range(5)])
    >>> round(float(jackknife_error(parts, 1, 5)), 6) == round(float(x.std(ddof=1) / 5**0.5), 6)
    True
    """
    parts = np.asarray(parts, dtype=np.float64)
    spread = np.square(parts - parts.mean(0)).sum(0)
    return np.sqrt((n - removed) ** 2 / (n * removed * (len(parts) - 1)) * spread)


def jackknife_interval(
    whole: np.ndarray | float, parts: np.ndarray, removed: int, n: int, level: float = 0.95
) -> np.ndarray:
    """Return (bound, ...) the value of all units, less and more by Student's t (groups - 1) times the standard error.

    It covers the expected value of the statistic at as many units, not its limit for infinitely many.  NaN for fewer
    than 3 groups.

    Raises
    ------
    ValueError
        If the level is not between 0 and 1.
    """
    from scipy import special

    check_level(level)
    if len(parts) < LEAST:
        return np.full((2, *np.shape(whole)), np.nan)
    half = special.stdtrit(len(parts) - 1, (1 + level) / 2) * jackknife_error(parts, removed, n)
    return np.stack([whole - half, whole + half])
