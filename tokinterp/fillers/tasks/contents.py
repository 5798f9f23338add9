"""What is in the dots: the words of the chain of thought that filler positions hold, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...run.measurement import Field, Measurement
from . import match3
from .task import Task
from .words import Words

if TYPE_CHECKING:
    from ...models.info import ModelInfo
    from ...run.batch import Batch
    from ...text.prompts import Prompts

EACH = ("layer", "slot")
REFERENCE = "Bharadwaj 2024, arXiv 2412.04537"


class FillerContents(Measurement):
    """Whether the logit lens at filler t shows word t of the parallel chain of thought of a Match3 prompt.

    Word t is valid if it could stand there: either row of the pair, then the first row that completes the pair to
    zero, else any digit of the pair's sum.  The filler itself is left out of the vocabulary that is searched.

    Parameters
    ----------
    n, d, m : int
        Of the task.
    layers : iterable of int, optional
        All by default.

    Notes
    -----
    ``recovery`` has two kinds of chance beside it: ``recovery_shuffled``, the share of the same answers that are valid
    for other, random rows, and an untrained network, which the caller measures as well.  Slots 0, 2, 4, ... hold a row
    of the pair, the same in every prompt: a network can learn these from the place alone.  Slots 1, 3, 5, ... depend on
    the digits, and only they show computation; ``match_recovery`` are those with a third row to name.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.fillers.tasks.network import Network, as_model, build
    >>> task = Task(n=4, d=1)
    >>> model = as_model(build(task, Network(2, 32, 2, 64)), task)
    >>> run = ti.measure(model, filler_prompts(task, model, 5), {"dots": FillerContents(4, 1)}, progress=False)
    >>> run["dots"]["recovery"].dims
    ('layer', 'slot')
    """

    first = ("recovery", "match_recovery")
    fields = {
        "recovery": Field(
            EACH, "share of fillers whose best word is valid there", "1", REFERENCE, short="share valid for these rows",
            beside=("recovery_shuffled", "filler_share"), along=("layer",),
        ),
        "recovery_shuffled": Field(EACH, "the same, valid for other rows (chance)", short="valid for other rows"),
        "reciprocal_rank": Field(EACH, "mean reciprocal rank of the best valid word"),
        "filler_share": Field(EACH, "share of fillers whose best word is the filler", short="the filler"),
        "match_recovery": Field(("layer",), "recovery where a third row completes the pair", "1", REFERENCE),
        "n_matches": Field((), "fillers with a third row to name", "token"),
        "n_prompts": Field((), "prompts"),
        "_matched": Field(EACH, "fillers whose best word is valid and names a third row"),
        "_matches": Field(("slot",), "fillers with a third row to name"),
    }  # fmt: skip

    def __init__(self, n: int, d: int, m: int = 10, layers: Iterable[int] | None = None) -> None:
        super().__init__()
        self.n, self.d, self.m = Task(n=n, d=d, m=m).n, d, m
        self.layers = None if layers is None else list(layers)

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that all prompts are of the filler format of this task."""
        super().begin(info, prompts)
        self.n_slots = check_fillers(self._words, info, prompts)
        self.n_slots = min(self.n_slots, self.n * (self.n - 1))

    @property
    def _words(self) -> Words:
        return Words(self.n, self.d, self.m)

    def update(self, batch: Batch) -> None:
        """Count at every layer and slot whether the best word is a valid one, and how high the best valid word is."""
        words, slots = self._words, slice(self.n + 1, self.n + 1 + self.n_slots)
        rows = words.digits(batch.ids[:, : self.n])
        other = _random_rows(batch.prompt_numbers, self.n, self.d, self.m)
        valid, wrong = (valid_words(r, words)[:, : self.n_slots] for r in (rows, other))
        match = torch.zeros_like(valid[..., 0])
        match[:, 1::2] = match3.partner(rows, self.m)[:, : match[:, 1::2].shape[1]] >= 0
        found: dict[str, list[torch.Tensor]] = {}
        for layer in self.at_layers():
            logits = batch.model.unembed(batch.resid(layer)[:, slots])[..., : len(words)].double()
            is_filler = logits.argmax(-1) == words.filler
            logits[..., words.filler] = -torch.inf
            best = logits.argmax(-1, keepdim=True)
            right = valid.gather(-1, best)[..., 0]
            top = logits.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
            rank = 1 + (logits > top).sum(-1)
            for name, value in (
                ("recovery", right), ("recovery_shuffled", wrong.gather(-1, best)[..., 0]),
                ("reciprocal_rank", 1 / rank.double()), ("filler_share", is_filler), ("_matched", right & match),
            ):  # fmt: skip
                found.setdefault(name, []).append(value.double().sum(0))
        for name, values in found.items():
            self.add(name, torch.stack(values))
        self.add("_matches", match.double().sum(0))
        self.add("n_prompts", torch.tensor(len(batch), dtype=torch.float64, device=batch.device))

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return shares, from counts."""
        shares = ("recovery", "recovery_shuffled", "reciprocal_rank", "filler_share")
        matches = found["_matches"].sum()
        with np.errstate(invalid="ignore"):  # 0/0 is NaN: no prompt has a triple
            matched = found["_matched"].sum(1) / matches
        return {**{k: found[k] / found["n_prompts"] for k in shares}, "match_recovery": matched, "n_matches": matches}

    def coords(self) -> Mapping[str, Any]:
        """Return the slots, and what the chain of thought says there."""
        kind = ["row of the pair" if t % 2 == 0 else "third row or digit of the sum" for t in range(self.n_slots)]
        return {
            "slot": (range(self.n_slots), "filler, counted from the first", "1"),
            "slot_kind": ("slot", kind, "what the chain of thought says there", "1"),
        }


def check_fillers(words: Words, info: ModelInfo, prompts: Prompts) -> int:
    """Return the fillers of prompts in the filler format of a Match3 task.

    Raises
    ------
    ValueError
        If the model has not the words of the task, or the prompts are not all of the filler format.
    """
    n = words.n
    if info.d_vocab < len(words) + words.n_rows:
        raise ValueError(
            f"{info.id} has {info.d_vocab} words, Match3 with n={n}, d={words.d}, m={words.m} has "
            f"{len(words) + words.n_rows}: give a network of that task, wrapped by as_model"
        )
    count = min(prompts.lengths) - n - 3
    if min(prompts.lengths) != max(prompts.lengths) or count < 2:
        raise ValueError(
            f"prompts of {min(prompts.lengths)} to {max(prompts.lengths)} words: filler prompts of Match3 with "
            f"n={n} are equally long and have fillers after word {n}"
        )
    whole = np.asarray(prompts.token_ids).reshape(len(prompts), -1)
    digits = (whole[:, :n] >= len(words)) & (whole[:, :n] < len(words) + words.n_rows)
    middle = (whole[:, n] == words.prompt) & (whole[:, n + 1 : -2] == words.filler).all(1)
    if not (fits := digits.all(1) & middle & (whole[:, -2] == words.answer)).all():
        raise ValueError(
            f"prompt {int(fits.argmin())} has no fillers from word {n + 1} on between rows and answer: give prompts in "
            "the filler format"
        )
    return count


def valid_words(rows: torch.Tensor, words: Words) -> torch.Tensor:
    """Return (example, slot, column) bool: words that the parallel chain of thought of these rows could have there."""
    n, m = words.n, words.m
    i, j = match3.pairs(n, rows.device)
    k = match3.partner(rows, m)
    out = torch.zeros(len(rows), len(i), 2, len(words), dtype=torch.bool, device=rows.device)
    pair = torch.arange(len(i), device=rows.device, dtype=torch.int64)
    out[:, pair, 0, words.slot + i] = True
    out[:, pair, 0, words.slot + j] = True
    digit = words.digit + (rows[:, i] + rows[:, j]) % m  # written in the block of coordinate 0
    second = torch.zeros_like(out[:, :, 1]).scatter_(-1, digit, True)
    third = torch.zeros_like(second).scatter_(-1, (words.slot + k.clamp_min(0))[..., None], True)
    out[:, :, 1] = torch.where((k >= 0)[..., None], third, second)
    return out.flatten(1, 2)


def _random_rows(numbers: torch.Tensor, n: int, d: int, m: int) -> torch.Tensor:
    """Return (prompt, n, d) digits that depend on the number of the prompt alone, whatever the batch."""
    place = torch.arange(n * d, device=numbers.device, dtype=torch.int64)
    x = (numbers[:, None] * 1_000_003 + place * 7_919 + 12_345) & 0x7FFFFFFF
    for _ in range(3):  # a 31-bit mix of shifts and products
        x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
        x = ((x ^ (x >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    return ((x >> 7) % m).view(-1, n, d)


def filler_prompts(task: Task, model: Any, count: int, seed: int = 0) -> Prompts:
    """Return test examples of a task in its filler format as prompts for ``ti.measure``."""
    from ...text.prompts import Prompts

    return Prompts.from_ids(task.test_set("filler", count, 200 + seed).sequences.ids.numpy(), model)
