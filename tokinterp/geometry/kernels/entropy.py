"""Entropy of the spectrum of a Gram matrix, and what compares augmented readings of the same prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def renyi(values: Tensor, alpha: float = 1.0) -> Tensor:
    """Return the Renyi entropy, in nat, of eigenvalues (..., component) taken as shares of their sum.

    Parameters
    ----------
    values : torch.Tensor
        (..., component) eigenvalues; negative ones (rounding) count as 0.
    alpha : float
        Order: 1 is the von Neumann entropy -sum p log p, 2 the collision entropy -log sum p^2, inf -log max p.

    Returns
    -------
    torch.Tensor
        (...) between 0 (one direction) and log(components); NaN where the sum is 0.

    Examples
    --------
    >>> round(float(renyi(torch.ones(8)).exp()), 6), float(renyi(torch.tensor([5.0, 0.0])))
    (8.0, 0.0)
    """
    values = values.double().clamp_min(0)
    total = values.sum(-1, keepdim=True)
    p = torch.where(total > 0, values / total, torch.nan)
    if alpha == 1:
        out = torch.special.entr(p).sum(-1)
    elif math.isinf(alpha):
        out = -p.amax(-1).log()
    else:
        # 0 ** alpha is 0, so empty directions add nothing; alpha = 0 counts directions
        out = torch.where(p > 0, p**alpha, torch.where(p.isnan(), torch.nan, 0.0)).sum(-1).log() / (1 - alpha)
    return out.clamp_min(0)


def gram_spectrum(rows: Tensor) -> Tensor:
    """Return the squared singular values of sets of rows (..., n, d), largest last, in float64.

    Rows that are 0 (left out, padding) change nothing but the number of zeros.
    """
    y = rows.double()
    square = y @ y.mT if y.shape[-2] <= y.shape[-1] else y.mT @ y
    return torch.linalg.eigvalsh(square).clamp_min(0)


def centred_unit(rows: Tensor) -> Tensor:
    """Return rows (n, d) about their mean, each scaled to length 1, in float64; a row at the mean stays 0.

    The code of Skean et al. 2025 does this to the tokens of a prompt before anything else; the paper does not say so.
    """
    y = rows.double()
    return functional.normalize(y - y.mean(0), dim=1)


def clamped_spectrum(rows: Tensor) -> Tensor:
    """Return what the code of Skean et al. 2025 takes for the spectrum of rows (n, d): a published defect.

    The rows are centred and scaled (`centred_unit`), negative *entries* of the Gram matrix (of X'X where n > d) are set
    to 0 before the decomposition, and only positive eigenvalues are kept.
    """
    return torch.linalg.eigvalsh(_clamped(rows)).clamp_min(0)


def frobenius_entropy(rows: Tensor) -> Tensor:
    """Return what the code of Skean et al. 2025 gives for order 2 of rows (n, d): a published defect.

    -log(|K|_F^2 / m^2), m = min(n, d) the size of the clamped Gram matrix K (see `clamped_spectrum`). The division
    belongs to a matrix with unit diagonal; this K has trace 1, and the value is too large by 2 log m.

    Examples
    --------
    >>> round(float(frobenius_entropy(torch.eye(4)).exp()), 6)  # K is the identity over 4: 4 m^2
    64.0
    """
    square = _clamped(rows)
    return 2 * math.log(len(square)) - (square / square.trace()).square().sum().log()


def _clamped(rows: Tensor) -> Tensor:
    y = centred_unit(rows)
    return (y @ y.T if y.shape[0] <= y.shape[1] else y.T @ y).clamp_min(0)


# -- augmented readings ---------------------------------------------------------------------------------------
def infonce(one: Tensor, two: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the InfoNCE loss in nat between two readings of n prompts, both directions averaged.

    Parameters
    ----------
    one, two : torch.Tensor
        (n, d) rows; paired rows are positives, all others negatives.  Scaled to length 1 here.
    temperature : float
        Of the softmax over cosines.

    Returns
    -------
    torch.Tensor
        (); log(n) - loss is a lower bound on the mutual information of the readings (van den Oord et al. 2018), at most
        log(n), negative where the readings do not match.
    """
    x, y = (functional.normalize(v.double(), dim=1) for v in (one, two))
    logits = x @ y.T / temperature
    target = torch.arange(len(x), device=x.device, dtype=torch.int64)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def lidar(readings: Tensor, delta: float = 1e-4, published: str = "thilak2024") -> Tensor:
    """Return LiDAR, the effective rank of what tells prompts apart against what augmentation changes.

    Parameters
    ----------
    readings : torch.Tensor
        (prompt, reading, d), at least two prompts and two readings of each.
    delta : float
        Added to the diagonal of the within-prompt scatter.
    published : str
        ``"thilak2024"``: exp of the entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2, divisors n - 1 and n (q - 1)
        (Thilak et al. 2024, arXiv 2312.04000).  ``"skean2025"``: divisors n and n q, and the entropy itself divided by
        log min(n, d), as in the code of Skean et al. 2025.

    Returns
    -------
    torch.Tensor
        () between 1 and min(n - 1, d) for ``"thilak2024"``.
    """
    x = readings.double()
    n, q, d = x.shape
    mean = x.mean(1)
    between, within = mean - mean.mean(0), (x - mean[:, None]).flatten(0, 1)
    old = published == "skean2025"
    between, within = between / (n if old else n - 1) ** 0.5, within / (n * q if old else n * (q - 1)) ** 0.5
    if d > n * (q + 1):  # outside the span of both nothing is between: turn into it
        base = torch.linalg.qr(torch.cat([between, within]).T).Q
        between, within = between @ base, within @ base
    inner = within.T @ within + delta * torch.eye(within.shape[1], dtype=x.dtype, device=x.device)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), between.T, upper=False)
    value = renyi(gram_spectrum(white.T))
    return value / math.log(min(n, d)) if old else value.exp()


def cosine_gram(rows: Tensor) -> Tensor:
    """Return (n, n) cosines of all pairs of rows: a kernel with unit diagonal."""
    y = functional.normalize(rows.double(), dim=1)
    return y @ y.T


def dime(one: Tensor, two: Tensor, orders: Tensor) -> Tensor:
    """Return DiME: how much more entropy two readings have together when their rows are paired at random.

    Parameters
    ----------
    one, two : torch.Tensor
        (n, n) Gram matrices with unit diagonal of two readings of n prompts.
    orders : torch.Tensor
        (draw, n) permutations.

    Returns
    -------
    torch.Tensor
        () mean over draws of S(K o L^pi) - S(K o L) in nat (Skean et al. 2023, arXiv 2301.08164), o the product of
        entries; at most log(n).  Always n x n: the product of d x d covariances is another quantity.
    """
    joint = renyi(torch.linalg.eigvalsh(one * two))
    mixed = torch.stack([renyi(torch.linalg.eigvalsh(one * two[o][:, o])) for o in orders])
    return mixed.mean() - joint
