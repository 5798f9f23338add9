"""Heads taken away in the order of their scores: which tasks need them, against as many other heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import xarray as xr

from ...behaviour.scoring import Answers
from ...kernels.state import neutral
from ...models.steady import steady
from ...results.dataset import bound_coord, variable
from ...results.documents import interval_name
from ...results.stamp import stamped
from ...run.conditions import Condition, Runs, compared
from ...run.edits import KnockOut, knock_out
from ...settings import checked, count, mapping, several, short, string
from ...stats.resample import mean_interval
from ...text.items import Tokens
from ...text.prompts import Prompts
from .concept_heads import FEUCHT

if TYPE_CHECKING:
    from ...models.base import Model

EACH = ("choice", "n_heads", "task")
Task = tuple[Prompts, Sequence[Sequence[int]]]


@checked(pairs=several(several(string)), titles=several(string), length=count(2), n=count(1))
@neutral()
def word_lists(
    model: Model, pairs: Sequence[Sequence[str]], titles: Sequence[str] = ("Words", "Words"), *, length: int = 10,
    n: int = 64, seed: int = 0,
) -> Task:  # fmt: skip
    """Build prompts with two numbered lists, of words and of what becomes of them, the second to be completed.

    Parameters
    ----------
    model : Model
        Brings the tokenizer.
    pairs : sequence of (str, str)
        Word and answer: the same word (copying), its translation, its synonym, the same in capitals.
    titles : (str, str)
        Of the lists, for example ``("French vocab", "English translation")``.
    length : int
        Words in a list.
    n : int
        Prompts, the first pairs asked for in turn.
    seed : int
        Of the other words of each prompt.

    Returns
    -------
    (Prompts, list of list of int)
        The prompts, and the first token of each answer.

    Raises
    ------
    ValueError
        If there are fewer pairs than words in a list, or a prompt does not fit the context.

    References
    ----------
    Feucht, Todd, Wallace and Bau 2025, arXiv 2504.03022, section 4.

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts, _ = ti.attention.word_lists(ti.load_model(), [("red", "RED"), ("sea", "SEA")], length=2, n=1)
    >>> prompts.text(0).split()
    ['Words:', '1.', 'sea', '2.', 'red', 'Words:', '1.', 'SEA', '2.']
    """
    if len(titles) != 2 or any(len(p) != 2 for p in pairs):
        raise ValueError(f"pairs={short(pairs)}, titles={short(titles)}: give two of each")
    if len(pairs) < length:
        raise ValueError(f"length={length}: there are {len(pairs)} pairs: give as many, or a smaller length")
    tokens, ids, answers = Tokens(model), [], []
    for i in range(min(n, len(pairs))):
        draw = np.random.default_rng([seed, i])
        others = draw.choice([k for k in range(len(pairs)) if k != i], length - 1, replace=False)
        chosen = [*others.tolist(), i]
        lists = [
            f"{title}:\n" + "".join(f"{k + 1}. {pairs[j][side]}\n" for k, j in enumerate(chosen))
            for side, title in enumerate(titles)
        ]
        text, answer = "".join(lists).rstrip("\n")[: -len(pairs[i][1]) - 1], f" {pairs[i][1]}"
        start, whole = tokens.ids(text), tokens.ids(text + answer)
        if whole[: len(start)] != start:
            raise ValueError(f"pairs[{i}]={short(pairs[i])}: {answer!r} shares a token with what stands before it")
        ids.append([*tokens.bos, *start])
        answers.append(whole[len(start) : len(start) + 1])
    return Prompts.from_ids(ids, model), answers


@checked(heads=several(several(count()), 1))
def without_heads(heads: Sequence[Sequence[int]]) -> list[KnockOut]:
    """Return edits that leave heads nothing but position 0 to look at, so that they write the same in every prompt.

    Parameters
    ----------
    heads : sequence of (int, int)
        Block and head.

    Notes
    -----
    Where prompts begin with BOS, what such a head writes is its value of BOS, a constant, as is the mean over a corpus
    that the authors put in its place; which needs no corpus, and leaves heads that share their values apart.

    Examples
    --------
    >>> [(e.blocks, e.heads) for e in without_heads([(2, 3), (1, 1), (2, 0)])]
    [((1,), (1,)), ((2,), (0, 3))]
    """
    by: dict[int, list[int]] = {}
    for block, head in heads:
        by.setdefault(block, []).append(head)
    later = slice(1, None)
    return [knock_out(later, later, blocks=[b], heads=sorted(h)) for b, h in sorted(by.items())]


@checked(
    tasks=mapping(), heads=several(several(count()), 1), counts=several(count(1), 1, ascending=True), draws=count(1)
)
@steady
def head_ablation(
    model: Model, tasks: Mapping[str, Task], heads: Sequence[Sequence[int]], *, counts: Sequence[int] = (1, 2, 4, 8),
    draws: int = 3, seed: int = 0, **run: Unpack[Runs],
) -> xr.Dataset:  # fmt: skip
    """Take the first heads of a ranking away and see which tasks suffer.

    Parameters
    ----------
    model : Model
        One whose attention can be hidden from heads.
    tasks : mapping of str to (Prompts, answers)
        As `word_lists` makes them: prompts, and the token ids of each answer.
    heads : sequence of (int, int)
        Block and head, the first to go first.
    counts : sequence of int
        How many are taken away.
    draws : int
        Of as many other heads of the same blocks, as far as these have others, then of other blocks: the control.
        Where more than half of all heads are taken away, some of them are in both.
    seed : int
        Of these draws.
    **run
        ``batch_tokens``, ``store``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        ``accuracy`` and ``log_prob`` of the answers by ``choice`` (ranked, random), ``n_heads`` (0 too) and ``task``,
        means over prompts, with ``_interval``.

    Raises
    ------
    ValueError
        For heads that the model does not have, or more than there are.

    References
    ----------
    Feucht, Todd, Wallace and Bau 2025, arXiv 2504.03022, section 4.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> pairs = [(w, w) for w in ("red", "sea", "king", "river")]
    >>> tasks = {"copying": ti.attention.word_lists(model, pairs, length=3)}
    >>> ti.attention.head_ablation(model, tasks, [(2, 0), (3, 1)], counts=[1], draws=1)["accuracy"].dims
    ('choice', 'n_heads', 'task')
    """
    order = [(int(b), int(h)) for b, h in heads]
    info = model.info
    every = [(b, h) for b in range(info.n_layers) for h in range(info.n_heads)]
    if bad := [p for p in order if p not in every] or len(set(order)) < len(order):
        raise ValueError(
            f"heads={short(bad or heads)}: {info.id} has blocks 0 to {info.n_layers - 1} of heads 0 to "
            f"{info.n_heads - 1}: give each at most once"
        )
    if counts[-1] > len(order):
        raise ValueError(f"counts={counts[-1]}: {len(order)} heads are given: give more, or smaller counts")
    if not tasks:
        raise ValueError("tasks={}: give prompts and answers of at least one task")
    for name, (prompts, answers) in tasks.items():
        if len(prompts) != len(answers):
            raise ValueError(f"tasks[{name!r}]: {len(answers)} answers for {len(prompts)} prompts: give one for each")
    whole = Prompts.from_ids([p.ids(i) for p, _ in tasks.values() for i in range(len(p))], model)
    answers = [list(a) for _, given in tasks.values() for a in given]
    grid = [0, *counts]
    conditions = {"whole": Condition(whole)}
    for k in counts:
        conditions[f"ranked {k}"] = Condition(whole, without_heads(order[:k]))
        for d in range(draws):
            other = _others(order[:k], every, np.random.default_rng([seed, k, d]))
            conditions[f"random {k}, draw {d}"] = Condition(whole, without_heads(other))
    found = compared(model, conditions, {"answers": Answers(answers)}, **run)
    if found is None:
        return xr.Dataset()
    named = list(conditions)
    task = np.repeat(np.arange(len(tasks)), [len(p) for p, _ in tasks.values()])
    data: dict[str, Any] = {}
    units = {"accuracy": ("correct", "1", "share of answers given"), "log_prob": ("log_prob", "nat", "log-probability")}
    for name, (source, unit, what) in units.items():
        values = found["answers"][source].transpose("condition", "prompt").values
        ranked = np.stack([values[named.index("whole" if k == 0 else f"ranked {k}")] for k in grid])
        random = [[n for n in named if n.startswith(f"random {k},")] or ["whole"] for k in grid]
        drawn = np.stack([values[[named.index(n) for n in some]].mean(0) for some in random])
        both = np.stack([ranked, drawn])  # (choice, n_heads, prompt)
        parts = [np.moveaxis(both[..., task == t], -1, 0) for t in range(len(tasks))]
        mean = np.stack([np.nanmean(p, 0) for p in parts], -1)
        spread = np.stack([mean_interval(p, seed=seed) for p in parts], -1)
        data[name] = variable(EACH, mean, f"{what} without heads", unit, FEUCHT, along=("n_heads",))
        over = interval_name(what, 0.95, "prompts", min(map(len, parts)))
        data[f"{name}_interval"] = variable(("bound", *EACH), spread, over, unit)
    coords = {
        "bound": bound_coord(),
        "choice": variable("choice", np.array(["ranked", "random"]), "which heads are taken away", "1"),
        "n_heads": variable("n_heads", np.array(grid), "heads taken away", "1"),
        "task": variable("task", np.array(list(tasks)), "what is asked", "1"),
    }
    settings = {"tasks": list(tasks), "answers": answers, "heads": order, "counts": list(counts), "draws": draws}
    attrs = {"first": "accuracy, log_prob", "dimensions": "choice, n_heads, task"}
    return stamped(xr.Dataset(data, coords, attrs), "head_ablation", model, whole, settings, seed)


def _others(
    taken: Sequence[tuple[int, int]], every: Sequence[tuple[int, int]], draw: np.random.Generator
) -> list[tuple[int, int]]:
    """Return as many other heads, of the same blocks as far as these have others; of all heads where none are left."""
    left = [every[i] for i in draw.permutation(len(every)) if every[i] not in taken]
    out: list[tuple[int, int]] = []
    for block, _ in taken:
        same = [p for p in left if p[0] == block and p not in out]
        rest = same or [p for p in left if p not in out]
        out += rest[:1]
    spare = [p for p in taken if p not in out]
    return [*out, *spare[: len(taken) - len(out)]]
