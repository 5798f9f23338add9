"""One run in shares on several machines: run on the workers of a cluster, or gathered from folders of their own."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from ..files.owner import discard, is_owned, private_name
from ..files.paths import new_path
from ..models.base import Model
from ..results import stores
from ..settings import checked, count
from ..text.prompts import Prompts
from .checkpoint import STATE
from .engine import measure, share_finished, store_path
from .facts import FORMAT, claim, partial_folder, read_facts
from .loop import Measurements, read_progress


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


def gather_shares(stores: Sequence[Path], output: Path) -> list[int]:
    """Copy the finished shares of unfinished stores into that of another, and return the numbers of those lacking.

    `measure` with any share and this store then merges them and writes the result.

    Parameters
    ----------
    stores : sequence of Path
        Where the shares were to be stored, each on a machine of its own.
    output : Path
        Where the whole is to be stored.

    Raises
    ------
    ValueError
        If they are shares of different runs (names what differs), or the run has no shares.
    """
    output = new_path(output, "output").absolute()
    root = partial_folder(output)
    for store in stores:
        folder = partial_folder(store)
        if not (folder / "run.json").is_file():
            raise ValueError(f"stores: {store} is no unfinished run of shares")
        facts = read_facts(folder)
        if facts.pop("format", None) != FORMAT:
            raise ValueError(f"stores: {store} was begun by another version of tokinterp: run that share again")
        claim(root, facts, facts.pop("shares"))
        for share in sorted(folder.glob("share-*-of-*")):
            place = root / share.name
            if not read_progress(share).finished or is_owned(share) or (place / STATE).is_file():
                continue
            new = private_name(place, "new")
            shutil.copytree(share, new, ignore=shutil.ignore_patterns("lock", "owner-*.json"))
            discard(place)
            new.rename(place)
    n = int(read_facts(root)["shares"])
    return [i for i in range(n) if not share_finished(root, i, n)]
