"""Annotated texts as files hold them: what is read lies where it says, what cannot be read is named."""

import json
from types import SimpleNamespace

import pytest

from tokinterp.text import read_spans_jsonl, spacy_spans


def test_jsonl_with_offsets(tmp_path):
    file = tmp_path / "a.jsonl"
    entry = {
        "text": "The Nile.",
        "spans": [{"start": 4, "stop": 8, "type": "LOC"}, {"start": 0, "end": 3, "kind": "x"}],
    }
    file.write_text(json.dumps(entry) + "\n" + json.dumps({"text": "Ann.", "label": [[0, 3, "PER"]]}))
    read = read_spans_jsonl(file)
    assert read.texts == ["The Nile.", "Ann."]
    assert read.spans.strings() == ["Nile", "The", "Ann"]
    assert read.spans.kind.tolist() == ["entity", "x", "entity"]
    assert read.spans.type.tolist() == ["LOC", "", "PER"]
    for wrong, message in [
        ({"text": "ab", "spans": [{"start": 0, "stop": 3}]}, r"line 1: span 0\.\.3 does not lie in the text of 2"),
        ({"spans": []}, "line 1: no text with spans.*'text'"),
        ({"text": "ab", "spans": [{"start": 0}]}, "line 1: no text with spans.*'end'"),
    ]:
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            read_spans_jsonl(file)


def test_spacy_documents():
    entity = SimpleNamespace(start_char=4, end_char=8, label_="LOC")
    doc = SimpleNamespace(text="The Nile.", ents=[entity])
    read = spacy_spans([doc])
    assert read.spans.strings() == ["Nile"]
    pipeline = SimpleNamespace(pipe=lambda texts: [SimpleNamespace(text=t, ents=[entity]) for t in texts])
    assert spacy_spans(["The Nile.", "An Ouse"[:9] + "s."], pipeline).spans.strings() == ["Nile", "use" + "s"]


def test_spacy_is_not_needed_until_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ImportError, match="pip install spacy"):
        spacy_spans(["text"])
