"""Tasks on which fillers may help: settings, checked once, and seeded samples of them in every format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from ...settings import checked, count, level, number, one_of
from . import match2, match3
from .formats import FORMATS, IGNORED, Sequences, match2_sequences, match3_sequences
from .words import TABLE, Words

FAMILIES = ("match3", "match2")
STRATA = {
    "match3": ("all", "planted", "survivor", "near_0", "near_1", "near_2", "near_3+"),
    "match2": ("all", "planted", "survivor", "some"),
}
"""Kinds of examples: all; a match was planted; corrupted, and true nevertheless; Match3 negatives by the number of
triples that sum to zero in all coordinates but one; Match2 examples in which some row has no match."""


FILTER_EXAMPLES = 2000
"""Test examples whose lengths decide which serial chains of thought are too long."""


class SerialFilter(NamedTuple):
    """Which serial chains of thought are dropped from the training data, and what that does.

    Attributes
    ----------
    limit : int
        Longest chain of thought that is kept, in words.
    dropped : float
        Share of fresh examples that are dropped.
    true_before, true_after : float
        Share of True among them, and among those that are kept: False examples have the longer chains.
    """

    limit: int
    dropped: float
    true_before: float
    true_after: float


@dataclass(frozen=True)
class Samples:
    """Examples of a task as words, with what is known of each.

    Attributes
    ----------
    sequences : Sequences
        Words, targets and the place of the answer.
    answer : torch.Tensor
        (example,) int64 class of the answer: True, False, or a label of Match2.
    rows : torch.Tensor
        (example, n, d) int64 digits, as shown.
    stratum : torch.Tensor
        (example,) int64 index into ``STRATA`` (never 0, which is all); -1 where it was not asked for.
    """

    sequences: Sequences
    answer: torch.Tensor
    rows: torch.Tensor
    stratum: torch.Tensor


@checked(
    family=one_of(*FAMILIES), d=count(1), m=count(2), mode=one_of(*match3.MODES), true_rate=level,
    fillers=one_of("square", "cot") | count(), mask=one_of("input", "final"), serial_quantile=number(above=0, high=1),
)  # fmt: skip
@dataclass(frozen=True)
class Task:
    """Match3 (3SUM) or Match2 (2SUM-Transform) of Pfau et al. 2024, arXiv 2404.15758, sections 3 and 4.

    Parameters
    ----------
    family : {"match3", "match2"}
        Which task.
    n, d, m : int
        Rows, coordinates of each, and the modulus.
    mode : {"strict", "released"}
        ``"strict"``: labels of Match3 are half True, half False, corruptions are single cells, and serial chains of
        thought end at the solved triple.  ``"released"``: as the published code draws and writes them, where the labels
        are not balanced (`majority`) and serial chains go on (`tokinterp.fillers.tasks.formats.serial`).
    fillers : {"square", "cot"} or int
        Filler tokens: n**2 as in the code, n(n-1) + 2 as in the paper's figure 4 (the length of the parallel chain of
        thought), or a number.  Match2 has a fixed number.
    mask : {"input", "final"}
        Words that the loss counts: all after the input, or only the answer and EOS.
    table_seed : int
        Match2: of the key table.
    true_rate : float
        Match2: share of examples that are not corrupted.
    serial_quantile : float, optional
        Training examples of the serial format that are longer than this quantile of a test set are dropped, as by the
        published companion script (0.95); test sets keep theirs.  None drops nothing.  What it does to the data is in
        ``serial_filter``.

    Raises
    ------
    ValueError
        For settings with which the task does not exist, before anything is drawn.

    Examples
    --------
    >>> import torch
    >>> task = Task(n=6, d=3)
    >>> sample = task.sample("filler", 8, torch.Generator().manual_seed(0))
    >>> sample.sequences.ids.shape == (8, 6 + 1 + 36 + 2), task.n_fillers
    (True, 36)
    """

    family: str = "match3"
    n: int = 8
    d: int = 3
    m: int = 10
    mode: str = "strict"
    fillers: str | int = "square"
    mask: str = "input"
    table_seed: int = 0
    true_rate: float = 0.1
    serial_quantile: float | None = None

    def __post_init__(self) -> None:
        least = 3 if self.family == "match3" else 4
        if self.n < least:
            what = "a triple needs three rows" if least == 3 else "the chain of thought lists rows 0, 1 and 2 to n-2"
            raise ValueError(f"n={self.n} is too small for {self.family}: {what}; take n >= {least}")
        if self.m**self.d >= 2**30:
            raise ValueError(f"m**d = {self.m}**{self.d} row words are too many: take m**d below 2**30")
        if self.family == "match2" and self.n * self.d > TABLE:
            raise ValueError(
                f"n*d = {self.n * self.d} digits exceed the key table of {TABLE}: take fewer rows or coordinates"
            )
        if self.serial_quantile is not None and self.family != "match3":
            raise ValueError(
                f"serial_quantile={self.serial_quantile}: take a share above 0, up to 1, of the serial format of match3"
            )

    @cached_property
    def words(self) -> Words:
        """The vocabulary."""
        return Words(self.n, self.d, self.m, match2.N_KEYS if self.family == "match2" else 0)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that this task has."""
        return FORMATS if self.family == "match3" else FORMATS[:3]

    @property
    def n_fillers(self) -> int:
        """Filler tokens of the format ``filler``."""
        if self.family == "match2":
            return 2 * self.n - 1
        n = self.n
        return (
            {"square": n * n, "cot": n * (n - 1) + 2}[self.fillers] if isinstance(self.fillers, str) else self.fillers
        )

    @property
    def strata(self) -> tuple[str, ...]:
        """Names of the kinds of examples, ``all`` first."""
        return STRATA[self.family]

    @property
    def answers(self) -> tuple[int, ...]:
        """Words that can be the answer; of Match3, True first."""
        w = self.words
        return (w.true, w.false) if self.family == "match3" else tuple(range(w.label, w.size))

    @property
    def hash(self) -> str:
        """Hash of the settings."""
        settings = asdict(self)
        if self.serial_quantile is None:
            del settings[
                "serial_quantile"
            ]  # so that tasks without it keep the examples that they had before it existed
        if self.family == "match3" and self.mode == "released":
            settings["chains"] = 2  # their words changed: what was trained on the first ones is no part of this task
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def serial_filter(self) -> SerialFilter:
        """What ``serial_quantile`` does to the serial format, found from ``FILTER_EXAMPLES`` test examples.

        Examples
        --------
        >>> Task(n=6, d=2, serial_quantile=0.95).serial_filter.dropped < 0.1
        True
        """
        test = self.test_set("serial", FILTER_EXAMPLES)
        length = (test.sequences.answer_at - self.n - 1).double()
        limit = int(torch.quantile(length, self.serial_quantile or 1.0, interpolation="lower"))
        fresh = self.sample("serial", 5 * FILTER_EXAMPLES, self._generator("serial", 0, -2))
        kept = fresh.sequences.answer_at - self.n - 1 <= (limit if self.serial_quantile else torch.inf)
        true = (fresh.answer == self.words.true).double()
        return SerialFilter(limit, 1 - float(kept.double().mean()), float(true.mean()), float(true[kept].mean()))

    @property
    def name(self) -> str:
        """Short name, such as ``match3-n8-d3-m10-strict``."""
        return f"{self.family}-n{self.n}-d{self.d}-m{self.m}-{self.mode}"

    def length(self, form: str) -> int:
        """Return the words of an example in a format, the answer included.

        Raises
        ------
        ValueError
            For an unknown format, or the serial one, whose examples differ in length.
        """
        check_format(self, form)
        if self.family == "match2":
            return self.n + 3 + (0 if form == "none" else 2 * self.n - 1)
        if form == "serial":
            raise ValueError("serial chains of thought differ in length: see sequences.answer_at of a sample")
        return self.n + 3 + {"none": 0, "filler": self.n_fillers, "parallel": self.n * (self.n - 1) + 2}[form]

    def sample(self, form: str, count: int, generator: torch.Generator, strata: bool = False) -> Samples:
        """Draw examples in one format, on the device of the generator.

        Parameters
        ----------
        form : str
            One of ``formats``.
        count : int
            Examples.
        generator : torch.Generator
            Decides everything.
        strata : bool
            Whether the stratum of each example is found, which costs more than the example itself.
        """
        check_format(self, form)
        n, d, m = self.n, self.d, self.m
        if self.family == "match2":
            table = match2.key_table(self.table_seed, m, TABLE)
            two = match2.draw(count, n, d, m, table, generator, mode=self.mode, true_rate=self.true_rate)
            kind = torch.where(two.planted, 1, torch.where(two.label == n, 2, 3))
            found = match2_sequences(two, form, self.words, generator, self.mask)
            return Samples(
                found, self.words.label + two.label, two.shown, kind if strata else torch.full_like(kind, -1)
            )
        # The published resampling of accidental Trues works only where the chain of thought is serial.
        reject = True if form == "serial" else None
        x = match3.draw(count, n, d, m, generator, mode=self.mode, reject=reject)
        kind = torch.full((count,), -1, device=x.label.device, dtype=torch.int64)
        if strata:
            near = match3.near_misses(x.rows, m).clamp_max(3)
            kind = torch.where(x.planted, 1, torch.where(x.label, 2, 3 + near))
        found = match3_sequences(x, form, self.words, self.n_fillers, generator, self.mask, self.mode)
        return Samples(found, torch.where(x.label, self.words.true, self.words.false), x.rows, kind)

    def stream(
        self, form: str, count: int, seed: int, chunk: int, device: torch.device | str = "cpu", *, first: int = 0,
        size: int | None = None,
    ) -> Iterator[Sequences]:  # fmt: skip
        """Yield batches of ``count`` examples for training without end, from batch ``first`` on.

        Examples are drawn ``chunk`` batches at a time by a generator of their own, so that any batch can be had without
        those before it.

        Parameters
        ----------
        form, count : str, int
            Format, and examples per batch.
        seed : int
            Of the data; other formats and tasks with the same seed have other examples.
        chunk : int
            Batches drawn together.
        device : torch.device or str
            Where they are drawn.
        first : int
            Batch to begin with.
        size : int, optional
            Batches after which the data repeat (an epoch); fresh data for ever when left out.
        """
        number = first
        held, have = -1, None
        while True:
            at = number % size if size else number
            if at // chunk != held or have is None:
                held = at // chunk
                have = self._training(form, count * chunk, self._generator(form, seed, held, device))
            part = slice(at % chunk * count, (at % chunk + 1) * count)
            yield Sequences(*(t[part] for t in have))
            number += 1

    def _training(self, form: str, count: int, generator: torch.Generator) -> Sequences:
        """Draw training examples; of the serial format, only those short enough."""
        if form != "serial" or self.serial_quantile is None:
            return self.sample(form, count, generator).sequences
        limit = self.serial_filter.limit + self.n + 1
        parts: list[Sequences] = []
        have = 0
        while have < count:
            x = self.sample(form, count, generator).sequences
            keep = (x.answer_at <= limit).nonzero()[:, 0]
            # All parts as wide as the longest that is kept, answer and end included.
            width = limit + 2
            ids, targets = (
                torch.nn.functional.pad(t[keep, :width], (0, max(0, width - t.shape[1])), value=fill)
                for t, fill in ((x.ids, self.words.eos), (x.targets, IGNORED))
            )
            parts.append(Sequences(ids, targets, x.answer_at[keep]))
            have += len(keep)
        return Sequences(*(torch.cat(t)[:count] for t in zip(*parts, strict=True)))

    def _generator(self, form: str, seed: int, part: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the generator of one part of a stream; part -1 is the test set."""
        key = hashlib.sha256(f"{self.hash}/{form}/{seed}/{part}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(key[:7], "big"))

    def test_set(self, form: str, count: int, seed: int = 0, device: torch.device | str = "cpu") -> Samples:
        """Return examples with their strata; always drawn on the CPU, so that every device has the same.

        The rows are the same in every format (of a strict task, or apart from the serial format of a released one).
        """
        key = hashlib.sha256(f"{self.hash}/{seed}/test".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        s = self.sample(form, count, draw, strata=True)
        found = Sequences(*(t.to(device) for t in s.sequences))
        return Samples(found, s.answer.to(device), s.rows.to(device), s.stratum.to(device))


def check_format(task: Task, form: str) -> None:
    """Raise ValueError if a task has no such format."""
    if form not in task.formats:
        raise ValueError(f"{task.family} has no format {form!r}: take one of {', '.join(task.formats)}")


def majority(answer: torch.Tensor) -> float:
    """Return the share of the most common answer: what a network that knows nothing reaches."""
    return float(answer.bincount().max()) / len(answer)
