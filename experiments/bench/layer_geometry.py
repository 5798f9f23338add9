"""CKA, Procrustes, RSA, matrix entropy and curvature against their formulas written out, on the same states."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokinterp as ti
from tokinterp.geometry.kernels import curvature as trajectory
from tokinterp.geometry.kernels import entropy
from tokinterp.geometry.kernels import similarity as sim

from .common import paired, random_llama, random_prompts, save


def run(out: Path | None = None, rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Time each quantity in both ways, and the measurements in multiples of a bare forward pass.

    The literal versions take layer pairs, layers, prompts or positions one at a time, as the published scripts do;
    ``largest_difference`` is between the two results.
    """
    sizes: dict[str, Any] = {"layers": 5, "d_model": 384, "tokens": 512, "prompts": 2, "n_layers": 6, "d_vocab": 8000}
    if small:
        sizes = {"layers": 3, "d_model": 32, "tokens": 40, "prompts": 2, "n_layers": 2, "d_vocab": 300}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(
        sizes["layers"], sizes["tokens"], sizes["d_model"], generator=draw, dtype=torch.float32, device="cpu"
    )
    x = (
        x
        @ torch.randn(sizes["d_model"], sizes["d_model"], generator=draw, dtype=torch.float32, device="cpu")
        / sizes["d_model"] ** 0.5
    ).cumsum(0)
    states, keep = list(x), torch.ones(len(x), sizes["tokens"], dtype=torch.bool, device="cpu")
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "CKA, biased and debiased": (
            lambda: literal_pairs(states, literal_cka, literal_debiased),
            lambda: np.stack([v.numpy() for v in sim.compare_sets(states, None, ["cka"]).values()]),
        ),
        "Procrustes": (
            lambda: literal_pairs(states, literal_procrustes),
            lambda: sim.compare_sets(states, None, ["procrustes"])["procrustes"].numpy()[None],
        ),
        "RSA": (
            lambda: literal_pairs(states[:4], literal_rsa),
            lambda: sim.compare_sets(states[:4], None, ["rsa"])["rsa"].numpy()[None],
        ),
        "prompt entropy": (
            lambda: np.array([literal_entropy(y) for y in states]),
            lambda: entropy.renyi(entropy.gram_spectrum(x)).numpy(),
        ),
        "curvature": (
            lambda: np.array([literal_curvature(y) for y in states]),
            lambda: trajectory.nanmean(trajectory.position_curvature(x, keep))[0].numpy(),
        ),
    }  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    for name, (literal, ours) in ways.items():
        timed = paired({f"{name}: tokinterp": ours, f"{name}: literal": literal}, rounds)
        timed[f"{name}: literal"]["largest_difference"] = float(np.abs(literal() - ours()).max())
        rows |= timed
    rows |= _against_forward(sizes, rounds)
    return save("layer_geometry", rows, sizes, out)


def _against_forward(sizes: dict[str, Any], rounds: int) -> dict[str, dict[str, float]]:
    lm = random_llama(sizes["n_layers"], sizes["d_model"], 8, sizes["d_vocab"])
    model = ti.wrap(lm, id="random-llama")
    prompts = random_prompts(sizes["prompts"], sizes["tokens"], sizes["d_vocab"])

    def forward() -> None:
        with torch.no_grad():
            for numbers in prompts.batches(sizes["tokens"]):
                lm.model(torch.from_numpy(prompts.padded(numbers)[0]).to(model.device), use_cache=False)

    def measured(make: Callable[[], ti.Measurement]) -> Callable[[], Any]:
        return lambda: ti.measure(model, prompts, {"m": make()}, batch_tokens=sizes["tokens"], progress=False)

    few = min(1024, sizes["tokens"])
    makers: dict[str, Callable[[], ti.Measurement]] = {
        "LayerSimilarity, CKA of a sample": lambda: ti.geometry.LayerSimilarity(measures="cka", sample=few),
        "LayerSimilarity, CKA over prompts": lambda: ti.geometry.LayerSimilarity(
            measures="cka", over="prompt", sample=few
        ),
        "MatrixEntropy": ti.geometry.MatrixEntropy,
        "MatrixEntropy, dataset only": lambda: ti.geometry.MatrixEntropy(prompts=0),
        "Curvature": ti.geometry.Curvature,
        "TokenNorms": ti.geometry.TokenNorms,
        "FirstTokenAttention": ti.attention.FirstTokenAttention,
    }
    return paired(
        {"forward without head": forward, **{f"measure: {k}": measured(m) for k, m in makers.items()}}, rounds
    )


# -- the formulas, one after the other ------------------------------------------------------------------------
def literal_pairs(states: list[torch.Tensor], *functions: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """Return (function, layer, layer) of every pair, computed by itself in float64."""
    y = [s.double().numpy() for s in states]
    return np.array([[[f(a, b) for b in y] for a in y] for f in functions])


def literal_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def literal_debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, with Gram matrices."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * k.sum(0) @ m.sum(1) / (n - 2)
        return float(((k * m).sum() + sums) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def literal_procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """Nuclear norm by a singular value decomposition."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.svd(x.T @ y, compute_uv=False).sum() / np.linalg.norm(x) / np.linalg.norm(y))


def literal_rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman of two vectors of distances."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return float(spearmanr(pdist(x), pdist(y))[0])  # pyright: ignore[reportArgumentType]


def literal_entropy(x: torch.Tensor) -> float:
    """Entropy of the squared singular values."""
    p = torch.linalg.svdvals(x.double()) ** 2
    return float(torch.special.entr(p / p.sum()).sum())


def literal_curvature(x: torch.Tensor) -> float:
    """One angle at a time, signed."""
    total, steps = 0.0, x.double().diff(dim=0)
    for a, b in pairwise(steps):
        total += torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)).item()
    return total / (len(steps) - 1)
