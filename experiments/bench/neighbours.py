"""Intrinsic dimension of one cloud beside scikit-dimension and DADApy, and on a GPU of many clouds.

DADApy 0.3.4 needs numpy < 2 and therefore an environment of its own: name its Python in the variable DADAPY_PYTHON, and
it takes its turn in a second process (it gets the cloud once; a round trip costs well under a millisecond).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokinterp.geometry.kernels.gride import gride, mle, twonn
from tokinterp.kernels.neighbours import nearest

from .common import ELSEWHERE, paired, peak_mb, save

RANKS = (1, 2, 4, 8, 16, 32, 64)  # of GRIDE; MLE needs 1 to 20
PAPER = 30.8  # clouds of 1,024 points a second, DADApy, as reported by Viswanathan et al., arXiv 2501.10573


def run(out: Path | None = None, rounds: int = 5, small: bool = False) -> dict[str, Any]:
    """Time all three estimators; ``x`` rows give how many times longer the peers take."""
    record: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n, d in ((600, 64),) if small else ((1024, 4096), (5000, 4096)):
            record[f"{n}x{d}"] = one_cloud(n, d, out, rounds if n < 2000 else max(3, rounds - 2))
    if torch.cuda.is_available():
        record["gpu"] = many_clouds(*((4, 300, 64) if small else (33, 1024, 4096)), out=out, rounds=rounds)
    return record


def cloud(n: int, d: int, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Return a float32 Gaussian cloud (n, d) of that intrinsic dimension, turned into d coordinates."""
    rng = np.random.default_rng(seed)
    frame, _ = np.linalg.qr(rng.standard_normal((d, dim)))
    return (rng.standard_normal((n, dim)) @ frame.T).astype(np.float32)


def one_cloud(n: int, d: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time GRIDE at six scales, TwoNN and MLE of a cloud on the CPU."""
    import skdim

    x = cloud(n, d)
    points = torch.from_numpy(x)

    def ours() -> Any:
        near = nearest(points, 64, ranks=RANKS)
        return gride(near.distances, near.valid)

    def ours_all() -> Any:
        near = nearest(points, 64, ranks=[*range(1, 21), *RANKS])
        return (
            gride(near.distances, near.valid),
            twonn(near.distances, near.valid, "facco"),
            mle(near.distances, near.valid),
        )

    methods: dict[str, Callable[[], Any]] = {
        "tokinterp gride": ours,
        "tokinterp gride + twonn + mle": ours_all,
        "skdim gride": lambda: skdim.id.GRIDE(multiscale=True).fit(x).dimension_scales_,
        "skdim twonn": lambda: skdim.id.TwoNN().fit(x),
        "skdim mle": lambda: skdim.id.MLE().fit(x),
    }
    with tempfile.TemporaryDirectory() as folder:
        peer = Dadapy(x, Path(folder)) if os.environ.get("DADAPY_PYTHON") else None
        if peer:
            methods["dadapy gride"] = lambda: peer("gride")
            methods["dadapy gride after compute_distances"] = lambda: peer("gride64")
            methods["dadapy twonn"] = lambda: peer("twonn")
        rows: dict[str, dict[str, float]] = paired(methods, rounds)
        found = methods["tokinterp gride"]().dimension[0].numpy()
        rows["tokinterp gride"]["peak_mb"] = peak_mb(ours)
        rows["skdim gride"]["peak_mb"] = peak_mb(methods["skdim gride"])
        # the peers on float64 coordinates: on float32 ones scikit-learn rounds its distances to float32
        exact = skdim.id.GRIDE(multiscale=True).fit(x.astype(np.float64)).dimension_scales_
        rows["difference of the six dimensions"] = {"from skdim": float(abs(found - exact).max())}
        if peer:
            answer = np.array(peer("gride").split(), float)
            rows["difference of the six dimensions"]["from dadapy"] = float(abs(found - answer).max())
            peer.close()
    seconds = {name: row["seconds"] for name, row in rows.items() if "seconds" in row}

    def fastest(estimator: str) -> float:
        return min(s for name, s in seconds.items() if name.split()[1] == estimator and not name.startswith("tok"))

    both = seconds["tokinterp gride + twonn + mle"]
    rows["x gride, fastest peer"] = {"ratio": fastest("gride") / seconds["tokinterp gride"]}
    rows["x three estimators, fastest peer for each"] = {"ratio": sum(map(fastest, ("gride", "twonn", "mle"))) / both}
    rows["x three estimators, skdim"] = {"ratio": sum(seconds[f"skdim {e}"] for e in ("gride", "twonn", "mle")) / both}
    return save(f"neighbours_{n}x{d}", rows, {"points": n, "coordinates": d, "ranks": 64}, out)


def many_clouds(
    n_clouds: int, n: int, d: int, out: Path | None, rounds: int, device: torch.device | str = "cuda"
) -> dict[str, Any]:
    """Time clouds as a model has them, one per layer, on the GPU."""
    generator = torch.Generator(device).manual_seed(0)
    spread = torch.randn(12, d, device=device, generator=generator, dtype=torch.float32)
    points = torch.randn(n_clouds, n, 12, device=device, generator=generator, dtype=torch.float32) @ spread
    points = (
        points + 0.05 * torch.randn(points.shape, device=device, generator=generator, dtype=torch.float32)
    ).bfloat16()

    def estimate(products: torch.dtype) -> Callable[[], Any]:
        def call() -> Any:
            near = nearest(points, 64, products=products, memory=2**31)
            return (
                gride(near.distances, near.valid).dimension,
                twonn(near.distances, near.valid),
                mle(near.distances, near.valid),
            )

        return call

    def search() -> Any:
        return nearest(points, 64, memory=2**31).distances

    methods = {
        "gride + twonn + mle, float64 products": estimate(torch.float64),
        "gride + twonn + mle, float32 products": estimate(torch.float32),
        "neighbours alone": search,
    }
    rows: dict[str, dict[str, float]] = paired(methods, rounds, warm=2)
    for name, method in methods.items():
        rows[name]["clouds_per_second"] = n_clouds / rows[name]["seconds"]
        rows[name]["times_paper"] = rows[name]["clouds_per_second"] / PAPER
        rows[name]["peak_mb"] = peak_mb(method)
    a, b = (methods[name]()[0] for name in list(methods)[:2])
    rows["difference of the dimensions"] = {"float32 and float64 products": float((a - b).abs().max())}
    return save("neighbours_gpu", rows, {"clouds": n_clouds, "points": n, "coordinates": d, "ranks": 64}, out)


class Dadapy:
    """DADApy in a process of its own, with one cloud or two, doing one thing at a time."""

    def __init__(self, x: np.ndarray, folder: Path, y: np.ndarray | None = None) -> None:
        files = [folder / "cloud.npy"]
        np.save(files[0], x)
        if y is not None:
            files.append(folder / "other.npy")
            np.save(files[1], y)
        worker = Path(__file__).with_name("dadapy_worker.py")
        self.process = subprocess.Popen(
            [os.environ["DADAPY_PYTHON"], str(worker), *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready.startswith("ready"):
            raise RuntimeError("DADAPY_PYTHON does not start DADApy: see the message above")

    def __call__(self, what: str) -> str:
        """Run a function of the worker: ``gride``, ``overlap``, ``pairs 30``.

        Returns the printed answer.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        seconds, _, answer = self.process.stdout.readline().partition(" ")
        ELSEWHERE[0] += float(seconds)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
