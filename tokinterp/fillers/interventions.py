"""Causal interventions on inserted fillers: hide, delete, ablate, transplant, renumber and patch them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import finish
from ..run.conditions import Condition
from ..run.edits import Edit, fill, knock_out, patch, renumber, zero
from ..run.edits.places import closed_up
from ..run.sites import Site, resid
from ..settings import checked, count, names, one_of
from ..text.items import PLACEMENTS, Items, build_items
from .asked import AskedRuns, asked_questions, parted, settings_of
from .insertion import answered
from .residual import slots_of, states
from .results import NAMES, QUANTITIES, numbers

if TYPE_CHECKING:
    from ..models.base import Model

ALL = (
    "insertion", "deletion", "deletion, places kept", "knock-out", "knock-out of the answer",
    "knock-out, places closed", "blind fillers", "windows", "mean ablation", "zero ablation", "resample ablation",
    "transplant", "transplant of the question", "places closed", "patches",
)  # fmt: skip
FROM_OTHERS = ("mean ablation", "resample ablation", "transplant", "transplant of the question")
"""Interventions that take something of other items."""
DONOR = {
    "donor_change": ("change of the log-probability of the first token of the donor's answer", "nat"),
    "donor_rank": ("tokens more probable than the first of the donor's answer", "1"),
}
"""What is asked of transplants."""
SHOWN = ("truncation", "deletion everywhere")
"""Interventions on items with demonstrations."""


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
    placement: str = "post",
    interventions: Sequence[str] | None = None,
    width: int | None = None,
    **asked: Unpack[AskedRuns],
) -> xr.Dataset:
    """Change the fillers of every item in several ways and compare the answers with those of the whole item.

    Parameters
    ----------
    model, questions, n_fillers, placement
        See `build_items`.
    interventions : sequence of str, optional
        All by default, of a single item those that need no other. ``"insertion"``: x_k against x_0.
        ``"deletion"``: x_0, also with the places of x_k kept.
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
    width : int, optional
        Blocks in a window; by default a fifth of them.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``, ``demonstrations``, ``batch_tokens``, ``store``: see
        `tokinterp.fillers.asked.AskedRuns`.

    Returns
    -------
    xarray.Dataset
        By ``intervention`` and item: kl = KL(changed || whole), js, flip, entropy_change, and log_prob_change of the
        answer (negative: it became less probable); for transplants ``donor_change``, the change of log-probability of
        the first token of the donor's answer, and ``donor_rank``, how many tokens are more probable then (the share of
        zeros is the rate of donor answers). Items without another one of the same layout have NaN there. The
        reference of ``"insertion"`` is x_0, of all others x_k. `ti.summary` gives means with intervals.

    Raises
    ------
    ValueError
        For an unknown intervention, one that takes something of other items where there is but one, or what
        `build_items` and the model refuse.

    Examples
    --------
    >>> import tokinterp as ti
    >>> pair = [("The capital of France is", " Paris")]
    >>> ds = intervene(ti.load_model(), pair, n_fillers=4, interventions=["deletion", "knock-out, places closed"])
    >>> float(abs(ds["kl"][0] - ds["kl"][1]).max()) < 1e-4
    True
    """
    how, run = parted(asked, kind="dots", demonstrations=(), batch_tokens=2048)
    offered = (*ALL, *SHOWN) if how["demonstrations"] else ALL
    given, interventions = interventions is not None, offered if interventions is None else interventions
    unknown = [i for i in interventions if i not in offered]
    if unknown or not interventions:
        more = "" if how["demonstrations"] else f", and with demonstrations= {', '.join(SHOWN)}"
        raise ValueError(f"interventions {unknown or 'are empty'}: there are {', '.join(offered)}{more}")
    questions = asked_questions(questions)
    if len(questions) < 2 and (alone := [i for i in interventions if i in FROM_OTHERS]):
        if given:
            raise ValueError(
                f"interventions={alone}: they take something of other items, and one item would be changed into "
                "itself: give several questions"
            )
        interventions = [i for i in interventions if i not in alone]
    shared: dict[str, Any] = {"placement": placement, **how}
    whole = build_items(model, questions, n_fillers=n_fillers, **shared)
    plain = build_items(model, questions, demo_fillers=n_fillers, **shared)
    width = width or max(1, round(model.info.n_layers / 5))
    rows = [n for i in interventions for n in _spelled(i, model.info.n_layers, width)]
    conditions = {"whole": Condition(whole.answered), "deletion": Condition(plain.answered)}
    for name in rows:
        if name == "deletion everywhere":
            conditions[name] = Condition(build_items(model, questions, **shared).answered)
        elif (name := _runs_as(name, model.info.n_layers)) not in conditions:
            conditions[name] = filler_condition(model, name, whole, plain, run["batch_tokens"])
    log_prob, _, change = answered(model, conditions, whole.answers, **run)
    donor = donors(whole)
    found = {q: np.full((len(rows), len(whole)), np.nan) for q in (*QUANTITIES, "log_prob_change", *DONOR)}
    for i, name in enumerate(rows):
        pair = (_runs_as(name, model.info.n_layers), "deletion" if name == "insertion" else "whole")
        moved = name.startswith("transplant")
        known = donor >= 0 if moved else np.full(len(whole), True)
        first = np.array([whole.answers[d][0] for d in donor]) if moved else None
        values = change(*pair, first)
        values["log_prob_change"] = log_prob[pair[0]] - log_prob[pair[1]]
        if moved:
            values["donor_change"], values["donor_rank"] = values.pop("log_prob"), values.pop("rank")
        for q, v in values.items():
            found[q][i, known] = v[known]
    dims = ("intervention", "prompt")
    data = {q: variable(dims, found[q], *NAMES[q]) for q in (*QUANTITIES, "log_prob_change")}
    if any(n.startswith("transplant") for n in rows):
        data |= {q: variable(dims, found[q], *said) for q, said in DONOR.items()}
    coords = {"intervention": variable("intervention", np.array(rows), "what is changed", "1")}
    own = {"n_fillers": n_fillers, "placement": placement, "interventions": list(interventions), "width": width}
    out = xr.Dataset(data, {**coords, "prompt": numbers(len(whole))})
    return finish(out, model, "intervene", settings_of(questions, how, **own), how["seed"])


def _spelled(name: str, n_layers: int, width: int) -> list[str]:
    """Return the names of the rows that an intervention makes."""
    if name == "windows":
        starts = range(0, n_layers, width)
        return [f"knock-out of the answer, blocks {a}-{min(a + width, n_layers) - 1}" for a in starts]
    return [f"patch of layer {layer}" for layer in range(n_layers + 1)] if name == "patches" else [name]


def _runs_as(name: str, n_layers: int) -> str:
    """Return the name of the condition of a row; nothing is computed behind the last layer."""
    same = {"insertion": "whole", "truncation": "deletion", f"patch of layer {n_layers}": "whole"}
    return same.get(name, name)


def filler_condition(model: Model, name: str, whole: Items, plain: Items, batch_tokens: int = 2048) -> Condition:
    """Return what an intervention of `intervene` is: prompts, and what is changed while they are read.

    Parameters
    ----------
    model : Model
        For its layers, and for the mean of the fillers' states.
    name : str
        Of `intervene`; of a window of blocks ``"knock-out of the answer, blocks 3-5"``, ``"patch of layer 2"``.
    whole, plain : Items
        The items with fillers and without.
    batch_tokens : int
        Padded tokens per batch.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> whole, plain = (ti.text.build_items(model, [("The sky is", " blue")], n_fillers=k) for k in (4, 0))
    >>> str(filler_condition(model, "blind fillers", whole, plain).edits[0])
    'knock_out(keys question, queries filler)'
    """
    prompts, short = whole.answered, plain.answered
    hidden, streams = prompts.marks["filler"], resid(range(model.info.n_layers))
    inner = [Site(kind, b) for b in range(model.info.n_layers) for kind in ("key", "value")]
    rule, _, where = name.partition(", blocks ")
    answer = prompts.marks["answer"] & ~hidden
    blocks = range(int(where.split("-")[0]), int(where.split("-")[1]) + 1) if where else None
    if name == "deletion, places kept":
        return Condition(short, [renumber(_opened(whole, plain))])
    if name.startswith("patch of layer"):
        site, every = Site("resid", int(name.split()[-1])), range(len(whole))
        return Condition(short, [patch(site, "answer", donor=every, source="answer", prompts=prompts)])
    edits: list[Edit] = []
    if "places closed" in name:
        edits.append(renumber(closed_up(hidden, prompts)))
    if rule in ("knock-out", "knock-out, places closed"):
        edits.append(knock_out("filler"))
    elif rule == "knock-out of the answer":
        edits.append(knock_out("filler", answer, blocks=blocks))
    elif name == "blind fillers":
        edits.append(knock_out("question", "filler"))
    elif name == "zero ablation":
        edits += [zero(s, "filler") for s in streams]
    elif name == "mean ablation" and whole.n_fillers:
        mean = states(model, whole, slots_of(whole), batch_tokens=batch_tokens).double().nanmean(0).float()
        edits += [fill(s, mean[:, s.at], "filler") for s in streams]
    elif name == "resample ablation":
        others = np.roll(np.arange(len(whole)), -1).tolist()
        edits += [patch(s, "filler", donor=others, source="filler") for s in streams]
    elif name.startswith("transplant"):
        donor = {r: int(d) for r, d in enumerate(donors(whole)) if d >= 0}
        edits += [patch(s, "filler" if name == "transplant" else "question", donor=donor) for s in inner]
    return Condition(prompts, edits)


def _opened(whole: Items, plain: Items) -> np.ndarray:
    """Return (token,) places of items without fillers in which what follows them has its place behind them."""
    places = [np.arange(n) for n in plain.answered.lengths]
    spans = zip(places, whole.filler, strict=True)
    return np.concatenate([np.where(p >= start, p + stop - start, p) for p, (start, stop) in spans])


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
