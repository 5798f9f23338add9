"""Shares of a variance that held-out predictions explain, with intervals over units."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from .resample import Draws, group_sums, ratio, ratio_interval
from .simultaneous import ratio_parts, simultaneous_band


def share_explained(error: np.ndarray, total: np.ndarray, unit: np.ndarray, **draws: Unpack[Draws]) -> np.ndarray:
    """Return (3, ...) 1 - error / total, and the bounds of its interval; NaN for fewer than 3 units.

    Parameters
    ----------
    error, total : numpy.ndarray
        (row, ...) squared held-out error, and squared distance from the training mean.
    unit : numpy.ndarray
        (row,) unit of each row (item, document); whole units are drawn.
    **draws
        See `tokinterp.stats.resample.Draws`.

    Notes
    -----
    Probes are not fitted again: the interval is that of other rows under these probes.

    Examples
    --------
    >>> share_explained(np.ones(3), np.full(3, 2.0), np.arange(3)).tolist()
    [0.5, 0.5, 0.5]
    """
    held, below = _by_unit(error, total, unit)
    bounds = ratio_interval(held, below, **draws)
    return np.stack([ratio(held.sum(0), below.sum(0)), *bounds])


def explained_band(error: np.ndarray, total: np.ndarray, unit: np.ndarray, **draws: Unpack[Draws]) -> np.ndarray:
    """Return (2, ..., layer) intervals of `share_explained` that hold at all layers at once: for the best of them.

    Parameters
    ----------
    error, total, unit, **draws
        See `share_explained`; the last axis is that of the layers.

    Examples
    --------
    >>> error = np.random.default_rng(0).random((20, 3))
    >>> bool((explained_band(error, np.ones((20, 3)), np.arange(20))[0] < 1 - error.mean(0)).all())
    True
    """
    parts = ratio_parts(*_by_unit(error, total, unit))
    return simultaneous_band(parts, **{"n_boot": 1000, **draws})


def _by_unit(error: np.ndarray, total: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit, ...) sums of what is explained and of all there is."""
    return group_sums(total - error, unit), group_sums(total, unit)
