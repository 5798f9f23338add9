"""Intrinsic dimension of many clouds at once, from the distances to their nearest neighbours: GRIDE, TwoNN, MLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PER_RANK = 4  # a cloud needs that many distinct points for every neighbour rank in use
TWONN = ("gride", "facco", "mle", "mle_censored")
MEANS = ("harmonic", "arithmetic")
_STEPS = 24  # Newton's error falls at least threefold by step before it is quadratic: 3e-12 at worst


class Gride(NamedTuple):
    """Estimates of one call of :func:`gride`, each (cloud, scale).

    Attributes
    ----------
    dimension : torch.Tensor
        float64 intrinsic dimension; NaN for a cloud with fewer than ``4 * scale`` distinct points.
    error : torch.Tensor
        float64 standard error from the observed information.
    distance : torch.Tensor
        float64 mean of the distances to the two neighbours, the length at which the dimension is seen.
    n_tied : torch.Tensor
        int64 points left out because the two distances are equal or the nearer one is zero.
    n_cut : torch.Tensor
        int64 points with an outlying ratio, left out of the dimension but not of its error.
    """

    dimension: Tensor
    error: Tensor
    distance: Tensor
    n_tied: Tensor
    n_cut: Tensor


def gride(distances: Tensor, valid: Tensor, scales: Sequence[int] = (2, 4, 8, 16, 32, 64)) -> Gride:
    """Estimate the intrinsic dimension of every cloud at several scales by GRIDE.

    At scale ``n2`` the ratio of the distances to the neighbours ``n2`` and ``n1 = n2 / 2`` of every point has a
    density that depends on the dimension alone; its likelihood has one maximum.  At scale 2 this is TwoNN by
    maximum likelihood.  Conventions are those of DADApy 0.3.4: N - 1 in the score, which makes scale 2 unbiased,
    and ratios above ``q50 + 20 (q95 - q50)`` are left out of the estimate but not of its error.  Equal distances
    are dropped, as in scikit-dimension 0.5.0.

    Parameters
    ----------
    distances : torch.Tensor
        (cloud, point, rank) float64 distances to the nearest neighbours, without exact duplicates.
    valid : torch.Tensor
        (cloud, point) bool, true on the points that take part.
    scales : sequence of int
        Ranks ``n2``, even.

    Returns
    -------
    Gride
        Dimension, standard error, distance and counts.

    Raises
    ------
    ValueError
        If a scale is not an even number from 2 to the number of ranks.

    References
    ----------
    Denti, Doimo, Laio and Mira (2022), Scientific Reports 12, 20005, equations 9 to 13.

    Examples
    --------
    >>> import torch
    >>> from tokinterp.kernels.neighbours import nearest
    >>> plane = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 9).triu()
    >>> near = nearest(plane, 8)
    >>> bool((gride(near.distances, near.valid, (2, 4, 8)).dimension - 2).abs().max() < 0.3)
    True
    """
    scales = [int(n) for n in scales]
    bad = [n for n in scales if n < 2 or n % 2 or n > distances.shape[-1]]
    if bad or not scales:
        raise ValueError(f"scales {bad or 'is empty'}: take even ranks from 2 to {distances.shape[-1]}")
    outer = torch.tensor(scales, device=distances.device, dtype=torch.int64)
    far = distances[..., outer - 1].transpose(1, 2)  # (cloud, scale, point)
    close = distances[..., outer // 2 - 1].transpose(1, 2)
    use = (valid.sum(1)[:, None] >= PER_RANK * outer)[..., None] & valid[:, None]
    ratio = far / close
    kept = use & (ratio > 1) & ratio.isfinite()
    fair = kept & (ratio < _outlying(ratio.masked_fill(~kept, torch.inf), kept.sum(-1)))
    log = torch.where(kept, ratio, 1.0).log()

    n2 = outer[None, :, None].double()
    dimension = _maximum(log * fair, fair, n2 / 2, n2)
    # the information is summed over all ratios, the outlying ones too
    term = torch.where(kept, log / (2 * torch.sinh(dimension[..., None] * log / 2)), 0.0).square().sum(-1)
    information = kept.sum(-1).double() / dimension.square() + (n2[..., 0] / 2 - 1) * term
    enough = fair.sum(-1) > 1
    nan = torch.full_like(dimension, torch.nan)
    distance = torch.where(use, (far + close) / 2, 0.0).sum(-1) / use.sum(-1).double()
    return Gride(
        torch.where(enough, dimension, nan),
        torch.where(enough, information.rsqrt(), nan),
        distance,
        (use & ~kept).sum(-1),
        (kept & ~fair).sum(-1),
    )


def twonn(distances: Tensor, valid: Tensor, method: str = "gride", discard: float = 0.1) -> Tensor:
    """Estimate the intrinsic dimension of every cloud from the two nearest neighbours.

    Parameters
    ----------
    distances : torch.Tensor
        (cloud, point, rank) float64, at least two ranks, without exact duplicates.
    valid : torch.Tensor
        (cloud, point) bool.
    method : str
        ``"gride"``: maximum likelihood without outlying ratios, the first scale of :func:`gride`;
        ``"mle"``: maximum likelihood of all ratios (DADApy's ``algorithm="ml"``);
        ``"mle_censored"``: maximum likelihood that knows of the discarded ratios only that they are larger
        (scikit-dimension's ``method="mle"``);
        ``"facco"``: the line through the origin of Facco et al. without the largest ratios (the default of both).
    discard : float
        Share of the largest ratios that the last two leave out.

    Returns
    -------
    torch.Tensor
        (cloud,) float64; NaN for a cloud with fewer than 8 distinct points.

    Raises
    ------
    ValueError
        If the method is unknown or the share is not in [0, 1).

    References
    ----------
    Facco, d'Errico, Rodriguez and Laio (2017), Scientific Reports 7, 12140.

    Examples
    --------
    >>> import torch
    >>> from tokinterp.kernels.neighbours import nearest
    >>> near = nearest(torch.rand(500, 3, generator=torch.Generator().manual_seed(0)), 2)
    >>> bool(abs(twonn(near.distances, near.valid, "facco") - 3) < 0.4)
    True
    """
    if method not in TWONN:
        raise ValueError(f"twonn = {method!r}: take one of {', '.join(TWONN)}")
    if not 0 <= discard < 1:
        raise ValueError(f"discard = {discard}: take a share from 0 up to, not including, 1")
    if method == "gride":
        return gride(distances, valid, (2,)).dimension[:, 0]
    ratio = distances[..., 1] / distances[..., 0]
    kept = valid & (valid.sum(1, keepdim=True) >= 2 * PER_RANK) & ratio.isfinite()
    count = kept.sum(1, keepdim=True).double()
    log, _ = torch.where(kept, ratio.log(), torch.inf).sort(1)
    rank = torch.arange(1, log.shape[1] + 1, device=log.device, dtype=torch.int64)
    n_low = count if method == "mle" else (count * (1 - discard)).floor()
    low = rank <= n_low
    log = torch.where(low, log, 0.0)
    if method == "facco":
        height = -torch.log1p(-torch.where(low & (rank < count), rank / count, 0.0))
        dimension = (log * height).sum(1) / log.square().sum(1)
    else:
        last = log.gather(1, (n_low - 1).clamp(min=0).long())
        dimension = (n_low[:, 0] - 1) / (log.sum(1) + ((count - n_low) * last)[:, 0])
    return torch.where((n_low[:, 0] > 1) & dimension.isfinite(), dimension, torch.nan)


def local_dimension(distances: Tensor, k: int = 20, *, unbiased: bool = False) -> Tensor:
    """Estimate the dimension around every point from its k nearest neighbours.

    Parameters
    ----------
    distances : torch.Tensor
        (cloud, point, rank) float64, at least k ranks, without exact duplicates.
    k : int
        Neighbours.  The relative standard deviation of one value is about ``1 / sqrt(k - 2)``.
    unbiased : bool
        Divide by k - 2, which makes the value unbiased where the density is constant, instead of k - 1.

    Returns
    -------
    torch.Tensor
        (cloud, point) float64; NaN where a point has fewer than k neighbours or all of them at one distance.

    Raises
    ------
    ValueError
        If k is not between 2 (3 if unbiased) and the number of ranks.

    References
    ----------
    Levina and Bickel (2005), NIPS 17, equation 8.

    Examples
    --------
    >>> import torch
    >>> value = local_dimension(torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64), 3)
    >>> round(float(value), 4)  # 2 / (log 4 + log 2)
    0.9618
    """
    inverse = _inverse(distances, k, unbiased)
    return torch.where(inverse > 0, 1 / inverse, torch.nan)


def mle(distances: Tensor, valid: Tensor, k: int = 20, *, average: str = "harmonic", unbiased: bool = False) -> Tensor:
    """Estimate the intrinsic dimension of every cloud by averaging the local estimates of Levina and Bickel.

    Parameters
    ----------
    distances : torch.Tensor
        (cloud, point, rank) float64, at least k ranks, without exact duplicates.
    valid : torch.Tensor
        (cloud, point) bool.
    k : int
        Neighbours.
    average : str
        ``"harmonic"``, the pooled maximum likelihood of MacKay and Ghahramani (scikit-dimension's ``fit``), or
        ``"arithmetic"``, as first published (its ``fit_transform``).
    unbiased : bool
        As in :func:`local_dimension`.

    Returns
    -------
    torch.Tensor
        (cloud,) float64; NaN for a cloud with fewer than ``4 k`` distinct points.

    Raises
    ------
    ValueError
        If the average is unknown or k does not fit.

    References
    ----------
    Levina and Bickel (2005), NIPS 17, equation 9; MacKay and Ghahramani (2005), comment on it.

    Examples
    --------
    >>> import torch
    >>> from tokinterp.kernels.neighbours import nearest
    >>> near = nearest(torch.rand(500, 3, generator=torch.Generator().manual_seed(0)), 20)
    >>> bool(abs(mle(near.distances, near.valid) - 3) < 0.4)
    True
    """
    if average not in MEANS:
        raise ValueError(f"average = {average!r}: take one of {', '.join(MEANS)}")
    inverse = _inverse(distances, k, unbiased)
    value = inverse if average == "harmonic" else 1 / inverse
    kept = valid & (valid.sum(1, keepdim=True) >= PER_RANK * k) & value.isfinite()
    mean = torch.where(kept, value, 0.0).sum(1) / kept.sum(1).double()
    mean = 1 / mean if average == "harmonic" else mean
    return torch.where(mean.isfinite(), mean, torch.nan)


def _inverse(distances: Tensor, k: int, unbiased: bool) -> Tensor:
    """Return (cloud, point) one over the local dimension; NaN where a neighbour is missing or at distance zero."""
    least = 3 if unbiased else 2
    if not least <= k <= distances.shape[-1]:
        raise ValueError(f"k = {k} neighbours: take k between {least} and the {distances.shape[-1]} ranks at hand")
    near = distances[..., :k]
    inverse = (near[..., k - 1 :].log() - near.log()).sum(-1) / (k - 2 if unbiased else k - 1)
    return torch.where(inverse.isfinite(), inverse, torch.nan)


def _outlying(ratio: Tensor, count: Tensor) -> Tensor:
    """Return (..., 1) the ratio above which DADApy calls overlap; missing ratios stand at inf."""
    ordered, _ = ratio.sort(-1)
    last = (count - 1).clamp(min=0)

    def quantile(q: float) -> Tensor:
        place = q * last.double()
        below = place.floor().long()
        low = ordered.gather(-1, below[..., None])[..., 0]
        high = ordered.gather(-1, torch.minimum(below + 1, last)[..., None])[..., 0]
        return torch.lerp(low, high, place - below)

    middle = quantile(0.5)
    return (20 * (quantile(0.95) - middle) + middle)[..., None]


def _maximum(log: Tensor, use: Tensor, n1: Tensor, n2: Tensor) -> Tensor:
    """Return (...,) the maximum of the GRIDE likelihood of log ratios (..., point), zero outside ``use``.

    With x = d log(ratio) and h(x) = x / (1 - exp(-x)), d times the score is
    (N - 1) + (n2 - n1 - 1) sum h(x) - (n2 - 1) sum x: falling and convex in d, with h' between 1/2 and 1.  Newton
    from the left of the root therefore never passes it, and h(x) >= 1 + x / 2 gives a start on the left, which is
    the root itself if n2 - n1 = 1.
    """
    n1, n2 = n1[..., 0], n2[..., 0]
    inner = n2 - n1 - 1
    count, total = use.sum(-1).double(), log.sum(-1)
    d = (count - 1 + inner * count) / (total * (n2 - 1 - inner / 2))
    for _ in range(_STEPS):
        x = d[..., None] * log
        below = torch.where(use, -torch.expm1(-x), 1.0)
        h = torch.where(use, x / below, 0.0).sum(-1)
        slope = (log * ((below - x * (1 - below)) / below.square()).clamp(0.5, 1.0)).sum(-1)
        step = (count - 1 + inner * h - (n2 - 1) * d * total) / ((n2 - 1) * total - inner * slope)
        d = d + step
        if d.device.type == "cpu" and not bool((step.abs() > 1e-14 * d).any()):  # elsewhere looking would wait
            break
    return d
