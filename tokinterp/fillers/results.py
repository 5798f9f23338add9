"""Labels of what the filler experiments return, and the shares that their probes explain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..capture import Site
from ..dataset import variable
from ..describe import digest, numbered
from ..stamp import stamped
from ..stats.resample import group_sums, ratio, ratio_interval, ratio_parts, simultaneous_band

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
    """Return (3, ...) 1 - error / total, and the bounds of its interval; NaN for fewer than 3 units.

    Parameters
    ----------
    error, total : numpy.ndarray
        (row, ...) squared held-out error, and squared distance from the training mean.
    unit : numpy.ndarray
        (row,) unit of each row (item, document); whole units are drawn.
    level, n_boot, seed
        See `tokinterp.stats.resample`.

    Notes
    -----
    Probes are not fitted again: the interval is that of other rows under these probes.

    Examples
    --------
    >>> share_explained(np.ones(3), np.full(3, 2.0), np.arange(3)).tolist()
    [0.5, 0.5, 0.5]
    """
    held, below = _by_unit(error, total, unit)
    bounds = ratio_interval(held, below, level=level, n_boot=n_boot, seed=seed)
    return np.stack([ratio(held.sum(0), below.sum(0)), *bounds])


def explained_band(
    error: np.ndarray, total: np.ndarray, unit: np.ndarray, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return (2, ..., layer) intervals of `share_explained` that hold at all layers at once: for the best of them.

    Parameters
    ----------
    error, total, unit, level, n_boot, seed
        See `share_explained`; the last axis is that of the layers.

    Examples
    --------
    >>> error = np.random.default_rng(0).random((20, 3))
    >>> bool((explained_band(error, np.ones((20, 3)), np.arange(20))[0] < 1 - error.mean(0)).all())
    True
    """
    parts = ratio_parts(*_by_unit(error, total, unit))
    return simultaneous_band(parts, level=level, n_boot=n_boot, seed=seed)


def _by_unit(error: np.ndarray, total: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit, ...) sums of what is explained and of all there is."""
    return group_sums(total - error, unit), group_sums(total, unit)
