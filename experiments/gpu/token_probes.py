"""Steps per second of the joint fit of token probes on random states, and what the published training would take."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from tokinterp.erasure.probe_settings import FEUCHT2024, ProbeSettings
from tokinterp.erasure.probe_training import Job as Fit
from tokinterp.erasure.probe_training import train

from .job import Job, wait

PROBES, TOKENS, PUBLISHED_HOURS = 170, 428_000, 1000.0
"""Of the paper (Feucht et al. 2024): probes, tokens of training text, GPU-hours (more than)."""


def run(job: Job) -> None:
    """Train a group of probes that fits into memory; a step is one batch of one probe."""
    classes, d, rows, batches = (320, 32, 64, 3) if job.tiny else (32000, 4096, 1024, 12)
    offsets = [-3, -2, -1, 0, 1]
    room = torch.cuda.mem_get_info()[0] if job.device == "cuda" else 2**24
    layers = max(1, min(6, int(0.7 * room) // (len(offsets) * 3 * 4 * classes * d)))
    job.sizes = {
        "classes": classes, "d_model": d, "rows": rows, "batches": batches, "layers": layers, "probes": 5 * layers,
        "dtype_of_products": "bfloat16",
    }  # fmt: skip
    n = rows * batches
    draw = torch.Generator(job.place).manual_seed(0)
    kind = torch.float32 if job.tiny else torch.bfloat16
    states = {i: torch.randn(n, d, generator=draw, device=job.place, dtype=kind) for i in range(layers)}
    targets = torch.randint(0, classes, (len(offsets), n), generator=draw, device=job.place, dtype=torch.int64)
    settings = ProbeSettings(epochs=1, rows=rows)
    fit = Fit(
        targets, None, np.array([0, n]), np.arange(n), classes, offsets, settings, 0, torch.bfloat16
    )  # fmt: skip
    marks: list[float] = []

    def step(*_: object) -> None:
        wait(job.place)
        marks.append(time.perf_counter())

    with torch.no_grad():
        train(states, {}, fit, step)
    seconds = float(np.median(np.diff(marks))) / (5 * layers)
    floor = job.against(seconds, {"bfloat16": 4.0 * rows * classes * d}, 6 * 4.0 * classes * d)
    job.row("step of a probe", seconds=seconds, steps_per_s=1 / seconds, peak_gb=_peak(job), **floor)
    for name, epochs in (("default settings", ProbeSettings().epochs), ("published epochs", FEUCHT2024.epochs)):
        hours = PROBES * epochs * math.ceil(TOKENS / rows) * seconds / 3600
        job.row(
            f"{PROBES} probes, {TOKENS:,} tokens, {name}", epochs=epochs, hours=hours,
            times_faster_than_published=PUBLISHED_HOURS / hours,
        )  # fmt: skip
    job.notes.append("extrapolated from the step; the passes of the model and the reading of states come on top")


def _peak(job: Job) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if job.device == "cuda" else 0.0
