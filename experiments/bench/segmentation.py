"""Scores of all spans of a document and their greedy choice: prefix sums against the steps as published.

The published steps walk through the rows of a data frame for every span, then compare every span with all accepted
before; they run once.  The same with plain lists shows how much of that is the data frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tokinterp.erasure.kernels.spans import segment_greedy, segments, span_scores

from .common import paired, save

OFFSETS = (0, -1, -2)


def run(out: Path | None = None, rounds: int = 9, small: bool = False) -> dict[str, Any]:
    """Time one document, and a batch of 16, of 256 tokens with random scores."""
    n = 32 if small else 256
    draw = torch.Generator().manual_seed(0)
    delta = torch.rand(16, n, len(OFFSETS), dtype=torch.float64, device="cpu", generator=draw) - 0.3
    for j, i in enumerate(OFFSETS):
        delta[:, : -i or 0, j] = torch.nan
    one = delta[0].numpy()

    def ours(documents: torch.Tensor) -> torch.Tensor:
        return segment_greedy(span_scores(documents, offsets=OFFSETS))

    methods: dict[str, Callable[[], Any]] = {"tokinterp, one document": lambda: ours(delta[:1])}
    methods["tokinterp, 16 documents"] = lambda: ours(delta)
    rows: dict[str, dict[str, float]] = paired(methods, rounds)
    _, starts, stops = segments(ours(delta[:1]))
    expected = {(int(p), int(q) - 1) for p, q in zip(starts, stops, strict=True)}
    frame = pd.DataFrame(one, columns=[str(i) for i in OFFSETS])
    for name, row in (("lists", one.tolist().__getitem__), ("a data frame", lambda t: frame.iloc[t].to_numpy())):
        start = time.perf_counter()
        found = published(n, row)
        seconds = time.perf_counter() - start
        if found != expected:
            raise RuntimeError(f"the published steps over {name} choose other segments")
        ratio = seconds / rows["tokinterp, one document"]["seconds"]
        rows[f"published steps, rows of {name}"] = {"seconds": seconds, "ratio": ratio}
    return save("segmentation", rows, {"tokens": n, "segments": len(expected)}, out)


def published(n: int, row: Callable[[int], Any]) -> set[tuple[int, int]]:
    """Return the accepted spans (first, last) of the published steps; ``row(t)`` has the drops at offsets 0, -1, -2."""
    scores = []
    for p in range(n):
        for q in range(p, n):
            total, terms = float(row(q)[0]), 1
            for t in range(p, q + 1):
                drops = row(t)
                for j, i in ((1, -1), (2, -2)):
                    if not np.isnan(drops[j]):
                        total += -drops[j] if t + i < p else drops[j]
                        terms += 1
            scores.append((total / terms, p, q))
    accepted: list[tuple[int, int]] = []
    for _, p, q in sorted(scores, key=lambda s: (-s[0], s[1] - s[2], s[1])):
        if not any(p <= b and q >= a for a, b in accepted):
            accepted.append((p, q))
    return set(accepted)
