"""One pass over the prompts, many measurements: batches, checkpoints, resume, progress, several machines."""

from __future__ import annotations

import copy
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from . import dataset
from .capture import Batch, Site, capture
from .checkpoint import Checkpoint, Facts, Progress, compare_facts, fingerprint, partial_folder
from .edits import Edit, KnockOut, SiteEdit
from .measurements.base import Measurement
from .models.base import Model
from .text.prompts import Prompts

Measurements = Mapping[str, Measurement]


def measure(
    model: Model,
    prompts: Prompts | Sequence[str],
    measurements: Measurements,
    *,
    store: str | Path | None = None,
    edits: Sequence[Edit] = (),
    batch_tokens: int | None = None,
    checkpoint_every: float = 60.0,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> xr.DataTree:
    """Run a model over prompts once and give every batch to every measurement.

    Parameters
    ----------
    model : Model
        From :func:`load_model` or :func:`wrap`.
    prompts : Prompts or sequence of str
        What to run it on; texts are turned into prompts with the model's tokenizer.
    measurements : mapping of name -> Measurement
        The names become the groups of the result.
    store : path, optional
        zarr folder for the result.  While the run goes on, finished rows and running sums are kept in
        ``STORE.partial``; the same call after a crash or Ctrl-C goes on from there and ends in the same numbers.
        If the finished result is there already, it is read and returned.
    edits : sequence of Edit
        What to change during each pass.
    batch_tokens : int, optional
        Padded tokens per batch; by default what fits comfortably.  Halved when a GPU runs out of memory.
    checkpoint_every : float
        Seconds between two checkpoints.
    share : (int, int)
        (i, n): run only the i-th of n shares of the prompts, for n machines that write to one store; whichever call
        comes after the last share has finished merges them.  Until then an empty tree is returned.
    progress : bool
        Show a bar with tokens per second and the time left.

    Returns
    -------
    xarray.DataTree
        One group per measurement, and a group ``prompts`` with ``n_tokens`` and ``first_nonfinite_layer`` of every
        prompt (-1 where all activations were finite; other prompts are left out of every measurement).

    Raises
    ------
    ValueError
        For settings that do not fit the model or the prompts, before anything is run; for a store of another run
        (names what differs); if every prompt gives NaN or infinite activations.
    KeyboardInterrupt
        After Ctrl-C, once the batch in progress has been finished and kept.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"lens": ti.LogitLens(layers=[4])}, progress=False)
    >>> list(run.children)
    ['prompts', 'lens']
    """
    if not isinstance(measurements, Mapping) or not measurements:
        raise ValueError("no measurement: give a dictionary such as {'lens': tokinterp.LogitLens()}")
    for name, m in measurements.items():
        if not isinstance(m, Measurement):
            raise ValueError(
                f"{name!r} is a {type(m).__name__}, not a measurement: write for example tokinterp.LogitLens()"
            )
        if not name.isidentifier() or name.startswith("_") or name == "prompts":
            raise ValueError(
                f"measurement name {name!r} becomes a group of the result beside 'prompts': use letters, digits and _"
            )
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    if len(prompts) == 0:
        raise ValueError("no prompts to measure: the list is empty")
    i, n = share
    if not 0 <= i < n:
        raise ValueError(f"share {share}: write (i, n) with i from 0 to n - 1")
    if n > len(prompts) or (n > 1 and store is None):
        raise ValueError(f"share {share}: {len(prompts)} prompts make at most as many shares, and shares need a store=")
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens}: a batch holds at least one token")
    _check_edits(model, prompts, edits)
    facts = run_facts(model, prompts, measurements, edits)
    path = None if store is None else Path(store)
    if path is not None and path.exists():
        return _finished(path, facts)
    for m in measurements.values():
        m.start(model.info, prompts)
        if n > 1 and m.passes > 1:
            raise ValueError(f"{type(m).__name__} reads the prompts {m.passes} times: it cannot be run in shares")
    _check_sites(model, measurements)
    keep = Checkpoint(path, facts, share) if path is not None else None
    mine = prompts if n == 1 else prompts[list(range(i, len(prompts), n))]
    numbers = list(range(i, len(prompts), n))
    try:
        runner = _Runner(model, mine, numbers, measurements, edits, keep, checkpoint_every, progress)
        runner.run(batch_tokens)
        if keep is None:
            return _result(model, prompts, measurements, runner.bookkeeping, facts)
        with keep.alone():
            if path is not None and path.exists():  # another share was the last one, and has merged them
                return _finished(path, facts)
            missing = [k for k in range(n) if not _share_finished(keep.root, k, n)]
            if missing:
                print(f"share {i} of {n} is finished; still to run: {missing}", file=sys.stderr)
                return xr.DataTree()
            _merge_shares(keep.root, n, runner.everything)
            try:
                tree = _result(model, prompts, measurements, runner.bookkeeping, facts)
            except AllNonfiniteError:
                keep.remove()
                raise
            assert path is not None
            dataset.write(tree, path)
            keep.remove()
        return dataset.read(path)
    except BaseException:
        if keep is not None:
            keep.discard_empty()
        raise
    finally:
        if keep is not None:
            keep.close()


