"""Numbers of token clouds as papers published them, faults included: estimators for `PerCloud`."""

from __future__ import annotations

import numpy as np
import torch

from ..kernels.state import neutral
from ..settings import checked, count, number
from .kernels import airi
from .kernels.entropy import clamped_spectrum, frobenius_entropy, renyi

__all__ = ["airi_twonn", "skean2025_entropy", "skean2025_frobenius"]


@checked(reduction=count(1))
@neutral()
def airi_twonn(points: np.ndarray, reduction: int = 5, keep_duplicates: bool = True) -> float:
    """Return the intrinsic dimension that the released code of LLM-Microscope gives.

    The TwoNN line through the smallest 1/``reduction`` of the ratios of neighbour distances, **wrong where points
    coincide**: see `tokinterp.geometry.kernels.airi` for how and by how much.

    Parameters
    ----------
    points : numpy.ndarray
        (point, d), at least 3 points; with ``PerCloud(..., distinct=False)``, which leaves the duplicates in.
    reduction : int
        One over the share of the points on the line.
    keep_duplicates : bool
        True is as released; False counts only the points on the line.

    Returns
    -------
    float
        NaN with fewer than two usable points.

    References
    ----------
    Razzhigaev et al. 2024, "The Shape of Learning", Findings of EACL (after Facco et al. 2017); released with
    arXiv 2502.15007.

    Examples
    --------
    >>> plane = np.random.default_rng(0).normal(size=(2000, 2)) @ np.triu(np.ones((2, 9)))
    >>> bool(abs(airi_twonn(plane) - 2) < 0.4)
    True
    """
    return float(
        airi.airi_twonn(torch.as_tensor(points, dtype=torch.float64, device="cpu"), reduction, keep_duplicates)
    )


@checked(alpha=number(0))
@neutral()
def skean2025_entropy(points: np.ndarray, alpha: float = 1.0) -> float:
    """Return the prompt entropy of the released code of Skean et al. 2025.

    The rows are centred and scaled to length 1, and negative *entries* of the Gram matrix are set to 0 before the
    decomposition, which makes another matrix of it: see `tokinterp.geometry.MatrixEntropy` for the entropy.

    Parameters
    ----------
    points : numpy.ndarray
        (point, d); with ``PerCloud(..., distinct=False)``, as their clouds have copies.
    alpha : float
        Order of the Renyi entropy.

    Returns
    -------
    float
        In nat.

    References
    ----------
    Skean et al. 2025, arXiv 2502.02013, code.

    Examples
    --------
    >>> import tokinterp as ti
    >>> theirs = ti.geometry.PerCloud(ti.geometry.skean2025_entropy, name="entropy", units="nat", distinct=False)
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"theirs": theirs}, progress=False)
    >>> bool((run["theirs"]["entropy"] > 0).all())
    True
    """
    return float(renyi(clamped_spectrum(torch.from_numpy(points)), alpha))


@checked()
@neutral()
def skean2025_frobenius(points: np.ndarray) -> float:
    """Return the entropy of order 2 that the released code of Skean et al. 2025 gives.

    From the Frobenius norm of the matrix of `skean2025_entropy`, and too large by 2 log min(n, d).

    Parameters
    ----------
    points : numpy.ndarray
        (point, d).

    Returns
    -------
    float
        In nat.

    References
    ----------
    Skean et al. 2025, arXiv 2502.02013, code.

    Examples
    --------
    >>> round(float(np.exp(skean2025_frobenius(np.eye(4)))), 6)
    64.0
    """
    return float(frobenius_entropy(torch.from_numpy(points)))
