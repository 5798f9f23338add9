"""Clouds per second of GRIDE, TwoNN and MLE, 1,024 points of 4,096 coordinates, against the published rate."""

from __future__ import annotations

from experiments.bench.neighbours import PAPER, many_clouds

from .job import Job


def run(job: Job) -> None:
    n_clouds, n, d = (2, 150, 16) if job.tiny else (33, 1024, 4096)
    job.sizes = {"clouds": n_clouds, "points": n, "coordinates": d, "ranks": 64, "published_per_s": PAPER}
    found = many_clouds(n_clouds, n, d, out=None, rounds=2 if job.tiny else 5, device=job.place)["rows"]
    for name, row in found.items():
        floor = {}
        if "seconds" in row:
            kind = "float32" if "float32" in name else "float64"
            floor = job.against(row["seconds"], {kind: 2.0 * n_clouds * n * n * d})
        job.row(name, **{k: v for k, v in row.items() if k not in ("ratio", "ratio_low", "ratio_high")}, **floor)
