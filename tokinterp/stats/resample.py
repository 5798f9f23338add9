"""Bootstrap intervals: independent groups (documents, items) drawn with replacement, percentiles expanded for few."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

LEAST = 3  # groups; with fewer there is no interval
FEW = 6  # groups; with fewer, draws are too few different values for their percentiles
MAXIMUM = 30  # groups from which the distribution of a maximum over columns can be drawn
BLOCK = 4_000_000  # numbers at a time
MOST_DRAWS = 5_000


def resample(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    have: np.ndarray | int | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Return (2, ...) interval of a statistic of n independent groups.

    Parameters
    ----------
    statistic : callable
        Of (draw, group) float64 weights, how often each group was drawn; returns (draw, ...) values, NaN where a draw
        has none.
    n : int
        Number of groups.
    have : (...) array of int, optional
        Number of groups that have a part in each value; all by default.
    level : float
        Wanted coverage.
    n_boot, seed : int
        Least number of draws, and their seed: few groups need more, see `n_draws`.

    Returns
    -------
    numpy.ndarray
        NaN where fewer than 3 groups have a part.

    Raises
    ------
    ValueError
        If the level is not between 0 and 1, or there is no draw.

    Notes
    -----
    Percentiles of the draws, as far out as Student's t is wider than the normal and a sample's spread smaller than that
    of its source: the tail is Phi(-sqrt(n / (n - 1)) t(n - 1)) instead of (1 - level) / 2.  With plain percentiles an
    interval that is called 95 % covers 85 % at 5 groups and 89 % at 10.  Draws of 3 to 5 groups are few different
    values, none of them beyond the groups' own: there the interval is no narrower than Student's with the standard
    error of the draws, and may leave the range of the statistic.

    References
    ----------
    Hesterberg 2015, The American Statistician 69, 371, section 4.6 ("expanded percentile interval").

    Examples
    --------
    >>> x = np.arange(10.0)
    >>> resample(lambda w: w @ x / 10, 10).round(1).tolist()
    [2.5, 6.7]
    """
    counts = np.asarray(n if have is None else have)
    draws = n_draws(n, level, n_boot)
    if n < LEAST:
        shape = np.shape(statistic(np.ones((1, max(n, 1)))))[1:] if n else counts.shape
        return np.full((2, *shape), np.nan)
    drawn = np.concatenate([statistic(w) for w in weights(n, draws, seed)])
    return percentiles(drawn, counts, level)


def weights(n: int, n_boot: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield (draw, group) float64 how often each of n groups was drawn, in blocks of bounded size."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK // max(n, 1))
    for a in range(0, n_boot, rows):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(rows, n_boot - a)).astype(np.float64)


def expanded_tail(n: np.ndarray | int, level: float = 0.95) -> np.ndarray:
    """Return the share of the draws beyond each bound for n groups; NaN for fewer than 3.

    Examples
    --------
    >>> expanded_tail(np.array([2, 5, 20, 100_000])).round(4).tolist()
    [nan, 0.001, 0.0159, 0.025]
    """
    from scipy import special

    n = np.asarray(n, dtype=np.float64)
    some = np.where(n >= LEAST, n, np.nan)
    return special.ndtr(-np.sqrt(some / (some - 1)) * special.stdtrit(some - 1, (1 + level) / 2))


def n_draws(n: int, level: float, n_boot: int) -> int:
    """Return how many draws the interval of n groups takes: five of them beyond each bound, up to 5,000."""
    _check(level, n_boot)
    wanted = int(np.ceil(5 / expanded_tail(n, level))) if n >= LEAST else 1
    return max(n_boot, min(MOST_DRAWS, wanted))


def percentiles(drawn: np.ndarray, n: np.ndarray | int, level: float = 0.95) -> np.ndarray:
    """Return (2, ...) expanded percentiles over the first axis.

    Parameters
    ----------
    drawn : numpy.ndarray
        (draw, ...) values; NaN is left out.
    n : (...) array of int
        Number of groups behind each value.
    level : float
        See `resample`.
    """
    from scipy import special

    flat = np.sort(np.ascontiguousarray(drawn.reshape(len(drawn), -1).T), axis=1)  # NaN last
    known = np.isfinite(flat).sum(1)
    tail = np.broadcast_to(expanded_tail(n, level), drawn.shape[1:]).ravel()
    some = np.flatnonzero((known > 0) & np.isfinite(tail))
    out = np.full((2, len(flat)), np.nan)
    for bound, share in zip(out, (tail, 1 - tail), strict=True):
        at = share[some] * (known[some] - 1)
        low, high = (flat[some, f(at).astype(int)] for f in (np.floor, np.ceil))
        bound[some] = low + (high - low) * (at - np.floor(at))
    few = some[np.broadcast_to(n, drawn.shape[1:]).ravel()[some] < FEW]
    if len(few):  # percentiles of so few groups cannot lie far enough out
        number = np.broadcast_to(n, drawn.shape[1:]).ravel()[few]
        middle = np.nanmean(flat[few], 1)
        error = np.nanstd(flat[few], 1) * np.sqrt(number / (number - 1))
        half = special.stdtrit(number - 1, (1 + level) / 2) * error
        out[:, few] = np.minimum(out[0, few], middle - half), np.maximum(out[1, few], middle + half)
    return out.reshape(2, *drawn.shape[1:])


