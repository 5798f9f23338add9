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
    "dimension": ti.IntrinsicDimension,
    "lens": ti.LogitLens,
    "overlap": ti.NeighbourOverlap,
    "linearity": ti.Linearity,
    "spectrum": ti.Spectrum,
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
    shape, n, length = (TINY, 2, 260) if job.tiny else (SHAPE, 8, 1024)
    job.sizes = {**shape, "prompts": n, "tokens": length, "dtype": "float32" if job.tiny else "bfloat16"}
    lm = random_llama(**shape, dtype=torch.float32 if job.tiny else torch.bfloat16)
    model = ti.wrap(lm, id="random-llama")
    prompts = random_prompts(n, length, shape["d_vocab"])
    ids = torch.from_numpy(prompts.padded(list(range(n)))[0]).to(model.device)
    sites = ti.resid(range(shape["n_layers"] + 1))
    cost = {k: Counter(v) for k, v in operations(shape, n, length).items()}
    rate = {"tokens": n * length}

    def forward(head: bool) -> Any:
        with torch.no_grad():
            return (lm if head else lm.model)(ids, use_cache=False)

    def measured(*names: str) -> Any:
        which = {k: MAKERS[k]() for k in names}
        return ti.measure(model, prompts, which, batch_tokens=n * length, progress=False)

    for name, call, flops in (
        ("forward", lambda: forward(False), cost["forward"]),
        ("forward with head", lambda: forward(True), cost["forward"] + cost["head"]),
        ("forward, all layers captured", lambda: model.run(ids, sites), cost["forward"]),
    ):
        if job.wants(name):
            job.time(name, call, flops=flops, **rate)
    base = job.rows["forward"]["seconds"]
    for k in MAKERS:
        if job.wants(f"measure {k}"):
            found = job.time(f"measure {k}", lambda k=k: measured(k), flops=cost["forward"] + cost[k], **rate)
            job.row(f"measure {k}", **found, forwards=found["seconds"] / base)
    each = [job.rows.get(f"measure {k}", {}).get("seconds", 0.0) for k in MAKERS]
    if job.wants("measure all", needs=sum(each)):
        flops = sum((cost[k] for k in MAKERS), cost["forward"])
        found = job.time("measure all", lambda: measured(*MAKERS), flops=flops, rounds=1, **rate)
        job.row("measure all", **found, forwards=found["seconds"] / base, one_by_one=sum(each))
    return "done" if "measure all" in job.rows else "unfinished"
