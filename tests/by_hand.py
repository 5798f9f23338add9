"""Streams and losses of one prompt at a time, with which tests work by hand what the package works out in batches."""

import numpy as np
import torch

import tokinterp as ti

PAIRS = [("The river", " in"), ("One and", " to"), ("Go", " the"), ("Let it be", " and")]
"""Questions with their answers, in tokens of the tiny models."""


def streams(model, ids, edits=()):
    """(layer, position, d) float64 stream of one prompt."""
    sites = ti.resid(range(model.info.n_layers + 1))
    with torch.no_grad():
        got = model.run(torch.as_tensor(ids)[None], sites, edits=edits)
    return torch.stack([got[s][0].double() for s in sites])


def losses(model, ids, edits=()):
    """(position,) cross-entropy of the next token of one prompt."""
    last = streams(model, ids, edits)[-1]
    with torch.no_grad():
        logp = model.unembed(last.float()).log_softmax(-1)
    return np.array([-float(logp[t, ids[t + 1]]) for t in range(len(ids) - 1)])
