"""Steps of the GPU command that go wrong."""

import time


def run(job):
    job.row("before", seconds=1.0)
    if job.name == "hangs":
        time.sleep(1000)
    raise RuntimeError("CUDA error: made up")
