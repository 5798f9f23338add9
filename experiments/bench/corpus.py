"""Neighbours of some tokens among all tokens of a corpus, beside scikit-learn, faiss and DADApy: times and peak memory.

The cloud lies in float32, as a corpus does; all search the 64 nearest.  scikit-learn and faiss look for the same rows;
DADApy (``DADAPY_PYTHON``, see neighbours.py) knows no rows and searches all, so it is compared with all.  faiss needs
``pip install 'tokinterp[faiss]'``.  ``python -m experiments.bench corpus`` takes 20,000 tokens;
``python -m experiments.bench corpus --large`` 100,000, of which fewer look.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokinterp.kernels.among import nearest_among
from tokinterp.kernels.indexed import faiss_nearest

from .common import paired, peak_mb, save
from .neighbours import Dadapy, cloud

K = 64
MEMORY = 2**30


def run(out: Path | None = None, rounds: int = 3, small: bool = False, large: bool = False) -> dict[str, Any]:
    """Time the searches in turn; a ratio is how many times longer than the exact one a method takes."""
    n, d, looking, few = (
        (600, 32, 100, 300) if small else (100_000, 512, 500, 0) if large else (20_000, 512, 2000, 4000)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = {f"{n}x{d}": some_rows(n, d, looking, out, rounds)}
        if few and os.environ.get("DADAPY_PYTHON"):
            record[f"{few}x{d} all"] = all_rows(few, d, out, rounds)
    return record


def some_rows(n: int, d: int, looking: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time the neighbours of some rows among all."""
    from sklearn.neighbors import NearestNeighbors

    x = cloud(n, d) + 0.02 * np.random.default_rng(1).standard_normal((n, d)).astype(np.float32)
    points, usable = torch.from_numpy(x), torch.ones(n, dtype=torch.bool, device="cpu")
    rows = torch.from_numpy(np.sort(np.random.default_rng(0).choice(n, looking, replace=False)))

    def ours() -> torch.Tensor:
        return nearest_among(points, rows, K, usable, memory=MEMORY).distances

    def theirs() -> np.ndarray:
        return NearestNeighbors(n_neighbors=K + 1, algorithm="brute").fit(x).kneighbors(x[rows])[0][:, 1:]

    def flat() -> np.ndarray:
        import faiss

        index: Any = faiss.IndexFlatL2(d)
        index.add(x)
        return np.sqrt(np.maximum(index.search(x[rows], K + 1)[0][:, 1:], 0))

    def index(method: str) -> Callable[[], torch.Tensor]:
        return lambda: faiss_nearest(points, rows, K, usable, method, MEMORY).distances

    methods: dict[str, Callable[[], Any]] = {
        "tokinterp exact": ours, "scikit-learn brute": theirs, "faiss flat": flat,
        "tokinterp faiss": index("faiss"), "tokinterp faiss-ivf": index("faiss-ivf"),
    }  # fmt: skip
    found: dict[str, dict[str, float]] = paired(methods, rounds)
    exact = ours().numpy()
    for name, method in methods.items():
        distances = np.asarray(method())
        found[name]["peak_mb"] = peak_mb(method)
        found[name]["error"] = float(np.abs(distances / exact - 1).max())
        found[name]["recall"] = float((distances <= exact[:, -1:] * (1 + 1e-6)).mean())
    sizes = {"points": n, "coordinates": d, "looking": looking, "neighbours": K, "memory_mb": MEMORY // 2**20}
    return save(f"corpus_{n}x{d}", found, sizes, out)


def all_rows(n: int, d: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time the neighbours of all points beside DADApy, which searches them for its dimensions."""
    from tokinterp.geometry.kernels.gride import gride

    x = cloud(n, d)
    points, usable = torch.from_numpy(x), torch.ones(n, dtype=torch.bool, device="cpu")

    def ours() -> torch.Tensor:
        found = nearest_among(points, torch.arange(n, dtype=torch.int64, device="cpu"), K, usable, memory=MEMORY)
        return gride(found.distances[None], usable[None]).dimension[0]

    with tempfile.TemporaryDirectory() as folder:
        peer = Dadapy(x, Path(folder))
        rows: dict[str, Any] = paired({"tokinterp gride": ours, "dadapy gride": lambda: peer("gride64")}, rounds)
        answer = np.array(peer("gride64").split(), float)
        peer.close()
    rows["difference of the six dimensions"] = {"from dadapy": float(abs(ours().numpy() - answer).max())}
    return save(f"corpus_all_{n}x{d}", rows, {"points": n, "coordinates": d, "neighbours": K}, out)
