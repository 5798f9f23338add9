"""Items of an insertion experiment: question, fillers and cue as token ids, and where each of them stands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.state import neutral
from ..settings import array, checked, count, one_of, several
from .bundled import bundled_questions, bundled_texts
from .marks import mark
from .prompts import Prompts

if TYPE_CHECKING:
    from ..models.base import Model

UNITS = {"dots": " .", "ellipses": " ...", "commas": " ,", "newlines": "\n"}
KINDS = (*UNITS, "words", "counting", "shuffled counting")
"""Kinds of fillers; any other string is taken as the text that is repeated."""
PLACEMENTS = ("post", "pre")
WORDS = 500  # most frequent words from which random ones are drawn


@checked(ids=several(array), answers=several(array))
@dataclass(frozen=True)
class Items:
    """Inputs of one condition: x = question, fillers, cue; the answer is what should follow.

    Attributes
    ----------
    ids : list of numpy.ndarray
        Token ids of each input, BOS counted, without the answer.
    answers : list of numpy.ndarray
        Token ids of each answer.
    question, filler, cue : numpy.ndarray
        (item, 2) half-open range of positions of each part; start equals stop where there is none.
    kind, placement, n_fillers
        What was inserted, where, and how many tokens of it.
    model : Model
        For which the items were made.
    """

    ids: list[np.ndarray]
    answers: list[np.ndarray]
    question: np.ndarray
    filler: np.ndarray
    cue: np.ndarray
    kind: str
    placement: str
    n_fillers: int
    model: Model = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last(self) -> np.ndarray:
        """(item,) position q* whose prediction is the answer: the last one."""
        return np.array([len(i) - 1 for i in self.ids])

    @cached_property
    def prompts(self) -> Prompts:
        """The inputs as Prompts, for ``measure``."""
        return Prompts.from_ids(self.ids, self.model)

    @cached_property
    def answered(self) -> Prompts:
        """The inputs, each with all tokens of its answer but the last, and with marks of its parts.

        The marks are ``question``, ``filler``, ``cue`` and ``answer``: the tokens whose predictions are the answer.
        """
        whole = [np.concatenate([i, a[:-1]]) for i, a in zip(self.ids, self.answers, strict=True)]
        answer = np.stack([self.last, self.last + [len(a) for a in self.answers]], 1)
        parts = {"question": self.question, "filler": self.filler, "cue": self.cue, "answer": answer}
        return mark(Prompts.from_ids(whole, self.model), **parts)

    @checked(part=one_of("question", "filler", "cue"))
    def mark(self, part: str) -> np.ndarray:
        """Return (token,) bool over all prompts, true on ``question``, ``filler`` or ``cue``: a set for AttentionMass.

        Examples
        --------
        >>> import tokinterp as ti
        >>> items = build_items(ti.load_model(), [("The sky is", " blue")], n_fillers=4)
        >>> int(items.mark("filler").sum())
        4
        """
        out = np.zeros(self.prompts.n_tokens, dtype=bool)
        for start, (a, b) in zip(self.prompts.starts, getattr(self, part), strict=False):
            out[start + a : start + b] = True
        return out

    @checked(rows=several(count()), part=one_of("question", "filler", "cue"))
    def positions(self, rows: Sequence[int], width: int, part: str) -> np.ndarray:
        """Return (row, position) bool, true on a part of some items."""
        spans = getattr(self, part)[list(rows)]
        place = np.arange(width)
        return (place >= spans[:, :1]) & (place < spans[:, 1:])


@dataclass(frozen=True)
class _Parts:
    """One question as token ids: what stands before the fillers, the cue after them, the answer."""

    bos: list[int]
    question: list[int]
    cue: list[int]
    answer: list[int]


class Tokens:
    """The token ids of texts in one tokenizer, BOS apart."""

    def __init__(self, model: Model) -> None:
        if model.tokenizer is None:
            raise ValueError(f"model={model.info.id}: it has no tokenizer: load one with the model")
        self.model, self.tokenizer = model, model.tokenizer
        self.vocabulary = Prompts.from_ids([[0]], model).vocabulary
        self.bos = [self.vocabulary.bos] if self.vocabulary.adds_bos and self.vocabulary.bos is not None else []

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens left out."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return Prompts.from_ids([np.asarray(ids)], self.model).text(0) if len(ids) else ""

    def split(self, prompt: str, answer: str, cue: str | None) -> _Parts:
        """Return a question as parts; raise ValueError where a text does not split between tokens."""
        at = len(prompt.rstrip()) if cue is not None else max(prompt.rstrip().rfind(" "), 0)
        question = prompt[:at]
        whole = self.ids(prompt if cue is None else question + cue)
        front = self.ids(question)
        both = self.ids((prompt if cue is None else question + cue) + answer)
        if whole[: len(front)] != front:
            raise ValueError(f"question {question!r} and what follows it share a token in this tokenizer")
        if both[: len(whole)] != whole or len(both) == len(whole):
            raise ValueError(f"answer {answer!r} shares a token with the end of {prompt!r}: begin it with a space")
        return _Parts(self.bos, front, whole[len(front) :], both[len(whole) :])

    def unit(self, text: str) -> list[int]:
        """Return the ids of a text that is repeated; raise ValueError if repetition changes them, saying into what."""
        left = self.ids("a")
        three = self.ids("a" + text * 3)
        one, rest = divmod(len(three) - len(left), 3)
        unit = three[len(left) : len(left) + one]
        if rest or not unit or three != left + unit * 3:
            shown = self.vocabulary.strings(three[len(left) :])
            raise ValueError(
                f"kind={text!r}: filler {text!r} merges with its neighbours in this tokenizer: three of it after 'a' "
                f"become {shown}; "
                f"write it with a space, for example {' ' + text.strip()!r}"
            )
        return unit

    @cached_property
    def numbers(self) -> list[list[int]]:
        """Ids of " 1", " 2", ... as long as each takes as many tokens as " 1"."""
        first = self.unit(" 1")
        out = []
        for n in range(1, 1000):
            ids = self.ids(f"a {n}")[len(self.ids("a")) :]
            if len(ids) != len(first):
                break
            out.append(ids)
        return out

    @cached_property
    def words(self) -> np.ndarray:
        """Ids of words of one token, the most frequent of the bundled texts first."""
        counts = Counter(w for t in bundled_texts() for w in re.findall(r"\b[a-z]{3,}\b", t.text))
        left, out = self.ids("a"), []
        for word, _ in counts.most_common():
            ids = self.ids(f"a {word}")
            if len(ids) == len(left) + 1 and ids[:-1] == left:
                out.append(ids[-1])
            if len(out) == WORDS:
                break
        if len(out) < 20:
            raise ValueError(f"this tokenizer has only {len(out)} whole words as tokens: random words need 20 or more")
        return np.array(out)

    def fillers(self, kind: str, k: int, rng: np.random.Generator, without: Sequence[int] = ()) -> list[int]:
        """Return k tokens of a kind of filler.

        Raises
        ------
        ValueError
            If k is not a multiple of the tokens of one filler, or the filler merges with itself.
        """
        if k == 0:
            return []
        if kind == "words":
            return rng.choice(np.setdiff1d(self.words, without), k).tolist()
        if kind in ("counting", "shuffled counting"):
            units = self.numbers
        else:
            units = [self.unit(UNITS.get(kind, kind))]
        size = len(units[0])
        if k % size:
            raise ValueError(
                f"n_fillers={k}, kind={kind!r}: one filler is {size} tokens in this tokenizer "
                f"({self.vocabulary.strings(units[0])}), so their number must be a multiple of {size}"
            )
        chosen = [units[i % len(units)] for i in range(k // size)]
        if kind == "shuffled counting":
            chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        return [i for unit in chosen for i in unit]


@checked(placement=one_of(*PLACEMENTS))
@neutral()
def build_items(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 0,
    kind: str = "dots",
    placement: str = "post",
    cue: str | None = None,
    announce: str = "",
    demonstrations: Iterable[Any] = (),
    demo_fillers: int | None = None,
    between: str = "\n\n",
    exact: bool = True,
    seed: int = 0,
) -> Items:
    """Put fillers between question and cue (or before the question), token by token.

    Parameters
    ----------
    model : Model
        Brings tokenizer and context length.
    questions : iterable of Question or (prompt, answer), optional
        The bundled cloze questions by default.
    n_fillers : int
        k, filler tokens in each item.
    kind : str
        ``"dots"`` (" ."), ``"ellipses"``, ``"commas"``, ``"newlines"``, ``"words"`` (random frequent words, drawn anew
        for each item, never one of the answer), ``"counting"`` (1 2 3 ... as far as numbers take equally many tokens,
        then again), ``"shuffled counting"`` (the same tokens, other order), or the text of a filler.
    placement : {"post", "pre"}
        After the question, or before it.
    cue : str, optional
        What follows the fillers, for example ``" Answer:"``. By default the last word of the prompt, so that without
        fillers the item is the prompt itself.
    announce : str
        Text put before everything, for the control that only announces fillers.
    demonstrations : iterable of Question or (prompt, answer)
        Solved before every item, in the same layout; none of them may be one of the questions.
    demo_fillers : int, optional
        Filler tokens of each demonstration, ``n_fillers`` by default. With ``n_fillers=0`` the demonstrations keep
        theirs and only the target's are cut (truncation).
    between : str
        What separates demonstrations from each other and from the item.
    exact : bool
        Whether the text of the item must be tokenised into the very ids of the item.
    seed : int
        Of random words and shuffles.

    Raises
    ------
    ValueError
        If a filler merges with its neighbours (says into what), if an item does not fit the context, if ``n_fillers``
        is no multiple of the tokens of one filler, for an answer that merges with the prompt, if a question is among
        its own demonstrations.

    Examples
    --------
    >>> import tokinterp as ti
    >>> items = build_items(ti.load_model(), [("The capital of France is", " Paris")], n_fillers=4)
    >>> items.prompts.text(0)
    'The capital of France . . is'
    """
    tokens = Tokens(model)
    pairs = [_pair(q) for q in (bundled_questions() if questions is None else questions)]
    if not pairs:
        raise ValueError("questions=[]: no questions: the list is empty")
    solved = _solved(tokens, demonstrations, pairs, n_fillers if demo_fillers is None else demo_fillers, kind,
                     placement, cue, between, seed)  # fmt: skip
    ids, answers, spans = [], [], []
    for number, (prompt, answer) in enumerate(pairs):
        parts = tokens.split(prompt, answer, cue)
        rng = np.random.default_rng([seed, number])
        fillers = tokens.fillers(kind, n_fillers, rng, parts.answer)
        lead = tokens.ids(announce) + solved
        middle = [fillers, parts.question] if placement == "pre" else [parts.question, fillers]
        pieces = [parts.bos, lead, *middle, parts.cue]
        edges = np.cumsum([0, *(len(p) for p in pieces)])
        whole = [i for p in pieces for i in p]
        room = model.info.max_tokens - len(parts.answer) + 1
        if len(whole) > room:
            raise ValueError(
                f"n_fillers={n_fillers}: item {number}: {n_fillers} fillers make {len(whole)} tokens, and "
                f"{model.info.id} has room for {room} "
                f"before the answer: at most {max(n_fillers - len(whole) + room, 0)} fillers fit"
            )
        if not whole[len(parts.bos) :]:
            raise ValueError(f"item {number}: the prompt is empty")
        at = {"filler": 3 if placement == "post" else 2, "question": 2 if placement == "post" else 3, "cue": 4}
        if exact and (fillers or lead):
            _check_exact(tokens, whole[len(parts.bos) :], kind, number)
        ids.append(np.array(whole))
        answers.append(np.array(parts.answer))
        spans.append([[edges[at[p]], edges[at[p] + 1]] for p in ("question", "filler", "cue")])
    question, filler, cues = np.array(spans).transpose(1, 0, 2)
    return Items(ids, answers, question, filler, cues, kind, placement, n_fillers, model)


def _solved(
    tokens: Tokens, demonstrations: Iterable[Any], pairs: list[tuple[str, str]], k: int, kind: str, placement: str,
    cue: str | None, between: str, seed: int,
) -> list[int]:  # fmt: skip
    """Return the ids of all demonstrations, each with its fillers and its answer; the same before every item."""
    out: list[int] = []
    for number, (prompt, answer) in enumerate(_pair(d) for d in demonstrations):
        if (prompt, answer) in pairs:
            raise ValueError(
                f"demonstrations[{number}]: demonstration {number} ({prompt!r}) is one of the questions: its answer "
                "would be shown"
            )
        parts = tokens.split(prompt, answer, cue)
        fillers = tokens.fillers(kind, k, np.random.default_rng([seed, 1, number]), parts.answer)
        pieces = [fillers, parts.question] if placement == "pre" else [parts.question, fillers]
        out += [i for p in (*pieces, parts.cue, parts.answer, tokens.ids(between)) for i in p]
    return out


def _check_exact(tokens: Tokens, ids: list[int], kind: str, number: int) -> None:
    """Raise ValueError if the text of the ids would be tokenised otherwise, naming the tokens it became."""
    again = tokens.ids(tokens.text(ids))
    if again == ids:
        return
    first = next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again)))
    wrote, became = (tokens.vocabulary.strings(x[max(first - 1, 0) : first + 4]) for x in (ids, again))
    raise ValueError(
        f"kind={kind!r}: item {number}: filler {kind!r} merges with its neighbours in this tokenizer: {wrote} become "
        f"{became}; choose another filler, or exact=False to insert the ids nevertheless"
    )


def _pair(question: Any) -> tuple[str, str]:
    if hasattr(question, "prompt"):
        return question.prompt, question.answer
    prompt, answer = question
    return str(prompt), str(answer)
