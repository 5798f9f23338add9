"""Dot by dot at n = 8, d = 3 (tier gpu10): networks are kept, and a call that was stopped is taken up again."""

from __future__ import annotations

import signal
from types import FrameType

from experiments.dot_by_dot import run as dot_by_dot
from experiments.dot_by_dot import summary

from .job import Job

AFTER = 10.0
"""Seconds before the limit at which the work is stopped."""


class TimeOverError(BaseException):
    """The time of this call is over: not an `Exception`, so that nothing on the way takes it for its own."""


def run(job: Job) -> str:
    """Train all arms and probe the first network, or go on with it until the time is over."""
    folder = job.work / "dots"
    tier = "gpu10"
    job.sizes = {"tier": tier, "small": job.tiny}
    signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, job.left() - AFTER))
    try:
        tree = dot_by_dot(
            tier=tier, small=job.tiny, folder=folder, device=job.device, out=job.work / "dots.zarr", progress=False,
            save_seconds=30.0,
        )  # fmt: skip
    except TimeOverError:
        tree = None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for kept in sorted(folder.glob("*/*/seed-*")):  # of each arm: the finished network, or the folder it goes on from
        job.row(f"{kept.parent.name}/{kept.name.split('.')[0]}", finished=kept.suffix == ".safetensors")
    if tree is None:
        job.notes.append("stopped by the clock: the same call goes on from the last checkpoint")
        return "unfinished"
    job.row("summary", found=summary(tree))
    return "done"


def _over(signum: int, frame: FrameType | None) -> None:
    raise TimeOverError
