"""Words, spans on tokens, classes of tokens, and the readers of annotated text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import MAKERS, TEXTS, PieceTokenizer, byte_tokenizer, tokenizer

from tokinterp.text import Prompts, Spans, bundled_spans, bundled_texts, token_classes
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
@pytest.mark.slow
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


# -- readers --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def test_words_are_found_whole_longest_first_and_by_case():
    texts = ["New York, new york; the Yorkers of New Yorkshire. naïve naı̈ve", "York"]
    found = Spans.find(texts, ["York", "New York", "na"])
    assert found.strings() == ["New York", "York"]
    assert found.document.tolist() == [0, 1]
    found = Spans.find(texts, ["york", "new york"], ignore_case=True)
    assert found.strings() == ["New York", "new york", "York"]
    assert found.type.tolist() == ["new york", "new york", "york"]
    assert len(Spans.find(texts, ["York"], whole=False)) == 4
    assert Spans.find(["a.c abc"], ["a.c"]).strings() == ["a.c"]
    assert len(Spans.find(texts, ["Rome"])) == 0
    with pytest.raises(ValueError, match="words="):
        Spans.find(texts, [""])
    with pytest.raises(TypeError, match="words='York': one string is not a list"):
        Spans.find(texts, "York")
