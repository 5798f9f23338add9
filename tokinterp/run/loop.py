"""The loop over batches of one run: capture, update, checkpoint, interruption, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..models.base import Model
from ..models.info import ModelInfo
from ..models.steady import check_steady
from ..text.prompts import Prompts
from .batch import Batch
from .checkpoint import Checkpoint, Progress
from .edits import Edit
from .measurement import Measurement
from .signals import stopped, stopping
from .sites import Site
from .stream import capture, comfortable_tokens, nonfinite_layer, smaller_batches

Measurements = Mapping[str, Measurement]
ROWS_ON_DEVICE = 2**28
"""Bytes of finished rows that stay on a GPU until they are moved."""


class Bookkeeping(Measurement):
    """Per prompt: tokens, and the first layer with NaN or infinite activations."""

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return nothing: it looks at whatever the others captured."""
        return []

    def update(self, batch: Batch) -> None:
        """Take the numbers, lengths and first non-finite layers of a batch."""
        self.note(batch, nonfinite_layer(batch))

    def note(self, batch: Batch, layer: torch.Tensor) -> None:
        """Take (prompt,) first non-finite layers that are known already."""
        lengths = torch.tensor(batch.lengths, dtype=torch.int64, device="cpu")
        self.append(
            prompt=torch.tensor(batch.numbers, dtype=torch.int64, device="cpu"), n_tokens=lengths, nonfinite=layer
        )


class Runner:
    """The loop over batches, with what it needs to start again after an interruption.

    ``numbers`` are those of the prompts of this share; the measurements always see the numbers of the whole.
    """

    def __init__(
        self, model: Model, prompts: Prompts, numbers: Sequence[int], measurements: Measurements,
        edits: Sequence[Edit], keep: Checkpoint | None, every: float, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.whole, self.numbers, self.edits = model, prompts, numbers, edits
        self.prompts = prompts if len(numbers) == len(prompts) else prompts[list(numbers)]
        self.lengths = np.asarray(self.prompts.lengths)
        self.keep, self.every, self.progress = keep, every, progress
        self.seen: dict[tuple[str, str], int] = {}
        self.on_device = 0
        self.bookkeeping = Bookkeeping()
        self.bookkeeping.begin(model.info, prompts)
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
            self.keep.verify(at)
            self._reload(at)
        total = int(self.lengths.sum()) * self.passes
        before = self._tokens_before(at)
        with (
            tqdm(
                total=total, initial=before, unit="tok", unit_scale=True, disable=not self.progress, dynamic_ncols=True
            ) as bar,
            stopping() as asked,
        ):
            while True:
                try:
                    at = self._run_from(at, bar, asked)
                    self._stop(asked(), at)
                    return at
                except torch.OutOfMemoryError:
                    pass  # the batch is freed only when this clause, which holds the traceback, is left
                at = self._smaller(at)
                bar.reset()
                bar.update(self._tokens_before(at))

    def _run_from(self, at: Progress, bar: Any, asked: Callable[[], int]) -> Progress:
        saved, pause = time.monotonic(), 0.0
        while at.reading < self.passes:
            active = {k: m for k, m in self.measurements.items() if m.passes > at.reading}
            for m in active.values():
                m.reading = at.reading
            sites = sorted({s for m in active.values() if not m.streams for s in m.sites(self.model.info)})
            streaming = [m for m in active.values() if m.streams]
            wanted = [w for m in active.values() for w in m.requests(self.model.info)]
            for places in self.prompts.batches(at.batch_tokens, start=at.done, model=self.model):
                batch = self._capture(places, sites, streaming, at.reading == 0)
                if len(batch):
                    batch.requests = wanted
                    for m in active.values():
                        m.update(batch)
                at.done += len(places)
                bar.update(int(self.lengths[places].sum()))
                del batch
                if asked():
                    if self.keep:
                        at = self._save(at)
                    self._stop(asked(), at)
                self._make_room()
                if self.keep and time.monotonic() - saved >= max(self.every, pause):
                    began = time.monotonic()
                    at = self._save(at)
                    saved = time.monotonic()
                    pause = 10 * (saved - began) if self.every else 0.0  # large sums: at most a tenth of the time
            if self.keep and at.reading + 1 < self.passes:
                self._save(at)  # rows are taken; a reading ends with sums only
            for m in active.values():
                m.end_reading()
            at.reading, at.done = at.reading + 1, 0
        at.finished = True
        return self._save(at) if self.keep else at

    def _capture(
        self, places: list[int], sites: list[Site], streaming: list[Measurement], first_reading: bool
    ) -> Batch:
        """Run one batch; leave out and note the prompts whose activations are not finite."""
        names = [self.numbers[p] for p in places]
        batch = capture(
            self.model, self.prompts, places, sites, self.edits, streaming=streaming, names=names, whole=self.whole
        )
        layer = nonfinite_layer(batch)
        ok = layer < 0
        if first_reading:
            self.bookkeeping.note(batch, layer)
        return batch if bool(ok.all()) else batch.select(ok.nonzero()[:, 0].tolist())

    def _stop(self, signal: int, at: Progress) -> None:
        """Raise, once everything is saved, if a signal has asked for it."""
        if signal:
            done = len(self.prompts) if at.finished else at.done
            way = "the same call resumes the run" if self.keep else "give store= to be able to resume a run"
            raise stopped(signal, f"stopped after {done} of {len(self.prompts)} prompts; {way}")

    def _make_room(self) -> None:
        """Move finished rows off a GPU once they are many; looks only at what is new since the last batch."""
        for name, m in self.everything.items():
            for k, parts in m.rows.items():
                seen = self.seen.get((name, k), 0)
                new = parts[seen if seen <= len(parts) else 0 :]
                self.on_device += sum(p.nbytes for p in new if p.device.type != "cpu")
                self.seen[name, k] = len(parts)
        if self.on_device > ROWS_ON_DEVICE:
            for m in self.everything.values():
                m.rows = {k: [p.cpu() for p in parts] for k, parts in m.rows.items()}
            self.on_device = 0

    def _save(self, at: Progress) -> Progress:
        assert self.keep is not None
        check_steady()
        rows = {name: m.take_rows() for name, m in self.everything.items()}
        self.seen, self.on_device = {}, 0
        new = self.keep.save(at, self.everything, rows)
        at.rows, at.sums, at.checksums, at.commits = new.rows, new.sums, new.checksums, new.commits
        return at

    def _reload(self, at: Progress) -> None:
        assert self.keep is not None
        for m in self.everything.values():
            m.sums, m.rows = {}, {}
        self.keep.load(at, self.everything, self.model.device, with_rows=False)

    def _smaller(self, at: Progress) -> Progress:
        """After running out of memory: half the batch, from the last checkpoint on (or from the beginning)."""
        half = smaller_batches(at.batch_tokens, int(self.lengths.max()))
        again = self.keep.progress() if self.keep else Progress()
        again.batch_tokens = half
        for m in self.everything.values():
            m.begin(self.model.info, self.whole)
        if self.keep:
            self._reload(again)
        return again

    def _tokens_before(self, at: Progress) -> int:
        ordered = -np.sort(-self.lengths)  # as batches come
        return at.reading * int(ordered.sum()) + int(ordered[: at.done].sum())

    def default_batch_tokens(self) -> int:
        """Return a batch size whose captured activations and logits stay within a fraction of the memory."""
        info = self.model.info
        kept, passing = (
            {s for m in self.measurements.values() if m.streams == streams for s in m.sites(info)}
            for streams in (False, True)
        )
        return comfortable_tokens(self.model, self.lengths, kept, passing)
