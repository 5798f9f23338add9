"""How two distributions over the vocabulary differ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def compare(p: Tensor, q: Tensor) -> dict[str, Tensor]:
    """Return how the distributions (row, vocab) ``p`` differ from the reference ``q``, both given as log-probabilities.

    ``kl`` = KL(p || q) and ``js`` in nat (both exactly 0 for equal distributions), ``flip``: another most probable
    token, ``entropy_change`` = H(p) - H(q).
    """
    a, b = p.double(), q.double()
    pa, pb = a.exp(), b.exp()
    middle = torch.logaddexp(a, b) - np.log(2.0)
    half = [torch.where(x > 0, x * (y - middle), 0).sum(-1) for x, y in ((pa, a), (pb, b))]
    return {
        "kl": torch.where(pa > 0, pa * (a - b), 0).sum(-1).clamp_min(0),
        "js": (0.5 * (half[0] + half[1])).clamp_min(0),
        "flip": (p.argmax(-1) != q.argmax(-1)).double(),
        "entropy_change": entropy(a) - entropy(b),
    }


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy in nat."""
    p = log_probs.exp()
    return -torch.where(p > 0, p * log_probs, 0).sum(-1)
