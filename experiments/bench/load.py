"""How long a user waits: for the bundled model, for ``tokinterp --help``, and with threads that spin.

    python -m experiments.bench load [--small] --out runs/bench

Every row is a process of its own, so seconds are of the wall and hold for an idle machine.  ``busy``: two processes at
once with as many threads each as there are cores, which is where threads that spin while they wait take the time of
others.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
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


def run(out: Path | None = None, rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Time them; the least of the rounds for what others on the machine can only lengthen."""
    rounds = 1 if small else rounds
    loads = [times(start(LOAD)) for _ in range(rounds)]
    helps = []
    for _ in range(rounds):
        before = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tokinterp", "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.perf_counter() - before)
    rows: dict[str, dict[str, Any]] = {
        "load_model() after imports": {"seconds": min(w for w, _ in loads), "cpu": min(c for _, c in loads)},
        "tokinterp --help": {"seconds": min(helps)},
    }
    code, cores = WORK.format(n=2 if small else 24), str(os.cpu_count())
    for policy in ("ACTIVE", "PASSIVE"):
        settings = {"OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores}
        for name, many in (("alone", 1), ("two at once", 2)):
            found = [t for _ in range(rounds) for t in map(times, [start(code, settings) for _ in range(many)])]
            wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            rows[f"{policy}, {name}"] = {"seconds": wall, "cpu": cpu}
    bars = [
        Bar("load_model(), first call after imports, seconds", rows["load_model() after imports"]["cpu"], 2, "most"),
        Bar("tokinterp --help, seconds", rows["tokinterp --help"]["seconds"], 0.5, "most"),
        *(
            Bar(f"waiting threads that sleep against threads that spin, {name}, wall",
                rows[f"PASSIVE, {name}"]["seconds"] / rows[f"ACTIVE, {name}"]["seconds"], limit, "most")
            for name, limit in (("alone", 1.1), ("two at once", 1.0))
        ),
    ]  # fmt: skip
    return save("load", rows, {"rounds": rounds, "threads": cores}, out, bars)


def start(code: str, settings: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with some code."""
    environment = {**os.environ, **(settings or {})}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def times(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return seconds of wall and CPU that a process prints at its end."""
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the process ended with {process.returncode}: see above")
    wall, cpu = said.split()
    return float(wall), float(cpu)
