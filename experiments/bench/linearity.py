"""Linearity of all blocks: streamed sums against the published thin SVD on the same states.

python -m experiments.bench linearity [--small]
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokinterp as ti
from tokinterp.run.batch import Batch
from tokinterp.run.sites import Site

from . import common


def published(x: Tensor, y: Tensor) -> float:
    """Return the score by the published steps: centre, normalise, thin SVD, divide by all singular values."""
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / torch.linalg.norm(x), y / torch.linalg.norm(y)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    a = vt.T @ ((u.T @ y) / s[:, None])
    return float(1 - torch.linalg.norm(x @ a - y) ** 2)


def run(*, small: bool = False, out: Path | None = None) -> dict[str, Any]:
    """Time both on states of random layers; the measurement gives floors, held-out and adjusted scores too."""
    n, length, d, layers = (4, 64, 32, 3) if small else (16, 512, 512, 5)
    lm = common.random_llama(n_layers=layers - 1, d_model=d, n_heads=4, d_vocab=320)
    model = ti.wrap(lm, id="bench")
    prompts = common.random_prompts(n, length, 320)
    states = torch.randn(
        layers, n, length, d, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(model.device)
    states = states.cumsum(0) + 0.3 * torch.tanh(states).cumsum(0)
    ids = torch.stack([torch.from_numpy(prompts.ids(i)).long() for i in range(n)]).to(model.device)
    yes = torch.ones_like(ids, dtype=torch.bool)
    acts = {Site("resid", i): states[i] for i in range(layers)}
    batch = Batch(ids, yes, list(range(n)), [length] * n, [i * length for i in range(n)], ~yes, acts, model)

    def measured(held_out: bool) -> list[float]:
        m = ti.linearity.Linearity(exclude=(), held_out=held_out)
        m.begin(model.info, prompts)
        m.update(batch)
        return m.result()["linearity"].values.tolist()

    def both() -> list[float]:
        flat = states.flatten(1, 2)
        return [p for x, y in pairwise(flat) for p in (published(x, y), published(x, y - x))][::2]

    gap = max(abs(a - b) for a, b in zip(measured(False), both(), strict=True))
    times = common.paired(
        {
            "Linearity(held_out=False)": lambda: measured(False),
            "Linearity()": lambda: measured(True),
            "published SVD, with and without residual": both,
        },
        rounds=2 if small else 3,
    )
    rows = {name: {**t, "largest_difference": gap} for name, t in times.items()}
    sizes = {"tokens": n * length, "d_model": d, "blocks": layers - 1}
    return common.save("linearity", rows, sizes, out)
