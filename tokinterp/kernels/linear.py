"""How far one cloud of vectors is a linear map of another: sums over pairs of rows, least squares, its residuals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .moments import PANEL, mirrored

CUTOFF = 1e-10  # of the largest eigenvalue: directions in which the input varies less take no part in the map
SAME = 1e-12  # of the variance: a smaller difference between two clouds is rounding


class Chain(NamedTuple):
    """Sums over rows x_0 -> x_1 -> ... -> x_m (the stream at consecutive layers), float64 about a shift.

    The second moments of each layer serve as output of the pair before and as input of the pair after it.

    Attributes
    ----------
    shift : torch.Tensor
        (layer, d) the point subtracted from every row; any point near the data will do.
    count : torch.Tensor
        (part,) int64 rows of each part of the corpus.
    first : torch.Tensor
        (layer, part, d) sums.
    second : torch.Tensor
        (layer, part, d, d) sums of outer products; only the lower triangle counts.
    cross : torch.Tensor
        (pair, part, d, d) sums of the outer products of input row and output row.
    """

    shift: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    cross: Tensor


class Pair(NamedTuple):
    """Input and output rows about their means: count n, means (d,), scatter matrices (d, d), trace of the output's."""

    count: Tensor
    mean_in: Tensor
    mean_out: Tensor
    scatter: Tensor
    cross: Tensor
    total: Tensor


class Fit(NamedTuple):
    """Least squares of output rows on input rows, with intercept.

    Attributes
    ----------
    weight : torch.Tensor
        (d_in, d_out) map B: output - mean_out is near (input - mean_in) B.
    explained : torch.Tensor
        () sum of squares of the output that the map explains.
    rank : torch.Tensor
        () int64 directions of the input in use.
    """

    weight: Tensor
    explained: Tensor
    rank: Tensor


def empty(shift: Tensor, parts: int, pairs: int) -> Chain:
    """Return the sums of no rows yet, about ``shift`` (layer, d)."""
    shift = shift.double()
    layers, d = shift.shape

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=shift.device)

    count = torch.zeros(parts, dtype=torch.int64, device=shift.device)
    return Chain(shift, count, zeros(layers, parts, d), zeros(layers, parts, d, d), zeros(pairs, parts, d, d))


def accumulate(first: Tensor, second: Tensor, rows: Tensor) -> None:
    """Add rows to the sums of one layer and part, in place.

    Parameters
    ----------
    first, second : torch.Tensor
        (d,) and (d, d) of the layer.
    rows : torch.Tensor
        (row, d) float64 rows about the shift of the layer; rows of zeros take no part.
    """
    first.add_(rows.sum(0))
    for left in range(0, rows.shape[1], PANEL):
        second[left:, left : left + PANEL].add_((rows[:, left:].T @ rows[:, left : left + PANEL]).tril_())


def merge(a: Chain, b: Chain, pairs: list[tuple[int, int]]) -> Chain:
    """Return the sums over both sets of rows about the shift of ``a``, exactly, whatever the shift of ``b``.

    Parameters
    ----------
    a, b : Chain
        Of the same layers and parts.
    pairs : list of (int, int)
        Places (on the axis ``layer``) of input and output of each pair.
    """
    n, delta = b.count.double(), (b.shift - a.shift)[:, None].expand_as(b.first)

    def moved(cross: Tensor, i: Tensor, o: Tensor) -> Tensor:
        return (
            cross
            + b.first[i][..., :, None] * delta[o][..., None, :]
            + delta[i][..., :, None] * b.first[o][..., None, :]
            + n[:, None, None] * delta[i][..., :, None] * delta[o][..., None, :]
        )

    every = torch.arange(len(b.shift), device=b.shift.device, dtype=torch.int64)
    ends = torch.tensor(pairs, device=b.shift.device, dtype=torch.int64).T
    return Chain(
        a.shift,
        a.count + b.count,
        a.first + b.first + n[:, None] * delta,
        a.second + moved(b.second, every, every).tril(),
        a.cross + moved(b.cross, ends[0], ends[1]),
    )


def pair_of(chain: Chain, pair: int, ends: tuple[int, int], parts: list[int]) -> Pair:
    """Return one pair of layers about its means, over some parts of the corpus together."""
    n = chain.count[parts].sum()
    size = n.double()
    first = [chain.first[e, parts].sum(0) for e in ends]
    mean = [f / size for f in first]
    second = [
        mirrored(chain.second[e, parts].sum(0)) - f[:, None] * m for e, f, m in zip(ends, first, mean, strict=True)
    ]
    cross = chain.cross[pair, parts].sum(0) - first[0][:, None] * mean[1]
    return Pair(n, chain.shift[ends[0]] + mean[0], chain.shift[ends[1]] + mean[1], second[0], cross, second[1].trace())


