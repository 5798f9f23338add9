"""What the machine is: its card, its versions, and what the command and its tests would need and do not find."""

from __future__ import annotations

import torch

from .job import Job
from .lists import absent, cuda_paths, missing, wheels


def run(job: Job) -> None:
    """Note all of it."""
    if job.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        job.row(
            "card", name=facts.name, memory_gb=facts.total_memory / 1e9, processors=facts.multi_processor_count,
            capability=f"{facts.major}.{facts.minor}",
        )  # fmt: skip
    job.row("packages", wheels=wheels(), absent=absent(), missing_for_tests=missing())
    job.row("cuda paths", lines=cuda_paths())