class AllNonfiniteError(ValueError):
    """Every prompt gives NaN or infinite activations."""


def run_facts(model: Model, prompts: Prompts, measurements: Measurements, edits: Sequence[Edit]) -> Facts:
    """Return all that decides the numbers of a run, as JSON types."""
    info = model.info
    return {
        "tokinterp": ".".join(json.loads(dataset.versions()).get("tokinterp", "0").split(".")[:2]),
        "weights": info.weights,
        "dtype": info.dtype,
        "backend": info.backend,
        "device": info.device.split(":")[0],
        "tokenizer": info.tokenizer,
        "prompts": prompts.hash,
        "edits": [e.describe() for e in edits],
        "measurements": {k: {"class": type(m).__name__, **m.settings()} for k, m in measurements.items()},
    }


class _Bookkeeping(Measurement):
    """Per prompt: tokens, and the first layer with NaN or infinite activations."""

    def sites(self, info: Any) -> list[Site]:
        return []

    def update(self, batch: Batch) -> None:
        raise TypeError("bookkeeping has no update: see _Runner")


class _Runner:
    """The loop over batches, with what it needs to start again after an interruption."""

    def __init__(
        self, model: Model, prompts: Prompts, numbers: list[int], measurements: Measurements,
        edits: Sequence[Edit], keep: Checkpoint | None, every: float, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.numbers, self.edits = model, prompts, numbers, edits
        self.keep, self.every, self.progress = keep, every, progress
        self.bookkeeping = _Bookkeeping()
        self.bookkeeping.start(model.info, prompts)
        self.everything: dict[str, Measurement] = {**measurements, "_prompts": self.bookkeeping}
        self.measurements = measurements
        self.passes = max(m.passes for m in measurements.values())

    def run(self, batch_tokens: int | None) -> Progress:
        """Run what is left to run and return the progress, finished."""
        at = self.keep.progress() if self.keep else Progress()
        if at.finished:
            return at
        at.batch_tokens = at.batch_tokens or batch_tokens or self.default_batch_tokens()
        if self.keep:
            self._reload(at)
        total = sum(self.prompts.lengths) * self.passes
        before = self._tokens_before(at)
        with (
            tqdm(
                total=total, initial=before, unit="tok", unit_scale=True, disable=not self.progress, dynamic_ncols=True
            ) as bar,
            _interrupt_between_batches() as interrupted,
        ):
            while True:
                try:
                    return self._run_from(at, bar, interrupted)
                except torch.OutOfMemoryError:
                    pass  # the batch is freed only when this clause, which holds the traceback, is left
                at = self._smaller(at)
                bar.reset()
                bar.update(self._tokens_before(at))

    def _run_from(self, at: Progress, bar: Any, interrupted: Callable[[], bool]) -> Progress:
        saved = time.monotonic()
        while at.reading < self.passes:
            active = {k: m for k, m in self.measurements.items() if m.passes > at.reading}
            for m in active.values():
                m.reading = at.reading
            sites = sorted({s for m in active.values() for s in m.sites(self.model.info)})
            for places in self.prompts.batches(at.batch_tokens, start=at.done):
                batch = self._capture(places, sites, at.reading == 0)
                if len(batch):
                    for m in active.values():
                        m.update(batch)
                at.done += len(places)
                bar.update(sum(self.prompts.lengths[p] for p in places))
                del batch
                if interrupted():
                    if self.keep:
                        self._save(at)
                    raise KeyboardInterrupt(
                        f"stopped after {at.done} of {len(self.prompts)} prompts; "
                        + ("the same call resumes the run" if self.keep else "give store= to be able to resume a run")
                    )
                if self.keep and time.monotonic() - saved >= self.every:
                    at = self._save(at)
                    saved = time.monotonic()
            if self.keep and at.reading + 1 < self.passes:
                self._save(at)  # rows are taken; a reading ends with sums only
            for m in active.values():
                m.end_reading()
            at.reading, at.done = at.reading + 1, 0
        at.finished = True
        return self._save(at) if self.keep else at

    def _capture(self, places: list[int], sites: list[Site], first_reading: bool) -> Batch:
        """Run one batch; leave out and note the prompts whose activations are not finite."""
        batch = capture(self.model, self.prompts, places, sites, self.edits)
        batch.numbers = [self.numbers[p] for p in places]
        layer = nonfinite_layer(batch)
        ok = layer < 0
        if first_reading:
            lengths = torch.tensor(batch.lengths, dtype=torch.int64)
            self.bookkeeping.append(prompt=torch.tensor(batch.numbers), n_tokens=lengths, nonfinite=layer)
        return batch if bool(ok.all()) else batch.select(ok.nonzero()[:, 0].tolist())

    def _save(self, at: Progress) -> Progress:
        assert self.keep is not None
        rows = {name: m.take_rows() for name, m in self.everything.items()}
        new = self.keep.save(at, self.everything, rows)
        at.rows, at.sums = new.rows, new.sums
        return at

    def _reload(self, at: Progress) -> None:
        assert self.keep is not None
        for m in self.everything.values():
            m.sums, m.rows = {}, {}
        self.keep.load(at, self.everything, self.model.device, with_rows=False)

    def _smaller(self, at: Progress) -> Progress:
        """After running out of memory: half the batch, from the last checkpoint on (or from the beginning)."""
        longest = max(self.prompts.lengths)
        if at.batch_tokens <= longest:
            raise torch.OutOfMemoryError(
                f"the GPU has too little memory for one prompt of {longest} tokens: use shorter prompts (max_tokens=), "
                "fewer layers, or dtype='bfloat16'"
            )
        torch.cuda.empty_cache()
        again = self.keep.progress() if self.keep else Progress()
        again.batch_tokens = max(longest, at.batch_tokens // 2)
        for m in self.everything.values():
            m.start(self.model.info, self.prompts)
        if self.keep:
            self._reload(again)
        tqdm.write(f"out of memory: batches of {again.batch_tokens} tokens from here on", file=sys.stderr)
        return again

    def _tokens_before(self, at: Progress) -> int:
        done = at.reading * sum(self.prompts.lengths)
        todo = sum(self.prompts.lengths[p] for b in self.prompts.batches(at.batch_tokens, start=at.done) for p in b)
        return done + (sum(self.prompts.lengths) - todo if at.reading < self.passes else 0)

    def default_batch_tokens(self) -> int:
        """Return a batch size whose captured activations and logits stay within a fraction of the memory."""
        info = self.model.info
        sites = {s for m in self.measurements.values() for s in m.sites(info)}
        longest = max(self.prompts.lengths)
        numbers = (
            sum(info.n_heads * longest if s.name == "pattern" else info.d_model for s in sites) + 24 * info.d_model
        )
        per_token = numbers * (2 if info.dtype in ("bfloat16", "float16") else 4)
        device = self.model.device
        budget = torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 2**29
        cap = 65536 if device.type == "cuda" else 4096
        return int(max(longest, min(cap, budget // per_token)))


def nonfinite_layer(batch: Batch) -> torch.Tensor:
    """Return (prompt,) the first layer or block + 1 with NaN or infinite values on real tokens, -1 where none.

    One number per batch is read back from the device when everything is finite.
    """
    sites = sorted(batch.activations, key=lambda s: s.depth)
    if not sites:
        return torch.full((len(batch),), -1)
    bad = []
    for site in sites:
        a = batch.activations[site]
        if site.name == "pattern":
            sums = a.float().sum((1, 3))
        else:
            sums = a.float().abs().amax(-1) if a.dtype != torch.float64 else a.abs().amax(-1)
        bad.append((~torch.isfinite(sums) & batch.mask).any(1))
    table = torch.stack(bad)
    if not bool(table.any()):
        return torch.full((len(batch),), -1)
    first = table.float().argmax(0).cpu()
    layers = torch.tensor([s.at + (s.name != "resid") for s in sites])
    return torch.where(table.any(0).cpu(), layers[first], -1)


def _check_edits(model: Model, prompts: Prompts, edits: Sequence[Edit]) -> None:
    """Refuse edits that do not fit the model or the prompts, before anything is run."""
    longest = max(prompts.lengths)
    for e in edits:
        if not isinstance(e, SiteEdit | KnockOut):
            raise TypeError(
                f"{e!r} is no edit: make one with tokinterp.edits.replace, add, zero, mean_ablate, knock_out"
            )
        for positions in (e.positions,) if isinstance(e, SiteEdit) else (e.queries, e.keys):
            if isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
                raise ValueError(
                    f"positions given as a mask {tuple(positions.shape)} fit one batch only: give numbers, a slice, or "
                    "a function of (ids, mask)"
                )
        if isinstance(e, SiteEdit):
            e.check(longest, model.info.d_model)
        e.fit(longest, longest)
    model.check((), edits)


def _check_sites(model: Model, measurements: Measurements) -> None:
    """Refuse sites that the model does not have."""
    for name, m in measurements.items():
        try:
            model.check(m.sites(model.info))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _result(model: Model, prompts: Prompts, measurements: Measurements, book: Measurement, facts: Facts) -> xr.DataTree:
    """Label everything and return the tree."""
    number, n_tokens, layer = book.table("prompt", "n_tokens", "nonfinite")
    _report_nonfinite(number, layer, model)
    v = dataset.variable
    per_prompt = xr.Dataset(
        {
            "n_tokens": v("prompt", n_tokens, "tokens of the prompt, special tokens counted", "token"),
            "first_nonfinite_layer": v("prompt", layer, "first layer with NaN or infinite values, -1 where none", "1"),
        },
        coords={"prompt": v("prompt", number, "number of the prompt in the input", "1")},
    )
    mark = fingerprint(facts)
    seeds = {k: int(getattr(m, "seed", 0) or 0) for k, m in measurements.items()}
    per_prompt.attrs = dataset.provenance(model.info, prompts.hash, facts["measurements"], mark)
    # Not in the root: groups inherit its coordinates, and a measurement may lack prompts that were left out.
    root = xr.Dataset(attrs={**per_prompt.attrs, "facts": json.dumps(facts, sort_keys=True)})
    nodes = {"/": root, "/prompts": per_prompt}
    for name, m in measurements.items():
        ds = m.result()
        if "token" in ds.dims and "text" not in ds.coords:
            ds = ds.assign_coords(text=v("token", _token_strings(prompts, ds), "token as a string", "1"))
        if "top_id" in ds:  # what the ids stand for, so that a result can be read without its model
            ids = np.unique(ds["top_id"].values)
            strings = v("vocab", np.array(prompts.vocabulary.strings(ids), dtype=object), "token as a string", "1")
            ds = ds.assign_coords(vocab=v("vocab", ids, "token id", "1"), vocab_text=strings)
        own = dict(ds.attrs)
        ds.attrs = {**dataset.provenance(model.info, prompts.hash, m.settings(), mark, seeds[name]), **own}
        ds.attrs["measurement"] = type(m).__name__
        nodes["/" + name] = ds
    tree = xr.DataTree.from_dict(nodes)
    dataset.check(tree)
    return tree


def _report_nonfinite(number: np.ndarray, layer: np.ndarray, model: Model) -> None:
    """Name the prompts that were left out; refuse a result of none."""
    bad = np.flatnonzero(layer >= 0)
    if not len(bad):
        return
    first = f"prompt {number[bad[0]]}: from layer {layer[bad[0]]} on"
    if len(bad) == len(layer):
        raise AllNonfiniteError(
            f"all {len(layer)} prompts give NaN or infinite activations ({first}): load the model with dtype='float32' "
            f"or 'bfloat16' instead of {model.info.dtype!r}, or look at the edits"
        )
    logging.getLogger("tokinterp").warning(
        "%d of %d prompts give NaN or infinite activations and are left out (%s); first_nonfinite_layer names them all",
        len(bad), len(layer), first,
    )  # fmt: skip


def _token_strings(prompts: Prompts, ds: xr.Dataset) -> np.ndarray:
    number, position = ds["token_prompt" if "token_prompt" in ds.coords else "prompt"].values, ds["position"].values
    out = np.empty(len(number), dtype=object)
    for p in np.unique(number):
        here = np.flatnonzero(number == p)
        strings = prompts.strings(int(p))
        out[here] = [strings[k] for k in position[here]]
    return out


def _finished(path: Path, facts: Facts) -> xr.DataTree:
    tree = dataset.read(path)
    if "facts" not in tree.attrs:
        raise ValueError(f"{path} is a result, but not of measure(): choose another store")
    compare_facts(json.loads(tree.attrs["facts"]), facts, path)
    return tree


def _share_finished(root: Path, i: int, n: int) -> bool:
    file = root / f"share-{i}-of-{n}" / "progress.json"
    return file.exists() and bool(json.loads(file.read_text(encoding="utf-8"))["finished"])


def _merge_shares(root: Path, n: int, measurements: dict[str, Measurement]) -> None:
    """Load the finished shares one after the other and merge them into the measurements."""
    for k in range(n):
        part = measurements if k == 0 else {name: copy.copy(m) for name, m in measurements.items()}
        Checkpoint.load_share(root, (k, n), part)
        if k:
            for name, m in measurements.items():
                m.merge(part[name])


@contextmanager
def _interrupt_between_batches() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is read between batches; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and callable(before):
            before(number, frame)
        asked = True
        tqdm.write("finishing this batch, then stopping (press again to stop at once)", file=sys.stderr)

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


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
        On the shared file system.
    shares : int
        Number of parts, usually the number of workers.
    **options
        Further arguments of :func:`measure`.

    Examples
    --------
    >>> from distributed import Client, LocalCluster  # doctest: +SKIP
    >>> run = ti.measure_on_cluster(Client(cluster), ti.load_model, prompts, {"lens": ti.LogitLens()},
    ...                             store="runs/lens.zarr", shares=4)  # doctest: +SKIP
    """
    if Path(store).exists():
        return measure(load(), prompts, measurements, store=store, **options)

    quiet = {**options, "progress": False}

    def work(i: int) -> int:
        own = copy.deepcopy(dict(measurements))  # workers may be threads of this process
        measure(load(), prompts, own, store=store, share=(i, shares), **quiet)
        return i

    client.gather(client.map(work, range(shares), pure=False))
    if Path(store).exists():
        return dataset.read(store)
    return measure(load(), prompts, measurements, store=store, share=(0, shares), **options)


__all__ = ["measure", "measure_on_cluster", "nonfinite_layer", "partial_folder", "run_facts"]
