"""Multiple-choice items (MMLU: Hendrycks et al. 2021): which answer a model finds most probable."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
import xarray as xr

from ..files.paths import local_path
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import stamped
from ..run.sites import resid
from ..run.walk import Walk, Walker, walked
from ..settings import LARGEST, checked, count, instance, one_of, several, short, string, word
from ..text.prompts import Prompts

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.batch import Batch

LETTERS = "ABCDEFGHIJ"
SCORES = ("letter", "option", "option_mean")
LOGITS = 2**28
"""Bytes of logits held at once."""


@checked(question=string, options=several(string), answer=count())
@dataclass(frozen=True)
class Item:
    """One question: its options, the place of the right one (0 first), and the subject it belongs to."""

    question: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LETTERS) or not 0 <= self.answer < len(self.options):
            raise ValueError(
                f"answer={self.answer}, options={short(self.options)}: an item has 2 to {len(LETTERS)} options, and "
                f"the right one is counted from 0 ({self.question[:40]!r})"
            )


@checked(split=word, limit=count(1, LARGEST))
def read_mmlu(
    path: str | Path, split: str = "test", subjects: Sequence[str] | None = None, limit: int | None = None
) -> list[Item]:
    r"""Read items in the format of MMLU: ``SPLIT/SUBJECT_SPLIT.csv`` with question, options and answer.

    Parameters
    ----------
    path : path
        Folder, or tar file of any compression, with these files at any depth.
    split : str
        ``test``, ``dev`` or ``val``.
    subjects : sequence of str, optional
        Only these, for example ``["anatomy"]``.
    limit : int, optional
        Items of each subject.

    Raises
    ------
    ValueError
        If there are no such files, or a line cannot be read (named).
    FileNotFoundError
        If there is nothing at the path.

    Notes
    -----
    The answer is a letter, or a number from 0; a first line of column names is recognised.

    Examples
    --------
    >>> import tokinterp as ti
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     part = pathlib.Path(folder, "test")
    ...     part.mkdir()
    ...     _ = (part / "anatomy_test.csv").write_text("Which?,w,x,y,z,C\n")
    ...     read_mmlu(folder)[0].answer
    2
    """
    path, ending, out = local_path(path), f"_{split}.csv", []
    for name, text in _files(path, ending):
        subject = name.removesuffix(ending)
        if subjects is not None and subject not in subjects:
            continue
        reader = csv.reader(io.StringIO(text), strict=True)
        try:
            rows = [r for r in reader if r]
        except csv.Error as error:
            raise ValueError(f"{name} line {reader.line_num}: {error}: a quote is not closed") from None
        rows = rows[1:] if rows and rows[0][0].strip().lower() == "question" else rows
        for number, row in enumerate(rows[:limit]):
            mark = row[-1].strip()
            answer = int(mark) if mark.isdecimal() else LETTERS.find(mark.upper() or "?")
            if len(row) < 4 or not 0 <= answer < len(row) - 2:
                raise ValueError(f"{name}, item {number + 1}: {len(row)} columns, answer {mark!r}")
            out.append(Item(row[0], tuple(row[1:-1]), answer, subject))
    if not out:
        raise ValueError(
            f"path={short(str(path))}, split={split!r}, subjects={subjects}: no items in files *{ending} there"
        )
    return out


def _files(path: Path, ending: str) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        for file in sorted(path.rglob(f"*{ending}"), key=lambda f: f.name):
            yield file.name, _decoded(file.name, file.read_bytes())
        return
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r}: no such folder or tar file")
    if not tarfile.is_tarfile(path):
        raise ValueError(f"path={str(path)!r}: not a whole tar file: give a folder or a tar file")
    with tarfile.open(path) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(ending)]
        for member in sorted(members, key=lambda m: Path(m.name).name):
            handle = tar.extractfile(member)
            assert handle is not None
            yield Path(member.name).name, _decoded(member.name, handle.read())


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {error.start} is not UTF-8: convert the file (iconv -t UTF-8)") from None


def edited(item: Item, edit: Callable[[str], str] | None, options: bool = False) -> Item:
    """Return an item whose question, and options if asked, are edited."""
    if edit is None:
        return item
    given = tuple(map(edit, item.options)) if options else item.options
    return replace(item, question=edit(item.question), options=given)


def item_prompt(item: Item, shots: Sequence[Item] = (), letters: bool = True) -> str:
    """Return the text before the answer, in the usual MMLU format.

    Examples
    --------
    >>> print(item_prompt(Item("2 + 2?", ("3", "4"), 1)))
    2 + 2?
    A. 3
    B. 4
    Answer:
    """

    def one(i: Item) -> str:
        options = "".join(f"{LETTERS[k]}. {o}\n" for k, o in enumerate(i.options)) if letters else ""
        return f"{i.question.strip()}\n{options}Answer:"

    before = "".join(f"{one(s)} {LETTERS[s.answer] if letters else s.options[s.answer]}\n\n" for s in shots)
    topic = f" about {item.subject.replace('_', ' ')}" if item.subject else ""
    head = f"The following are multiple choice questions (with answers){topic}.\n\n" if item.subject or shots else ""
    return head + before + one(item)


@checked(
    items=several(instance("Item"), 1),
    score=one_of(*SCORES),
    shots=several(instance("Item")),
    on_long=one_of("error", "skip"),
)
@steady
def multiple_choice(
    model: Model,
    items: Sequence[Item],
    *,
    score: str = "letter",
    shots: Sequence[Item] = (),
    edit: Callable[[str], str] | None = None,
    edit_options: bool = False,
    on_long: str = "error",
    **walk: Unpack[Walk],
) -> xr.Dataset:
    """Answer multiple-choice items by the log-probability of each answer.

    Parameters
    ----------
    model : Model
        With a tokenizer.
    items : sequence of Item
        From `read_mmlu`, or made by hand.
    score : str
        ``"letter"``: log-probability of " A", " B", ... after the question with its options (as MMLU is usually run).
        ``"option"``: of the text of each option after the question alone, for models too small to follow letters;
        ``"option_mean"``: the same per token of the option.
    shots : sequence of Item
        Solved items put before each.
    edit : callable, optional
        What is done to each question (str -> str), for example a deletion of stop words.
    edit_options : bool
        Whether it is done to the options too.
    on_long : str
        ``"error"`` or ``"skip"`` (NaN, counted) for items longer than the model's context.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        ``logprob`` (prompt, option; nat; NaN beyond the options of an item), ``choice`` (-1 if skipped or not finite,
        the first of equally probable ones), ``answer``, ``correct`` (1/k where the right one is among k equally
        probable ones) and ``margin`` (log-probability of the right answer minus the best wrong one; 0 for a tie).

    Raises
    ------
    ValueError
        If there are no items, a setting is unknown, or an item is too long.

    Examples
    --------
    >>> import tokinterp as ti
    >>> items = [Item("The Nile is a", ("river", "mountain"), 0)]
    >>> ti.behaviour.multiple_choice(ti.load_model(), items, score="option")["logprob"].shape
    (1, 2)
    """
    if model.tokenizer is None:
        raise ValueError(f"model={model.info.id}: it has no tokenizer: load it with one")
    items = [edited(i, edit, edit_options) for i in items]
    asked = _asked(model, items, shots, score, on_long)
    shape = (len(items), max(len(i.options) for i in items))
    settings = {"score": score, "shots": list(shots), "items": items, "on_long": on_long}
    if not asked:  # every item was skipped
        return stamped(_labelled(np.full(shape, np.nan), items), "multiple_choice", model, "", settings)
    prompts = Prompts.from_ids([list(ids) for ids in asked], model)
    answers = list(asked.values())
    last, most = resid([model.info.n_layers]), max(map(len, answers))

    def make(walker: Walker) -> xr.Dataset:
        rows = walker.rows(prompts, last, partial(_logprobs, answers=answers, most=most))["logprob"]
        table = np.full(shape, np.nan)
        for row, own in zip(rows, answers, strict=True):
            for found, (n, k, ids) in zip(row, own, strict=False):
                table[n, k] = found / len(ids) if score == "option_mean" else found
        return _labelled(table, items)

    return walked("multiple_choice", model, prompts, settings, make, **walk)


Asked = tuple[int, int, list[int]]
"""Item, option, and the tokens of the answer."""


def _asked(
    model: Model, items: Sequence[Item], shots: Sequence[Item], score: str, on_long: str
) -> dict[tuple[int, ...], list[Asked]]:
    """Return the answers to be scored after each input: options of one token share it, and so one forward pass."""
    out: dict[tuple[int, ...], list[Asked]] = {}
    longest, skipped = model.info.max_tokens, set()
    for n, item in enumerate(items):
        text = item_prompt(item, shots, score == "letter")
        context = model.tokenizer(text)["input_ids"]
        for k, option in enumerate(item.options):
            ids = model.tokenizer(f"{text} {LETTERS[k] if score == 'letter' else option.strip()}")["input_ids"]
            same = next((i for i, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b), len(context))
            if len(ids) - 1 > longest:
                if on_long == "error":
                    raise ValueError(
                        f"item {n} has {len(ids)} tokens, {model.info.id} takes {longest}: on_long='skip' leaves it out"
                    )
                skipped.add(n)
            out.setdefault(tuple(ids[:-1]), []).append((n, k, list(ids[same:])))
    kept = {ids: [a for a in asked if a[0] not in skipped] for ids, asked in out.items()}
    return {ids: asked for ids, asked in kept.items() if asked}


def _logprobs(batch: Batch, answers: Sequence[Sequence[Asked]], most: int) -> dict[str, torch.Tensor]:
    """Return (prompt, answer) float64 summed log-probability of the answers asked of each prompt, NaN beyond."""
    device, own = batch.device, [[ids for _, _, ids in answers[n]] for n in batch.numbers]
    size = max(len(ids) for one in own for ids in one)
    goal = torch.full((len(batch), most, size), -1, dtype=torch.int64, device="cpu")  # ends with the answer
    for b, one in enumerate(own):
        for k, ids in enumerate(one):
            goal[b, k, size - len(ids) :] = torch.tensor(ids, dtype=torch.int64, device="cpu")
    goal = goal.to(device)
    back = torch.arange(size, dtype=torch.int64, device=device) - size
    place = (batch.mask.sum(1, keepdim=True) + back).clamp_min(0)
    x = batch.resid(batch.model.info.n_layers)
    x = x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
    parts = []
    rows = max(1, LOGITS // (8 * size * batch.model.info.d_vocab))
    for stream, wanted in zip(x.split(rows), goal.split(rows), strict=True):
        logp = batch.model.unembed(stream).double().log_softmax(-1)
        found = logp.gather(2, wanted.clamp_min(0).transpose(1, 2)).transpose(1, 2)  # (prompt, answer, token)
        total = found.masked_fill(wanted < 0, 0).sum(-1)
        parts.append(total.masked_fill((wanted < 0).all(-1), torch.nan))
    return {"logprob": torch.cat(parts)}


def _labelled(table: np.ndarray, items: Sequence[Item]) -> xr.Dataset:
    answer = np.array([i.answer for i in items])
    known = np.isfinite(table[np.arange(len(items)), answer])
    filled = np.where(np.isfinite(table), table, -np.inf)
    right = filled[np.arange(len(items)), answer]
    wrong = filled.copy()
    wrong[np.arange(len(items)), answer] = -np.inf
    with np.errstate(invalid="ignore"):
        margin = right - wrong.max(1)
    choice = np.where(known, filled.argmax(1), -1)
    best = filled == filled.max(1, keepdims=True)
    share = np.where(known, best[np.arange(len(items)), answer] / best.sum(1), np.nan)
    v = variable
    data = {
        "logprob": v(("prompt", "option"), table, "log-probability of the answer", "nat"),
        "choice": v("prompt", choice, "most probable answer, -1 if the item was skipped", "1"),
        "answer": v("prompt", answer, "right answer, 0 first", "1"),
        "correct": v("prompt", share, "whether the choice is right, of k equally probable ones 1/k", "1"),
        "margin": v("prompt", np.where(known, margin, np.nan), "right answer over the best wrong one", "nat"),
    }
    coords = {
        "prompt": v("prompt", np.arange(len(items)), "number of the item", "1"),
        "option": v("option", np.array(list(LETTERS[: table.shape[1]])), "letter of the answer", "1"),
        "subject": v("prompt", np.array([i.subject for i in items], dtype=object), "subject of the item", "1"),
    }
    return xr.Dataset(data, coords)
