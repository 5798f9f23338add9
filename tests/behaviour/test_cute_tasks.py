"""Questions about characters: the published prompts, items with one right answer, and files of them."""

import hashlib
import tarfile

import numpy as np
import pytest

from tokinterp.behaviour import CuteItem, cute_items, cute_prompt, read_cute
from tokinterp.behaviour.cute_tasks import (
    CHOSEN,
    PIECE,
    RANDOM,
    TASKS,
    TEMPLATES,
    WORD_TASKS,
    kind_of,
    similarity,
    solution,
)

PUBLISHED = {
    "spell": "26f7288a68b1", "spell_inverse": "77564003dddf", "contains_char": "3797cf78d5e7",
    "contains_word": "4226ec919ff4",
    "orth": "9f30a8516f80", "sem": "f250b5816d38", "ins_char": "4fd78a6bd176", "ins_word": "2b41c570546f",
    "del_char": "5a21ba2ce604", "del_word": "c5d7cbee32fc", "swap_char": "443401cd8df4", "swap_word": "d6c4078383c8",
    "sub_char": "d3c2d213d04a", "sub_word": "02ad7d16cc9f",
}  # fmt: skip
"""First digits of the SHA-256 of the prompts of Leukas/CUTE (prompts.py, 8db264a) with the inputs A, B, C."""
WORDS = ["the", "and", "river", "letter", "bold", "cold", "camp", "ramp", "sing", "king", "noon", "aa", "Nile"]
SENTENCES = ["The cat saw the dog.", "Rain fell, and rain fell again!", 'He said "no" to it.', "One by one they left."]
RELATED = {"bold": "brave", "camp": "tent", "king": "queen"}


def asked(task):
    return CuteItem(task, tuple("ABC"[: TEMPLATES[task].ask.count("{}")]), "C")


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_the_published_ones_to_the_letter(task):
    text = cute_prompt(asked(task))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == PUBLISHED[task]
    meant = cute_prompt(asked(task), corrected=True)
    lines = [line.removeprefix(" " * 12) for line in text.split("\n")]
    differ = [(a, b) for a, b in zip(lines, meant.split("\n"), strict=True) if a != b]
    assert len(differ) == (task in ("spell_inverse", "orth", "sem"))
    assert meant.count('"') % 2 == 0


def test_solved_examples_are_solved_right():
    """Every example of the templates that follows from its inputs, as the published prompts solve it."""
    wanted = {
        "swap_char": ["abphalet", "ehllo", "aebrz", "tongeu"],
        "ins_char": ["aelphaebet", "hellllo", "ztebra", "tongufe"],
        "del_word": ["it is beautiful day", "it is a day", "think can do it", "i think i do it"],
        "swap_word": ["a is it beautiful day", "beautiful is a it day", "i do i can think it", "i think i do can it"],
        "contains_char": ["Yes", "No", "No", "Yes"], "contains_word": ["Yes", "No", "No", "Yes"],
    }  # fmt: skip
    for task, answers_ in wanted.items():
        assert [solution(task, given) for given in TEMPLATES[task].shots] == answers_
    assert solution("swap_word", ("When", "on", "When she finished, she hung it on the wall.")) == (
        "on she finished, she hung it When the wall."
    )
    assert solution("del_word", ("the", "the sun and the moon")) == "sun and moon"
    assert solution("ins_word", ("not", "do", "I do, you don't, they do.")) == "I do not, you don't, they do not."


def test_items_have_one_right_answer():
    tasks = [*TASKS, *RANDOM]
    items = cute_items(tasks, WORDS, SENTENCES, RELATED, n=8)
    assert [t for t in tasks if t not in {i.task for i in items}] == []
    for i in items:
        kind, *what, text = kind_of(i.task), *i.inputs
        if kind in CHOSEN:
            assert i.label in i.inputs[1:]
            near, far = sorted(i.inputs[1:], key=lambda w, of=i.inputs[0]: -similarity(w, of))
            assert i.label == (near if kind == "orth" else RELATED[i.inputs[0]] == far and far)
            continue
        assert solution(i.task, i.inputs) == i.label
        if kind in WORD_TASKS:
            assert '"' not in text
            lower = [w.lower() for w in PIECE.findall(text)]
            for word in what:
                assert lower.count(word.lower()) in (0, PIECE.findall(text).count(word))
        else:
            assert len(text.replace(" ", "")) > 2
            assert text == text.lower()
            assert not i.task.endswith("_rand") or len(set(text)) == len(text) or " " in text
        if kind.startswith(("ins", "sub", "swap", "del")):
            assert i.label != text
    assert cute_items(["spell"], WORDS, n=8, seed=1) == cute_items(["spell"], WORDS, n=8)
    many = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvw"]
    yes = [i.label == "Yes" for i in cute_items(["contains_char"], many, n=400)]
    assert abs(np.mean(yes) - 0.5) < 3.3 * 0.5 / 20


def test_similarity_is_twice_the_longest_common_subsequence():
    assert similarity("computer", "completed") == pytest.approx(2 * 6 / 17)
    assert similarity("abc", "abc") == 1
    assert similarity("ab", "ba") == 0.5


def test_files_of_cute_are_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "del_char.tsv").write_text("input1\tinput2\tlabel\nt\tthe\the\na\tand\tnd\n")
    (tmp_path / "data" / "spell_rand.tsv").write_text("input1\tlabel\nbdj\tb d j\n")
    (tmp_path / "data" / "other.tsv").write_text("x\ty\n")
    with tarfile.open(tmp_path / "cute.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "data", "data")
    for path in (tmp_path, tmp_path / "cute.tar.xz"):
        assert read_cute(path) == [
            CuteItem("del_char", ("t", "the"), "he"), CuteItem("del_char", ("a", "and"), "nd"),
            CuteItem("spell_rand", ("bdj",), "b d j"),
        ]  # fmt: skip
        assert len(read_cute(path, ["del_char"], 1)) == 1
    (tmp_path / "data" / "sem.tsv").write_text("input1\tinput2\tinput3\tlabel\na\tb\tc\n")
    with pytest.raises(ValueError, match=r"sem.tsv line 2: 3 columns, the first line has 4"):
        read_cute(tmp_path)
    with pytest.raises(ValueError, match=r"no items in files TASK\.tsv there"):
        read_cute(tmp_path / "data", ["ins_char"])


def test_items_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"inputs=\('a',\): del_char takes 2"):
        CuteItem("del_char", ("a",), "b")
    with pytest.raises(ValueError, match=r"label='Tent': give one of the two words \('tent', 'ramp'\)"):
        CuteItem("sem", ("camp", "tent", "ramp"), "Tent")
    with pytest.raises(ValueError, match=r"no item of 'sub_word' can be made: give sentences that fit"):
        cute_items(["sub_word"], WORDS)
