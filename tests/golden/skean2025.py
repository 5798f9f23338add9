"""Write skean2025.json: entropy and LiDAR of seeded arrays, by the functions of Skean et al. 2025.

    git clone https://github.com/OFSkean/information_flow && git -C information_flow checkout 703d566f7391
    git clone https://github.com/uk-cliplab/representation-itl && git -C representation-itl checkout fd0da54ac25b
    pip install dadapy
    PYTHONPATH=information_flow/experiments/utils/metrics:representation-itl/src python tests/golden/skean2025.py

The archive of representation-itl 1.0.7 that the package index has holds no code; the repository does.

Called are ``compute_entropy(torch.stack([normalize(rows)]), alpha, ["raw", "maxEntropy"])`` on the rows of one prompt,
and ``compute_lidar`` on the means of normalised rows, shape (1, prompts, readings, channels), as their
``compute_on_concatenated_passes`` makes them.  The test draws the arrays again from the same seeds.
"""

import json
from pathlib import Path

import numpy as np
import torch

SOURCES = [
    {"repository": "OFSkean/information_flow", "commit": "703d566f7391390a2af967bf36fa1c7e5662175a",
     "file": "experiments/utils/metrics/metric_functions.py",
     "calls": {"entropy": "compute_entropy(torch.stack([normalize(rows)]), alpha, ['raw', 'maxEntropy'])",
               "lidar": "compute_lidar(means of normalize(rows), 1, ['maxEntropy'])"}},
    {"repository": "uk-cliplab/representation-itl", "commit": "fd0da54ac25b0f8c3d7d85d1aea104f6e3ab340a",
     "file": "src/repitl/matrix_itl.py", "calls": {"both": "matrixAlphaEntropy, by the functions above"}},
]  # fmt: skip
CASES = [(0, 12, 30, 1), (1, 40, 8, 1), (2, 12, 30, 2), (3, 40, 8, 2), (4, 20, 20, 0.5)]
"""Seed, rows, channels, order."""
LIDAR = [(0, 7, 3, 9, 12), (1, 12, 2, 6, 5)]
"""Seed, prompts, readings, rows of each, channels."""


def rows(seed, n, d):
    """(n, d) correlated rows about a mean that is not 0."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 2.0).astype(np.float32)


def readings(seed, prompts, q, n, d):
    """(prompts, q, n, d) rows of prompts that differ in their mean, and of readings that differ a little."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((prompts, 1, n, d)) + rng.standard_normal((prompts, 1, 1, d))
    skew = np.exp(rng.standard_normal((prompts, 1, n, 1)))
    return (base * skew + 0.3 * rng.standard_normal((prompts, q, n, d))).astype(np.float32)


def main():
    from metric_functions import compute_entropy, compute_lidar, normalize  # pyright: ignore[reportMissingImports]

    cases = []
    for seed, n, d, alpha in CASES:
        x = torch.stack([normalize(torch.from_numpy(rows(seed, n, d)))])
        found = compute_entropy(x, alpha, ["raw", "maxEntropy"])
        cases.append({"seed": seed, "n": n, "d": d, "alpha": alpha, **{k: v[0] for k, v in found.items()}})
    lidars = []
    for seed, prompts, q, n, d in LIDAR:
        each = readings(seed, prompts, q, n, d)
        pooled = [[normalize(torch.from_numpy(r)).mean(0) for r in prompt] for prompt in each]
        x = torch.stack([torch.stack(p) for p in pooled])[None]
        value = compute_lidar(x, 1, ["maxEntropy"])["maxEntropy"][0]
        lidars.append({"seed": seed, "prompts": prompts, "q": q, "n": n, "d": d, "maxEntropy": value})
    found = {"sources": SOURCES, "entropy": cases, "lidar": lidars}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
