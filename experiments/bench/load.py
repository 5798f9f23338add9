"""How long a user waits: for the bundled model, for ``tokinterp --help``, and with threads that spin.

    python -m experiments.bench load [--small] --out runs/bench

Every row is a process of its own.  Loading and help are judged by their CPU seconds, which others on the machine do not
lengthen.  Alone and two at once: a measurement with as many threads as there are cores, in one process and in two, by
the wall; threads that spin while they wait take the time of others.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from .common import Bar, save

LOAD = """
import time
import tokinterp as ti, torch, transformers, xarray
ti.load_model, ti.measure, ti.geometry.IntrinsicDimension
import transformers.models.llama.modeling_llama, tokinterp.models.hf
start = time.perf_counter(), time.process_time()
ti.load_model()
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""
WORK = """
import time
import torch, tokinterp as ti
model = ti.load_model()
texts = [t.text for t in ti.bundled_texts()][:{n}]
prompts = ti.Prompts.from_texts(texts, model, max_tokens=256, progress=False)
start = time.perf_counter(), time.process_time()
ti.measure(model, prompts, {{"d": ti.geometry.IntrinsicDimension((2, 4)), "l": ti.lens.LogitLens()}}, progress=False)
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""


MANY = {"alone": 1, "two at once": 2}


def run(out: Path | None = None, rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Time them; the least of the rounds for what others on the machine can only lengthen."""
    rounds = 1 if small else rounds
    loads = [times(start(LOAD)) for _ in range(rounds)]
    helps = [cpu_of([sys.executable, "-m", "tokinterp", "--help"]) for _ in range(rounds)]
    rows: dict[str, dict[str, Any]] = {
        "load_model() after imports": {"seconds": min(w for w, _ in loads), "cpu": min(c for _, c in loads)},
        "tokinterp --help": {"cpu": min(helps)},
    }
    code, cores = WORK.format(n=2 if small else 12), str(os.cpu_count())
    threads = {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores}
    seconds: dict[tuple[str, str], float] = {}
    for policy in ("unset", "PASSIVE"):
        settings = threads if policy == "unset" else {**threads, "OMP_WAIT_POLICY": policy}
        for name, many in MANY.items():
            found = [t for _ in range(rounds) for t in map(times, [start(code, settings) for _ in range(many)])]
            wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            rows[f"OMP_WAIT_POLICY {policy}, {name}"] = {"seconds": wall, "cpu": cpu}
            seconds[policy, name] = wall
    sleep = {name: seconds["PASSIVE", name] / seconds["unset", name] for name in MANY}
    why = "measured beside other work on the machine"
    bars = [
        Bar("load_model(), first call after imports, seconds", rows["load_model() after imports"]["cpu"], 2, "most"),
        Bar("tokinterp --help, seconds", rows["tokinterp --help"]["cpu"], 0.5, "most"),
        Bar("alone: threads that sleep over threads that spin, wall", sleep["alone"], 1.1, "most", why),
        Bar("two at once: threads that sleep over threads that spin, wall", sleep["two at once"], 1, "most", why),
    ]
    return save("load", rows, {"rounds": rounds, "threads": cores}, out, bars)


def start(code: str, settings: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with some code."""
    environment = {**{k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}, **(settings or {})}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def cpu_of(command: list[str]) -> float:
    """Return the CPU seconds of a command."""
    before = sum(os.times()[2:4])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sum(os.times()[2:4]) - before


def times(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return seconds of wall and CPU that a process prints at its end."""
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the process ended with {process.returncode}: see above")
    wall, cpu = said.split()
    return float(wall), float(cpu)
