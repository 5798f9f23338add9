"""What a second worker of a Dask cluster brings, and how equal the numbers are to those of one process.

Each worker has one thread: on a machine of two idle cores two workers can be twice as fast as one.  The model is large
enough that what a share costs by itself (loading, merging, the scheduler) is small beside the passes.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokinterp as ti

from .common import random_llama, random_prompts, save

BAR = 1.8
"""Times as fast as one worker, by two."""
CLOSE = 1e-6
"""The largest difference of a number, relative to the largest of its variable."""


def run(out: Path | None = None, rounds: int = 2, small: bool = False) -> dict[str, Any]:
    """Time one worker and two in turn, each on warm workers, and compare their numbers with those of one process."""
    size: dict[str, Any] = {"n_layers": 12, "d_model": 768, "n_heads": 12}
    if small:
        size = {"n_layers": 2, "d_model": 64, "n_heads": 2, "d_vocab": 500}
    n, length = (16, 16) if small else (192, 128)
    load = partial(_load, size)
    model = load()
    prompts = random_prompts(n, length, model.info.d_vocab)
    asked = {"lens": ti.lens.LogitLens(layers=[model.info.n_layers], top=0), "norms": ti.geometry.TokenNorms(tokens=0)}
    options: dict[str, Any] = {"batch_tokens": 8 * length, "checkpoint_every": 1e9, "progress": False}
    alone = ti.measure(model, prompts, asked, **options)
    del model
    seconds: dict[int, list[float]] = {1: [], 2: []}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for r in range(rounds):
            for workers in (1, 2) if r % 2 == 0 else (2, 1):
                store = Path(folder, "run.zarr")
                taken, found = _timed(workers, load, prompts, asked, store, options)
                seconds[workers].append(taken)
                rows[f"{workers} workers against one process"] = differences(alone, found)
                shutil.rmtree(store)
    for workers, taken in seconds.items():
        rows[f"measure_on_cluster, {workers} workers"] = {"seconds": min(taken)}
    rows["x one worker"] = {"ratio": min(seconds[1]) / min(seconds[2]), "bar": BAR}
    return save("machines", rows, {**size, "prompts": n, "tokens": length, "shares": 4}, out)


def _load(size: dict[str, Any]) -> Any:
    return ti.wrap(random_llama(**size), id="random-llama")


def _warm() -> None:
    """Import everything on a worker, and give it one thread."""
    torch.set_num_threads(1)
    _load({"n_layers": 1, "d_model": 8, "n_heads": 1, "d_vocab": 50})


def _timed(
    workers: int, load: Any, prompts: ti.Prompts, asked: dict[str, ti.Measurement], store: Path, options: dict[str, Any]
) -> tuple[float, Any]:
    """Return the seconds of a run on new workers that have everything imported, and its result."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(_warm)
        start = time.perf_counter()
        found = ti.measure_on_cluster(client, load, prompts, asked, store=store, shares=4, **options)
        return time.perf_counter() - start, found


def differences(one: Any, other: Any) -> dict[str, Any]:
    """Return the largest relative difference of two runs, the variable that has it, and how many have equal bits."""
    worst, whose, equal, total = 0.0, "none", 0, 0
    for node in one.subtree:
        for name, v in node.to_dataset(inherit=False).variables.items():
            a, b = v.values, other[node.path].to_dataset(inherit=False)[name].values
            total += 1
            if v.dtype.kind != "f":
                if not np.array_equal(a, b):
                    raise AssertionError(f"{node.path}/{name} differs, and has no rounding")
                equal += 1
                continue
            equal += np.array_equal(a, b, equal_nan=True)
            known = np.isfinite(a)
            if not np.array_equal(known, np.isfinite(b)) or not np.array_equal(a[~known], b[~known], equal_nan=True):
                raise AssertionError(f"{node.path}/{name} is not finite in other places")
            a, b = a[known], b[known]
            by = float(np.max(np.abs(a - b), initial=0)) / (float(np.max(np.abs(a), initial=0)) or 1.0)
            if by > worst:
                worst, whose = by, f"{node.path.strip('/')}/{name}"
    return {"difference": worst, "of": whose, "bound": CLOSE, "equal_bits": f"{equal} of {total} variables"}
