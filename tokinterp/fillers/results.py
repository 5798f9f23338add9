"""Labels of what the filler experiments return, and the exact tests that go with paired answers."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..capture import Site
from ..dataset import variable
from ..describe import digest, numbered
from ..stamp import stamped

if TYPE_CHECKING:
    from ..models.base import Model

NAMES = {
    "log_prob": ("log-probability of the answer", "nat"),
    "log_prob_change": ("change of the log-probability of the answer", "nat"),
    "correct": ("whether every token of the answer is the most probable one", "1"),
    "rank": ("tokens more probable than the first of the answer", "1"),
    "kl": ("KL divergence from the reference at the answer position", "nat"),
    "js": ("Jensen-Shannon divergence from the reference at the answer position", "nat"),
    "flip": ("whether the most probable token is another one than in the reference", "1"),
    "entropy_change": ("change of the entropy at the answer position", "nat"),
}
FEW = 12
BOUNDS = variable("bound", np.array(["lower", "upper"]), "bound of the interval", "1")


def finish(ds: xr.Dataset, model: Model, kind: str, settings: Mapping[str, Any], seed: int = 0) -> xr.Dataset:
    """Give a dataset its provenance; ``kind`` is the name by which plots know it."""
    return stamped(ds, kind, model, digest(settings.get("questions", "")), settings, seed)


def shown_blocks(model: Model) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return the blocks whose attention weights can be looked at, and what a result says of the others.

    Raises
    ------
    ValueError
        If there are none.
    """
    shown: tuple[int, ...] = getattr(model, "offered", {}).get("pattern") or tuple(range(model.info.n_layers))
    model.check([Site("pattern", b) for b in shown])
    if not (others := sorted({*range(model.info.n_layers)} - {*shown})):
        return shown, {}
    return shown, {"blocks_without_pattern": f"{numbered(others)}: no attention weights to look at there (NaN)"}


def numbers(n: int) -> xr.Variable:
    """Return the coordinate of n items."""
    return variable("prompt", np.arange(n), "number of the item", "1")


def share_explained(
    error: np.ndarray, total: np.ndarray, unit: np.ndarray, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return (3, ...) 1 - error / total, and the bounds of its bootstrap interval over units.

    Parameters
    ----------
    error, total : numpy.ndarray
        (row, ...) squared held-out error, and squared distance from the training mean.
    unit : numpy.ndarray
        (row,) unit of each row (item, prompt); whole units are drawn.
    level, n_boot, seed
        Of the bootstrap.

    Notes
    -----
    Probes are not fitted again: the interval is that of other rows under these probes.

    Examples
    --------
    >>> share_explained(np.array([1.0, 1.0]), np.array([2.0, 2.0]), np.array([0, 1])).tolist()
    [0.5, 0.5, 0.5]
    """
    kinds, inverse = np.unique(unit, return_inverse=True)
    sums = np.zeros((2, len(kinds), *error.shape[1:]))
    for s, rows in zip(sums, (error, total), strict=True):
        np.add.at(s, inverse, rows)
    drawn = np.random.default_rng(seed).multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=n_boot)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 1 - sums[0].sum(0) / sums[1].sum(0)
        others = 1 - np.tensordot(drawn, sums[0], 1) / np.tensordot(drawn, sums[1], 1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return np.stack([value, *np.quantile(others, tails, axis=0)])


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


def binomial(a: int, b: int) -> float:
    """Return the two-sided p of a against b under equal chances; NaN where both are 0."""
    n = a + b
    if n == 0:
        return float("nan")
    tail = sum(comb(n, i) for i in range(min(a, b) + 1))
    return min(1.0, 2 * tail / 2**n)


def interval(values: np.ndarray, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> np.ndarray:
    """Return (2, ...) percentile bootstrap interval of the mean over axis 0, items drawn with replacement."""
    from ..summary import summary

    v = np.asarray(values, dtype=np.float64)
    dims = ("prompt", *(f"d{i}" for i in range(v.ndim - 1)))
    ds = summary(xr.Dataset({"x": (dims, v)}), level=level, n_boot=n_boot, seed=seed)
    return ds["x_interval"].values


def simultaneous_interval(values: np.ndarray, level: float = 0.95, n_boot: int = 2000, seed: int = 0) -> np.ndarray:
    """Return (2, ...) intervals of all means over axis 0 that hold together: the maximum statistic of the bootstrap.

    Items get random normal weights, the same for all columns; of each draw the largest distance of a weighted mean, in
    standard errors, counts (Gaussian multiplier bootstrap: Chernozhukov, Chetverikov and Kato 2013, arXiv 1212.6906).
    Its quantile is carried over from the normal to Student's t distribution of n - 1 degrees of freedom, so that a
    single column of normal values has the usual interval.  Fewer than 12 items cannot be as far apart as the maximum of
    many columns: for these the level is divided by the number of columns (Bonferroni).

    Parameters
    ----------
    values : numpy.ndarray
        (item, ...); NaN is left out.  Columns with fewer than 3 values, or all the same, are NaN and count for nothing.
    level, n_boot, seed
        Of the bootstrap.

    Examples
    --------
    >>> v = np.random.default_rng(0).normal(size=(30, 50))
    >>> low, high = simultaneous_interval(v)
    >>> bool(((low < 0) & (high > 0)).all())
    True
    """
    from scipy import stats

    v = np.asarray(values, dtype=np.float64)
    flat = v.reshape(len(v), -1)
    count = np.isfinite(flat).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(flat, 0) / count
        off = np.nan_to_num(flat - mean)
        error = np.sqrt((off**2).sum(0) / count / (count - 1))
        use = (count >= 3) & (error > 1e-12 * np.abs(mean))
    out = np.full((2, flat.shape[1]), np.nan)
    if use.any():
        unit = off[:, use] / np.sqrt((off[:, use] ** 2).sum(0))
        rng, step = np.random.default_rng(seed), max(1, 4_000_000 // unit.size)
        sizes = [min(step, n_boot - a) for a in range(0, n_boot, step)]
        largest = np.concatenate([np.abs(rng.normal(size=(k, len(v))) @ unit).max(1) for k in sizes])
        tail = stats.norm.sf(np.quantile(largest, level)) if len(v) >= FEW else (1 - level) / 2 / use.sum()
        wide = stats.t.isf(tail, count[use] - 1) * error[use]
        out[:, use] = mean[use] - wide, mean[use] + wide
    return out.reshape(2, *v.shape[1:])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties averaged; NaN for fewer than three pairs or a constant."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    ok = np.isfinite(a) & np.isfinite(b)
    if ok.sum() < 3:
        return float("nan")
    ra, rb = (_ranks(x[ok]) for x in (a, b))
    if ra.std() == 0 or rb.std() == 0:
        return float("nan")
    return float(np.corrcoef(ra, rb)[0, 1])


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
