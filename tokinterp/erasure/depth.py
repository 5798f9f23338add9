"""Between which layers of a new model to look for erasure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def default_layers(n_layers: int) -> tuple[int, int]:
    """Return the layers of the paper (2 and 10 of 32 blocks) for a model of another depth.

    Examples
    --------
    >>> default_layers(32), default_layers(12), default_layers(2)
    ((2, 10), (1, 4), (1, 2))
    """
    start = max(1, round(n_layers * 2 / 32)) if n_layers > 1 else 0
    return start, min(n_layers, max(start + 1, round(n_layers * 10 / 32)))


def end_layer(layers: Sequence[int], others: Sequence[float], last: Sequence[float], tolerance: float = 0.02) -> int:
    """Return the first layer from which on the erasure gap hardly grows any more: the end to choose for a new model.

    Parameters
    ----------
    layers : sequence of int
        Layers, in order.
    others, last : sequence of float
        Accuracy of offset 0 at each layer, at tokens that end no unit and at last tokens of multi-token words.
    tolerance : float
        The gap of no later layer exceeds that of the layer returned by more than this.

    Examples
    --------
    >>> end_layer([0, 2, 4, 6, 8], [1, 0.98, 0.9, 0.85, 0.8], [1, 0.9, 0.6, 0.4, 0.35])
    6
    """
    gap = np.asarray(others, dtype=float) - np.asarray(last, dtype=float)
    if len(gap) != len(layers) or not np.isfinite(gap).all() or not len(gap):
        raise ValueError(f"{len(layers)} layers need as many finite accuracies, not {gap.tolist()}")
    return int(np.asarray(layers)[np.flatnonzero(gap >= gap.max() - tolerance)[0]])
