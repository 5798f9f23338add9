"""Words, spans on tokens, classes of tokens, and the readers of annotated text."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import MAKERS, TEXTS, PieceTokenizer, byte_tokenizer, tokenizer

from tokinterp.text import (
    Prompts,
    Spans,
    bundled_spans,
    bundled_texts,
    find_words,
    read_conll,
    read_conllu,
    read_conllulex,
    read_spans_jsonl,
    spacy_spans,
    token_classes,
)
from tokinterp.text.spans import CROSSES, DROPPED, OUTSIDE, TRUNCATED

NAMES = list(MAKERS)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def pieces(*marked):
    """Prompts whose tokens are cut at the marks, and their texts."""
    texts = [m.replace("|", "") for m in marked]
    return Prompts.from_texts(texts, PieceTokenizer(*marked)), texts


def span(text, string, document=0, kind="entity"):
    start = text.index(string)
    return {"document": document, "start": start, "stop": start + len(string), "kind": kind, "type": "X"}


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic, O’Brien!", ["Don't", "panic", "O’Brien"]),
        ("well-known re-entry - or -not- 'quoted'", ["well-known", "re-entry", "or", "not", "quoted"]),
        ("3.14 and 1,000 in the 1990s", ["3", "14", "and", "1", "000", "in", "the", "1990s"]),
        ("naïve e\u0301tude हिन्दी 日本語 Ελληνικά", ["naïve", "e\u0301tude", "हिन्दी", "日本語", "Ελληνικά"]),
        ("snake_case and/or x² dogs'", ["snake", "case", "and", "or", "x²", "dogs"]),
        (" \n", []),
    ],
)
def test_words(text, words):
    edges, found = find_words(text)
    assert found == words
    assert [text[a:b] for a, b in edges] == words


@settings(max_examples=60, deadline=None)
@given(UNICODE)
def test_every_letter_and_digit_is_in_one_word(text):
    edges, _ = find_words(text)
    inside = np.zeros(len(text), int)
    for a, b in edges:
        assert text[a].isalnum()
        inside[a:b] += 1
    assert inside.max(initial=0) <= 1
    for character, n in zip(text, inside, strict=True):
        if character.isalnum():
            assert n == 1
        elif character.isspace():
            assert n == 0


# -- spans on tokens ------------------------------------------------------------------------------------------------


def test_spans_align_whatever_the_spaces_belong_to():
    prompts, texts = pieces("The| Nile| Del|ta|.", "The |Nile |Del|ta|.", "The| |Nile|  |Del|ta|.")
    rows = [span(t, t[4:].strip("."), n) | {"start": t.index("Nile")} for n, t in enumerate(texts)]
    found = Spans.from_records(rows, texts).align(prompts)
    assert len(found.unaligned) == 0
    assert found.start.tolist() == [1, 1, 2]
    assert found.stop.tolist() == [4, 4, 6]
    assert found.n_tokens.tolist() == [3, 3, 4]
    mask = found.last_tokens(prompts, "entity")
    assert [s for i in range(3) for s in prompts.strings(i) if True][int(np.flatnonzero(mask)[0])] == "ta"
    assert mask.sum() == 3


def test_unaligned_spans_are_reported_with_the_reason():
    text = "The| river| Nile.| It| is| long|."
    tok = PieceTokenizer(text)
    text = text.replace("|", "")
    spans = Spans.from_records([span(text, s) for s in ("river", "Nile", "river Nile.", "long", "It is")], [text])
    whole = spans.align(Prompts.from_texts([text], tok))
    assert whole.unaligned.tolist() == [1]
    assert whole.reasons == [CROSSES]
    assert whole.report() == {CROSSES: 1}
    assert "4 of 5 spans aligned; 1 not: token crosses the border" in repr(whole)

    cut = spans.align(Prompts.from_texts([text], tok, max_tokens=4))
    assert dict(zip(cut.unaligned.tolist(), cut.reasons, strict=True)) == {1: CROSSES, 3: TRUNCATED, 4: TRUNCATED}

    windows = Prompts.from_texts([text], tok, max_tokens=4, on_long="window")
    split = spans.align(windows)
    assert dict(zip(split.unaligned.tolist(), split.reasons, strict=True)) == {1: CROSSES, 4: OUTSIDE}
    assert split.prompt[split.span == 3].tolist() == [1]
    assert split.start[split.span == 3].tolist() == [1]

    overlapping = spans.align(Prompts.from_texts([text], tok, max_tokens=4, on_long="window", stride=2))
    assert overlapping.unaligned.tolist() == [1]
    assert sorted(overlapping.prompt[overlapping.span == 4]) == [1]
    assert spans.align(windows[:0]).reasons == [DROPPED] * 5


def test_spans_of_other_texts_are_refused():
    prompts, texts = pieces("The| Nile", "A| Nile")
    spans = Spans.from_records([span(texts[1], "Nile", 0)], texts[::-1])
    with pytest.raises(ValueError, match="text 0 of the spans is not text 0 of the prompts"):
        spans.align(prompts)
    with pytest.raises(ValueError, match=r"span 0 is 4\.\.9 of text 0, which has 8 characters"):
        Spans.from_records([{"document": 0, "start": 4, "stop": 9, "kind": "x"}], texts)
    with pytest.raises(ValueError, match=r"span 0 is 4\.\.4"):
        Spans.from_records([{"document": 0, "start": 4, "stop": 4, "kind": "x"}], texts)
    with pytest.raises(ValueError, match="text 2, but there are 2 texts"):
        Spans.from_records([{"document": 2, "start": 4, "stop": 5, "kind": "x"}], texts)
    with pytest.raises(TypeError, match="one string"):
        Spans.words("text")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"on_long": "window", "stride": 5}])
def test_aligned_words_are_the_strings_of_their_tokens(name, options):
    tok = tokenizer(name)
    prompts = Prompts.from_texts(TEXTS[:5] * 2, tok, max_tokens=16 if options else 400, **options)
    spans = Spans.words(TEXTS[:5] * 2)
    found = spans.align(prompts)
    words = spans.strings()
    assert len(found) > 0
    for row in range(len(found)):
        i, a, b = found.prompt[row], found.start[row], found.stop[row]
        data = b"".join(prompts.vocabulary.bytes(prompts.ids(i)[a:b])).decode()
        assert data.strip() == words[found.span[row]]
    if not options:  # none of these tokenizers joins a letter of a word with what is not of the word
        assert len(found.unaligned) == 0
        assert found.span.tolist() == list(range(len(words)))


@settings(max_examples=60, deadline=None)
@given(st.lists(UNICODE, min_size=1, max_size=3), st.integers(3, 12))
def test_words_of_any_text_are_found_or_reported(texts, width):
    prompts = Prompts.from_texts(texts, byte_tokenizer(), max_tokens=width, on_long="window")
    spans = Spans.words(prompts)
    found = spans.align(prompts)
    assert sorted({*found.span.tolist(), *found.unaligned.tolist()}) == list(range(len(spans)))
    assert not set(found.span.tolist()) & set(found.unaligned.tolist())
    assert (found.stop > found.start).all()
    classes = token_classes(prompts, spans)
    assert len(classes.codes) == prompts.n_tokens
    assert (classes.mask("special") == prompts.vocabulary.special(prompts.token_ids)).all()
    assert classes.last["word"].sum() == len(found) if len(spans) else classes.last == {}


def test_alignment_of_ids_without_text():
    prompts = Prompts.from_texts(TEXTS[:5], byte_tokenizer(), max_tokens=200)
    bare = Prompts.from_ids([prompts.ids(i) for i in range(5)], byte_tokenizer())
    one, two = (Spans.words(p).align(p) for p in (prompts, bare))
    for name in ("span", "prompt", "start", "stop"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_choosing_and_joining_spans():
    texts = ["The Nile is long."]
    both = Spans.words(texts) + Spans.from_records([span(texts[0], "Nile")], texts)
    assert both.of_kind("entity").strings() == ["Nile"]
    assert both.of_kind("entity", "Y").strings() == []
    assert len(both.where(both.kind == "word")) == 4
    assert repr(both) == "Spans(4 word, 1 entity, on 1 texts)"
    with pytest.raises(ValueError, match="different texts"):
        both + Spans.words(["other"])


# -- classes of tokens ----------------------------------------------------------------------------------------------


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


# -- readers --------------------------------------------------------------------------------------------------------

CONLL = """-DOCSTART- O