def without_residual(pair: Pair) -> Pair:
    """Return the pair whose output is output minus input: what the block adds, not what it passes on."""
    total = pair.total - 2 * pair.cross.trace() + pair.scatter.trace()
    nothing = total <= SAME * (pair.total + pair.scatter.trace())
    return pair._replace(
        mean_out=pair.mean_out - pair.mean_in,
        cross=pair.cross - pair.scatter,
        total=torch.where(nothing, torch.zeros_like(total), total),
    )


def decompose(scatter: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (d,) ascending and vectors (d, d) of a scatter matrix; NaN where it is not finite."""
    if not bool(scatter.isfinite().all()):
        return torch.full_like(scatter[0], torch.nan), torch.full_like(scatter, torch.nan)
    return torch.linalg.eigh(scatter)


def solve(pair: Pair, ridge: float = 0.0, cutoff: float = CUTOFF, parts: tuple[Tensor, Tensor] | None = None) -> Fit:
    """Fit output rows as a linear map of input rows, from sums over batches: scikit-learn's needs all rows at once.

    Parameters
    ----------
    pair : Pair
        Of n rows.
    ridge : float
        Added to the diagonal of the input's scatter, in units of its mean; 0 is least squares.
    cutoff : float
        Eigenvalues of the input's scatter below this times the largest one are left out.
    parts : (torch.Tensor, torch.Tensor), optional
        `decompose` of the input's scatter, if it is known already.

    Examples
    --------
    >>> x = torch.randn(50, 3, dtype=torch.float64); x -= x.mean(0)
    >>> y = x @ torch.ones(3, 2, dtype=torch.float64)
    >>> p = Pair(torch.tensor(50), x.mean(0), y.mean(0), x.T @ x, x.T @ y, (y * y).sum())
    >>> round(float(linearity(p, solve(p))), 6)
    1.0
    """
    values, vectors = decompose(pair.scatter) if parts is None else parts
    keep = values > cutoff * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    shifted = values + ridge * values.clamp_min(0).mean()
    inverse = torch.where(keep, 1 / torch.where(keep, shifted, 1.0), 0.0)
    along = vectors.T @ pair.cross  # (component, d_out)
    weight = vectors @ (inverse[:, None] * along)
    gain = 2 * inverse - inverse * inverse * values  # the plain 1 / value without a ridge
    explained = ((along * along).sum(1) * torch.where(keep, gain, 0.0)).sum()
    return Fit(weight, explained, keep.sum())


def linearity(pair: Pair, fit: Fit) -> Tensor:
    """Return () the explained share of the output's sum of squares, NaN where it does not vary.

    With centred, Frobenius-normalised clouds this is 1 - min_A |X A - Y|^2, the linearity score of Razzhigaev et al.
    (arXiv 2405.12250, "Procrustes similarity"; 2502.15007, section 3.1): least squares over all matrices, not over
    rotations.
    """
    return torch.where(pair.total > 0, fit.explained / pair.total, torch.nan).clamp(max=1.0)


def floor(count: Tensor, rank: Tensor) -> Tensor:
    """Return rank / (n - 1), the expected score of independent clouds of n rows."""
    return rank.double() / (count.double() - 1)


def adjusted(score: Tensor, count: Tensor, rank: Tensor) -> Tensor:
    """Return 1 - (1 - score)(n - 1)/(n - rank - 1), whose expectation for independent clouds is 0."""
    n, r = count.double(), rank.double()
    return torch.where(n - 1 > r, 1 - (1 - score) * (n - 1) / (n - r - 1), torch.nan)


def held_out(fit: Fit, train: Pair, test: Pair) -> Tensor:
    """Return () the sum of squared residuals of a fit to ``train`` on the rows of ``test``."""
    n = test.count.double()
    dx, dy = test.mean_in - train.mean_in, test.mean_out - train.mean_out
    scatter = test.scatter + n * dx[:, None] * dx
    cross = test.cross + n * dx[:, None] * dy
    total = test.total + n * (dy * dy).sum()
    return total - 2 * (fit.weight * cross).sum() + (fit.weight * (scatter @ fit.weight)).sum()


def rotation_similarity(pair: Pair) -> Tensor:
    """Return () the nuclear norm of the normalised cross scatter: 1 if the clouds differ by a rotation and a scale.

    Equals 1 - min_Q |X Q - Y|^2 / 2 over orthogonal Q for centred, Frobenius-normalised clouds: Procrustes similarity
    in the usual sense.
    """
    size = (pair.scatter.trace() * pair.total).sqrt()
    if not bool(pair.cross.isfinite().all()):
        return torch.full_like(size, torch.nan)
    return torch.where(size > 0, torch.linalg.svdvals(pair.cross).sum() / size, torch.nan).clamp(max=1.0)


def residual_norms(x: Tensor, y: Tensor, mean_in: Tensor, mean_out: Tensor, weight: Tensor) -> Tensor:
    """Return (row,) |(y - mean_out) - (x - mean_in) B|, in the dtype of the rows."""
    return torch.linalg.vector_norm(y - mean_out - (x - mean_in) @ weight, dim=-1)
