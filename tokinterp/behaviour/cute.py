"""CUTE: what a model can say and do about the characters of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import bound_coord, variable
from ..run.decoding import decode
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, instance, several
from ..stats.tests import wilson
from ..text.chat import chat_texts
from ..text.prompts import Prompts
from .cute_tasks import CHOSEN, EDMAN, WORD_TASKS, CuteItem, cute_prompt, kind_of

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

TWO = (*CHOSEN, "contains_char", "contains_word")
OPENING = ' Answer: "'
STEPS = 8  # tokens decoded before it is looked whether all answers are complete


@checked(items=several(instance("CuteItem"), 1), n_tokens=count(1))
@steady
def score_cute(
    model: Model, items: Sequence[CuteItem], *, corrected: bool = False, n_tokens: int = 100, **walk: Unpack[Walk]
) -> xr.Dataset:  # fmt: skip
    """Ask questions about characters and words, decode the answers greedily, and compare them with the right ones.

    Parameters
    ----------
    model : Model
        With its tokenizer; where that has a chat template, each question is a turn of the user.
    items : sequence of CuteItem
        From `cute_items` or `read_cute`.
    corrected : bool
        Without what the published evaluation does by accident: indented prompts with slips, a second BOS behind a chat
        template that writes one, and the answer looked for behind the last "Answer:" of all that was decoded, instead
        of up to the next quote.
    n_tokens : int
        Most tokens decoded; 100 as published.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        Per item (prompt): ``answer`` (text; empty where none was given), ``label``, ``correct`` (NaN where activations,
        or logits on the way, are not finite), ``answered``.  Per task: ``accuracy`` with its Wilson interval over
        items, ``n_items``, and what it is to be compared with: ``accuracy_guess``, that of the most common answer (of
        two words, of the more common place) on the items but the one it is taken from, and never below 1/2 where there
        are two answers; ``accuracy_null``, that of the model's answers to other items of the task (of two words:
        places), the mean over all pairs, exact; ``accuracy_copy``, that of giving the word or the sentence back as it
        is.

    Raises
    ------
    ValueError
        If a prompt and its answer do not fit the context.

    Notes
    -----
    Answers are compared letter by letter, those of tasks on words in small letters.  The published scores are of models
    in 4 bits (NF4, double quantisation, computing in bfloat16); here the model computes as it was loaded.

    References
    ----------
    Edman et al. 2024, arXiv 2409.15452; github.com/Leukas/CUTE.

    Examples
    --------
    >>> import tokinterp as ti
    >>> items = ti.behaviour.cute_items(["spell", "contains_char"], ["the", "and"])
    >>> ds = ti.behaviour.score_cute(ti.load_model(), items, n_tokens=8)
    >>> ds["accuracy"].dims, ds["task"].values.tolist()
    (('task',), ['spell', 'contains_char'])
    """
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id}: it has no tokenizer: load it with one")
    asked = _asked(model, items, corrected)
    longest = int(np.argmax([len(ids) for ids in asked]))
    if len(asked[longest]) + n_tokens - 1 > (most := model.info.max_tokens):
        raise ValueError(
            f"n_tokens={n_tokens}: the prompt of items[{longest}] has {len(asked[longest])} tokens, and "
            f"{model.info.id} a context of {most}: ask for fewer tokens, or with corrected=True"
        )
    prompts = Prompts.from_ids(asked, model)
    vocabulary = prompts.vocabulary
    ends = np.zeros(model.info.d_vocab, bool)
    ends[vocabulary.special_ids[vocabulary.special_ids < len(ends)]] = True
    if corrected:
        ends |= np.array([b'"' in b for b in vocabulary.bytes(range(len(ends)))])
    ended = torch.from_numpy(ends)

    def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
        return {"ids": answers(model, batch.ids, batch.mask, n_tokens, ended.to(batch.device))}

    def make(walker: Walker) -> xr.Dataset:
        made = walker.rows(prompts, resid([model.info.n_layers]), of_batch)["ids"]
        texts = [_answer(model, prompts.ids(i), ids[ids >= 0], corrected) for i, ids in enumerate(made)]
        return labelled(items, texts, complete(made, ends))

    settings = {"items": list(items), "corrected": corrected, "n_tokens": n_tokens}
    return walked("score_cute", model, prompts, settings, make, **walk)


def _asked(model: Model, items: Sequence[CuteItem], corrected: bool) -> list[list[int]]:
    """Return the tokens of each question, up to the quote after which the answer begins."""
    texts, tokenizer = [cute_prompt(item, corrected) for item in items], model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        texts = chat_texts([[{"role": "user", "content": t}] for t in texts], tokenizer, reply=True)
    bos = getattr(tokenizer, "bos_token", None)
    own = not (corrected and bos and texts[0].startswith(bos))
    return [list(tokenizer(t + OPENING, add_special_tokens=own)["input_ids"]) for t in texts]


def answers(model: Model, ids: torch.Tensor, mask: torch.Tensor, n_tokens: int, ended: torch.Tensor) -> torch.Tensor:
    """Return (prompt, n_tokens) tokens decoded greedily, up to the first at which an answer is over, -1 after it.

    Parameters
    ----------
    model : Model
        What is run.
    ids, mask : torch.Tensor
        (prompt, position) right-padded ids, and bool, true on real tokens.
    n_tokens : int
        Most tokens decoded.
    ended : torch.Tensor
        (vocab,) bool, true for tokens that end an answer.
    """
    out = torch.full((len(ids), n_tokens), -1, dtype=torch.int64, device=ids.device)
    row = torch.arange(len(ids), dtype=torch.int64, device=ids.device)
    for start in range(0, n_tokens, STEPS):
        steps = min(STEPS, n_tokens - start)
        found = decode(model, ids, mask, steps).ids
        over = (found < 0) | ended[found.clamp_min(0)]
        after = over.cumsum(1) - over.long() > 0
        out[row, start : start + steps] = found.masked_fill(after, -1)
        on = (~over.any(1)).nonzero()[:, 0]
        if not len(on):
            break
        row, lengths = row[on], mask[on].sum(1)
        ids, mask = (torch.nn.functional.pad(x[on], (0, steps)) for x in (ids, mask))
        place = lengths[:, None] + torch.arange(steps, dtype=torch.int64, device=ids.device)
        ids, mask = ids.scatter(1, place, found[on]), mask.scatter(1, place, True)
    return out


def complete(made: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return (prompt,) bool whether `answers` ended at the last step or with a token that ends one, not with NaN.

    Examples
    --------
    >>> complete(np.array([[3, 4, 5], [3, 0, -1], [3, 4, -1], [-1, -1, -1]]), np.arange(6) == 0).tolist()
    [True, True, False, False]
    """
    n = (made >= 0).sum(1)
    last = made[np.arange(len(made)), n - 1]
    return (n == made.shape[1]) | ((n > 0) & ends[last])


