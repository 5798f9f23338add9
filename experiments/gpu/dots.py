"""Dot by dot at n = 8, d = 3 (preset gpu10): networks are kept, and a call that was stopped is taken up again."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import FrameType

from experiments.__main__ import run as run_experiment
from experiments.dot_by_dot import PRESETS
from experiments.runner.record import read

from .job import Job

AFTER = 10.0
"""Seconds before the limit at which the work is stopped."""


class TimeOverError(BaseException):
    """The time of this call is over: not an `Exception`, so that nothing on the way takes it for its own."""


def run(job: Job) -> str:
    """Train all arms and probe the first network, or go on with it until the time is over."""
    preset = "tiny" if job.tiny else "gpu10"
    p = replace(PRESETS[preset], device=job.device)
    p.checkpoint_every = 30.0
    job.sizes = {"preset": preset}
    signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, job.left() - AFTER))
    try:
        path = run_experiment("dot_by_dot", preset, out=job.work, given=p)
    except TimeOverError:
        path = None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    # Of each arm: the finished network, or the folder it goes on from.
    for kept in sorted(job.work.glob("dot_by_dot.*.stages/*/*/seed-*")):
        job.row(f"{kept.parent.name}/{kept.name.split('.')[0]}", finished=kept.suffix == ".safetensors")
    if path is None:
        job.notes.append("stopped by the clock: the same call goes on from the last checkpoint")
        return "unfinished"
    job.row("summary", claims=read(path)["claims"])
    return "done"


def _over(signum: int, frame: FrameType | None) -> None:
    raise TimeOverError
