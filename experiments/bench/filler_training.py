"""Synthetic tasks: examples per minute of the generator, and training steps per second against the chip's limit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tokinterp.fillers.tasks.network import Network, flops_per_example
from tokinterp.fillers.tasks.schedule import Schedule
from tokinterp.fillers.tasks.task import Task
from tokinterp.fillers.tasks.training import Run

from .common import save

PUBLISHED = 960.0 * 60
"""Examples per minute of the published tensorisation, one worker."""
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "4060 Ti": 88e12}
"""Dense bfloat16 operations per second of chips, by part of their name (makers' data sheets)."""


def generator_rate(task: Task, form: str, count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return examples per minute, targets and masks included; the first round is not counted."""
    draw = torch.Generator(device).manual_seed(0)
    seconds = []
    for r in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        task.sample(form, count, draw)
        _wait(device)
        if r:
            seconds.append(time.perf_counter() - start)
    rate = 60 * count / sorted(seconds)[len(seconds) // 2]
    return {"M_per_minute": rate / 1e6, "times_published": rate / PUBLISHED}


def step_rate(
    task: Task, mixture: dict[str, int], network: Network, steps: int, device: torch.device, compile: bool | None = None
) -> dict[str, Any]:
    """Return steps and examples per second, achieved operations, and their share of the chip's limit (GPU only)."""
    on_gpu = device.type == "cuda"
    schedule = Schedule(steps=10_000, batch=sum(mixture.values()))
    run = Run(task, mixture, network, schedule, 0, device, on_gpu if compile is None else compile)
    streams = run.streams()
    for _ in range(3):
        run.take_step([next(s) for s in streams])
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        run.take_step([next(s) for s in streams])
    _wait(device)
    seconds = (time.perf_counter() - start) / steps
    flops = sum(flops_per_example(task, network, form) * count for form, count in mixture.items()) / seconds
    out: dict[str, Any] = {
        "steps_per_s": 1 / seconds, "examples_per_s": sum(mixture.values()) / seconds, "TFLOP_per_s": flops / 1e12
    }  # fmt: skip
    if on_gpu:
        name = torch.cuda.get_device_name(device)
        peak = next((p for part, p in PEAKS.items() if part in name), None)
        out["MFU"] = "chip unknown" if peak is None else flops / peak
    return out


def run(*, out: Path | None = None, small: bool = False) -> dict[str, Any]:
    """Time the generator in every format, and training with the network of the paper (CPU: a small one)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    count, rounds = (200, 1) if small else (500_000, 5) if gpu else (10_000, 3)
    rows: dict[str, dict[str, Any]] = {}
    for n in (4,) if small else (8, 12):
        for mode in ("strict", "released"):
            task = Task(n=n, d=3, mode=mode)
            for form in task.formats[: 3 if mode == "released" else 4]:
                rows[f"draw n={n} {mode} {form}"] = generator_rate(task, form, count, rounds, device)
    rows["draw match2 n=10 parallel"] = generator_rate(Task("match2", n=10, d=4), "parallel", count, rounds, device)
    network = Network() if gpu else Network(3, 64, 4, 128)
    batch, steps = (1024, 30) if gpu else (64, 10)
    task = Task(n=4, d=1) if small else Task(n=8, d=3)
    for mixture in ({"filler": batch // 2, "parallel": batch // 2}, {"none": batch}):
        rows[f"train {task.name} {'+'.join(mixture)}"] = step_rate(
            task, mixture, network, 2 if small else steps, device
        )
    return save("filler_training", rows, {"draw": count, "batch": batch, "d_model": network.d_model}, out)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
