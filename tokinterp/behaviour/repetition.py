"""How strongly earlier co-occurrences bind tokens: sequences repeated in part, and the probability of what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.conditions import Condition
from ..run.edits.positions import flags_of
from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, one_of, several, some_strings
from ..text.marks import mark
from ..text.prompts import Prompts
from ..text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch

YAN = "Yan et al. 2024, Understanding in-context learning from repetitions, arXiv 2310.00297"
PREFIXES = (
    "The harbour lies on the north side of the island.",
    "She read the letter twice before she put it away.",
    "We like to walk along the river.",
    "In the spring the council voted to rebuild the old bridge near the market.",
)
TARGET = "target"
LOGITS = 2**26
"""Bytes of logits held at once."""


@checked(
    n=count(1), length=count(2), copies=count(2), kept=several(one_of("all") | count(1), 1, once=True),
    sequences=several(several(count(), 2), 1), prefixes=some_strings,
)  # fmt: skip
def repetition_conditions(
    model: Model, n: int = 100, *, length: int = 8, copies: int = 41, kept: Sequence[int | str] = ("all", 4, 2, 1),
    sequences: Sequence[Sequence[int]] | None = None, prefixes: Sequence[str] = PREFIXES, seed: int = 0,
) -> dict[str, Condition]:  # fmt: skip
    """Return prompts in which sequences of tokens are repeated, some of their tokens kept, the others drawn anew.

    Each prompt is a natural sentence and ``copies`` copies of its sequence.  Prompts of one number have the same
    sentence and sequence under all conditions.

    Parameters
    ----------
    model : Model
        With its tokenizer.
    n : int
        Sequences drawn, where none are given: random tokens that are not special.
    length : int
        Tokens of each.
    copies : int
        How often each is repeated; 101 in the paper.
    kept : sequence of int or "all"
        Tokens that stay in all copies, at places drawn among all but the first; ``"all"`` is plain repetition.
    sequences : sequence of sequence of int, optional
        Ids to be repeated, of any lengths, for example those of sentences.
    prefixes : sequence of str
        What stands before the copies, in turn.
    seed : int
        Of all that is drawn.

    Returns
    -------
    dict of str to Condition
        For each number ``"K kept"`` and its control ``"K kept, moved"``: the same tokens in each copy, at places drawn
        anew for each, so that only how often they occur is left.  ``"none kept"``: every token drawn anew in each
        copy.  The mark ``"target"`` is on the kept tokens (of none kept: on all), never on the first of a copy.

    Raises
    ------
    ValueError
        If a prompt does not fit the context, or more tokens are to be kept than a sequence has behind its first.

    References
    ----------
    Yan et al. 2024, arXiv 2310.00297; github.com/ElliottYan/understand-icl-from-repetition.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> conditions = ti.behaviour.repetition_conditions(model, 3, copies=4, kept=["all", 2])
    >>> list(conditions)
    ['all kept', 'all kept, moved', '2 kept', '2 kept, moved', 'none kept']
    >>> run = ti.measure_conditions(model, conditions, {"r": ti.behaviour.Repetition(4, "target")}, progress=False)
    >>> run["r"]["prob"].dims
    ('condition', 'prompt', 'repetition')
    """
    vocabulary, before = _begin(model, prefixes)
    ordinary, draw = vocabulary.ordinary, np.random.default_rng(seed)
    drawn = draw.choice(ordinary, (n, length)).tolist() if sequences is None else sequences
    given = [np.asarray(ids, np.int64) for ids in drawn]
    for i, ids in enumerate(given):
        most = max([int(k) for k in kept if k != "all"], default=1)
        if most > len(ids) - 1:
            raise ValueError(f"kept={list(kept)}: sequence {i} has {len(ids)} tokens: at most {len(ids) - 1} can stay")
    _check_room(model, before, [len(ids) for ids in given], copies)
    order = [1 + draw.permutation(len(ids) - 1) for ids in given]  # which places stay first
    out: dict[str, Condition] = {}
    for k in kept:
        places = [np.arange(len(o) + 1) if k == "all" else np.sort(o[: int(k)]) for o in order]
        for moved in (False, True):
            made = [_kept(ids, at, copies, ordinary, draw, moved) for ids, at in zip(given, places, strict=True)]
            out[f"{k} kept{', moved' * moved}"] = _condition(made, before, model)
    anew = [draw.choice(ordinary, (copies, len(ids))) for ids in given]
    behind = [np.broadcast_to(np.arange(ids.shape[1]) > 0, ids.shape) for ids in anew]
    return {**out, "none kept": _condition(list(zip(anew, behind, strict=True)), before, model)}


@checked(
    n=count(1), length=count(2), copies=count(2), distances=several(count(), 1, once=True), prefixes=some_strings
)  # fmt: skip
def distance_conditions(
    model: Model, n: int = 100, *, length: int = 8, copies: int = 41, distances: Sequence[int] = (0, 1, 2, 3),
    prefixes: Sequence[str] = PREFIXES, seed: int = 0,
) -> dict[str, Condition]:  # fmt: skip
    """Return prompts with copies of random tokens in which two tokens stay, so many others between them.

    Parameters
    ----------
    model, n, copies, prefixes, seed
        See `repetition_conditions`.
    length : int
        Random tokens of each copy, beside the two.
    distances : sequence of int
        Tokens between the two; their place in the copy is drawn once for each prompt.

    Returns
    -------
    dict of str to Condition
        ``"distance D"``, and the control ``"apart"``: both tokens in each copy, at places drawn anew for each.  The
        mark ``"target"`` is on both tokens.

    Raises
    ------
    ValueError
        If a prompt does not fit the context, or a distance the copy.

    Examples
    --------
    >>> import tokinterp as ti
    >>> list(ti.behaviour.distance_conditions(ti.load_model(), 2, copies=3, distances=[0, 3]))
    ['distance 0', 'distance 3', 'apart']
    """
    vocabulary, before = _begin(model, prefixes)
    if max(distances) > length:
        raise ValueError(f"distances={list(distances)}: a copy has {length} random tokens to stand between: length=")
    _check_room(model, before, [length + 2], copies)
    draw, size = np.random.default_rng(seed), length + 2
    pairs = draw.choice(vocabulary.ordinary, (n, 2))
    copy = np.arange(copies)[:, None]
    out: dict[str, Condition] = {}
    for far in (*distances, None):
        made = []
        for pair in pairs:
            if far is None:
                at = np.argsort(draw.random((copies, size)), 1)[:, :2]
            else:
                at = np.broadcast_to(draw.integers(0, length - far + 1) + np.array([0, far + 1]), (copies, 2))
            ids, flags = draw.choice(vocabulary.ordinary, (copies, size)), np.zeros((copies, size), bool)
            ids[copy, at], flags[copy, at] = pair, True
            made.append((ids, flags))
        out["apart" if far is None else f"distance {far}"] = _condition(made, before, model)
    return out


def _begin(model: Model, prefixes: Sequence[str]) -> tuple[Vocabulary, list[np.ndarray]]:
    """Return the vocabulary and the tokens of each prefix."""
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id}: it has no tokenizer: load it with one")
    made = Prompts.from_texts(prefixes, model, progress=False)
    return Vocabulary(model.tokenizer, model.info.d_vocab), [made.ids(i) for i in range(len(made))]


def _check_room(model: Model, before: Sequence[np.ndarray], lengths: Sequence[int], copies: int) -> None:
    longest = max(len(before[i % len(before)]) + copies * size for i, size in enumerate(lengths))
    if longest > (most := model.info.max_tokens):
        fit = (most - max(map(len, before))) // max(lengths)
        raise ValueError(
            f"copies={copies}: the longest prompt has {longest} tokens, and {model.info.id} a context of {most}: at "
            f"most {max(fit, 0)} copies fit"
        )


def _kept(
    ids: np.ndarray, at: np.ndarray, copies: int, ordinary: np.ndarray, draw: np.random.Generator, moved: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return (copy, place) ids, those at some places kept, and which are targets; moved: at other places each time."""
    made, size = draw.choice(ordinary, (copies, len(ids))), len(ids)
    made[:, at[at == 0]] = ids[0]
    behind = at[at > 0]
    places = np.broadcast_to(behind, (copies, len(behind)))
    if moved:
        places = 1 + np.argsort(draw.random((copies, size - 1)), 1)[:, : len(behind)]
    flags, copy = np.zeros((copies, size), bool), np.arange(copies)[:, None]
    made[copy, places], flags[copy, places] = ids[behind], True
    return made, flags


