"""Classes of tokens: known tokens, words cut by a window, agreement with aligned words."""

import sys

import numpy as np
import pytest
from text_helpers import MAKERS, TEXTS, PieceTokenizer, tokenizer

from tokinterp.text import Prompts, Spans, token_classes

NAMES = list(MAKERS)


def pieces(*marked):
    """Prompts whose tokens are cut at the marks, and their texts."""
    texts = [m.replace("|", "") for m in marked]
    return Prompts.from_texts(texts, PieceTokenizer(*marked)), texts


def span(text, string, document=0, kind="entity"):
    start = text.index(string)
    return {"document": document, "start": start, "stop": start + len(string), "kind": kind, "type": "X"}


def test_classes_of_known_tokens():
    prompts, texts = pieces("The| Nap|ole|on|-|ic| wars| of| |1|8|0|3| don|'t| end|.| (|x.y|)|\n|betw|een", "A|t 9")
    spans = Spans.from_records([span(texts[0], "Napoleon-ic wars"), span(texts[0], "1803", kind="date")], texts)
    classes = token_classes(prompts, spans)
    named = list(
        zip([s for i in range(2) for s in prompts.strings(i)], [classes.names[c] for c in classes.codes], strict=True)
    )
    assert named == [
        ("The", "stop word"), (" Nap", "first piece"), ("ole", "middle piece"), ("on", "middle piece"),
        ("-", "middle piece"), ("ic", "last piece"), (" wars", "word"), (" of", "stop word"), (" ", "whitespace"),
        ("1", "digit"), ("8", "digit"), ("0", "digit"), ("3", "digit"), (" don", "first piece"), ("'t", "last piece"),
        (" end", "word"), (".", "punctuation"), (" (", "punctuation"), ("x.y", "other"), (")", "punctuation"),
        ("\n", "whitespace"), ("betw", "first piece"), ("een", "last piece"), ("A", "first piece"), ("t 9", "other"),
    ]  # fmt: skip
    assert np.flatnonzero(classes.last["entity"]).tolist() == [6]
    assert np.flatnonzero(classes.last["date"]).tolist() == [12]
    assert classes.counts()["digit"] == 4
    assert classes.mask("digit", "other").sum() == 6
    with pytest.raises(ValueError, match="no class of tokens 'nuon': the classes are special"):
        classes.mask("nuon")


def test_a_word_cut_by_a_window_keeps_its_class():
    text = "A| Nap|ole|on|ic| war"
    prompts = Prompts.from_texts([text.replace("|", "")], PieceTokenizer(text), max_tokens=2, on_long="window")
    classes = token_classes(prompts)
    assert [classes.names[c] for c in classes.codes] == [
        "stop word", "first piece", "middle piece", "middle piece", "last piece", "word",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_classes_agree_with_aligned_words(name):
    prompts = Prompts.from_texts(TEXTS, tokenizer(name), max_tokens=400)
    words = Spans.words(prompts)
    found = words.align(prompts)
    classes = token_classes(prompts, found)
    counts = classes.counts()
    several = found.n_tokens > 1
    digits = np.array([s.isdigit() for s in Spans.words(TEXTS).strings()])[found.span]
    assert counts["first piece"] == counts["last piece"] == (several & ~digits).sum()
    assert counts["middle piece"] == (found.n_tokens - 2)[several & ~digits].sum()
    assert counts["word"] + counts["stop word"] == (~several & ~digits).sum()
    assert counts["digit"] == found.n_tokens[digits].sum()
    assert counts["other"] == 0
    where = prompts.starts[found.prompt] + found.stop - 1
    np.testing.assert_array_equal(np.flatnonzero(classes.last["word"]), np.sort(where))


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_those_of_each_prompt_alone(name, monkeypatch):
    made = tokenizer(name)
    texts = [*TEXTS, " \n", "  Napoleon ", "1803-x 7"]
    for prompts in (
        Prompts.from_texts(texts, made, max_tokens=5, on_long="window", stride=2 + 1, on_empty="drop"),
        Prompts.from_texts(texts, made, max_tokens=400, on_empty="drop")[[3, 1, 2, 1, 0]],
        Prompts.from_ids([Prompts.from_texts([t], made, max_tokens=30).ids(0) for t in texts if t.strip()], made),
    ):
        alone = np.concatenate([prompts[[i]].classes.codes for i in range(len(prompts))])
        np.testing.assert_array_equal(prompts.classes.codes, alone)
        monkeypatch.setattr("tokinterp.text.classes.CHUNK_CHARS", 40)
        np.testing.assert_array_equal(prompts[:].classes.codes, alone)
        monkeypatch.undo()


def test_the_cost_of_a_prompt_does_not_hold_its_classification():
    def calls(n):
        prompts = Prompts.from_texts(["The people of Paris"] * n, PieceTokenizer("The| people| of| Paris"))
        count = 0

        def note(*_):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            token_classes(prompts)
        finally:
            sys.setprofile(None)
        return count

    assert (calls(120) - calls(20)) / 100 < 250
