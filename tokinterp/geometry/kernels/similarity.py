"""How alike two sets of points are when rows are paired: CKA, Procrustes, RSA, shared neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


# -- HSIC and CKA from Gram matrices --------------------------------------------------------------------------
def centred(grams: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return Gram matrices (..., n, n) with rows and columns centred, H K H; rows that take no part are 0."""
    pair, n = _kept(grams, keep)
    bare = grams * pair
    across = bare.sum(-1, keepdim=True) / n
    return (bare - across - across.mT + across.sum(-2, keepdim=True) / n) * pair


def u_centred(grams: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return Gram matrices (..., n, n) U-centred: zero diagonal, and row sums that make `hsic` unbiased.

    Szekely and Rizzo 2014 (Ann. Statist. 42, 2382), equation 3.1; n (n - 3) times the unbiased HSIC of Song et al. 2012
    (JMLR 13, 1393, equation 5) is the inner product of two of them.  A constant added to every row of the data changes
    nothing.
    """
    pair, n = _kept(grams, keep)
    pair = pair * (1 - torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device))
    bare = grams * pair
    rows = bare.sum(-1, keepdim=True)
    return (bare - (rows + rows.mT) / (n - 2) + rows.sum(-2, keepdim=True) / ((n - 1) * (n - 2))) * pair


def _kept(grams: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (n, n) 0/1 pairs of rows that take part, and how many rows do."""
    part = torch.ones(grams.shape[-1], dtype=grams.dtype, device=grams.device) if keep is None else keep.to(grams.dtype)
    return part[:, None] * part, part.sum()


def hsic(grams: Tensor, debiased: bool = False, other: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """Return (a, b) HSIC of all pairs of Gram matrices of the same n points.

    Parameters
    ----------
    grams : torch.Tensor
        (a, n, n).
    debiased : bool
        The U-statistic of Song et al. 2012 (can be negative; NaN for n < 4) instead of tr(KHLH) / (n - 1)^2.
    other : torch.Tensor, optional
        (b, n, n); by default ``grams`` itself.
    keep : torch.Tensor, optional
        (n,) bool, which points take part; all by default.

    Examples
    --------
    >>> x = torch.randn(2, 30, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> gram = x @ x.mT
    >>> biased, debiased = cka(hsic(gram)), cka(hsic(gram, debiased=True))
    >>> bool(biased[0, 1] > 0.6), bool(debiased[0, 1].abs() < 0.2)
    (True, True)
    """
    change = u_centred if debiased else centred
    one = change(grams, keep).flatten(1)
    two = one if other is None else change(other, keep).flatten(1)
    n = _kept(grams, keep)[1].double()
    value = one.double() @ two.double().T / (n * (n - 3) if debiased else (n - 1) ** 2)
    return torch.where(n >= 4, value, torch.nan)


def cka(cross: Tensor, one: Tensor | None = None, two: Tensor | None = None) -> Tensor:
    """Return HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)); NaN where a self term is not positive.

    Parameters
    ----------
    cross : torch.Tensor
        (..., a, b).
    one, two : torch.Tensor, optional
        (..., a) and (..., b) HSIC of each with itself; by default the diagonal of ``cross``.
    """
    one = cross.diagonal(dim1=-2, dim2=-1) if one is None else one
    two = one if two is None else two
    below = one[..., :, None].clamp_min(0).sqrt() * two[..., None, :].clamp_min(0).sqrt()
    return torch.where(below > 0, cross / below, torch.nan)


# -- the same from sums over rows -----------------------------------------------------------------------------
class PairSums(NamedTuple):
    """Sums over paired rows x, y, from which linear CKA and Procrustes follow exactly.

    Attributes
    ----------
    count : torch.Tensor
        () rows n.
    sum_x, sum_y : torch.Tensor
        (d,) and (e,).
    cross : torch.Tensor
        (d, e) sum of x y'.
    x_size, y_size : torch.Tensor
        () sum of |x|^2 and of |y|^2.
    x_by_y, y_by_x : torch.Tensor
        (d,) sum of x |y|^2 and (e,) sum of y |x|^2.
    both : torch.Tensor
        () sum of |x|^2 |y|^2.
    """

    count: Tensor
    sum_x: Tensor
    sum_y: Tensor
    cross: Tensor
    x_size: Tensor
    y_size: Tensor
    x_by_y: Tensor
    y_by_x: Tensor
    both: Tensor


def centred_cross(s: PairSums) -> Tensor:
    """Return (d, e) sum of (x - mean)(y - mean)'."""
    return s.cross - s.sum_x[:, None] * s.sum_y / s.count


def hsic_from_sums(s: PairSums, debiased: bool = False) -> Tensor:
    """Return () the HSIC of the linear kernel that `hsic` gives for the Gram matrices, in memory d x e.

    With K = X X', the zero-diagonal traces and sums of Song et al. 2012 are sums over rows: tr(KL) without the diagonal
    is |X'Y|^2 - sum k l (k, l the squared norms), 1'K1 is |sum x|^2 - sum k, and 1'KL1 the product of the vectors
    X sum_x - k and Y sum_y - l.
    """
    n = s.count.double()
    if not debiased:
        return (centred_cross(s) ** 2).sum() / (n - 1) ** 2
    trace = (s.cross**2).sum() - s.both
    one = (s.sum_x**2).sum() - s.x_size
    two = (s.sum_y**2).sum() - s.y_size
    middle = s.sum_x @ s.cross @ s.sum_y - s.sum_x @ s.x_by_y - s.sum_y @ s.y_by_x + s.both
    value = (trace + one * two / ((n - 1) * (n - 2)) - 2 * middle / (n - 2)) / (n * (n - 3))
    return torch.where(n >= 4, value, torch.nan)


# -- other similarities of paired rows ------------------------------------------------------------------------
def reduced(rows: Tensor) -> Tensor:
    """Return (n, r) rows centred and turned so that r <= min(n, d): all inner products stay."""
    y = rows.double() - rows.double().mean(0)
    return y if y.shape[1] <= y.shape[0] else torch.linalg.qr(y.T, mode="r").R.T


def procrustes(one: Tensor, two: Tensor) -> Tensor:
    """Return 1 - min over orthogonal Q of |XQ - Y|^2 / 2 of centred rows of Frobenius norm 1: |X'Y|_*.

    Parameters
    ----------
    one, two : torch.Tensor
        (n, d) and (n, e) paired rows (the narrower one counts as padded with zeros).

    Returns
    -------
    torch.Tensor
        () between 0 and 1; NaN for a constant cloud.  Independent clouds do not give 0: with fewer rows than channels
        an orthogonal map fits noise well, so compare with rows paired at random.

    Examples
    --------
    >>> x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    >>> round(float(procrustes(x, 3 * x @ q + 1)), 6)
    1.0
    """
    return _all_procrustes([reduced(one)], [reduced(two)])[0, 0]


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Return the sum of the singular values of a float64 matrix, those above 1e-7 of the largest."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = torch.linalg.eigvalsh(small @ small.T)
    return torch.where(values > 1e-14 * values[-1], values.clamp_min(0), 0.0).sqrt().sum()


def distances(rows: Tensor) -> Tensor:
    """Return (n, n) Euclidean distances in float64, centred first; rows equal to 8 digits are at distance 0."""
    y = rows.double() - rows.double().mean(0)
    size = (y * y).sum(1)
    squared = (size[:, None] + size - 2 * y @ y.T).clamp_min_(0)
    squared[squared <= 1e-15 * (size[:, None] + size)] = 0
    return squared.sqrt().fill_diagonal_(0)


def upper(square: Tensor) -> Tensor:
    """Return (n (n - 1) / 2,) what is above the diagonal."""
    i, j = torch.triu_indices(*square.shape, offset=1, device=square.device, dtype=torch.int64)
    return square[i, j]


def average_ranks(values: Tensor) -> Tensor:
    """Return the rank of each value from 1, ties with their average rank; equal to 1e-8 of the mean is a tie.

    On the device of the values, which are as many as there are pairs of prompts.

    Examples
    --------
    >>> average_ranks(torch.tensor([3.0, 1.0, 1.0, 2.0])).tolist()
    [4.0, 1.5, 1.5, 3.0]
    """
    coarse = torch.round(values.double() / values.double().abs().mean().clamp_min(1e-300) * 2**26)
    _, place, count = torch.unique(coarse, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]


def spearman(ranks: Tensor, other: Tensor | None = None) -> Tensor:
    """Return (a, b) correlations of rows of ranks (a, pair) with (b, pair): RSA where the values were distances."""
    one = ranks - ranks.mean(1, keepdim=True)
    two = one if other is None else other - other.mean(1, keepdim=True)
    below = torch.linalg.vector_norm(one, dim=1)[:, None] * torch.linalg.vector_norm(two, dim=1)
    return torch.where(below > 0, one @ two.T / below, torch.nan)


def rbf_gram(distance: Tensor) -> Tensor:
    """Return exp(-d^2 / (2 s^2)) with s the median distance of different points."""
    apart = upper(distance).sort().values
    width = (apart[(len(apart) - 1) // 2] + apart[len(apart) // 2]) / 2
    return torch.exp(-(distance**2) / (2 * width**2))


def nearest(rows: Tensor, k: int) -> Tensor:
    """Return (n, n) 0/1 float32 membership in the k nearest neighbours by cosine (rows scaled to length 1)."""
    y = torch.nn.functional.normalize(rows.double(), dim=1)
    order = (y @ y.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros(len(y), len(y), device=y.device, dtype=torch.float32).scatter_(1, order, 1.0)


def mutual_neighbours(members: Tensor, k: int, other: Tensor | None = None) -> Tensor:
    """Return (a, b) mean share of the k nearest neighbours that two sets have in common (Huh et al. 2024).

    Parameters
    ----------
    members : torch.Tensor
        (a, n, n) what `nearest` returns.
    k : int
        Number of neighbours; independent sets share k / (n - 1).
    other : torch.Tensor, optional
        (b, n, n).
    """
    one = members.flatten(1)
    two = one if other is None else other.flatten(1)
    return (one @ two.T).double() / (k * members.shape[-1])


# -- many sets at once ----------------------------------------------------------------------------------------
MEASURES = {
    "cka": ("cka", "cka_debiased"),
    "procrustes": ("procrustes",),
    "rsa": ("rsa",),
    "rbf": ("cka_rbf", "cka_rbf_debiased"),
    "neighbours": ("mutual_neighbours",),
}
"""What can be asked for -> names of the numbers."""


def compare_sets(
    one: Sequence[Tensor],
    two: Sequence[Tensor] | None = None,
    measures: Sequence[str] = ("cka", "procrustes", "rsa"),
    k: int = 10,
) -> dict[str, Tensor]:
    """Compare every set of rows with every other.

    Parameters
    ----------
    one : sequence of torch.Tensor
        Of (n, d) rows; row i of all sets belongs together.
    two : sequence of torch.Tensor, optional
        What to compare with, by default the same sets.
    measures : sequence of str
        Keys of `MEASURES`.
    k : int
        Neighbours of ``"neighbours"``.

    Returns
    -------
    dict of str to torch.Tensor
        (a, b) float64.  Memory: n x n float64 numbers for each set, three times over.
    """
    found: dict[str, Tensor] = {}
    both = [one] if two is None else [one, two]
    if "cka" in measures:
        grams = [torch.stack([(y := reduced(x)) @ y.T for x in sets]) for sets in both]
        found["cka"], found["cka_debiased"] = _both_cka(grams)
    if {"rsa", "rbf"} & {*measures}:
        apart = [[distances(x) for x in sets] for sets in both]
        if "rsa" in measures:
            found["rsa"] = spearman(*(torch.stack([average_ranks(upper(d)) for d in ds]) for ds in apart))
        if "rbf" in measures:
            grams = [torch.stack([rbf_gram(d) for d in ds]) for ds in apart]
            found["cka_rbf"], found["cka_rbf_debiased"] = _both_cka(grams)
    if "procrustes" in measures:
        found["procrustes"] = _all_procrustes(*([reduced(x) for x in sets] for sets in both))
    if "neighbours" in measures:
        members = [torch.stack([nearest(x, k) for x in sets]) for sets in both]
        found["mutual_neighbours"] = mutual_neighbours(members[0], k, members[1] if len(both) > 1 else None)
    return found


def _both_cka(grams: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    out = []
    for debiased in (False, True):
        if len(grams) == 1:
            out.append(cka(hsic(grams[0], debiased)))
            continue
        own = [torch.cat([hsic(g[None], debiased)[0] for g in side]) for side in grams]
        out.append(cka(hsic(grams[0], debiased, grams[1]), *own))
    return out[0], out[1]


def _all_procrustes(one: Sequence[Tensor], two: Sequence[Tensor] | None = None) -> Tensor:
    out = torch.empty(len(one), len(two or one), dtype=torch.float64, device=one[0].device)
    for i, x in enumerate(one):
        for j, y in enumerate(two or one):
            if two is None and j < i:
                out[i, j] = out[j, i]
                continue
            below = torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y)
            out[i, j] = torch.where(below > 0, nuclear_norm(x.T @ y) / below, torch.nan)
    return out
