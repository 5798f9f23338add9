"""Causal interventions on inserted fillers: hide, delete, ablate, transplant, renumber and patch them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..behaviour.answers import Answers, Padded, ask, chunks, pad
from ..kernels.divergence import compare
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import finish
from ..run.edits import Edit, knock_out, replace, zero
from ..run.sites import Site
from ..settings import checked, count, names, one_of
from ..text.items import PLACEMENTS, Items, _pair, build_items
from .insertion import _bundled, _short
from .results import NAMES, numbers

if TYPE_CHECKING:
    from ..models.base import Model

ALL = (
    "insertion", "deletion", "deletion, places kept", "knock-out", "knock-out of the answer",
    "knock-out, places closed", "blind fillers", "windows", "mean ablation", "zero ablation", "resample ablation",
    "transplant", "transplant of the question", "places closed", "patches",
)  # fmt: skip
SHOWN = ("truncation", "deletion everywhere")
"""Interventions on items with demonstrations."""
_QUANTITIES = ("kl", "js", "flip", "entropy_change")


@checked(
    n_fillers=count(),
    placement=one_of(*PLACEMENTS),
    interventions=names(*ALL, *SHOWN, least=1),
    width=count(1),
)
@steady
def intervene(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    kind: str = "dots",
    placement: str = "post",
    interventions: Sequence[str] | None = None,
    demonstrations: Iterable[Any] = (),
    width: int | None = None,
    cue: str | None = None,
    exact: bool = True,
    batch_tokens: int = 2048,
    seed: int = 0,
) -> xr.Dataset:
    """Change the fillers of every item in several ways and compare the answers with those of the whole item.

    Parameters
    ----------
    model, questions, n_fillers, kind, placement, cue, exact, seed
        See `build_items`.
    interventions : sequence of str, optional
        All by default. ``"insertion"``: x_k against x_0. ``"deletion"``: x_0, also with the places of x_k kept.
        ``"knock-out"``: fillers hidden from all tokens behind them, ``"knock-out of the answer"``: from the
        answer position only, ``"windows"``: from it in windows of blocks, ``"blind fillers"``: the question
        hidden from the fillers, ``"knock-out, places closed"``: hidden and the places behind them moved up, which
        equals deletion. ``"mean ablation"`` (over items, slot by slot), ``"zero ablation"``, ``"resample ablation"``
        (of another item): of the fillers' stream at all layers. ``"transplant"``: keys and values of the fillers
        of another item of the same layout, and the same of its question as positive control. ``"places closed"``:
        what follows the fillers gets its places of k = 0. ``"patches"``: the stream at the answer position of x_k
        put into x_0, layer by layer (sufficiency). With demonstrations, all these change the target's fillers alone
        (x_0 keeps those of its demonstrations), ``"truncation"`` is the deletion of the target's only, and
        ``"deletion everywhere"`` takes the demonstrations' too.
    demonstrations : iterable of Question or (prompt, answer)
        Solved before every item, with as many fillers, see `build_items`.
    width : int, optional
        Blocks in a window; by default a fifth of them.
    batch_tokens : int
        Padded tokens per batch.

    Returns
    -------
    xarray.Dataset
        By ``intervention`` and item: kl = KL(changed || whole), js, flip, entropy_change, and log_prob_change of the
        answer (negative: it became less probable); for transplants ``donor_change``, the change of log-probability of
        the first token of the donor's answer. Items without another one of the same layout have NaN there. The
        reference of ``"insertion"`` is x_0, of all others x_k. `ti.summary` gives means with intervals.

    Raises
    ------
    ValueError
        For an unknown intervention, or what `build_items` and the model refuse.

    Examples
    --------
    >>> import tokinterp as ti
    >>> pair = [("The capital of France is", " Paris")]
    >>> ds = intervene(ti.load_model(), pair, n_fillers=4, interventions=["deletion", "knock-out, places closed"])
    >>> float(abs(ds["kl"][0] - ds["kl"][1]).max()) < 1e-4
    True
    """
    demonstrations = [_pair(d) for d in demonstrations]
    offered = (*ALL, *SHOWN) if demonstrations else ALL
    interventions = offered if interventions is None else interventions
    unknown = [i for i in interventions if i not in offered]
    if unknown or not interventions:
        more = "" if demonstrations else f", and with demonstrations= {', '.join(SHOWN)}"
        raise ValueError(f"interventions {unknown or 'are empty'}: there are {', '.join(offered)}{more}")
    questions = list(_bundled() if questions is None else questions)
    shared: dict[str, Any] = {
        "kind": kind, "placement": placement, "cue": cue, "exact": exact, "seed": seed, "demonstrations": demonstrations
    }  # fmt: skip
    whole = build_items(model, questions, n_fillers=n_fillers, **shared)
    plain = build_items(model, questions, demo_fillers=n_fillers, **shared)
    bench = _Bench(model, whole, plain, width, batch_tokens, seed)
    if "deletion everywhere" in interventions:
        bench.none = build_items(model, questions, **shared)
    names = [n for i in interventions for n in bench.spelled(i)]
    found = {q: np.full((len(names), len(whole)), np.nan) for q in (*_QUANTITIES, "log_prob_change", "donor_change")}
    for rows in chunks(whole, batch_tokens):
        bench.take(rows)
        for i, name in enumerate(names):
            for q, v in bench.values(name).items():
                found[q][i, rows] = v
    dims = ("intervention", "prompt")
    data = {q: variable(dims, found[q], *NAMES[q]) for q in (*_QUANTITIES, "log_prob_change")}
    if any(n.startswith("transplant") for n in names):
        text = "change of the log-probability of the first token of the donor's answer"
        data["donor_change"] = variable(dims, found["donor_change"], text, "nat")
    coords = {"intervention": variable("intervention", np.array(names), "what is changed", "1")}
    settings = {
        "n_fillers": n_fillers, "kind": kind, "placement": placement, "interventions": list(interventions),
        "width": bench.width, "cue": cue, "exact": exact,
        "demonstrations": [list(d) for d in demonstrations], "questions": [list(_pair(q)) for q in questions],
    }  # fmt: skip
    out = xr.Dataset(data, {**coords, "prompt": numbers(len(whole))})
    return finish(out, model, "intervene", _short(settings), seed)


class _Bench:
    """One batch of items at a time, with what the interventions share."""

    def __init__(
        self, model: Model, whole: Items, plain: Items, width: int | None, batch_tokens: int, seed: int
    ) -> None:
        self.model, self.whole, self.plain, self.batch_tokens, self.seed = model, whole, plain, batch_tokens, seed
        self.width = width or max(1, round(model.info.n_layers / 5))
        self.none = plain
        self.donors = donors(whole)
        self.streams = [Site("resid", n) for n in range(model.info.n_layers)]
        self.inner = [Site(name, b) for b in range(model.info.n_layers) for name in ("key", "value")]

    def spelled(self, name: str) -> list[str]:
        """Return the names of the rows that an intervention makes."""
        n = self.model.info.n_layers
        if name == "windows":
            return [
                f"knock-out of the answer, blocks {a}-{min(a + self.width, n) - 1}" for a in range(0, n, self.width)
            ]
        if name == "patches":
            return [f"patch of layer {layer}" for layer in range(n + 1)]
        return [name]

    def take(self, rows: list[int]) -> None:
        """Go to another batch."""
        self.rows = rows
        self.batch = pad(self.whole, rows)
        self.short = pad(self.plain, rows)
        self.fillers = self.part("filler")
        self.full = ask(self.model, self.batch)
        self.bare = ask(self.model, self.short)

    def part(self, name: str) -> torch.Tensor:
        """Return (row, position) bool, true on a part of the items."""
        found = self.whole.positions(self.rows, self.batch.ids.shape[1], name)
        return torch.from_numpy(found).to(self.batch.ids.device)

    def values(self, name: str) -> dict[str, Any]:
        """Run one intervention on the batch and compare."""
        changed, reference, lacking = self.run(name), self.bare if name == "insertion" else self.full, None
        out = compare(changed.log_probs, reference.log_probs)
        out["log_prob_change"] = changed.log_prob - reference.log_prob
        if name.startswith("transplant"):
            donor = self.donors[self.rows]
            first = torch.tensor(
                [self.whole.answers[d][0] for d in donor], device=changed.log_probs.device, dtype=torch.int64
            )[:, None]
            out["donor_change"] = (changed.log_probs.gather(1, first) - reference.log_probs.gather(1, first))[:, 0]
            lacking = torch.from_numpy(donor < 0).to(changed.log_probs.device)
        if lacking is not None:
            out = {q: v.double().masked_fill(lacking, torch.nan) for q, v in out.items()}
        return {q: v.double().cpu().numpy() for q, v in out.items()}

    def run(self, name: str) -> Answers:
        """Return the answers under one intervention."""
        model, batch, fillers = self.model, self.batch, self.fillers
        after = batch.mask & ~fillers & (fillers.cumsum(1) > 0)
        if name == "insertion":
            return self.full
        if name in ("deletion", "truncation"):
            return self.bare
        if name == "deletion everywhere":
            return ask(model, pad(self.none, self.rows))
        if name == "deletion, places kept":
            place = torch.arange(self.short.ids.shape[1], device=batch.ids.device, dtype=torch.int64).expand_as(
                self.short.ids
            )
            start = torch.from_numpy(self.whole.filler[self.rows]).to(place)
            moved = torch.where(place >= start[:, :1], place + (start[:, 1:] - start[:, :1]), place)
            return ask(model, self.short, position_ids=moved)
        if name.startswith("patch of layer"):
            return self._patch(int(name.split()[-1]))
        places = self.closed if "places closed" in name else None
        made: Sequence[Any] = ()
        if name == "knock-out" or name == "knock-out, places closed":
            made = [knock_out(fillers, after)]
        elif name.startswith("knock-out of the answer"):
            blocks = None
            if "blocks" in name:
                a, b = name.rsplit(" ", 1)[1].split("-")
                blocks = range(int(a), int(b) + 1)
            made = [knock_out(fillers, batch.answering & ~fillers, blocks=blocks)]
        elif name == "blind fillers":
            made = [knock_out(self.part("question"), fillers)]
        elif name == "zero ablation":
            made = [zero(s, fillers) for s in self.streams]
        elif name == "mean ablation":
            made = [replace(s, self._spread(v.expand(len(self.rows), -1, -1)), fillers) for s, v in self.means.items()]
        elif name == "resample ablation":
            rows = [(r + 1) % len(self.whole) for r in self.rows]
            made = [replace(s, self._spread(v), fillers) for s, v in self._slots(rows).items()]
        elif name.startswith("transplant"):
            made = self._transplant(fillers if name == "transplant" else self.part("question"))
        return ask(model, batch, made, places)

    @cached_property
    def means(self) -> dict[Site, torch.Tensor]:
        """(slot, d_model) mean over items of the fillers' stream at each layer."""
        total: dict[Site, torch.Tensor] = {}
        for rows in chunks(self.whole, self.batch_tokens):
            for s, v in self._slots(rows).items():
                total[s] = total.get(s, 0) + v.double().sum(0)
        return {s: (v / len(self.whole)).float() for s, v in total.items()}

    @property
    def closed(self) -> torch.Tensor:
        """(row, position) places in which what follows the fillers has its place without them."""
        return self.batch_places() - self._behind()

    def batch_places(self) -> torch.Tensor:
        """(row, position) 0, 1, 2, ..."""
        return torch.arange(self.batch.ids.shape[1], device=self.batch.ids.device, dtype=torch.int64).expand_as(
            self.batch.ids
        )

    def _behind(self) -> torch.Tensor:
        before = self.fillers.cumsum(1)
        return torch.where(self.fillers, torch.zeros_like(before), before)

    def _slots(self, rows: list[int]) -> dict[Site, torch.Tensor]:
        """Site -> (row, slot, d_model) stream at the fillers of some items."""
        batch = pad(self.whole, rows)
        where = torch.from_numpy(self.whole.positions(rows, batch.ids.shape[1], "filler")).to(batch.ids.device)
        kept: dict[Site, torch.Tensor] = {}

        def look(site: Site, value: torch.Tensor) -> None:
            kept[site] = value[where].unflatten(0, (len(rows), -1)).clone()

        if self.whole.n_fillers:
            ask(self.model, batch, look=look, sites=self.streams)
        return kept

    def _spread(self, slots: torch.Tensor) -> torch.Tensor:
        """(row, slot, d_model) -> (row, position, d_model), zero elsewhere."""
        out = slots.new_zeros(*self.batch.ids.shape, slots.shape[-1])
        out[self.fillers] = slots.reshape(-1, slots.shape[-1])
        return out

    def _transplant(self, where: torch.Tensor) -> list[Edit]:
        """Return edits that put the donors' keys and values in place."""
        rows = [int(d) if d >= 0 else r for d, r in zip(self.donors[self.rows], self.rows, strict=True)]
        width = self.batch.ids.shape[1]
        kept: dict[Site, torch.Tensor] = {}

        def look(site: Site, value: torch.Tensor) -> None:
            fitted = value[:, :width]
            kept[site] = torch.nn.functional.pad(fitted, (0, 0, 0, width - fitted.shape[1]))

        ask(self.model, pad(self.whole, rows), look=look, sites=self.inner)
        return [replace(s, kept[s], where) for s in self.inner]

    def _patch(self, layer: int) -> Answers:
        """Put the stream of x_k at the answer positions into x_0 at one layer."""
        site = Site("resid", layer)
        kept: list[torch.Tensor] = []
        ask(self.model, self.batch, look=lambda _, v: kept.append(v), sites=[site] * (layer < self.model.info.n_layers))
        if layer == self.model.info.n_layers:
            return self.full  # nothing is computed behind the last layer
        value = kept[0].new_zeros(*self.short.ids.shape, kept[0].shape[-1])
        to, source = answer_places(self.short), answer_places(self.batch)
        value[to] = kept[0][source]
        return ask(self.model, self.short, [replace(site, value, to)])


def answer_places(batch: Padded) -> torch.Tensor:
    """Return (row, position) bool, true where an answer token is predicted."""
    place = torch.arange(batch.ids.shape[1], device=batch.ids.device, dtype=torch.int64)
    count = (batch.answer >= 0).sum(1, keepdim=True)
    return (place >= batch.last[:, None]) & (place < batch.last[:, None] + count)


def donors(items: Items) -> np.ndarray:
    """Return (item,) another item of the same layout and another answer, -1 where there is none."""
    out = np.full(len(items), -1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for r in range(len(items)):
        key = (len(items.ids[r]), *items.filler[r].tolist(), *items.question[r].tolist())
        groups.setdefault(key, []).append(r)
    for group in groups.values():
        for n, r in enumerate(group):
            others = [group[(n + m) % len(group)] for m in range(1, len(group))]
            fitting = [d for d in others if items.answers[d][0] != items.answers[r][0]]
            out[r] = fitting[0] if fitting else -1
    return out
