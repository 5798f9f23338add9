"""Angles and lengths of steps along positions and along depth."""

from __future__ import annotations

import torch
from torch import Tensor


def turning(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in radians between two steps (..., d); NaN where one of them has no length.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> round(float(turning(a, b)), 4)
    1.5708
    """
    one, two = (x.float() / torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) for x in (first, second))
    return between(one, two)  # 0 / 0 is NaN


def between(one: Tensor, two: Tensor) -> Tensor:
    """Return the angle in radians between unit vectors (..., d), twice the arc tangent of |a - b| / |a + b|.

    Exact near 0 and pi, where the arc cosine loses half of the digits.

    Examples
    --------
    >>> a = torch.nn.functional.normalize(torch.tensor([1.0, 1e-4]), dim=0)
    >>> f"{float(between(a, torch.tensor([1.0, 0.0]))):.2g}"
    '0.0001'
    """
    return 2 * torch.atan2(torch.linalg.vector_norm(one - two, dim=-1), torch.linalg.vector_norm(one + two, dim=-1))


def position_curvature(stream: Tensor, keep: Tensor) -> Tensor:
    """Return the turning angle at each position of a sequence.

    Parameters
    ----------
    stream : torch.Tensor
        (prompt, position, d).
    keep : torch.Tensor
        (prompt, position) bool; a position has an angle if it and both neighbours take part.

    Returns
    -------
    torch.Tensor
        (prompt, position) radians, NaN where there is none (the ends, left-out rows, steps of length 0).
    """
    out = torch.full(stream.shape[:2], torch.nan, device=stream.device, dtype=torch.float32)
    if stream.shape[1] < 3:
        return out
    step = stream[:, 1:].float() - stream[:, :-1].float()
    whole = keep[:, :-2] & keep[:, 1:-1] & keep[:, 2:]
    out[:, 1:-1] = turning(step[:, :-1], step[:, 1:]).masked_fill(~whole, torch.nan)
    return out


def nanmean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and number of the values along axis 1 that are not NaN; the mean of none is NaN."""
    ok = ~values.isnan()
    number = ok.sum(1)
    return values.masked_fill(~ok, 0).sum(1, dtype=torch.float64) / number, number