def _condition(made: Sequence[tuple[np.ndarray, np.ndarray]], before: Sequence[np.ndarray], model: Model) -> Condition:
    """Return the prompts of copies, each behind its prefix, with their targets marked."""
    first = [before[i % len(before)] for i in range(len(made))]
    prompts = Prompts.from_ids([np.r_[p, ids.ravel()] for p, (ids, _) in zip(first, made, strict=True)], model)
    flags = [np.r_[np.zeros(len(p), bool), f.ravel()] for p, (_, f) in zip(first, made, strict=True)]
    return Condition(mark(prompts, **{TARGET: np.concatenate(flags)}))


@checked(copies=count(2))
class Repetition(Measurement):
    """Probability of repeated tokens in each copy, read at the token before.

    Parameters
    ----------
    copies : int
        Copies in each prompt.
    of : str, optional
        Name of the mark (`tokinterp.text.mark`) of the targets, as many in each copy: ``"target"`` of
        `repetition_conditions` and `distance_conditions`.  By default the last tokens of a prompt are divided into so
        many copies of equal length, of which all tokens but the first are targets.

    Notes
    -----
    The names of the paper and of its code: TP is ``prob``, TPF ``prob_first``, TPL ``prob_last``, TPEF ``prob_rest``;
    IP is ``increased`` where other tokens are drawn anew, and the mean of ``increased_tokens`` over repetitions for
    plain repetition; WR is ``winning``.  Against the first repetition itself nothing is compared: NaN there.  Where k
    tokens are the most probable ones, one of them counts 1/k.  ``slope`` is that of least squares of the log-odds of
    the last target on log2 of the number of the repetition.  Prompts with fewer tokens than two for each copy give
    NaN.

    Under ``"none kept"`` a target is a random token: ``prob`` is 1 / d_vocab on average, the attribute ``chance``. What
    changes there all the same, and under ``"moved"``, is due to random context and to repetition anywhere: an effect is
    what `contrast` finds beyond them.

    References
    ----------
    Yan et al. 2024, arXiv 2310.00297; github.com/ElliottYan/understand-icl-from-repetition (TP, TPF, TPL, TPEF, IP,
    WR).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> text = "Once upon a time." + " The red fox ran home." * 4
    >>> run = ti.measure(model, [text], {"r": ti.behaviour.Repetition(4)}, progress=False)
    >>> bool(run["r"]["prob"][0, -1] > run["r"]["prob"][0, 0])
    True
    """

    first = ("prob", "prob_last", "increased", "winning")
    fields = {
        "prob": Field(
            ("prompt", "repetition"), "mean probability of the targets (TP)", "1", YAN, short="probability of targets",
            range=(0, 1), along=("repetition",),
        ),
        "prob_first": Field(
            ("prompt", "repetition"), "probability of the first target (TPF)", "1", YAN, short="first target",
            range=(0, 1), along=("repetition",),
        ),
        "prob_last": Field(
            ("prompt", "repetition"), "probability of the last target (TPL)", "1", YAN, short="last target",
            range=(0, 1), along=("repetition",),
        ),
        "prob_rest": Field(
            ("prompt", "repetition"), "mean probability of the targets but the first (TPEF)", "1", YAN,
            short="targets but the first", range=(0, 1), along=("repetition",),
        ),
        "increased": Field(
            ("prompt", "repetition"), "whether the targets are together more probable than in the first copy (IP)", "1",
            YAN, short="increased", range=(0, 1), chance=0.5, along=("repetition",),
        ),
        "increased_tokens": Field(
            ("prompt", "repetition"), "share of targets more probable than in the first repetition (IP, plain)", "1",
            YAN, short="targets increased", range=(0, 1), chance=0.5, along=("repetition",),
        ),
        "winning": Field(
            ("prompt", "repetition"), "share of targets both increased and the most probable token (WR)", "1", YAN,
            short="winning", range=(0, 1), along=("repetition",),
        ),
        "reached": Field(
            ("prompt", "repetition"), "whether the last target was above 1/2 in this repetition or before", "1",
            short="reached 1/2", range=(0, 1), along=("repetition",),
        ),
        "slope": Field(("prompt",), "log-odds of the last target gained when repetitions double", "nat", short="slope"),
        "n_targets": Field(("prompt",), "targets in each copy", "token"),
    }  # fmt: skip

    def __init__(self, copies: int = 2, of: str | None = None) -> None:
        super().__init__()
        self.copies, self.of = copies, of

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream after the last block."""
        return [Site("resid", info.n_layers)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Find the targets, and check that each copy of a prompt has as many."""
        super().begin(info, prompts)
        lengths = np.asarray(prompts.lengths)
        number = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(prompts.n_tokens) - prompts.starts[number]
        if self.of is None:
            width = (lengths // self.copies)[number]
            back = lengths[number] - place
            flags = (back <= width * self.copies) & (back % width.clip(1) != 0) & (place > 0)
        else:
            flags = np.asarray(flags_of(self.of, prompts, "of"))
            if (flags & (place == 0)).any():
                at = int(number[np.flatnonzero(flags & (place == 0))[0]])
                raise ValueError(f"of={self.of!r}: it marks the first token of prompt {at}, which nothing predicts")
        found = np.bincount(number[flags], minlength=len(lengths))
        if (odd := np.flatnonzero(found % self.copies)).size:
            raise ValueError(
                f"copies={self.copies}: prompt {odd[0]} has {found[odd[0]]} targets, which are not as many in each copy"
            )
        self._flags, self._most = flags, max(1, int(found.max(initial=0)) // self.copies)

    def update(self, batch: Batch) -> None:
        """Read the targets of a batch, some at a time."""
        target = batch.tokens.of_stream(self._flags).bool() & batch.mask
        prompt, at = target.nonzero(as_tuple=True)
        x, token = batch.resid(self.info.n_layers), batch.ids[prompt, at]
        size = target.sum(1) // self.copies
        rank = (target.cumsum(1) - 1)[prompt, at]
        where = prompt, rank // size[prompt], rank % size[prompt]
        shape = (2, len(batch), self.copies, self._most)
        odds, wins = torch.full(shape, torch.nan, dtype=torch.float64, device=batch.device)
        every = torch.arange(len(prompt), dtype=torch.int64, device=batch.device)
        for some in every.split(max(1, LOGITS // (16 * self.info.d_vocab))):
            z = batch.model.unembed(x[prompt[some], at[some] - 1]).double()
            own = z.gather(1, token[some, None])
            top = z.amax(1, keepdim=True)
            place = tuple(w[some] for w in where)
            wins[place] = ((own == top) / (z == top).sum(1, keepdim=True))[:, 0].double()
            odds[place] = own[:, 0] - z.scatter(1, token[some, None], -torch.inf).logsumexp(1)
        self.keep(batch, n_targets=size, **_curves(odds, wins, size))

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of the repetitions."""
        return {"repetition": (np.arange(1, self.copies + 1), "repetition, 1 first", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the chance level of probabilities."""
        names = ("prob", "prob_first", "prob_last", "prob_rest", "winning")
        return {name: {"chance": 1 / self.info.d_vocab} for name in names}


def _curves(odds: torch.Tensor, wins: torch.Tensor, size: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return (prompt, copy) curves from (prompt, copy, target) log-odds and wins, NaN beyond the targets there are."""
    p, n = odds.sigmoid(), size[:, None]
    there = torch.arange(p.shape[2], device=p.device, dtype=torch.int64) < n[..., None]
    more = (p > p[:, :1]).double().masked_fill((p + p[:, :1]).isnan(), torch.nan)

    def mean(x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(~there, 0).sum(2) / of

    total = p.masked_fill(~there, 0).sum(2)
    last = odds.gather(2, (n[..., None] - 1).clamp_min(0).expand(-1, p.shape[1], 1))[..., 0]
    known = ~(total + total[:, :1] + last).isnan()
    doubling = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=torch.float64).log2()
    doubling = doubling - doubling.mean()
    compared = {
        "increased": (total > total[:, :1]).double().masked_fill(~known, torch.nan),
        "increased_tokens": mean(more, n),
        "winning": mean(more * wins, n),
    }
    for curve in compared.values():
        curve[:, 0] = torch.nan
    return {
        "prob": mean(p, n), "prob_first": p[..., 0], "prob_last": last.sigmoid(),
        "prob_rest": mean(p, n - 1) - torch.where(n > 1, p[..., 0] / (n - 1), torch.nan), **compared,
        "reached": (last > 0).cummax(1).values.double().masked_fill(~known, torch.nan),
        "slope": (last @ doubling) / doubling.square().sum(),
    }  # fmt: skip
