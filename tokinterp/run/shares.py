"""One run in shares on several machines: run on the workers of a cluster, or gathered from folders of their own."""

from __future__ import annotations

import inspect
import secrets
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr

from ..files.bars import progress_bar
from ..files.owner import discard, is_owned, private_name
from ..files.paths import new_path
from ..models.base import Model
from ..results import stores
from ..settings import checked, count, flag, instance
from ..text.prompts import Prompts
from .checkpoint import share_folder
from .engine import measure, share_finished, store_path
from .facts import FORMAT, claim, partial_folder, read_facts
from .loop import Measurements, read_progress
from .shipped import Shipped

TICK = 2.0
"""Seconds between two looks at how far the shares have come."""
_here: dict[str, tuple[Model, Prompts]] = {}
"""What this worker holds for the newest call."""
_over: set[str] = set()
"""Calls that have ended, of which this worker may still have shares."""
_alone = threading.Lock()
"""One share at a time in a process, whose threads may have one model."""


@checked(prompts=instance("Prompts"), shares=count(1), progress=flag)
def measure_on_cluster(
    client: Any,
    load: Callable[[], Model],
    prompts: Prompts,
    measurements: Measurements,
    *,
    store: str | Path,
    shares: int,
    progress: bool = True,
    **options: Any,
) -> xr.DataTree:
    """Run shares of the prompts on the workers of a Dask cluster and merge them.

    Each worker process loads the model once and runs one share at a time; more shares than workers even out their
    pace.  The arrays of the prompts lie in a hidden file beside the store until the end, from which a share reads its
    own.  A share whose worker is lost goes on from its last checkpoint on another one, and the worker that ends the
    last share merges them.  The same call goes on after a failure, Ctrl-C included; workers that are in the middle of a
    share end it (``client.restart()`` stops them).

    Parameters
    ----------
    client : distributed.Client
        A cluster whose workers see the same file system as this process; one thread for each worker is best.
    load : callable
        Returns the model; called on the workers, for example ``lambda: ti.load_model("...", device="cuda")``.
    prompts, measurements
        As for :func:`measure`.
    store : path
        On the shared file system; a relative one is in the working folder of this process.
    shares : int
        Number of parts: that of the workers, or a few times as many.
    progress : bool
        Show a bar of the prompts in the checkpoints of all shares.
    **options
        Further arguments of :func:`measure`, except ``share``.

    Returns
    -------
    xarray.DataTree
        As :func:`measure`.  Whole numbers, labels and what is chosen are those of one process; other numbers are the
        same to the rounding of the model, as batches hold other prompts (see "Determinism" in the documentation).

    Raises
    ------
    Exception
        Whatever a share raises, once; the other shares are not begun.
    distributed.KilledWorker
        If workers die again and again over one share.
    RuntimeError
        If the workers do not write to the file system of this process.

    Examples
    --------
    >>> import tempfile
    >>> import tokinterp as ti
    >>> from distributed import Client, LocalCluster
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], ti.load_model())
    >>> options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    >>> with tempfile.TemporaryDirectory() as folder, LocalCluster(**options) as cluster, Client(cluster) as client:
    ...     run = ti.measure_on_cluster(client, ti.load_model, prompts, {"lens": ti.lens.LogitLens(layers=[4])},
    ...                                 store=folder + "/lens.zarr", shares=2)
    >>> run["lens"]["prompt"].values.tolist()
    [0, 1]
    """
    own = ("model", "prompts", "measurements", "store", "share", "progress")
    known = [k for k in inspect.signature(measure).parameters if k not in own]
    if wrong := sorted({*options}.difference(known)):
        raise TypeError(f"measure_on_cluster() has no option {wrong[0]!r}: it takes {', '.join(known)}")
    if shares > len(prompts):
        raise ValueError(f"shares={shares}: {len(prompts)} prompts make at most as many shares")
    path = store_path(store)
    n = 1 if stores.exists(path) else shares  # one looks whether it is the result of this run
    shipped, call = Shipped(prompts, path), secrets.token_hex(8)
    try:
        with warnings.catch_warnings():  # of a large graph: it travels once to a worker, and again if that dies
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            sent = client.submit(_same, (shipped, load, dict(measurements), options), pure=False)
        futures = client.map(_run_share, range(n), given=sent, store=path, shares=shares, call=call, pure=False)
        try:
            passes = max((m.passes for m in measurements.values()), default=1)
            _watch(futures, partial_folder(path), len(prompts), passes, progress)
            client.gather(futures)
        finally:
            client.cancel(futures)
            with suppress(Exception):  # workers that are gone have nothing to forget
                client.run(_forget, call)
    finally:
        shipped.remove()
    if not stores.exists(path):
        raise RuntimeError(f"{path} is not here: do the workers write to the same file system as this process?")
    return stores.read(path)


def _same(given: Any) -> Any:
    return given


def _run_share(i: int, given: tuple[Any, ...], store: Path, shares: int, call: str) -> int:
    """Run a share on a worker, with the model and the prompts that it has from an earlier one."""
    shipped, load, measurements, options = given
    with _alone:
        if call in _over:
            raise RuntimeError(f"share {i} is not begun: the call that wanted it has ended")
        try:
            if call not in _here:
                _here.clear()  # of a call that was killed
                _here[call] = load(), shipped.prompts()
            measure(*_here[call], measurements, store=store, share=(i, shares), progress=False, **options)
        finally:
            if call in _over:  # since this share began
                _here.pop(call, None)
    return i


def _forget(call: str) -> None:
    """Let go of the model and the prompts of a call, which a share that is still running holds itself."""
    _over.add(call)
    _here.pop(call, None)


def _watch(futures: Sequence[Any], root: Path, total: int, passes: int, progress: bool) -> None:
    """Show how far the shares have come by their checkpoints, until all have ended or one has failed."""
    from distributed import wait

    n, done = len(futures), [0] * len(futures)
    with progress_bar(progress, total * passes, unit="prompt") as bar:
        while True:
            with suppress(TimeoutError):
                wait(futures, timeout=TICK)
            ended = all(f.done() for f in futures) or any(f.status == "error" for f in futures)
            for i, future in enumerate(futures if not bar.disable else ()):
                done[i] = max(done[i], len(range(i, total, n)) * passes if future.done() else _done(root, i, n, total))
            bar.update(sum(done) - bar.n)
            if ended:
                return


def _done(root: Path, i: int, n: int, total: int) -> int:
    """Return how many prompts the checkpoint of a share counts, over all readings."""
    try:
        at = read_progress(share_folder(root, (i, n)))
    except (OSError, ValueError):  # not begun; or being merged, and removed
        return 0
    return at.reading * len(range(i, total, n)) + at.done


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
        n = int(facts.pop("shares"))
        if n == 1:
            raise ValueError(f"stores: {store} is no share but a whole run: the command that began it ends it")
        claim(root, facts, n)
        for share in sorted(folder.glob("share-*-of-*")):
            place = root / share.name
            if not read_progress(share).finished or is_owned(share):
                continue
            if read_progress(place).finished or is_owned(place):
                continue
            new = private_name(place, "new")
            shutil.copytree(share, new, ignore=shutil.ignore_patterns("lock", "owner-*.json"))
            discard(place)
            new.rename(place)
    n = int(read_facts(root)["shares"])
    return [i for i in range(n) if not share_finished(root, i, n)]