John I-PER
Smith I-PER
visited O
New I-LOC
York I-LOC
, O
" O
the O
city O
" O
( O
it O
's O
big O
) O
. O

He O
met O
Ann B-PER
Bob B-PER
Jr. I-PER
. O

-DOCSTART- O

EU S-ORG
rules O
"""

CONLLU = """# newdoc id = a
# sent_id = a-1
# newpar
# text = We can't look it up in  New York.
1\tWe\twe\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tcan't\t_\t_\t_\t_\t_\t_\t_\t_
2\tca\tcan\tAUX\t_\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\t_\t_\t4\tadvmod\t_\t_
4\tlook\tlook\tVERB\t_\t_\t0\troot\t_\t_
5\tit\tit\tPRON\t_\t_\t4\tobj\t_\t_
6\tup\tup\tADP\t_\t_\t4\tcompound:prt\t_\t_
7\tin\tin\tADP\t_\t_\t9\tcase\t_\t_
8\tNew\tNew\tPROPN\t_\t_\t9\tcompound\t_\t_
8.1\tx\tx\tX\t_\t_\t_\t_\t_\t_
9\tYork\tYork\tPROPN\t_\t_\t4\tobl\t_\tSpaceAfter=No
10\t.\t.\tPUNCT\t_\t_\t4\tpunct\t_\t_

