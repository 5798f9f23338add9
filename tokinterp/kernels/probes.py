"""Linear probes in closed form, from sums over batches: ridge regression and linear discriminant analysis."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(gram: Tensor, sums: Tensor, counts: Tensor, penalty: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return weight (class, d) and bias (class,) of the regression of one-hot targets on centred inputs.

    From moments, which are sums over batches on the model's device; scikit-learn's needs all rows at once.

    With all moments divided by the number of rows, W = S (G + penalty mean(diag G) I)^-1 and the bias is the share of
    each class.  Its scores are no logits: only their order means something.

    Parameters
    ----------
    gram : torch.Tensor
        (d, d) float64 mean outer product of the centred inputs.
    sums : torch.Tensor
        (class, d) float64 sum of the centred inputs of each class.
    counts : torch.Tensor
        (class,) rows of each class.
    penalty : float
        In units of the mean variance of an input.
    """
    total = counts.sum().clamp_min(1).double()
    weight = torch.linalg.solve(_loaded(gram, penalty), (sums / total).T).T
    return weight, counts.double() / total


def shrunk_lda(gram: Tensor, sums: Tensor, counts: Tensor, shrinkage: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return weight (class, d) and bias (class,) of linear discriminant analysis with a shrunk covariance.

    From moments, as `ridge`, where scikit-learn's needs all rows at once.

    The covariance within classes is (1 - s) (G - sum_c p_c m_c m_c') + s mean(diag G) I; logits are
    m_c' C^-1 x - m_c' C^-1 m_c / 2 + log p_c.  Classes without rows get the logit -inf.

    Parameters
    ----------
    gram, sums, counts
        As for `ridge`.
    shrinkage : float
        s, above 0: where the inputs say the class exactly (the embedding), nothing varies within classes.
    """
    n = counts.double()
    share = n / n.sum().clamp_min(1)
    means = sums / n.clamp_min(1)[:, None]
    within = gram - (means * share[:, None]).T @ means
    level = gram.diagonal().mean()
    covariance = _loaded(within * (1 - shrinkage), shrinkage, level)
    weight = torch.linalg.solve(covariance, means.T).T
    return weight, share.log() - (weight * means).sum(1) / 2


def _loaded(matrix: Tensor, load: float, level: Tensor | None = None) -> Tensor:
    """Return the matrix with a multiple of its mean diagonal added to the diagonal."""
    level = matrix.diagonal().mean() if level is None else level
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix + eye * (load * level)
