"""Questions about the characters of tokens, in the format of CUTE: templates, answers, and items made or read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files.paths import local_path
from ..settings import LARGEST, checked, count, instance, names, one_of, several, short, some_strings, string, strings
from .choices import _files

EDMAN = "Edman et al. 2024, CUTE: Measuring LLMs' understanding of their tokens, arXiv 2409.15452"
WORDS = ("alphabet", "hello", "zebra", "tongue")
DAY, THINK = "it is a beautiful day", "i think i can do it"
COW, HAPPY = "The cow goes moo.", "I am very happy."
PAIRS = (("bold", "cold", "brave"), ("computer", "completed", "laptop"), ("happy", "glad", "apply"),
         ("camp", "ramp", "tent"))  # fmt: skip


@dataclass(frozen=True)
class Template:
    """How a task is asked: what to do, the question for its inputs, and the inputs of four solved examples."""

    head: str
    ask: str
    shots: tuple[tuple[str, ...], ...]
    link: str = ", based on the following examples:"


def _shots(*pairs: tuple[str, str], of: Sequence[str] = WORDS) -> tuple[tuple[str, ...], ...]:
    return tuple((*p, w) for p, w in zip(pairs, of, strict=True))


BOTH = (DAY, DAY, THINK, THINK)
TEMPLATES = {
    "spell": Template(
        "Spell out the word, putting spaces between each letter", 'Spell out the word "{}".',
        tuple((w,) for w in WORDS),
    ),
    "spell_inverse": Template(
        "Write the word that is spelled out, without any spaces", 'Write the word "{}".',
        tuple((" ".join(w),) for w in WORDS),
    ),
    "contains_char": Template(
        "Answer whether the specified letter is in the given word", 'Is there a "{}" in "{}"?',
        (("a", "alphabet"), ("z", "alphabet"), ("u", "hello"), ("o", "hello")),
    ),
    "contains_word": Template(
        "Answer whether the specified word is in the given sentence (case insensitive)", 'Is there a "{}" in "{}"?',
        (("the", COW), ("goat", COW), ("glad", HAPPY), ("happy", HAPPY)),
    ),
    "orth": Template(
        "Select the word that is closer in Levenshtein distance to the given word",
        'Closer in Levenshtein distance to "{}": "{}", "{}".', PAIRS, " based on the following examples:",
    ),
    "sem": Template(
        "Select the word that is more semantically related to the given word",
        'More semantically related to "{}": "{}", "{}".', PAIRS, " based on the following examples:",
    ),
    "ins_char": Template(
        "Add the specified letter after every instance of the second specified letter in a given word",
        'Add an "{}" after every "{}" in "{}".', _shots(("e", "a"), ("l", "l"), ("t", "z"), ("f", "u")),
    ),
    "ins_word": Template(
        "Add the specified word after every instance of the second specified word in a given sentence",
        'Add "{}" after every "{}" in "{}".',
        _shots(("bad", "beautiful"), ("hello", "day"), ("not", "i"), ("can", "can"), of=BOTH),
    ),
    "del_char": Template(
        "Delete every instance of a specified letter in a given word", 'Delete every instance of "{}" in "{}".',
        (("a", "alphabet"), ("l", "hello"), ("z", "zebra"), ("u", "tongue")),
    ),
    "del_word": Template(
        "Delete every instance of a specified word in a given sentence", 'Delete every instance of "{}" in "{}".',
        (("a", DAY), ("beautiful", DAY), ("i", THINK), ("can", THINK)),
    ),
    "swap_char": Template(
        "Swap the positions of two specified letters in a given word", 'Swap "{}" and "{}" in "{}".',
        _shots(("l", "b"), ("h", "e"), ("z", "a"), ("u", "e")),
    ),
    "swap_word": Template(
        "Swap the positions of two specified words in a given sentence", 'Swap "{}" and "{}" in "{}".',
        _shots(("it", "a"), ("it", "beautiful"), ("think", "do"), ("can", "do"), of=BOTH),
    ),
    "sub_char": Template(
        "Substitute the first specified letter with the second specified letter in a given word",
        'Substitute "{}" with "{}" in "{}".', _shots(("a", "b"), ("h", "e"), ("z", "a"), ("u", "e")),
    ),
    "sub_word": Template(
        "Substitute the first specified word with the second specified word in a given sentence",
        'Substitute "{}" with "{}" in "{}".',
        _shots(("it", "a"), ("it", "beautiful"), ("i", "do"), ("think", "can"), of=BOTH),
    ),
}  # fmt: skip
TASKS = tuple(TEMPLATES)
RANDOM = tuple(f"{t}_rand" for t in TASKS if "char" in t or t.startswith("spell"))
WORD_TASKS = tuple(t for t in TASKS if t.endswith("_word"))
CHOSEN = {"orth": ("cold", "completed", "apply", "ramp"), "sem": ("brave", "laptop", "glad", "tent")}
SLIPS = {
    "spell_inverse": ('t".  Answer', 't". Answer'), "orth": ('"glad, "apply"', '"glad", "apply"'),
    "sem": ('"{}": {}, {}.', '"{}": "{}", "{}".'),
}  # fmt: skip
"""What stands in the published prompts, and what was meant."""


@checked(task=one_of(*TASKS, *RANDOM), inputs=several(string, 1), label=string)
@dataclass(frozen=True)
class CuteItem:
    """One question: its task, what is put into the template, and the right answer.

    Attributes
    ----------
    task : str
        One of 14, such as ``"spell"`` or ``"swap_word"``; seven also with ``_rand``, on random strings.
    inputs : tuple of str
        One to three, in the order of the template.
    label : str
        The right answer.
    """

    task: str
    inputs: tuple[str, ...]
    label: str

    def __post_init__(self) -> None:
        if len(self.inputs) != (wanted := TEMPLATES[kind_of(self.task)].ask.count("{}")):
            raise ValueError(f"inputs={short(self.inputs)}: {self.task} takes {wanted}")
        if kind_of(self.task) in CHOSEN and self.label not in self.inputs[1:]:
            raise ValueError(f"label={short(self.label)}: give one of the two words {short(self.inputs[1:])}")


def kind_of(task: str) -> str:
    """Return a task without the mark of random strings."""
    return task.removesuffix("_rand")


@checked(item=instance("CuteItem"))
def cute_prompt(item: CuteItem, corrected: bool = False) -> str:
    """Return the text of a question behind four solved ones.

    Parameters
    ----------
    item : CuteItem
        The question.
    corrected : bool
        Without the twelve spaces before each line and the slips of the published prompts.

    Examples
    --------
    >>> print(cute_prompt(CuteItem("spell", ("the",), "t h e"), corrected=True))
    Spell out the word, putting spaces between each letter, based on the following examples:
    <BLANKLINE>
    1. Spell out the word "alphabet". Answer: "a l p h a b e t"
    2. Spell out the word "hello". Answer: "h e l l o"
    3. Spell out the word "zebra". Answer: "z e b r a"
    4. Spell out the word "tongue". Answer: "t o n g u e"
    <BLANKLINE>
    Question: Spell out the word "the".
    """
    task = kind_of(item.task)
    t = TEMPLATES[task]
    solved = [
        f'{n}. {t.ask.format(*given)} Answer: "{CHOSEN[task][n - 1] if task in CHOSEN else solution(task, given)}"'
        for n, given in enumerate(t.shots, 1)
    ]
    ask = f"Question: {t.ask}"
    if not corrected and task in SLIPS:
        wrong, meant = SLIPS[task]
        solved = [s.replace(meant, wrong) for s in solved]
        ask = ask.replace(meant, wrong)
    return ("\n" if corrected else "\n" + " " * 12).join([t.head + t.link, "", *solved, "", ask.format(*item.inputs)])


# -- answers ------------------------------------------------------------------------------------------------------
PIECE = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


def solution(task: str, inputs: Sequence[str]) -> str:
    """Return the right answer of a task that follows from its inputs: all but which of two words is closer.

    Examples
    --------
    >>> solution("del_word", ("giggled", "He squirmed and giggled, feeling so spoiled."))
    'He squirmed and, feeling so spoiled.'
    """
    *what, text = inputs
    kind, _, unit = kind_of(task).partition("_")
    if unit == "word":
        return _words_solution(kind, what, text)
    if kind == "contains":
        return "Yes" if what[0] in text else "No"
    if kind == "spell":
        return text.replace(" ", "") if unit else " ".join(text)
    if kind == "ins":
        return text.replace(what[1], what[1] + what[0])
    if kind == "del":
        return text.replace(what[0], "")
    if kind == "sub":
        return text.replace(what[0], what[1])
    out, (a, b) = list(text), map(text.index, what)
    out[a], out[b] = what[1], what[0]
    return "".join(out)


def _words_solution(kind: str, what: Sequence[str], text: str) -> str:
    if kind == "contains":
        return "Yes" if what[0].lower() in [w.lower() for w in PIECE.findall(text)] else "No"
    if kind == "del":
        gone = re.sub(rf" ?(?<![\w'’-]){re.escape(what[0])}(?![\w'’-])", "", text)
        return gone.lstrip() if text.startswith(what[0]) else gone
    change = {"ins": {what[-1]: f"{what[-1]} {what[0]}"}, "sub": {what[0]: what[-1]},
              "swap": {what[0]: what[-1], what[-1]: what[0]}}[kind]  # fmt: skip
    return PIECE.sub(lambda m: change.get(m[0], m[0]), text)


# -- items --------------------------------------------------------------------------------------------------------
@checked(tasks=names(*TASKS, *RANDOM, least=1), words=some_strings, sentences=strings, n=count(1))
def cute_items(
    tasks: Sequence[str], words: Sequence[str], sentences: Sequence[str] = (),
    related: Mapping[str, str] | None = None, n: int = 100, seed: int = 0,
) -> list[CuteItem]:  # fmt: skip
    """Make items of the tasks from lists of words and sentences.

    Parameters
    ----------
    tasks : sequence of str
        Of the 14, and of the seven with ``_rand``, whose words are different random consonants, as many as the letters
        of the words.
    words : sequence of str
        Words in small letters a to z, the most frequent first: the first ``n`` of three letters or more make the items
        of tasks on characters; those of tasks on words are drawn from all.
    sentences : sequence of str
        For tasks on words: short ones, without quotes.
    related : mapping of str to str, optional
        For ``"orth"`` and ``"sem"``: words and what each is related to in meaning, spelt otherwise.
    n : int
        Most items of a task.
    seed : int
        Of all that is drawn.

    Returns
    -------
    list of CuteItem
        Each with one right answer: a letter is substituted by another one, letters that are swapped occur once, a word
        that is looked for does not occur with another case, half of the answers to yes-or-no questions are yes.

    Raises
    ------
    ValueError
        If a task needs sentences or related words and there are none that fit.

    References
    ----------
    Edman et al. 2024, arXiv 2409.15452; github.com/Leukas/CUTE.

    Examples
    --------
    >>> [i.label for i in cute_items(["spell", "spell_inverse"], ["the", "and"])]
    ['t h e', 'a n d', 'the', 'and']
    """
    known = [w for w in dict.fromkeys(words) if len(w) > 2 and w.isascii() and w.isalpha() and w.islower()]
    if not known:
        raise ValueError(f"words={short(words)}: none of three letters a to z or more, in small letters")
    out: list[CuteItem] = []
    for task in tasks:
        draw = np.random.default_rng([seed, (*TASKS, *RANDOM).index(task)])
        if task in CHOSEN:
            found = _choices(task, known, related or {}, n, draw)
        elif task in WORD_TASKS:
            usable = [s for s in dict.fromkeys(sentences) if '"' not in s and "\t" not in s]
            found = _some(n, usable, lambda s, t=task, d=draw: _word_inputs(t, s, known, d), task)
        else:
            found = _some(n, known, lambda w, t=task, d=draw: _char_inputs(t, w, d), task)
        if not found:
            needs = "related" if task in CHOSEN else "sentences" if task in WORD_TASKS else "words"
            raise ValueError(f"tasks={list(tasks)}: no item of {task!r} can be made: give {needs} that fit")
        out += found
    return out


def _some(n: int, given: Sequence[str], make: Callable[[str], tuple[str, ...] | None], task: str) -> list[CuteItem]:
    out: list[CuteItem] = []
    for one in given:
        if len(out) < n and (inputs := make(one)) is not None:
            out.append(CuteItem(task, inputs, solution(task, inputs)))
    return out


def _char_inputs(task: str, word: str, draw: np.random.Generator) -> tuple[str, ...] | None:
    """Return the inputs of a task on characters; None where the word has too few letters of one kind."""
    if task.endswith("_rand"):
        if len(word) > 20:
            return None
        word = "".join(draw.permutation(list("bcdfghjklmnpqrstvwxz"))[: len(word)])
    kind, own = kind_of(task), sorted({*word})
    others = sorted({*"abcdefghijklmnopqrstuvwxyz"} - {*word})
    one, new = str(draw.choice(own)), str(draw.choice(others))
    if kind in ("spell", "spell_inverse"):
        return (word if kind == "spell" else " ".join(word),)
    if kind == "contains_char":
        return (one if draw.random() < 0.5 else new, word)
    if kind == "del_char":
        return one, word
    if kind == "swap_char":
        once = [c for c in own if word.count(c) == 1]
        return (*map(str, draw.permutation(once)[:2]), word) if len(once) > 1 else None
    return (new, one, word) if kind == "ins_char" else (one, new, word)


def _word_inputs(task: str, sentence: str, words: Sequence[str], draw: np.random.Generator) -> tuple[str, ...] | None:
    """Return the inputs of a task on words; None where no word of the sentence is written in one way only."""
    there = PIECE.findall(sentence)
    low = [w.lower() for w in there]
    clear = sorted({w for w in there if low.count(w.lower()) == there.count(w)})
    new = [w for w in words if w not in low]
    if not clear or not new:
        return None
    one, other = str(draw.choice(clear)), str(draw.choice(new))
    if task == "contains_word":
        return (one if draw.random() < 0.5 else other, sentence)
    if task == "del_word":
        return one, sentence
    if task == "swap_word":
        once = [w for w in clear if low.count(w.lower()) == 1]
        return (*map(str, draw.permutation(once)[:2]), sentence) if len(once) > 1 else None
    return (other, one, sentence) if task == "ins_word" else (one, other, sentence)


def similarity(a: str, b: str) -> float:
    """Return how alike two words are spelt: twice their longest common subsequence over their letters together.

    Examples
    --------
    >>> similarity("cold", "bold"), similarity("cold", "brave")
    (0.75, 0.0)
    """
    row = [0] * (len(b) + 1)
    for x in a:
        new = [0]
        for j, y in enumerate(b):
            new.append(row[j] + 1 if x == y else max(row[j + 1], new[j]))
        row = new
    return 2 * row[-1] / (len(a) + len(b))


def _choices(
    task: str, words: Sequence[str], related: Mapping[str, str], n: int, draw: np.random.Generator
) -> list[CuteItem]:
    out: list[CuteItem] = []
    for word, meant in related.items():
        if len(out) == n or similarity(word, meant) >= 0.3:
            continue
        near = [w for w in words if w not in (word, meant) and 2 * min(len(w), len(word)) > 0.7 * (len(w) + len(word))]
        alike = max(near, key=lambda w, of=word: similarity(w, of), default=word)
        if alike == word or similarity(alike, word) <= 0.7:
            continue
        order = (alike, meant) if draw.random() < 0.5 else (meant, alike)
        out.append(CuteItem(task, (word, *order), alike if task == "orth" else meant))
    return out


@checked(tasks=names(*TASKS, *RANDOM), limit=count(1, LARGEST))
def read_cute(path: str | Path, tasks: Sequence[str] | None = None, limit: int | None = None) -> list[CuteItem]:
    """Read items in the format of CUTE: ``TASK.tsv`` with columns input1, input2, ..., label.

    Parameters
    ----------
    path : path
        Folder, or tar file of any compression, with these files at any depth.
    tasks : sequence of str, optional
        Only these; all that are there by default.
    limit : int, optional
        Items of each task.

    Raises
    ------
    ValueError
        If there are no such files, or a line has other columns (named).
    FileNotFoundError
        If there is nothing at the path.
    """
    out: list[CuteItem] = []
    for name, text in _files(local_path(path), ".tsv"):
        task = name.removesuffix(".tsv")
        if task not in (*TASKS, *RANDOM) or (tasks is not None and task not in tasks):
            continue
        lines = text.splitlines()
        columns = lines[0].split("\t") if lines else []
        for number, line in enumerate(lines[1:][:limit], 2):
            row = line.split("\t")
            if len(row) != len(columns) or len(row) < 2:
                raise ValueError(f"{name} line {number}: {len(row)} columns, the first line has {len(columns)}")
            out.append(CuteItem(task, tuple(row[:-1]), row[-1]))
    if not out:
        raise ValueError(f"path={short(str(path))}, tasks={tasks}: no items in files TASK.tsv there")
    return out
