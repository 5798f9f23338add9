"""Texts of many languages from files and memory, read as a stream."""

from pathlib import Path

import pytest
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.tokenizers import Corpus, flores
from tokinterp.tokenizers.corpora import as_corpora


def folder_of(tmp_path, langs=("eng_Latn", "shn_Mymr")):
    for split, lines in (("dev", ["One.", "Two."]), ("devtest", ["Three."])):
        (tmp_path / split).mkdir()
        for lang in langs:
            (tmp_path / split / f"{lang}.{split}").write_text("".join(f"{t} {lang}\n" for t in lines), encoding="utf-8")
    return tmp_path


def test_flores_has_a_text_a_sentence_or_one_of_all(tmp_path):
    here = folder_of(tmp_path)
    every = flores(here)
    assert list(every) == ["eng_Latn", "shn_Mymr"]
    assert list(every["shn_Mymr"]) == ["One. shn_Mymr", "Two. shn_Mymr", "Three. shn_Mymr"]
    one = list(flores(here, ["eng_Latn"], joined=True)["eng_Latn"])
    assert one == ["One. eng_Latn Two. eng_Latn  Three. eng_Latn "]
    assert list(flores(here, ["eng_Latn"], splits=["devtest"])["eng_Latn"]) == ["Three. eng_Latn"]
    with pytest.raises(ValueError, match=r"^langs='xyz': the folder has no dev/xyz.dev"):
        flores(here, ["xyz"])
    with pytest.raises(ValueError, match=r"^folder=.*: it has no files dev/LANG.dev"):
        flores(here / "dev")


def test_every_kind_of_source(tmp_path):
    plain, table, other = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "a.en"
    plain.write_text("One.\nTwo.", encoding="utf-8")
    other.write_text("One.\nTwo.", encoding="utf-8")
    table.write_text('{"says": "One."}\n{"says": "Two."}\n', encoding="utf-8")
    prompts = ti.Prompts.from_texts(["One.", "Two."], byte_tokenizer(), progress=False)
    found = as_corpora(
        {"a": plain, "b": str(other), "c": Corpus(table, field="says"), "d": ["One.", "Two."], "e": prompts}
    )
    assert {k: list(v) for k, v in found["texts"].items()} == {key: ["One.", "Two."] for key in "abcde"}
    assert list(Corpus(plain, per_line=False)) == ["One.\nTwo."]
    assert list(as_corpora({"x": {"a": [Path(plain), Path(plain)]}})["x"]["a"]) == ["One.", "Two."] * 2


def test_what_is_no_corpus_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("One.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a list of names of files: write Path"):
        as_corpora({"a": [str(file)]})
    for wrong in (5, [], [1], None):
        with pytest.raises(ValueError, match=r"^corpora, a=.*: give a file, a list of texts"):
            as_corpora({"a": wrong})
    with pytest.raises(ValueError, match=r"^corpora=\{\}"):
        as_corpora({})
    with pytest.raises(ValueError, match=r"^corpora='b': give languages to all"):
        as_corpora({"a": {"en": ["One."]}, "b": ["One."]})
