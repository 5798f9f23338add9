"""The texts, gold spans and questions that come with the package, and the check that they are right."""

import json

import pytest

from tokinterp.text import bundled_questions, bundled_spans, bundled_texts, check_texts
from tokinterp.text.bundled import SPAN_TYPES

GOOD = {
    "id": "a",
    "kind": "article",
    "topic": "rail",
    "title": "A",
    "text": "The railway reached New York in 1867. Craftsmen built it.",
    "spans": [
        {"start": 4, "stop": 11, "kind": "compound", "type": "compound", "parts": ["rail", "way"]},
        {"start": 20, "stop": 28, "kind": "entity", "type": "GPE"},
        {"start": 32, "stop": 36, "kind": "entity", "type": "DATE"},
        {"start": 20, "stop": 28, "kind": "mwe", "type": "phrasal-name"},
        {"start": 38, "stop": 47, "kind": "compound", "type": "compound", "parts": ["crafts", "man"]},
    ],
}


def check(folder, *entries):
    file = folder / "texts.jsonl"
    file.write_text("".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries))
    return check_texts(file)


def test_a_right_file_passes(tmp_path):
    assert check(tmp_path, GOOD, GOOD | {"id": "b"}) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": 20, "stop": 99, "kind": "entity", "type": "GPE"}, r"20..99 is not inside"),
        ({"start": 20, "stop": 20, "kind": "entity", "type": "GPE"}, r"20..20 is not inside"),
        ({"start": 20, "stop": 29, "kind": "entity", "type": "GPE"}, "white space at its edge"),
        ({"start": 21, "stop": 28, "kind": "entity", "type": "GPE"}, "'ew York' at 21: cuts a word"),
        ({"start": 20, "stop": 27, "kind": "entity", "type": "GPE"}, "'New Yor' at 20: cuts a word"),
        ({"start": 24, "stop": 36, "kind": "entity", "type": "GPE"}, "overlaps the entity before it"),
        ({"start": 20, "stop": 28, "kind": "entity", "type": "TOWN"}, "unknown type 'TOWN'"),
        ({"start": 20, "stop": 28, "kind": "name", "type": "GPE"}, "unknown type"),
        ({"start": 4, "stop": 11, "kind": "compound", "type": "compound"}, "has parts None"),
        ({"start": 4, "stop": 11, "kind": "compound", "type": "compound", "parts": ["road", "way"]}, "part 'road'"),
        ({"start": 4, "stop": 11, "kind": "compound", "type": "compound", "parts": ["rail", "mile"]}, "part 'mile'"),
    ],
)
def test_a_wrong_span_is_named(tmp_path, changed, message):
    spans = [s for s in GOOD["spans"] if s["kind"] != "compound" or changed["kind"] != "compound"]
    if "overlaps" not in message:
        spans = [s for s in spans if s["start"] != 20 or s["kind"] != "entity"]
    wrong = check(tmp_path, GOOD | {"spans": [*spans, changed]})
    assert any(message.replace("\\", "") in w and w.startswith("a: ") for w in wrong), wrong


def test_wrong_entries_are_named(tmp_path):
    assert check(tmp_path, GOOD, GOOD) == ["a: id used twice"]
    assert check(tmp_path, GOOD | {"kind": "poem"}) == ["a: unknown kind of text 'poem'"]
    assert check(tmp_path, {k: v for k, v in GOOD.items() if k != "title"}) == ["a: no title"]
    assert check(tmp_path, "{")[0].startswith("line 1: not JSON")


def test_the_bundled_texts_are_right():
    assert check_texts() == []
    texts = bundled_texts()
    by_kind = {k: [t for t in texts if t.kind == k] for k in ("article", "story", "dialogue", "list")}
    assert len(by_kind["article"]) >= 48
    assert len(by_kind["story"]) >= 12
    assert len(by_kind["dialogue"]) + len(by_kind["list"]) >= 12
    assert all(450 <= len(t.text.split()) <= 900 for t in by_kind["article"])
    assert sum(len(t.text.split()) for t in by_kind["article"]) >= 26_000
    assert len({t.text for t in texts}) == len(texts)
    assert bundled_texts("story") == by_kind["story"]
    assert str(texts[0]) == texts[0].text
    with pytest.raises(ValueError, match=r"^kind='poem': give one of 'article'"):
        bundled_texts("poem")


def test_bundled_spans_lie_on_the_bundled_texts():
    for kind in (None, "article"):
        spans, texts = bundled_spans(kind), bundled_texts(kind)
        assert len(spans) == sum(len(t.spans) for t in texts)
        assert set(spans.kind.tolist()) == set(SPAN_TYPES)
        assert list(spans.texts) == [t.text for t in texts]
        compounds = spans.of_kind("compound")
        for word, parts in zip(compounds.strings(), compounds.parts, strict=True):
            assert word.lower().startswith(parts[0].lower())


def test_bundled_questions():
    questions = bundled_questions()
    assert len({q.id for q in questions}) == len(questions) >= 400
    assert len({q.prompt for q in questions}) == len(questions)
    for q in questions:
        assert q.kind
        assert q.category
        assert q.prompt == q.prompt.strip()
        # the answer brings its own space, or the prompt and the answer would run together
        assert q.answer.strip()
        assert q.answer.strip().lower() not in ("", q.prompt.lower())
    kinds = {q.kind for q in questions}
    assert sum(len(bundled_questions(k)) for k in kinds) == len(questions)
    with pytest.raises(ValueError, match=r"^kind='riddle': give 'cloze' or 'name'"):
        bundled_questions("riddle")


def test_a_package_without_its_data_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("tokinterp.text.bundled.DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"texts\.jsonl is not in the package"):
        bundled_texts()
