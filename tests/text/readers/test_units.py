"""Units of several words or parts: as they stand in the text, with gaps and overlaps told apart."""

import json

import pytest
import xarray as xr
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.text import Spans, compound_spans, read_coam, read_compounds, read_conll

HEAD = "word,lang,type,norm\n"


def test_compounds_of_languages_on_the_surface_and_as_words(tmp_path):
    file = tmp_path / "valid.csv"
    file.write_text(
        HEAD + "Hunde-hütte,de,positive,Hund-Hütte\nbook-shelf,en,positive,book-shelf\nwater,en,negative,\n"
        "thing,en,unknown,\n",
        encoding="utf-8",
    )
    assert read_compounds(file) == [("Hundehütte", ["Hunde", "hütte"]), ("bookshelf", ["book", "shelf"])]
    assert read_compounds(file, ["de"], parts="norm") == [("Hundehütte", ["Hund", "Hütte"])]
    assert read_compounds(file, kind="negative") == [("water", ["water"])]
    splits = ti.tokenizers.compound_splits(byte_tokenizer(), read_compounds(file))
    assert splits["split"].values.tolist() == ["easy", "easy"]  # every letter is a token
    with pytest.raises(ValueError, match="no positive word of fr"):
        read_compounds(file, ["fr"])


@pytest.mark.parametrize(
    ("text", "said"), [("word,lang\na,b\n", "line 2: no column 'type'"), (HEAD + "-,de,positive,\n", "has no parts")]
)
def test_other_files_are_no_compounds(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_compounds(tmp_path / "a.csv")


def test_compounds_are_found_as_whole_words():
    found = compound_spans([("bookshelf", ["book", "shelf"])], ["bookshelf bookshelfs", "A bookshelf."])
    assert found.spans.document.tolist() == [0, 1]
    assert found.spans.parts == [["book", "shelf"]] * 2


SENTENCES = [
    {"tokens": ["Turn", "the", "light", "off", "by", "and", "by", "."],
     "mwes": [{"indices": [3, 0], "type": "Verb"}, {"indices": [4, 5, 6], "type": "Modifier"}]},
    {"words": ["The", "river", "and", "the", "river", "bank"],
     "mwes": [{"indices": [3, 4], "type": "Noun"}, {"indices": [4, 5], "type": "Noun"}]},
]  # fmt: skip


@pytest.mark.parametrize("lines", [True, False])
def test_gaps_and_overlaps_of_expressions_are_told_apart(tmp_path, lines):
    file = tmp_path / "coam.json"
    file.write_text("\n".join(map(json.dumps, SENTENCES)) if lines else json.dumps(SENTENCES, indent=1))
    read = read_coam(file)
    assert read.texts == ["Turn the light off by and by.", "The river and the river bank"]
    assert read.spans.strings() == ["Turn the light off", "by and by", "the river", "river bank"]
    assert read.spans.kind.tolist() == ["mwe with a gap", "mwe", "overlapping mwe", "overlapping mwe"]
    assert read.spans.parts == [["Turn", "off"], ["by", "and", "by"], ["the", "river"], ["river", "bank"]]


def test_tokens_may_be_objects_that_stand_in_a_text(tmp_path):
    """As the files of the data set's card are read by public code: numbers of tokens, and the sentence as it was."""
    words = ["She", "gave", "it", "up", "(", "again", ")", "."]
    tokens = [{"idx": n + 1, "surface": w, "lemma": w.lower(), "pos": "X"} for n, w in enumerate(words)]
    mwes = [{"indices": [2, 4], "type": "verb"}]
    named = {"sent_id": "a-1", "text": "She gave it up  (again).", "tokens": tokens, "mwes": mwes}
    other = {
        "text": "something else",
        "tokens": [{"form": w} for w in words],
        "mwes": [{"indices": [1, 3], "type": None}],
    }
    (tmp_path / "a.json").write_text(json.dumps([named, other]))
    read = read_coam(tmp_path / "a.json")
    assert read.texts == ["She gave it up  (again).", "She gave it up (again)."]
    assert read.spans.strings() == ["gave it up"] * 2
    assert read.spans.parts == [["gave", "up"]] * 2
    assert read.spans.type.tolist() == ["verb", ""]
    words = ["The", "cats", "sat", "a", "while"]  # the text has one more: its "at" is not the word "a"
    lacking = {"text": "The cats sat at a while", "tokens": words, "mwes": [{"indices": [3, 4]}]}
    (tmp_path / "c.json").write_text(json.dumps([lacking]))
    read = read_coam(tmp_path / "c.json")
    assert (read.texts, read.spans.strings()) == (["The cats sat a while"], ["a while"])
    (tmp_path / "b.json").write_text(json.dumps([{**named, "mwes": [{"indices": [0, 1]}]}]))
    with pytest.raises(ValueError, match=r"number 1: an expression of the words \[0, 1\], but there are 8"):
        read_coam(tmp_path / "b.json")


@pytest.mark.parametrize(
    "entry", [{"tokens": ["a"]}, {"tokens": ["a"], "mwes": [{"indices": [1]}]}, {"tokens": "a", "mwes": [3]}]
)
def test_other_objects_are_no_sentences(tmp_path, entry):
    (tmp_path / "a.jsonl").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=r"a.jsonl line 1"):
        read_coam(tmp_path / "a.jsonl")


def test_erasure_is_evaluated_for_each_kind_apart_and_a_gap_is_inside(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, SENTENCES)))
    read = read_coam(tmp_path / "a.jsonl")
    prompts = ti.Prompts.from_texts(read.texts, byte_tokenizer())
    units = read.spans.align(prompts)
    assert len(units) == 4
    whole = units.kind == "mwe with a gap"
    assert prompts.text(0)[: len("Turn the light off")] == "Turn the light off"
    assert units.n_tokens[whole].item() == len(byte_tokenizer()("Turn the light off")["input_ids"]) - 1
    row = int((units.kind == "mwe").nonzero()[0].item())
    coords = {"span_prompt": ("span", [units.prompt[row]] * 2), "start": ("span", [units.start[row]] * 2),
              "stop": ("span", [units.stop[row]] * 2)}  # fmt: skip
    found = xr.Dataset({"psi": ("span", [0.4, 0.5]), "seen": ("span", [1.0, 1.0])}, coords)
    scores = ti.erasure.evaluate(ti.erasure.read_out(found, prompts), units, prompts)
    assert scores["subset"].values.tolist() == ["mwe", "mwe with a gap", "overlapping mwe", "any"]
    assert scores["precision"].isel(rank=0).values.tolist() == [1, 0, 0, 1]
    assert scores["n_units"].values.tolist() == [1, 1, 2, 4]
    alone = read.spans.of_kind("mwe").align(prompts)
    assert isinstance(alone.spans, Spans)
    assert len(alone) == 1


def test_lines_above_sentences_of_multiconer_are_no_tokens(tmp_path):
    file = tmp_path / "en.conll"
    file.write_text(  # with the blank lines of the published files: one before the first sentence, two between
        "\n# id 12-ab\tdomain=en\nthe _ _ O\nnile _ _ B-LOC\n\n\n# id 13\tdomain=en\n# _ _ B-PROD\n1 _ _ I-PROD\n"
    )
    read = read_conll(file)
    assert read.texts == ["the nile", "# 1"]
    assert read.spans.strings() == ["nile", "# 1"]
    assert read.spans.type.tolist() == ["LOC", "PROD"]
