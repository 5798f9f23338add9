"""What a network trained on Match3 answers when its fillers are hidden, deleted, or emptied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ...models.steady import steady
from ...results.dataset import variable
from ...run.edits import Edit, knock_out, patch, renumber, replace, zero
from ...run.sites import Site, resid
from ...run.stream import stream
from ...settings import checked, count, names
from ...text.prompts import Prompts
from ..results import numbers
from . import match3
from .network import as_model, parameters_hash
from .probe import _untrained_like, check_trunks, finish
from .task import Samples, Task, majority

if TYPE_CHECKING:
    from ...models.base import Model

INTERVENTIONS = (
    "none", "knock-out", "knock-out, places closed", "deletion, places kept", "deletion", "rows hidden from the answer",
    "rows hidden from the fillers", "mean ablation", "zero ablation", "resample ablation",
)  # fmt: skip
SINGLE = ("blocks", "slots")
SEED = 400


@checked(interventions=names(*INTERVENTIONS), prompts=count(2), single=names(*SINGLE))
@steady
def ablate_dots(
    trunks: Mapping[str, Any],
    task: Task,
    *,
    interventions: Sequence[str] = INTERVENTIONS,
    single: Sequence[str] = SINGLE,
    prompts: int = 400,
    random_trunk: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> xr.Dataset:
    """Change what the fillers can do for the answer, and score the answers.

    Parameters
    ----------
    trunks : mapping of str -> LlamaForCausalLM
        Networks from `tokinterp.fillers.tasks.train`.
    task : Task
        Match3; its filler format is run.
    interventions : sequence of str
        ``"none"``; ``"knock-out"``: the answer position does not see the fillers (nothing else follows them, so that
        they are hidden from all that follows); ``"deletion, places kept"``: rows, end of input and answer cue alone, in
        their places behind fillers, which is the same by another way; ``"deletion"`` and ``"knock-out, places
        closed"``: with the places moved up, as in the format without fillers; ``"rows hidden from the answer"``: the
        answer position sees no row, so that all that it knows of them came through fillers or the end of the input;
        ``"rows hidden from the fillers"``; ``"mean ablation"`` (over prompts, slot by slot), ``"zero ablation"``,
        ``"resample ablation"`` (the fillers of another prompt): of the fillers' stream at all layers.
    single : sequence of {"blocks", "slots"}
        What is done one by one, too: ``"blocks"``: the fillers are hidden from the answer in one block at a time;
        ``"slots"``: single fillers are mean-ablated at all layers.
    prompts : int
        Test examples.
    random_trunk : bool
        Whether an untrained network of the same shape is treated as well, named ``"random"``.
    seed : int
        Of the examples.
    device : torch.device or str, optional
        A GPU if there is one.

    Returns
    -------
    Dataset
        By trunk, intervention and prompt: ``correct``, whether the right one of True and False has the larger logit;
        ``answered``, whether one of them is the most probable word (`evaluate` asks for both); ``logit_change``, the
        change of logit(True) - logit(False) towards the right answer (negative: away from it).  ``slot_change``
        (trunk, slot, prompt), the same for single fillers; ``slot_match`` (prompt, slot), whether a third row completes
        the pair for which the filler stands, NaN for those that stand for none; ``true`` (prompt); ``majority``.
        `ti.summary` gives means with intervals.

    Raises
    ------
    ValueError
        For Match2, an unknown intervention, a task without fillers, or networks of another task.

    Examples
    --------
    >>> from tokinterp.fillers.tasks.network import Network, build
    >>> task = Task(n=4, d=1)
    >>> net = build(task, Network(2, 32, 2, 64))
    >>> ds = ablate_dots({"net": net}, task, prompts=20, single=["blocks"])
    >>> a, b = (ds["logit_change"].sel(intervention=i) for i in ("knock-out", "deletion, places kept"))
    >>> bool(abs(a - b).max() < 1e-4)
    True
    """
    _check(trunks, task)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    test = task.test_set("filler", prompts, SEED + seed, place)
    trunks = dict(trunks)
    if random_trunk:
        trunks["random"] = _untrained_like(next(iter(trunks.values())), task, seed)
    n_layers = next(iter(trunks.values())).config.num_hidden_layers
    names = [*interventions, *(f"knock-out, block {b}" for b in range(n_layers) if "blocks" in single)]
    correct = np.full((len(trunks), len(names), prompts), np.nan)
    answered, change = np.full(correct.shape, np.nan), np.full(correct.shape, np.nan)
    by_slot = np.full((len(trunks), task.n_fillers, prompts), np.nan)
    for t, lm in enumerate(trunks.values()):
        bench = _Bench(as_model(lm, task, device=place), task, test)
        whole = bench.answers("none")
        for i, name in enumerate(names):
            said = whole if name == "none" else bench.answers(name)
            correct[t, i] = torch.where(said[1].isnan(), torch.nan, (said[1] > 0).double()).cpu().numpy()
            answered[t, i] = said[0].cpu().numpy()
            change[t, i] = (said[1] - whole[1]).cpu().numpy()
        for s in range(task.n_fillers) if "slots" in single else ():
            by_slot[t, s] = (bench.answers("mean ablation", s)[1] - whole[1]).cpu().numpy()
    match = np.full((prompts, task.n_fillers), np.nan)  # NaN: the filler stands for no pair
    found = (match3.partner(test.rows, task.m) >= 0).repeat_interleave(2, 1).cpu().numpy()[:, : task.n_fillers]
    match[:, : found.shape[1]] = found
    v, full = variable, ("trunk", "intervention", "prompt")
    toward = "change of the logit of the right answer less that of the wrong one"
    data = {
        "correct": v(
            full, correct, "whether the right one of True and False has the larger logit", "1",
            short="accuracy of the answer", range=(0, 1), chance="majority",
        ),
        "answered": v(
            full, answered, "whether True or False is the most probable word", "1", short="share answered",
            range=(0, 1),
        ),
        "logit_change": v(full, change, toward, "1", chance=0),
        "true": v("prompt", (test.answer == task.words.true).cpu().numpy(), "whether there is a triple", "1"),
        "majority": v((), majority(test.answer), "share of the most common answer", "1", short="majority"),
    }  # fmt: skip
    coords = {
        "trunk": v("trunk", np.array(list(trunks)), "network", "1"),
        "intervention": v("intervention", np.array(names), "what is changed", "1"),
        "prompt": numbers(prompts),
    }
    if "slots" in single:
        data["slot_change"] = v(
            ("trunk", "slot", "prompt"), by_slot, f"{toward}, one filler mean-ablated", "1",
            short="change of the logit difference", chance=0, by="slot_match",
        )  # fmt: skip
        data["slot_match"] = v(
            ("prompt", "slot"),
            match,
            "whether a third row completes the filler's pair; NaN: it has none",
            "1",
            short="completed by a third row",
        )
        coords["slot"] = v("slot", range(task.n_fillers), "filler, counted from the first", "1")
    parameters = {
        "task": asdict(task), "interventions": names, "slots": "slots" in single, "prompts": prompts, "seed": seed,
        "trunks": {name: parameters_hash(lm) for name, lm in trunks.items()},
    }  # fmt: skip
    return finish(xr.Dataset(data, coords), next(iter(trunks.values())), task, parameters, "DotAblation", seed)


class _Bench:
    """One network and its test examples, up to the answer cue."""

    def __init__(self, model: Model, task: Task, test: Samples) -> None:
        self.model = model
        self.rows, self.first, self.cue = range(task.n), task.n + 1, task.n + 1 + task.n_fillers
        ids = test.sequences.ids[:, :-1].cpu().numpy()
        self.prompts = Prompts.from_ids(ids, model)
        self.short = Prompts.from_ids(np.delete(ids, range(self.first, self.cue), 1), model)
        self.fillers = list(range(self.first, self.cue))
        self.streams = resid(range(model.info.n_layers))
        true = test.answer == task.words.true
        self.right = torch.where(true, task.words.true, task.words.false)
        self.wrong = torch.where(true, task.words.false, task.words.true)

    def answers(self, name: str, slot: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (prompt,) whether the best word is an answer, and logit of the right one less that of the other."""
        prompts, edits = self.plan(name, slot)
        last = self.model.info.n_layers
        out = torch.full((2, len(prompts)), torch.nan, dtype=torch.float64, device=self.model.device)
        for batch in stream(self.model, prompts, resid([last]), edits=edits):
            logits = self.model.unembed(batch.resid(last)[:, -1]).double()
            own = [w[batch.numbers] for w in (self.right, self.wrong)]
            right, wrong = (logits.gather(1, w[:, None])[:, 0] for w in own)
            best = logits.argmax(1)
            out[0, batch.numbers] = ((best == own[0]) | (best == own[1])).double()
            out[1, batch.numbers] = right - wrong
        return out[0], out[1]

    def plan(self, name: str, slot: int | None) -> tuple[Prompts, list[Edit]]:
        """Return the prompts and edits of one intervention."""
        cue, dots, next_one = [self.cue], self.fillers, [*range(1, len(self.prompts)), 0]
        if name.startswith("deletion"):
            return self.short, [self._places(self.short, self.cue if name.endswith("kept") else self.first)]
        if name.endswith("places closed"):
            return self.prompts, [knock_out(dots, cue), self._places(self.prompts, self.first)]
        if name.startswith("knock-out, block"):
            return self.prompts, [knock_out(dots, cue, blocks=[int(name.rsplit(" ", 1)[1])])]
        simple: dict[str, Callable[[], list[Edit]]] = {
            "none": lambda: [],
            "knock-out": lambda: [knock_out(dots, cue)],
            "rows hidden from the answer": lambda: [knock_out(self.rows, cue)],
            "rows hidden from the fillers": lambda: [knock_out(self.rows, dots)],
            "zero ablation": lambda: [zero(s, dots) for s in self.streams],
            "mean ablation": lambda: [
                replace(s, v, dots if slot is None else [self.first + slot]) for s, v in self.means.items()
            ],
            "resample ablation": lambda: [patch(s, dots, donor=next_one) for s in self.streams],
        }
        return self.prompts, simple[name]()

    def _places(self, prompts: Prompts, of_cue: int) -> Edit:
        """Give the tokens places 0, 1, 2, ..., the answer cue one that is given."""
        place = np.arange(prompts.lengths[0])
        place[-1] = of_cue
        return renumber(np.tile(place, len(prompts)))

    @cached_property
    def means(self) -> dict[Site, torch.Tensor]:
        """(position, d_model) mean over prompts of the stream at each layer."""
        total, count = {s: torch.zeros((), dtype=torch.float64, device=self.model.device) for s in self.streams}, 0
        for batch in stream(self.model, self.prompts, self.streams):
            for s, v in batch.activations.items():
                total[s] = total[s] + v.double().sum(0)
            count += len(batch)
        return {s: (v / count).float() for s, v in total.items()}


def _check(trunks: Mapping[str, Any], task: Task) -> None:
    if task.family != "match3":
        raise ValueError(f"task={task.name}: fillers are ablated in networks of match3, not of {task.family}")
    if not task.n_fillers:
        raise ValueError(f"task={task.name}: it has no fillers (fillers={task.fillers!r}): there is nothing to ablate")
    check_trunks(trunks, task)