# sent_id = a-2
# text = Wanna give up?
1-2\tWanna\t_\t_\t_\t_\t_\t_\t_\t_
1\tWant\twant\tVERB\t_\t_\t0\troot\t_\t_
2\tto\tto\tPART\t_\t_\t3\tmark\t_\t_
3\tgive\tgive\tVERB\t_\t_\t1\txcomp\t_\t_
4\tup\tup\tADP\t_\t_\t3\tcompound:prt\t_\t_
5\t?\t?\tPUNCT\t_\t_\t1\tpunct\t_\t_

# newdoc id = b
# sent_id = b-1
# text = End
1\tEnd\tend\tNOUN\t_\t_\t0\troot\t_\t_
"""


def test_conll(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    read = read_conll(file)
    assert read.texts == [
        'John Smith visited New York, "the city" (it\'s big). He met Ann Bob Jr.',
        "EU rules",
    ]
    assert read.spans.strings() == ["John Smith", "New York", "Ann", "Bob Jr.", "EU"]
    assert read.spans.type.tolist() == ["PER", "LOC", "PER", "PER", "ORG"]
    file.write_text(CONLL.replace("-DOCSTART- O", ""))
    assert [len(t.split()) for t in read_conll(file).texts] == [9, 5, 2]
    file.write_text("John\n")
    with pytest.raises(ValueError, match="line 1: 'John' has no tag"):
        read_conll(file)
    file.write_text("John PER\n")
    with pytest.raises(ValueError, match="line 1: tag 'PER' is none of O, B-"):
        read_conll(file)


def test_conllu(tmp_path):
    file = tmp_path / "a.conllu"
    file.write_text(CONLLU)
    read = read_conllu(file)
    assert read.texts == ["We can't look it up in  New York. Wanna give up?", "End"]
    assert read.spans.of_kind("mwe").strings() == ["New York", "give up"]
    assert read.spans.of_kind("mwe").type.tolist() == ["compound", "compound:prt"]
    assert read.skipped == {"mwe with a gap": 1}
    words = read.spans.of_kind("pos").strings()
    assert words[:10] == ["We", "ca", "n't", "look", "it", "up", "in", "New", "York", "."]
    assert words[10:] == ["Wanna", "Wanna", "give", "up", "?", "End"]
    assert read.spans.of_kind("pos").type.tolist()[-1] == "NOUN"
    assert len(read_conllu(file, documents=False, pos=False).texts) == 3
    file.write_text(CONLLU.replace("4\tlook", "4\tlooks"))
    with pytest.raises(ValueError, match="sentence a-1: 'looks' is not found at character 9"):
        read_conllu(file)
    file.write_text(CONLLU.replace("# text = End", "#"))
    with pytest.raises(ValueError, match="sentence b-1: no '# text' line"):
        read_conllu(file)
    file.write_text("1\tEnd\n")
    with pytest.raises(ValueError, match="line 1: 2 columns"):
        read_conllu(file)
    file.write_text(CONLLU)
    with pytest.raises(ValueError, match="10 columns, not the 19"):
        read_conllulex(file)


def test_conllulex(tmp_path):
    def row(n, form, strong="_", category="_", weak="_"):
        return "\t".join([str(n), form, *"____0___", strong, category, *"___", weak, *"___"])

    lines = [
        "# sent_id = a", "# text = They turned it off at last, in time.", row(1, "They"),
        row(2, "turned", "1:1", "V.VPC.full"), row(3, "it"), row(4, "off", "1:2"), row(5, "at", "2:1", "PP"),
        row(6, "last", "2:2"), row(7, ","), row(8, "in", weak="1:1"), row(9, "time", weak="1:2"), row(10, "."),
    ]  # fmt: skip
    file = tmp_path / "a.conllulex"
    file.write_text("\n".join(lines))
    read = read_conllulex(file)
    assert read.spans.strings() == ["at last"]
    assert read.spans.type.tolist() == ["PP"]
    assert read.skipped == {"mwe with a gap": 1}
    weak = read_conllulex(file, weak=True, pos=True).spans
    assert weak.of_kind("weak mwe").strings() == ["in time"]
    assert len(weak.of_kind("pos")) == 10


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


def test_bundled_annotations_align():
    texts, spans = [t.text for t in bundled_texts()], bundled_spans()
    for name in NAMES:
        some = spans.where(spans.document < 40)
        prompts = Prompts.from_texts(texts[:40], tokenizer(name), max_tokens=512, on_long="window", stride=256)
        found = some.align(prompts)
        assert len(found.unaligned) < 0.02 * len(some), (name, found)


def test_a_window_that_cuts_a_character_holds_neither_half_of_it():
    text = "ab 日本 cd"
    prompts = Prompts.from_texts([text], byte_tokenizer(bos=False), max_tokens=1, on_long="window")
    halves = [i for i in range(len(prompts)) if "\\x" in prompts.strings(i)[0]]
    assert len(halves) > 2
    spans = Spans.from_records([{"document": 0, "start": n, "stop": n + 1, "kind": "x"} for n in (3, 4)], [text])
    assert spans.align(prompts).reasons == [OUTSIDE, OUTSIDE]
    classes = token_classes(prompts)
    kinds = [classes.names[classes.codes[i]] for i in halves]
    assert kinds == ["first piece", *["middle piece"] * (len(halves) - 2), "last piece"]


def test_spaces_behind_a_token_are_no_part_of_its_span():
    prompts, texts = pieces("The |Nile |flows |north")
    rows = [span(texts[0], s) for s in ("Nile", "flows north", "The")]
    found = Spans.from_records(rows, texts).align(prompts)
    assert (found.span.tolist(), found.start.tolist(), found.stop.tolist()) == ([2, 0, 1], [0, 1, 2], [1, 2, 4])
