"""A run in shares on the workers of a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from ..models.base import Model
from ..results import stores
from ..settings import checked, count
from ..text.prompts import Prompts
from .checkpoint import partial_folder
from .engine import measure, share_finished, store_path
from .loop import Measurements


@checked(shares=count(1))
def measure_on_cluster(
    client: Any,
    load: Callable[[], Model],
    prompts: Prompts,
    measurements: Measurements,
    *,
    store: str | Path,
    shares: int,
    **options: Any,
) -> xr.DataTree:
    """Run shares of the prompts on the workers of a Dask cluster and merge them.

    Parameters
    ----------
    client : distributed.Client
        A cluster whose workers see the same file system as this process.
    load : callable
        Returns the model; called on each worker, for example ``lambda: ti.load_model("...", device="cuda")``.
    prompts, measurements
        As for :func:`measure`.
    store : path
        On the shared file system; a relative one is in the working folder of this process.
    shares : int
        Number of parts, usually the number of workers.
    **options
        Further arguments of :func:`measure`.

    Examples
    --------
    >>> from distributed import Client, LocalCluster  # doctest: +SKIP
    >>> run = ti.measure_on_cluster(Client(cluster), ti.load_model, prompts, {"lens": ti.lens.LogitLens()},
    ...                             store="runs/lens.zarr", shares=4)  # doctest: +SKIP
    """
    path = store_path(store)
    if stores.exists(path):
        return measure(load(), prompts, measurements, store=path, **options)

    quiet = {**options, "progress": False}

    def work(i: int, prompts: Prompts) -> int:
        measure(load(), prompts, measurements, store=path, share=(i, shares), **quiet)
        return i

    with warnings.catch_warnings():  # of a large graph: the prompts travel once, and again if their worker dies
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        sent = client.submit(_same, prompts, pure=False)
    client.gather(client.map(work, range(shares), prompts=sent, pure=False))
    if stores.exists(path):
        return stores.read(path)
    if missing := [i for i in range(shares) if not share_finished(partial_folder(path), i, shares)]:
        raise RuntimeError(
            f"shares {missing} of {path} are not here: do the workers write to the same file system as this process?"
        )
    return measure(load(), prompts, measurements, store=path, share=(0, shares), **options)


def _same(prompts: Prompts) -> Prompts:
    return prompts
