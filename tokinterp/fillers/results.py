"""Labels of what the filler experiments return."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..results.dataset import variable

QUANTITIES = ("kl", "js", "flip", "entropy_change")
NAMES = {
    "log_prob": ("log-probability of the answer", "nat"),
    "log_prob_change": ("change of the log-probability of the answer", "nat"),
    "correct": ("whether every token of the answer is the most probable one, of k as probable 1/k", "1"),
    "rank": ("tokens more probable than the first of the answer", "1"),
    "kl": ("KL divergence from the reference at the answer position", "nat"),
    "js": ("Jensen-Shannon divergence from the reference at the answer position", "nat"),
    "flip": ("whether the most probable token is another one than in the reference", "1"),
    "entropy_change": ("change of the entropy at the answer position", "nat"),
}


def numbers(n: int) -> xr.Variable:
    """Return the coordinate of n items."""
    return variable("prompt", np.arange(n), "number of the item", "1")