def _answer(model: Model, prompt: np.ndarray, made: np.ndarray, corrected: bool) -> str:
    """Return the answer in what was decoded."""
    whole = str(model.tokenizer.decode([*prompt.tolist(), *made.tolist()]))
    if corrected:
        return whole[len(str(model.tokenizer.decode(prompt.tolist()))) :].split('"')[0].strip()
    return published_answer(whole)


def published_answer(text: str) -> str:
    """Return the answer in a text as the published code finds it: what is quoted first behind the last "Answer:".

    Examples
    --------
    >>> published_answer('... Question: Spell out the word "the". Answer: "t h e". Answer: none</s>')
    ''
    """
    parts = text.split("Answer:")[-1].split("</s>")[0].split('"')
    return parts[1].strip() if len(parts) > 1 else ""


# -- scores -------------------------------------------------------------------------------------------------------
def labelled(items: Sequence[CuteItem], texts: Sequence[str], finite: np.ndarray) -> xr.Dataset:
    """Return the result of answers to items.

    Parameters
    ----------
    items : sequence of CuteItem
        The questions.
    texts : sequence of str
        Their answers.
    finite : numpy.ndarray
        (item,) bool, false where the model gave NaN.
    """
    kinds = [kind_of(i.task) for i in items]
    said, right, back = (
        np.array([t.lower() if k in WORD_TASKS else t for k, t in zip(kinds, these, strict=True)], object)
        for these in (
            texts,
            [i.label for i in items],
            [i.inputs[0 if k in CHOSEN else -1] for i, k in zip(items, kinds, strict=True)],
        )
    )
    correct = np.where(finite, said == right, np.nan).astype(np.float64)
    task = np.array([i.task for i in items], object)
    known = list(dict.fromkeys(task.tolist()))
    columns: dict[str, list[float]] = {n: [] for n in ("accuracy", "guess", "null", "copy", "n", "hits")}
    for one in known:
        here = np.flatnonzero((task == one) & finite)
        a, y = said[here].tolist(), right[here].tolist()
        if kind_of(one) in CHOSEN:  # places of the answer among the two words
            pair = [items[i].inputs[1:] for i in here.tolist()]
            a, y = ([w.index(t) if t in w else -1 for w, t in zip(pair, x, strict=True)] for x in (a, y))
        columns["hits"].append(correct[here].sum())
        columns["n"].append(len(here))
        columns["accuracy"].append(correct[here].mean() if len(here) else np.nan)
        columns["null"].append(_pairs(a, y))
        most = (max(map(y.count, y)) - 1) / (len(y) - 1) if len(y) > 1 else np.nan
        columns["guess"].append(np.fmax(most, 0.5) if kind_of(one) in TWO else most)
        columns["copy"].append(float((back[here] == right[here]).mean()) if len(here) else np.nan)
    n, hits = np.array(columns["n"]), np.array(columns["hits"])
    ends = np.full((2, len(known)), np.nan)
    ends[:, n > 0] = wilson(hits[n > 0].astype(int), n[n > 0]) if (n > 0).any() else 0
    v = variable
    data = {
        "accuracy": v(
            "task", columns["accuracy"], "share of right answers", "1", EDMAN, short="right answers", range=(0, 1),
            chance="accuracy_guess", beside=("accuracy_null", "accuracy_copy"),
        ),
        "accuracy_interval": v(("bound", "task"), ends, "95% Wilson interval of the share of right answers", "1"),
        "accuracy_guess": v("task", columns["guess"], "share right of always giving the most common answer", "1",
                            short="most common answer", range=(0, 1)),
        "accuracy_null": v("task", columns["null"], "share right of the answers to other items, mean over all pairs",
                           "1", short="answers to other items", range=(0, 1)),
        "accuracy_copy": v("task", columns["copy"], "share right of giving the input back", "1",
                           short="input given back", range=(0, 1)),
        "n_items": v("task", n, "items with an answer that is finite", "1"),
        "correct": v("prompt", correct, "whether the answer is right", "1", range=(0, 1)),
        "answered": v("prompt", [bool(t) for t in texts], "whether there is an answer", "1"),
        "answer": v("prompt", np.array(texts, object), "answer given", "1"),
        "label": v("prompt", np.array([i.label for i in items], object), "right answer", "1"),
    }  # fmt: skip
    coords = {
        "task": v("task", np.array(known, object), "task", "1"),
        "prompt": v("prompt", range(len(items)), "number of the item", "1"),
        "item_task": v("prompt", task, "task of the item", "1"),
        "bound": bound_coord(),
    }
    return xr.Dataset(data, coords, {"first": "accuracy", "dimensions": "task"})


def _pairs(said: Sequence[object], right: Sequence[object]) -> float:
    """Return the share of all pairs of an answer and the right one of another item that are equal; NaN of one item.

    Examples
    --------
    >>> _pairs(["Yes", "Yes", "No"], ["Yes", "No", "No"])
    0.3333333333333333
    """
    counts = [{v: list(x).count(v) for v in set(x)} for x in (said, right)]
    equal = sum(c * counts[1].get(v, 0) for v, c in counts[0].items())
    own = sum(a == b for a, b in zip(said, right, strict=True))
    return (equal - own) / (len(said) * (len(said) - 1)) if len(said) > 1 else float("nan")
