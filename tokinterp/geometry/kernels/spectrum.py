"""Numbers of a covariance spectrum, and mean cosines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.moments import Central
from ...kernels.state import neutral

NO_DIRECTION = 1e-6  # of its norm: a row this close to the mean is rounding, not a direction


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
    possible = torch.arange(d, device=values.device, dtype=torch.int64) < n - 1
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
    >>> y = x - x.mean(0)
    >>> cloud = Central(torch.tensor(60), x.mean(0), y.T @ y, (y * y).sum(1).square().sum())
    >>> values = eigenvalues(cloud.scatter, cloud.count)
    >>> bool(participation_ratio(values) < 26), bool(unbiased_participation_ratio(cloud) > 35)
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


def kaiser(values: Tensor, rank: int | Tensor) -> Tensor:
    """Return (...) how many eigenvalues exceed their mean over the possible rank (Kaiser-Guttman); NaN if undefined."""
    mean = values.sum(-1, keepdim=True) / rank
    return torch.where(values.isnan().any(-1) | (mean[..., 0] <= 0), torch.nan, (values > mean).sum(-1).double())


def broken_stick(values: Tensor, rank: int | Tensor) -> Tensor:
    """Return (...) how many leading components have a larger share than the pieces of a stick broken at random.

    The k-th longest of p pieces is (1/k + 1/(k+1) + ... + 1/p) / p on average, with p the possible rank (Jackson 1993,
    Ecology 74, 2204); NaN if undefined.
    """
    place = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64, device=values.device)
    piece = torch.where(place <= rank, 1 / place, 0.0).flip(-1).cumsum(-1).flip(-1) / rank
    share = shares(values)
    number = (share > piece).long().cumprod(-1).sum(-1).double()
    return torch.where(share.isnan().any(-1), torch.nan, number)


def power_law(values: Tensor, ranks: tuple[int, int] = (11, 500), fewest: int = 10) -> Tensor:
    """Return (...) the exponent a of eigenvalue_k ~ k^-a, fitted to log against log with weights 1/k.

    Parameters
    ----------
    values : torch.Tensor
        (..., component) eigenvalues, largest first.
    ranks : (int, int)
        First and last k of the fit, from 1; 11 to 500 in Stringer et al. 2019 (Nature 571, 361).
    fewest : int
        NaN if fewer eigenvalues in that range are positive.

    Examples
    --------
    >>> k = torch.arange(1, 301, dtype=torch.float64)
    >>> round(float(power_law(5 * k**-1.25)), 6)
    1.25
    """
    first, last = ranks
    y = values[..., first - 1 : last].double()
    place = torch.arange(first, first + y.shape[-1], dtype=torch.float64, device=values.device)
    x = place.log().expand_as(y)
    weight = torch.where(y > 0, 1 / place, 0.0)
    y = torch.where(y > 0, y, 1.0).log()
    total = weight.sum(-1, keepdim=True)
    x = x - (weight * x).sum(-1, keepdim=True) / total
    slope = (weight * x * y).sum(-1) / (weight * x * x).sum(-1)
    return torch.where((weight > 0).sum(-1) >= fewest, -slope, torch.nan)


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


def centred_cosine(rows: Tensor, norm: Tensor, keep: Tensor) -> Tensor:
    """Return (cloud,) the mean cosine of pairs of different rows about the mean of each cloud, in O(n d).

    Parameters
    ----------
    rows : torch.Tensor
        (cloud, row, d) float32 finite rows, about any shift.
    norm : torch.Tensor
        (cloud, row) size of the numbers they were rounded to: rows closer to the mean than 1e-6 of it are left out.
    keep : torch.Tensor
        (cloud, row) bool, which rows take part.
    """
    with neutral():
        here = keep.long().argmax(1)[:, None, None].expand(-1, 1, rows.shape[-1])
        rows = rows - rows.gather(1, here)  # about the first, so that nothing is left of rows that are all equal
        centred = rows - (keep.float()[:, None] @ rows) / keep.sum(1).clamp_min(1)[:, None, None]
        length = torch.linalg.vector_norm(centred, dim=-1)
        directed = keep & (length > NO_DIRECTION * norm)
        unit = ((directed / length.masked_fill(~directed, 1))[:, None] @ centred)[:, 0]
    return mean_cosine(unit, directed.sum(1))
