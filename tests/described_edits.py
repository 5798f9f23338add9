"""Edits that all differ, each as it is recorded; imported by a second process in the tests."""

import numpy as np
import torch

import tokinterp as ti
from tokinterp.run import edits as E


def last_ones(count):
    return lambda ids, mask: (mask.flip(1).cumsum(1) <= count).flip(1)


def described():
    site, value = ti.Site("resid", 1), torch.arange(32.0)

    def over(threshold, ids, mask):
        return ids > threshold

    made = [
        E.zero(site), E.zero(site, 3), E.zero(site, [3, 4]), E.zero(site, slice(1, None)), E.zero(site, last_ones(1)),
        E.zero(site, last_ones(2)), E.replace(site, value), E.replace(site, value + 1), E.add(site, value),
        E.mean_ablate(site), E.mean_ablate(site, mean=value), E.zero(ti.Site("resid", 2)),
        E.zero(site, lambda ids, mask: over(3, ids, mask)), E.zero(site, lambda ids, mask: over(4, ids, mask)),
        E.zero(site, lambda ids, mask, over=over: over(4, ids, mask)),
        E.zero(site, lambda ids, mask: (lambda: ids > 5)()), E.zero(site, lambda ids, mask: (lambda: ids > 6)()),
        E.scale(site, 2), E.scale(site, 0.5), E.apply(site, lambda x: x + 1), E.apply(site, lambda x: x + 2),
        E.apply(site, torch.relu), E.patch(site, donor=0), E.patch(site, donor=1), E.patch(site, donor={0: 1}),
        E.patch(site, donor=[1, 0]), E.patch(site, donor=0, source=1), E.patch(site, 1, donor=0),
        E.zero(site, np.arange(9) == 3), E.zero(site, np.arange(9) == 4),
        E.knock_out([1]), E.knock_out([1], [2]), E.knock_out([1], heads=[0]), E.knock_out([1], blocks=[0]),
    ]  # fmt: skip
    return [e.describe() for e in made]
