"""A Llama-7B-shaped random model: the pass alone, with all layers captured, with each measurement, with all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

import tokinterp as ti
from experiments.bench.common import random_llama, random_prompts

from .job import Job

SHAPE = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "d_vocab": 32000, "d_mlp": 11008}
TINY = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_vocab": 320, "d_mlp": 64}
MAKERS: dict[str, Any] = {
    "dimension": ti.geometry.IntrinsicDimension,
    "lens": ti.lens.LogitLens,
    "overlap": ti.geometry.NeighbourOverlap,
    "linearity": ti.linearity.Linearity,
    "spectrum": ti.geometry.Spectrum,
}

SOLVERS = {
    "eigenvalues": torch.linalg.eigvalsh,
    "eigenvectors": torch.linalg.eigh,
    "singular values": torch.linalg.svdvals,
}


def operations(shape: Mapping[str, int], prompts: int, tokens: int) -> dict[str, dict[str, float]]:
    """Return the operations of the pass and, beyond it, of each measurement, by kind of product; a product counts 2.

    Counted: all products of the blocks and half of the attention's; distances of all pairs of points of a cloud
    (dimension, overlap); outer products of the rows, and a tridiagonal form (4/3 d**3) per layer or block (spectrum,
    linearity); the head at every layer (lens).

    Examples
    --------
    >>> round(operations(SHAPE, 8, 1024)["forward"]["bfloat16"] / 1e12)
    108
    """
    n, d, layers, rows = shape["n_layers"], shape["d_model"], shape["n_layers"] + 1, prompts * tokens
    blocks = n * (4 * d * d + 3 * d * shape["d_mlp"])
    pairs = {"float64": 2.0 * layers * prompts * tokens**2 * d}
    return {
        "forward": {"bfloat16": 2.0 * blocks * rows + 2.0 * n * prompts * tokens**2 * d},
        "head": {"bfloat16": 2.0 * rows * d * shape["d_vocab"]},
        "dimension": pairs,
        "overlap": pairs,
        "lens": {"bfloat16": 2.0 * layers * rows * d * shape["d_vocab"]},
        "spectrum": {"float32": 2.0 * layers * rows * d * d, "float64": 4 / 3 * layers * d**3},
        "linearity": {"float64": 2.0 * (2 * n + 1) * rows * d * d + 4 / 3 * n * d**3},
    }


def run(job: Job) -> str:
    """Time all of it; a measurement that would take longer than the step may is timed on one layer instead."""
    shape, n, length = (TINY, 2, 260) if job.tiny else (SHAPE, 8, 1024)
    job.sizes = {**shape, "prompts": n, "tokens": length, "dtype": "float32" if job.tiny else "bfloat16"}
    lm = random_llama(**shape, dtype=torch.float32 if job.tiny else torch.bfloat16)
    model = ti.wrap(lm, id="random-llama")
    prompts = random_prompts(n, length, shape["d_vocab"])
    ids = torch.from_numpy(prompts.padded(list(range(n)))[0]).to(model.device)
    sites = ti.resid(range(shape["n_layers"] + 1))
    cost = {k: Counter(v) for k, v in operations(shape, n, length).items()}
    rate: dict[str, Any] = {"tokens": n * length}

    def forward(head: bool) -> Any:
        with torch.no_grad():
            return (lm if head else lm.model)(ids, use_cache=False)

    def measured(makers: Mapping[str, Any]) -> Any:
        which = {k: make() for k, make in makers.items()}
        return ti.measure(model, prompts, which, batch_tokens=n * length, progress=False)

    for name, call, flops in (
        ("forward", lambda: forward(False), cost["forward"]),
        ("forward with head", lambda: forward(True), cost["forward"] + cost["head"]),
        ("forward, all layers captured", lambda: model.run(ids, sites), cost["forward"]),
    ):
        if job.wants(name):
            job.time(name, call, flops=flops, **rate)
    base, d, middle = job.rows["forward"]["seconds"], shape["d_model"], shape["n_layers"] // 2
    if missing := [k for k in SOLVERS if f"{k} of a layer" not in job.rows]:  # they decide what two of them take
        square = torch.randn(d, d, device=model.device, dtype=torch.float64)
        square = square @ square.T
        for k in missing:
            job.time(f"{k} of a layer", lambda k=k: SOLVERS[k](square), flops={"float64": 4 / 3 * d**3}, rounds=1)
    values, vectors, singular = (job.rows[f"{k} of a layer"]["seconds"] for k in SOLVERS)
    needs = {"spectrum": 2 * len(sites) * values, "linearity": shape["n_layers"] * (3 * vectors + singular)}
    one = {
        "spectrum": lambda: ti.geometry.Spectrum(layers=[middle]),
        "linearity": lambda: ti.linearity.Linearity(blocks=[middle]),
    }
    for k, make in MAKERS.items():
        name = f"measure {k}"
        if job.wants(name, needs.get(k, 0.0)):
            found = job.time(name, lambda k=k, make=make: measured({k: make}), flops=cost["forward"] + cost[k], **rate)
            job.row(name, **found, forwards=found["seconds"] / base)
        elif k in one and name not in job.rows and job.wants(f"{name} of one layer"):
            job.time(f"{name} of one layer", lambda k=k: measured({k: one[k]}), rounds=1, **rate)
    whole = [k for k in MAKERS if f"measure {k}" in job.rows]
    every = len(whole) == len(MAKERS)
    name = "measure all" if every else f"measure {' + '.join(whole)}"
    each = sum(job.rows[f"measure {k}"]["seconds"] for k in whole)
    if job.wants(name, needs=each):
        total: Any = sum((cost[k] for k in whole), cost["forward"])
        found = job.time(name, lambda: measured({k: MAKERS[k] for k in whole}), flops=total, rounds=2, **rate)
        job.row(name, **found, forwards=found["seconds"] / base, one_by_one=each)
    later = [k for k in MAKERS if k not in whole and needs.get(k, 0.0) < job.seconds]
    return "unfinished" if later or name not in job.rows else "done"
