"""Moments of a stream of rows, summed in float64 and merged exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .state import neutral

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
        (..., d, d) sum of the outer products y y'; **only the lower triangle counts**, and nothing else is written.
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
    """A cloud about its own mean: ``count``, ``mean``, ``scatter`` (sum of outer products), ``fourth`` (of |.|^4)."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    fourth: Tensor


def empty(shift: Tensor, second: Tensor | None = None) -> Moments:
    """Return the moments of no rows yet about ``shift`` (..., d); ``second`` may bring its own zeros."""
    shift = shift.double()
    lead, d = shift.shape[:-1], shift.shape[-1]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros((*lead, *shape), dtype=torch.float64, device=shift.device)

    count = torch.zeros(lead, dtype=torch.int64, device=shift.device)
    return Moments(shift.clone(), count, zeros(d), zeros(d, d) if second is None else second, zeros(d), zeros())


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
    with neutral():
        for start in range(0, n, BLOCK_ROWS):
            y = shifted[start : start + BLOCK_ROWS]
            if keep is not None:
                y = y * keep[start : start + BLOCK_ROWS, None]
            size = (y * y).sum(1)
            moments.first.add_(y.sum(0, dtype=torch.float64))
            moments.cubic.add_(size @ y)
            moments.fourth.add_(size.double().square().sum())
            for left in range(0, d, PANEL):
                moments.second[left:, left : left + PANEL].add_((y[:, left:].T @ y[:, left : left + PANEL]).tril_())


def two_triangles(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return two (..., d, d) views of one (..., d + 1, d) tensor whose lower triangles do not overlap.

    Two symmetric matrices fit in the memory of one: the first below the diagonal, the second, transposed, above it.
    """
    return packed[..., 1:, :], packed[..., :-1, :].mT


def packed_triangles(first: Tensor, second: Tensor) -> Tensor:
    """Return the (..., d + 1, d) tensor whose `two_triangles` are those of two (..., d, d) tensors."""
    packed = first.new_zeros(*first.shape[:-2], first.shape[-1] + 1, first.shape[-1])
    for place, matrix in zip(two_triangles(packed), (first, second), strict=True):
        place.add_(matrix.tril())
    return packed


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
