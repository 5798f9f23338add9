"""How well scores tell two classes apart."""

from __future__ import annotations

import torch


def auroc(score: torch.Tensor, positive: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the probability that a positive scores above a negative, ties counting half.

    Parameters
    ----------
    score : torch.Tensor
        (item,) scores.
    positive : torch.Tensor
        (item,) bool.
    weights : torch.Tensor, optional
        (..., item) weights of the items, one row for each repetition of a bootstrap.

    Returns
    -------
    torch.Tensor
        (...) float64; NaN where a side has no weight.

    Examples
    --------
    >>> float(auroc(torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([False, False, True, True])))
    0.875
    """
    weights = torch.ones(len(score), dtype=torch.float64, device=score.device) if weights is None else weights.double()
    _, group = score.unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    shape = (*weights.shape[:-1], groups)
    up = weights.new_zeros(shape).index_add_(-1, group, weights * positive)
    down = weights.new_zeros(shape).index_add_(-1, group, weights * ~positive)
    below = down.cumsum(-1) - down / 2
    return (up * below).sum(-1) / (up.sum(-1) * down.sum(-1))
