"""Clouds of a corpus with planted states."""

import numpy as np
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti

MODEL = ti.wrap(tiny_lm("llama", max_position_embeddings=256), byte_tokenizer(), id="tiny")


def corpus(n_prompts, length, seed=0, first=None):
    """Prompts of random ids that have no beginning in common."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 60, (n_prompts, length))
    ids[:, 0] = np.arange(n_prompts) % 250 + 5 if first is None else first
    return ti.Prompts.from_ids(ids.tolist(), MODEL)


def planted(states, prompts):
    """The cloud of prompts with other states (token, layer, channel)."""
    cloud = ti.geometry.corpus_cloud(MODEL, prompts, range(states.shape[1]), progress=False)
    kept = cloud.isel(channel=slice(0, states.shape[2])).copy()
    kept["state"] = (kept["state"].dims, np.asarray(states, np.float32)[: kept.sizes["token"]])
    return kept


def flat(n, dim, channels, seed=0, curved=False):
    """Points (n, channels) of a manifold of that dimension: a plane, or a sphere."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim + curved, generator=draw, dtype=torch.float64)
    if curved:
        x = torch.nn.functional.normalize(x, dim=1)
    frame = torch.linalg.qr(torch.randn(channels, dim + curved, generator=draw, dtype=torch.float64)).Q
    return (x @ frame.T).numpy()


def search(cloud, k=20, **how):
    return ti.geometry.corpus_neighbours(cloud, k, **{"n_tokens": None, "progress": False, **how})
