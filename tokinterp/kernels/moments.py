"""Moments of a stream of rows, merged exactly, and the numbers of a covariance spectrum that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ROWS = (
    2048  # rows of one float32 product: longer sums of float32 lose digits, shorter ones cost float64 additions
)
PANEL = 1024  # columns of one product: the upper half of a symmetric matrix is not computed


class Moments(NamedTuple):
    """Sums over rows y = x - shift, all float64 except the count; leading axes count independent clouds.

    Attributes
    ----------
    shift : torch.Tensor
        (..., d) the point subtracted from every row; any point near the data will do, it never changes a result.
    count : torch.Tensor
        (...) int64, number of rows n.
    first : torch.Tensor
        (..., d) sum of y.
    second : torch.Tensor
        (..., d, d) sum of the outer products y y'; **only the lower triangle counts**.
    cubic : torch.Tensor
        (..., d) sum of |y|^2 y.
    fourth : torch.Tensor
        (...) sum of |y|^4.
    """

    shift: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    cubic: Tensor
    fourth: Tensor


class Central(NamedTuple):
    """What a cloud of rows is about its own mean: ``count``, ``mean``, ``scatter`` (sum of outer products), ``fourth``."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    fourth: Tensor


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block, whatever was set (TF32, bfloat16), and restore it after.

    Examples
    --------
    >>> with full_float32():
    ...     float(torch.ones(1, 2) @ torch.ones(2, 1))
    2.0
    """
    places = [p for p in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul) if hasattr(p, "fp32_precision")]
    before = [p.fp32_precision for p in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def empty(shift: Tensor) -> Moments:
    """Return the moments of no rows yet, about ``shift`` (..., d)."""
    shift = shift.double()
    lead, d = shift.shape[:-1], shift.shape[-1]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros((*lead, *shape), dtype=torch.float64, device=shift.device)

    return Moments(
        shift.clone(),
        torch.zeros(lead, dtype=torch.int64, device=shift.device),
        zeros(d),
        zeros(d, d),
        zeros(d),
        zeros(),
    )


def accumulate(moments: Moments, shifted: Tensor, keep: Tensor | None = None) -> None:
    """Add rows to the moments of one cloud, in place.

    Products are taken in the dtype of ``shifted`` (float32 at least) over blocks of rows and added up in float64, so
    that the error does not grow with the number of rows.

    Parameters
    ----------
    moments : Moments
        Of one cloud (no leading axes); may be views into a stack.
    shifted : torch.Tensor
        (row, d) finite rows from which ``moments.shift`` has already been subtracted.
    keep : torch.Tensor, optional
        (row,) bool; false rows take no part (no row is gathered, so nothing waits for the device).

    Examples
    --------
    >>> m = empty(torch.zeros(2))
    >>> accumulate(m, torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> int(m.count), central(m).mean.tolist(), central(m).scatter.tolist()
    (2, [2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    n, d = shifted.shape
    if keep is None:
        moments.count.add_(n)
    else:
        moments.count.add_(keep.sum())
    with full_float32():
        for start in range(0, n, BLOCK_ROWS):
            y = shifted[start : start + BLOCK_ROWS]
            if keep is not None:
                y = y * keep[start : start + BLOCK_ROWS, None]
            size = (y * y).sum(1)
            moments.first.add_(y.sum(0, dtype=torch.float64))
            moments.cubic.add_(size @ y)
            moments.fourth.add_(size.double().square().sum())
            for left in range(0, d, PANEL):
                moments.second[left:, left : left + PANEL].add_(y[:, left:].T @ y[:, left : left + PANEL])


def mirrored(second: Tensor) -> Tensor:
    """Return the full symmetric matrix of a lower triangle, (..., d, d)."""
    return second.tril() + second.tril(-1).mT


def rebase(moments: Moments, shift: Tensor) -> Moments:
    """Return the same moments about another shift (..., d), exactly."""
    n, delta = moments.count.double(), moments.shift - shift.double()
    second, sq = mirrored(moments.second), (delta * delta).sum(-1)
    product = (second @ delta[..., None])[..., 0]
    along, trace = (delta * moments.first).sum(-1), second.diagonal(dim1=-2, dim2=-1).sum(-1)
    cross = moments.first[..., :, None] * delta[..., None, :]
    whole = trace + 2 * along + n * sq
    return Moments(
        shift.double().clone(),
        moments.count.clone(),
        moments.first + n[..., None] * delta,
        second + cross + cross.mT + n[..., None, None] * delta[..., :, None] * delta[..., None, :],
        moments.cubic + 2 * product + sq[..., None] * moments.first + whole[..., None] * delta,
        moments.fourth
        + 4 * (delta * product).sum(-1)
        + n * sq**2
        + 4 * (moments.cubic * delta).sum(-1)
        + 2 * sq * trace
        + 4 * sq * along,
    )


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both sets of rows together, about the shift of ``a``.

    Exact for any two shifts: b is moved to the shift of a first (the pairwise update of Chan, Golub and LeVeque 1983,
    carried to fourth order).
    """
    if not torch.equal(a.shift, b.shift):
        b = rebase(b, a.shift)
    return Moments(a.shift, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def central(moments: Moments) -> Central:
    """Return count, mean (..., d), scatter about the mean (..., d, d) and sum of |x - mean|^4 (...)."""
    n = moments.count.double()
    mean = moments.first / n[..., None]
    second, sq = mirrored(moments.second), (mean * mean).sum(-1)
    trace = second.diagonal(dim1=-2, dim2=-1).sum(-1)
    quadratic = (mean * (second @ mean[..., None])[..., 0]).sum(-1)
    fourth = moments.fourth - 4 * (moments.cubic * mean).sum(-1) + 4 * quadratic + 2 * sq * trace - 3 * n * sq**2
    scatter = second - moments.first[..., :, None] * mean[..., None, :]
    return Central(moments.count, moments.shift + mean, (scatter + scatter.mT) / 2, fourth)


def eigenvalues(scatter: Tensor, count: Tensor, noise: float | Tensor = 0.0) -> Tensor:
    """Return the eigenvalues of one covariance scatter / (n - 1), largest first.

    Parameters
    ----------
    scatter : torch.Tensor
        (d, d) sum of outer products about the mean.
    count : torch.Tensor
        () number of rows n.
    noise : float or torch.Tensor
        Smaller values are set to 0, as are all beyond the possible rank min(n - 1, d): what rounding leaves there
        counts for little in a variance, but for much in a sum of square roots.

    Returns
    -------
    torch.Tensor
        (d,) NaN if n < 2.
    """
    d, n = scatter.shape[-1], int(count)
    if n < 2:
        return scatter.new_full((d,), torch.nan)
    values = torch.linalg.eigvalsh(scatter / (n - 1)).flip(-1)
    possible = torch.arange(d, device=values.device) < n - 1
    return torch.where(possible & (values > noise), values, 0.0)


def shares(values: Tensor) -> Tensor:
    """Return eigenvalues as shares of the total variance; NaN where there is none."""
    return values / values.sum(-1, keepdim=True)


def anisotropy(values: Tensor) -> Tensor:
    """Return the share of the largest eigenvalue (Razzhigaev et al. 2024, "The Shape of Learning")."""
    return shares(values)[..., 0]


def participation_ratio(values: Tensor) -> Tensor:
    """Return (sum of eigenvalues)^2 / sum of their squares: the plug-in value, biased low when rows are few."""
    return values.sum(-1) ** 2 / (values**2).sum(-1)


def unbiased_traces(cloud: Central) -> tuple[Tensor, Tensor]:
    """Return unbiased estimates of tr(Sigma)^2 and tr(Sigma^2) from n independent rows of any distribution.

    With S the sample covariance (divisor n - 1) and Q = sum_i |x_i - mean|^4 / (n - 1),

        tr(Sigma)^2 ~ (n-1) / (n(n-2)(n-3)) * (2 tr(S^2) + (n^2-3n+1) tr(S)^2 - n Q)
        tr(Sigma^2) ~ (n-1) / (n(n-2)(n-3)) * ((n-1)(n-2) tr(S^2) + tr(S)^2 - n Q)

    (Himeno and Yamada 2014, J. Multivariate Anal. 130, 27).  They are the averages over all choices of four different
    rows a, b, c, d of |a-b|^2 |c-d|^2 / 4 and of ((a-b)'(c-d))^2 / 4.

    Parameters
    ----------
    cloud : Central
        Of n rows.

    Returns
    -------
    torch.Tensor, torch.Tensor
        (...) each, NaN for n < 4.
    """
    n = cloud.count.double()
    trace = cloud.scatter.diagonal(dim1=-2, dim2=-1).sum(-1) / (n - 1)
    square = (cloud.scatter**2).sum((-2, -1)) / (n - 1) ** 2
    q = cloud.fourth / (n - 1)
    scale = torch.where(n >= 4, (n - 1) / (n * (n - 2) * (n - 3)), torch.nan)
    above = 2 * square + (n**2 - 3 * n + 1) * trace**2 - n * q
    below = (n - 1) * (n - 2) * square + trace**2 - n * q
    return scale * above, scale * below


def unbiased_participation_ratio(cloud: Central) -> Tensor:
    """Return the participation ratio whose numerator and denominator are both unbiased under finite n.

    Parameters
    ----------
    cloud : Central
        Of n rows.

    Returns
    -------
    torch.Tensor
        (...) the ratio of `unbiased_traces`; NaN for n < 4 or where the estimate of tr(Sigma^2) is not positive.

    Notes
    -----
    This is the row-corrected estimator of Chun et al. 2026 (arXiv 2509.26560, gamma_row), in closed form: of the three
    terms of 1/PR_plugin ~ 1/PR + 1/n + 1/d it removes 1/n.  The term 1/d is about channels sampled from a larger
    population; here every channel is seen, so there is nothing to correct.  A ratio of unbiased numbers is not itself
    exactly unbiased, and tokens of one text are not independent rows: n overstates what is known.

    Examples
    --------
    >>> x = torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> m = empty(torch.zeros(40))
    >>> accumulate(m, x)
    >>> values = eigenvalues(central(m).scatter, m.count)
    >>> bool(participation_ratio(values) < 26), bool(unbiased_participation_ratio(central(m)) > 35)
    (True, True)
    """
    above, below = unbiased_traces(cloud)
    return torch.where(below > 0, above / below, torch.nan)


def effective_rank(values: Tensor, of: str = "singular") -> Tensor:
    """Return exp(entropy) of the normalised spectrum.

    Parameters
    ----------
    values : torch.Tensor
        (..., component) eigenvalues of a covariance (so: of the *centred* cloud).
    of : str
        ``"singular"``: shares of the singular values, the square roots (Roy and Vetterli 2007); ``"variance"``: shares
        of the eigenvalues themselves.  RankMe (Garrido et al. 2023) is the first, of the uncentred rows.
    """
    q = shares(values.sqrt() if of == "singular" else values)
    return torch.where(q.isnan().any(-1), torch.nan, torch.exp(torch.special.entr(q.nan_to_num()).sum(-1)))


def components_for(values: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return (..., threshold) how many of the largest components reach each share of the variance; NaN if undefined."""
    reached = shares(values).cumsum(-1)
    want = torch.as_tensor(thresholds, dtype=reached.dtype, device=reached.device)
    # a share that is reached exactly must not be missed by the rounding of the running sum
    number = (reached[..., None, :] < want[:, None] * (1 - 1e-12)).sum(-1).double() + 1
    return torch.where(reached[..., -1:].isnan(), torch.nan, number)


def mean_cosine(unit_sum: Tensor, number: Tensor, diagonal: bool = False) -> Tensor:
    """Return the mean cosine over all pairs of rows from the sum of their unit vectors, in O(n d).

    Parameters
    ----------
    unit_sum : torch.Tensor
        (..., d) sum of x / |x|.
    number : torch.Tensor
        (...) how many rows that was.
    diagonal : bool
        Whether a row's cosine of 1 with itself counts: |sum|^2 / n^2 (Viswanathan et al., arXiv 2501.10573), else
        (|sum|^2 - n) / (n (n - 1)); NaN for n < 1 and n < 2.
    """
    n, size = number.double(), (unit_sum.double() ** 2).sum(-1)
    value = size / n**2 if diagonal else (size - n) / (n * (n - 1))
    return torch.where(n >= (1 if diagonal else 2), value, torch.nan)
