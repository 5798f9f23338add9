"""The two ceilings of a card: bytes copied within its memory, and operations of large products on random data."""

from __future__ import annotations

import torch

from .job import Job

KINDS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def run(job: Job) -> None:
    """Measure copy (bytes read and written per second) and products (operations per second) of three kinds."""
    size, side, times = (2**20, 128, 2) if job.tiny else (2**32, 8192, 5)
    job.sizes = {"copied_bytes": size, "side": side}
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=job.place)
    target = torch.empty_like(source)

    found = job.time("copy", lambda: [target.copy_(source) for _ in range(times)])
    job.row("copy", **found, rate=2 * size * times / found["seconds"])
    for name, kind in KINDS.items():
        if job.tiny and name == "bfloat16":
            kind = torch.float32  # a CPU may be very slow at it
        a, b = (torch.randn(side, side, device=job.place, dtype=kind) for _ in range(2))
        c, few = torch.empty_like(a), times if name == "bfloat16" else 1
        found = job.time(name, lambda a=a, b=b, c=c, few=few: [torch.mm(a, b, out=c) for _ in range(few)])
        job.row(name, **found, rate=2.0 * side**3 * few / found["seconds"])
