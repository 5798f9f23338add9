"""Match3: training steps per second with the network of the paper, and the share of the measured ceiling."""

from __future__ import annotations

from experiments.bench.filler_training import step_rate
from tokinterp.fillers.tasks.network import Network, flops_per_example
from tokinterp.fillers.tasks.task import Task

from .job import Job

COMPILING = 30.0
"""Seconds that the compiler may need."""


def run(job: Job) -> str:
    task, network, batch = (Task(n=3, d=1), Network(1, 16, 2, 32), 8) if job.tiny else (Task(n=8, d=3), Network(), 1024)
    job.sizes = {"task": task.name, "batch": batch, "d_model": network.d_model, "n_layers": network.n_layers}
    half, unfinished = batch // 2, False
    for compiled in (False,) if job.tiny else (False, True):
        for mixture in ({"filler": half, "parallel": half}, {"none": batch}):
            row = "train " + " + ".join(mixture) + (", compiled" if compiled else "")
            if not job.wants(row, needs=COMPILING if compiled else 0.0):
                unfinished |= row not in job.rows
                continue
            found = step_rate(task, mixture, network, 2 if job.tiny else 30, job.place, compiled)
            found.pop("MFU", None)
            seconds = 1 / found["steps_per_s"]
            flops = sum(flops_per_example(task, network, form) * count for form, count in mixture.items())
            floor = job.against(seconds, {"bfloat16": flops})
            used = {"utilisation": 1 / floor["ratio"]} if floor else {}
            job.row(row, seconds=seconds, **found, **floor, **used)
    return "unfinished" if unfinished else "done"
