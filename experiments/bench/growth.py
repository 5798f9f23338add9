"""What a prompt costs where the model is not the point, at ever more prompts, and memory at 400 against 8,000.

A cost that is linear has the same microseconds per prompt everywhere; what begins anew for every call (a fixed cost)
makes the smallest size dearer, and a ratio of the largest size to the smallest above 1 is growth.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tokinterp as ti
from tokinterp.geometry.corpus.neighbours import same_beginning

from .common import peak_mb, random_llama, save

SIZES = (1_000, 10_000, 100_000)
MILLION = 1_000_000
"""Prompts of the steps that take seconds for so many: their ids, hash, batches, and tokens with the same beginning."""
MEASURED = (300, 3_000)
MEMORY = (400, 8_000)


def run(out: Path | None = None, rounds: int = 1, small: bool = False) -> dict[str, Any]:
    """Time every step by itself at each number of prompts, and take the peak memory of a run without a model's."""
    sizes, measured, memory = (tuple(n // 50 for n in s) if small else s for s in (SIZES, MEASURED, MEMORY))
    tiny = random_llama(1, 8, 1, 500, d_mlp=16, context=64)
    model, speller = ti.wrap(tiny, id="random-llama"), ti.load_model()
    seconds: dict[str, dict[int, float]] = {}

    def timed(what: str, n: int, method: Callable[[], Any], of: int | None = None) -> Any:
        start = time.perf_counter()
        result = method()
        least = (time.perf_counter() - start) / (of or n)
        seconds.setdefault(what, {})[n] = min(least, seconds.get(what, {}).get(n, least))
        return result

    for _ in range(rounds):
        for n in (*sizes, MILLION // 50 if small else MILLION):
            _numbers(n, model, timed)
        for n in sizes:
            _texts(n, speller, timed)
        for n in measured:
            _results(n, model, timed)
    rows: dict[str, dict[str, Any]] = {}
    for what, by_size in seconds.items():
        each = {n: s * 1e6 for n, s in by_size.items()}
        rows[what] = {"microseconds": {str(n): v for n, v in each.items()}, "growth": each[max(each)] / each[min(each)]}
    for stored in (False, True):
        mb = {n: peak_mb(lambda n=n, stored=stored: _measure(n, model, stored)) for n in (memory[0], *memory)}
        rows["memory of measure" + " with store=" * stored] = {"megabytes": {str(n): v for n, v in mb.items()}}
    return save("growth", rows, {"tokens": "4 to 23 a prompt", "layers": 1, "d_model": 8}, out)


def _ids(n: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 500, k).tolist() for k in rng.integers(4, 24, n)]


def _numbers(n: int, model: Any, timed: Callable[..., Any]) -> None:
    ids = _ids(n)
    prompts = timed("Prompts.from_ids", n, lambda: ti.Prompts.from_ids(ids))
    timed("Prompts.hash", n, lambda: prompts.hash)
    timed("batches", n, lambda: list(prompts.batches(4096)))
    few = list(range(0, n, max(1, n // 16)))[:16]
    ti.capture(model, prompts, few, ti.resid([0]))  # what is worked out once
    timed("capture of 16 prompts, each", n, lambda: ti.capture(model, prompts, few, ti.resid([0])), len(few))
    timed("tokens of one beginning", n, lambda: same_beginning(prompts))


def _texts(n: int, speller: Any, timed: Callable[..., Any]) -> None:
    texts = [f"The {i} people of Paris met Marie Curie in {1800 + i % 200}." for i in range(n)]
    spelled = timed("Prompts.from_texts", n, lambda: ti.Prompts.from_texts(texts, speller, progress=False))
    timed("special tokens", n, lambda: spelled.special_mask)
    timed("token classes", n, lambda: spelled.classes)
    timed("token strings", n, lambda: [spelled.strings(i) for i in range(n)])


def _results(n: int, model: Any, timed: Callable[..., Any]) -> None:
    prompts = ti.Prompts.from_ids(_ids(n))
    asked = {"norms": ti.geometry.TokenNorms(), "spectrum": ti.geometry.Spectrum()}
    run = timed("measure", n, lambda: ti.measure(model, prompts, asked, batch_tokens=4096, progress=False))
    timed("summary", n, lambda: ti.summary(run))
    with tempfile.TemporaryDirectory() as folder:
        timed("report", n, lambda: ti.report(run, Path(folder, "r.html"), prompts=prompts))
        timed("write", n, lambda: ti.write(run, Path(folder, "r.zarr")))
        timed("read", n, lambda: ti.read(Path(folder, "r.zarr")))


def _measure(n: int, model: Any, stored: bool) -> None:
    """Run what keeps sums only, so that no row of a prompt has to stay."""
    prompts = ti.Prompts.from_ids(_ids(n))
    with tempfile.TemporaryDirectory() as folder:
        ti.measure(
            model, prompts, {"norms": ti.geometry.TokenNorms(tokens=0)}, batch_tokens=4096, progress=False,
            store=Path(folder, "run.zarr") if stored else None,
        )  # fmt: skip
