"""Nearest neighbours by the indexes of faiss: fast, and not certain."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .among import SPARE, Among, measured

INDEXES = ("faiss", "faiss-ivf")
MOST_TRAINED = 100_000


def faiss_nearest(points: Tensor, rows: Tensor, k: int, usable: Tensor, method: str, memory: int) -> Among:
    """Find neighbours with an index of faiss, which keeps all points in float32, and measure them in float64.

    Parameters
    ----------
    points, rows, k, usable
        As in `tokinterp.kernels.among.nearest_among`.
    method : str
        ``"faiss"``: all points are compared, in float32, without the centre and without a certificate;
        ``"faiss-ivf"``: only those in the sixteenth of the cells (4 sqrt(points) of them) whose centres are nearest.
    memory : int
        Bound on working memory, the index included.

    Returns
    -------
    Among
        Distances are exact (explicit float64 differences); whether no nearer point was missed is not known.

    Raises
    ------
    ImportError
        If faiss is not installed.
    ValueError
        If the index does not fit into the memory.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("this needs faiss: pip install 'tokinterp[faiss]', or take method='exact'") from error
    at = usable.nonzero()[:, 0]
    n, dim = len(at), points.shape[1]
    need = 6 * n * dim  # the index, and a block on its way there
    if need > memory:
        raise ValueError(
            f"memory={memory}: an index of {n} points of {dim} coordinates takes {need}: raise it, or take "
            "method='exact', which reads them block by block"
        )
    step = max(1, memory // 8 // (16 * dim))
    blocks = at.split(step)
    mean = torch.stack([points[b].double().sum(0) for b in blocks]).sum(0) / n

    def centred(b: Tensor) -> np.ndarray:
        return (points[b].double() - mean).float().numpy()

    index: Any = faiss.IndexFlatL2(dim)
    if method == "faiss-ivf":
        cells = max(1, min(int(4 * n**0.5), n // 39))
        index = faiss.IndexIVFFlat(index, dim, cells)
        index.nprobe = max(8, cells // 16)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0), dtype=torch.int64, device="cpu")
        some = order[: min(n, MOST_TRAINED, 256 * cells)]
        trained = np.empty((len(some), dim), np.float32)
        for b in torch.arange(len(some), dtype=torch.int64, device="cpu").split(step):
            trained[b] = centred(at[some[b]])
        index.train(trained)
        del trained
    for b in blocks:
        index.add(centred(b))
    wide = min(k + 1 + SPARE, n)
    distances, indices = [], []
    for b in rows.split(step):
        place = torch.from_numpy(index.search(centred(b), wide)[1])
        place = torch.where(place < 0, -1, at[place.clamp(min=0)])
        place = torch.where(place == b[:, None], -1, place)  # the point itself
        found = measured(points, b, place, k, memory // 4)
        distances.append(found[0])
        indices.append(found[1])
    d, i = torch.cat(distances), torch.cat(indices)
    lacking = k - d.shape[1]
    if lacking > 0:
        d = torch.nn.functional.pad(d, (0, lacking), value=torch.inf)
        i = torch.nn.functional.pad(i, (0, lacking), value=-1)
    return Among(d, i, 0)
