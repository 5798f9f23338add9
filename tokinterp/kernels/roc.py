"""How well scores tell two groups apart: the area under the ROC curve, for many rows or bootstrap draws at once."""

from __future__ import annotations

import torch


def auroc(score: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """Return the probability that one of some items scores above one of others, ties counted half.

    The area under the ROC curve of scikit-learn, which takes one row of scores and weights at a time: here rows with
    the same scores, draws of a bootstrap, share one sorting of them.

    Parameters
    ----------
    score : torch.Tensor
        (..., item).
    yes, no : torch.Tensor
        (..., item) which items, bool, or how much each counts, >= 0; of as many dimensions as ``score``.

    Returns
    -------
    torch.Tensor
        (...) float64; NaN where a side has no item, or a score that counts is NaN.

    Examples
    --------
    >>> x = torch.tensor([0.1, 0.5, 0.5, 0.9])
    >>> float(auroc(x, x > 0.4, x < 0.4)), float(auroc(x, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])))
    (1.0, 0.875)
    """
    shape = torch.broadcast_shapes(score.shape, yes.shape, no.shape)
    unknown = score.isnan()  # without an order
    score = score.masked_fill(unknown, torch.inf).contiguous()
    ordered, index = score.sort(-1)
    below = no.expand(shape).gather(-1, index.expand(shape)).cumsum(-1, dtype=torch.float64)
    below = torch.nn.functional.pad(below, (1, 0))
    ends = (torch.searchsorted(ordered, score, right=right).expand(shape) for right in (False, True))
    low, high = (below.gather(-1, end) for end in ends)
    wins = ((low + high) * yes).sum(-1) / 2
    area = wins / (yes.sum(-1, dtype=torch.float64) * no.sum(-1, dtype=torch.float64))
    return area.masked_fill((unknown & ((yes != 0) | (no != 0))).any(-1), torch.nan)