def ratio_interval(
    above: np.ndarray, below: np.ndarray, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return (2, ...) interval of sum(above) / sum(below) over groups, in bounded memory.

    Parameters
    ----------
    above, below : numpy.ndarray
        (group, ...) sums of each group; a group with 0 below has no part.
    level, n_boot, seed
        See `resample`.

    Examples
    --------
    >>> ratio_interval(np.arange(10.0), np.full(10, 2.0)).round(2).tolist()
    [1.23, 3.35]
    """
    above, below = np.broadcast_arrays(above, below)
    n, shape = len(above), above.shape[1:]
    a, b = (x.reshape(n, int(np.prod(shape))).astype(np.float64) for x in (above, below))
    have = (b != 0).sum(0)
    out = np.full((2, a.shape[1]), np.nan)
    step = max(1, BLOCK // n_draws(n, level, n_boot))
    for start in range(0, a.shape[1], step):
        part = slice(start, start + step)
        out[:, part] = resample(
            lambda w, p=part: ratio(w @ a[:, p], w @ b[:, p]), n, have[part], level=level, n_boot=n_boot, seed=seed
        )
    return out.reshape(2, *shape)


def mean_interval(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Return (2, ...) interval of the mean over the first axis, whole groups drawn; NaN is left out.

    Parameters
    ----------
    values : numpy.ndarray
        (unit, ...).
    groups : (unit,) array, optional
        The group of each unit; each unit by itself by default.
    level, n_boot, seed
        See `resample`.

    Examples
    --------
    >>> mean_interval(np.array([1.0, 2.0, 3.0, 4.0]), np.array(["a", "a", "b", "b"])).tolist()
    [nan, nan]
    """
    above, below = mean_sums(values, groups)
    return ratio_interval(above, below, level=level, n_boot=n_boot, seed=seed)


def mean_sums(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (group, ...) sums and numbers of the finite values of each group: what a mean is the ratio of."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    return group_sums(np.where(known, values, 0.0), groups), group_sums(known, groups)


def group_sums(values: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Return (group, ...) float64 sums of (unit, ...) values over the units of each group, groups in sorted order."""
    values = np.asarray(values, dtype=np.float64)
    if groups is None:
        return values
    found, number = np.unique(groups, return_inverse=True)
    out = np.zeros((len(found), *values.shape[1:]))
    np.add.at(out, number, values)
    return out


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
    groups cannot show how columns vary together: the level is then divided by their number (Bonferroni).

    References
    ----------
    Chernozhukov, Chetverikov and Kato 2013, arXiv 1212.6906 (multiplier bootstrap of a maximum).

    Examples
    --------
    >>> low, high = simultaneous_interval(np.random.default_rng(0).normal(size=(30, 50)))
    >>> bool(((low < 0) & (high > 0)).all())
    True
    """
    from scipy import special

    _check(level, n_boot)
    above, below = mean_sums(values, groups)
    n, shape = len(above), above.shape[1:]
    a, b = (x.reshape(n, int(np.prod(shape))) for x in (above, below))
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
            step = max(1, BLOCK // max(unit.shape))
            blocks = [rng.standard_normal((min(step, n_boot - s), n)) for s in range(0, n_boot, step)]
            largest = np.concatenate([np.abs(g @ unit).max(1) for g in blocks])
            tail = special.ndtr(-np.quantile(largest, level))
        wide = -special.stdtrit(have[use] - 1.0, tail) * error[use]
        out[:, use] = mean[use] - wide, mean[use] + wide
    return out.reshape(2, *shape)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, NaN where below is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below != 0, above / below, np.nan)


def check_level(level: float) -> None:
    """Raise ValueError unless a level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")


def _check(level: float, n_boot: int) -> None:
    check_level(level)
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}: at least one draw is needed")


__all__ = [
    "LEAST", "check_level", "expanded_tail", "group_sums", "mean_interval", "mean_sums", "n_draws", "percentiles",
    "ratio", "ratio_interval", "resample", "simultaneous_interval", "weights",
]  # fmt: skip
