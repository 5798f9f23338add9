"""Ridge regression on folds: errors of rows that the map was not fitted on."""

from __future__ import annotations

import numpy as np
import torch


def held_out(x: torch.Tensor, y: torch.Tensor, fold: torch.Tensor, folds: int, ridge: float) -> np.ndarray:
    """Return (2, row) squared held-out error of each row, and its squared distance from the training mean."""
    out = np.zeros((2, len(x)))
    for f in range(folds):
        train, test = fold != f, fold == f
        mx, my = x[train].mean(0), y[train].mean(0)
        a = x[train] - mx
        gram = a.T @ a
        gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype, device="cpu")
        w = torch.linalg.solve(gram, a.T @ (y[train] - my))
        out[0, test.numpy()] = (y[test] - my - (x[test] - mx) @ w).pow(2).sum(-1).numpy()
        out[1, test.numpy()] = (y[test] - my).pow(2).sum(-1).numpy()
    return out
