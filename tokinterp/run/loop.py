"""The loop over batches of one run: capture, update, checkpoint, interruption, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files.bars import progress_bar
from ..fitted import Tensors
from ..models.base import Model
from ..models.info import ModelInfo
from ..text.prompts import Prompts
from .batch import Batch
from .checkpoint import Checkpoint, State, read_notes
from .edits import Edit
from .measurement import Measurement
from .sites import Site
from .stream import capture, comfortable_tokens, nonfinite_layer, smaller_batches

Measurements = Mapping[str, Measurement]
ROWS_ON_DEVICE = 2**28
"""Bytes of finished rows that stay on a GPU until they are moved."""
HELD = 2**27
"""Bytes of activations that stay for the next reading: prompts that fit are run once for all readings."""


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


@dataclass
class Progress:
    """How far a share of a run has come.

    Attributes
    ----------
    reading : int
        Readings of the prompts that are complete (more than one only where a measurement asks for it).
    done : int
        Prompts finished in this reading, in the order in which they are run.
    batch_tokens : int
        Padded tokens per batch.
    rows : dict of str to str
        Files with finished rows, and their digests.
    left_out : list of int
        Numbers of the prompts that were not finite in the first reading: no later one takes them.
    finished : bool
        Whether nothing is left to run.
    """

    reading: int = 0
    done: int = 0
    batch_tokens: int = 0
    rows: dict[str, str] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    finished: bool = False


def read_progress(folder: Path) -> Progress:
    """Return how far a share has come; the beginning if it has finished nothing."""
    return _progress(read_notes(folder), folder)


def _progress(notes: Mapping[str, Any], folder: Path) -> Progress:
    if notes and notes.keys() != {f.name for f in fields(Progress)}:
        raise ValueError(f"{folder} is of another kind or version of run: delete it and start the run anew")
    return Progress(**notes)


def take_up(keep: Checkpoint, measurements: Measurements, device: Any, with_rows: bool) -> Progress:
    """Give measurements the sums of the last whole step that was kept, and all finished rows if asked, in their files.

    Raises
    ------
    ValueError
        If anything that the step counts on is damaged or missing, rows that are not asked for included.
    """
    notes, sums = keep.state() or ({}, {})
    at = _progress(notes, keep.folder)
    states: dict[str, dict[str, Tensors]] = {name: {"sums": {}, "rows": {}} for name in measurements}
    for name, k, value in _apart(sums):
        states[name]["sums"][k] = value
    parts: dict[str, dict[str, list[torch.Tensor]]] = {name: {} for name in measurements}
    for file, digest in at.rows.items():
        for name, k, value in _apart(keep.load_part(file, digest=digest, mapped=True)[1]):
            if with_rows:
                parts[name].setdefault(k, []).append(value)
    for name, m in measurements.items():
        m.load(states[name], device)
        m.rows = parts[name]
    return at


def _together(of: Mapping[str, Mapping[str, torch.Tensor]]) -> Tensors:
    return {f"{name}/{k}": value.cpu() for name, tensors in of.items() for k, value in tensors.items()}


def _apart(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str, torch.Tensor]]:
    named = ((*key.partition("/"), value) for key, value in tensors.items())
    return [(name, k, value) for name, _, k, value in named]


class Runner:
    """The loop over batches, with what it needs to start again after an interruption.

    ``numbers`` are those of the prompts of this share; the measurements always see the numbers of the whole.
    """

    def __init__(
        self, model: Model, prompts: Prompts, numbers: Sequence[int], measurements: Measurements,
        edits: Sequence[Edit], keep: Checkpoint, progress: bool,
    ) -> None:  # fmt: skip
        self.model, self.whole, self.numbers, self.edits = model, prompts, numbers, edits
        self.prompts = prompts if len(numbers) == len(prompts) else prompts[list(numbers)]
        self.lengths = np.asarray(self.prompts.lengths)
        self.keep, self.progress, self.at = keep, progress, Progress()
        self.seen: dict[tuple[str, str], int] = {}
        self.on_device = 0
        self.held: list[tuple[list[int], Batch]] = []
        self.bookkeeping = Bookkeeping()
        self.bookkeeping.begin(model.info, prompts)
        self.everything: dict[str, Measurement] = {**measurements, "_prompts": self.bookkeeping}
        self.measurements = measurements
        self.passes = max(m.passes for m in measurements.values())

    def run(self, batch_tokens: int | None) -> None:
        """Run what is left to run."""
        self._take_up()
        if self.at.finished:
            return
        self.at.batch_tokens = self.at.batch_tokens or batch_tokens or self.default_batch_tokens()
        total = int(self.lengths.sum()) * self.passes
        with progress_bar(self.progress, total, initial=self._tokens_before(), unit="tok") as bar:
            while True:
                try:
                    self._run_on(bar)
                    return
                except torch.OutOfMemoryError:
                    pass  # the batch is freed only when this clause, which holds the traceback, is left
                self._smaller()
                bar.reset()
                bar.update(self._tokens_before())

    def _run_on(self, bar: Any) -> None:
        at = self.at
        while at.reading < self.passes:
            active = {k: m for k, m in self.measurements.items() if m.passes > at.reading}
            for m in active.values():
                m.reading = at.reading
            sites = sorted({s for m in active.values() if not m.streams for s in m.sites(self.model.info)})
            streaming = [m for m in active.values() if m.streams]
            wanted = [w for m in active.values() for w in m.requests(self.model.info)]
            for places, batch in self._batches(sites, streaming):
                if len(batch):
                    batch.requests = wanted
                    for m in active.values():
                        m.update(batch)
                at.done += len(places)
                bar.update(int(self.lengths[places].sum()))
                batch.shared.clear()  # a batch that is held is its activations, not all that was worked out of them
                del batch
                self._make_room()
                self.keep.step(f"after {at.done} of {len(self.prompts)} prompts", self._state)
            if self.keep.path is not None and at.reading + 1 < self.passes:
                self.keep.save(self._state)  # rows are taken; a reading ends with sums only
            for m in active.values():
                m.end_reading()
            at.reading, at.done = at.reading + 1, 0
        at.finished = True
        self.keep.step(f"after {len(self.prompts)} of {len(self.prompts)} prompts", self._state, last=True)

    def _batches(self, sites: list[Site], streaming: list[Measurement]) -> Iterator[tuple[list[int], Batch]]:
        """Run batch after batch; those of the reading before come back where all of them were few enough to hold."""
        held, self.held = self.held, []
        whole = bool(held) and sum(len(places) for places, _ in held) == len(self.prompts)
        more = self.at.reading + 1 < self.passes
        if whole and not streaming and held[0][1].activations.keys() >= {*sites}:
            self.held = held if more else []
            yield from held
            return
        del held
        room = HELD if more and self.at.done == 0 and not streaming else -1
        for places in self.prompts.batches(self.at.batch_tokens, start=self.at.done, model=self.model):
            batch = self._capture(places, sites, streaming)
            room -= sum(x.nbytes for x in batch.activations.values())
            self.held = [*self.held, (places, batch)] if room >= 0 else []
            yield places, batch
            del batch

    def _capture(self, places: list[int], sites: list[Site], streaming: list[Measurement]) -> Batch:
        """Run one batch; leave out the prompts whose activations are not finite, noted in the first reading."""
        names = [self.numbers[p] for p in places]
        batch = capture(self.model, self.whole, names, sites, self.edits, streaming=streaming)
        layer = nonfinite_layer(batch)
        bad = layer >= 0
        if self.at.reading == 0:
            self.bookkeeping.note(batch, layer)
            self.at.left_out += [n for n, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
        else:  # by sites that a later reading does not look at, too
            bad |= torch.from_numpy(np.isin(names, self.at.left_out))
        return batch.select((~bad).nonzero()[:, 0].tolist()) if bool(bad.any()) else batch

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

    def _state(self) -> State:
        """Keep the rows that were finished since the last step in a file of their own; return the rest."""
        rows = _together({name: m.take_rows() for name, m in self.everything.items()})
        self.seen, self.on_device = {}, 0
        if rows:
            file = f"rows-{self.at.reading}-{len(self.at.rows) + 1:06d}-{self.keep.writer}.safetensors"
            self.at.rows[file] = self.keep.save_part(file, rows, {}, finite=False)
        return asdict(self.at), _together({name: m.sums for name, m in self.everything.items()})

    def _take_up(self) -> None:
        for m in self.everything.values():
            m.sums, m.rows = {}, {}
        self.at = take_up(self.keep, self.everything, self.model.device, with_rows=False)
        for pattern in ("rows-*", ".rows-*") if self.keep.writer else ():  # what a kill left that no whole step names
            for file in self.keep.folder.glob(pattern):
                if file.name not in self.at.rows:
                    file.unlink(missing_ok=True)

    def _smaller(self) -> None:
        """After running out of memory: half the batch, from the last checkpoint on (or from the beginning)."""
        half = smaller_batches(self.at.batch_tokens, int(self.lengths.max()))
        for m in self.everything.values():
            m.begin(self.model.info, self.whole)
        self.held = []
        self._take_up()
        self.at.batch_tokens = half

    def _tokens_before(self) -> int:
        ordered = -np.sort(-self.lengths)  # as batches come
        return self.at.reading * int(ordered.sum()) + int(ordered[: self.at.done].sum())

    def default_batch_tokens(self) -> int:
        """Return a batch size whose captured activations and logits stay within a fraction of the memory."""
        info = self.model.info
        kept, passing = (
            {s for m in self.measurements.values() if m.streams == streams for s in m.sites(info)}
            for streams in (False, True)
        )
        return comfortable_tokens(self.model, self.lengths, kept, passing)
