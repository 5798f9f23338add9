"""Cases join to their words, in the context before them; misspelt ones are no words."""

import pytest
from text_helpers import lexicon_of, tokenizer
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.lexicon.cases import natural_cases, split_cases, typo_cases
from tokinterp.lexicon.spelling import TYPOS
from tokinterp.lexicon.words import Lexicon, word_ids

NAMES = ["bundled"]


@pytest.fixture(scope="module")
def lexicon(bundled):
    return lexicon_of(bundled)


def check_context(cases, lexicon, context):
    """Every context ends right before an occurrence of the word, and begins with BOS where the prompts do."""
    prompts = lexicon.prompts
    occurs = {}
    for n in range(len(lexicon)):
        occurs.setdefault(lexicon.ids[n], []).append((int(lexicon.prompt[n]), int(lexicon.start[n])))
    for before, whole in list(zip(cases.context, cases.whole, strict=True))[::13]:
        assert len(before) <= context + prompts.bos
        left = before[1:] if prompts.bos else before
        assert not prompts.bos or before[0] == prompts.vocabulary.bos
        assert any(prompts.ids(i)[a - len(left) : a].tolist() == left for i, a in occurs[whole])


@pytest.mark.parametrize("name", NAMES)
def test_split_words_join_to_the_word(name):
    lexicon = lexicon_of(tokenizer(name))
    cases = split_cases(lexicon, n_words=60, context=20)
    strings = lexicon.prompts.vocabulary.strings
    assert len(cases) > 30
    for text, pieces, whole, other, detail in zip(
        cases.text, cases.pieces, cases.whole, cases.other, cases.detail, strict=True
    ):
        assert "".join(strings(pieces)) == " " + text
        assert f"{len(pieces)} pieces" == detail
        assert len(whole) == len(other) == 1
        assert other != whole
        assert strings(pieces)[0].strip()
        assert len(text) >= 4
    assert set(cases.kind) == {"split"}
    check_context(cases, lexicon, 20)
    ends = cases.prompts("pieces")
    assert all(ends.ids(n)[-len(p) :].tolist() == list(p) for n, p in enumerate(cases.pieces))
    assert cases.prompts("whole").ids(3)[-1] == cases.whole[3][0]


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_words_are_several_tokens_and_no_words(name):
    lexicon = lexicon_of(tokenizer(name))
    cases = typo_cases(lexicon, n_words=60, context=20)
    vocabulary, known = lexicon.prompts.vocabulary, {t.lower() for t in lexicon.text}
    assert set(cases.detail) == set(TYPOS)
    assert word_ids([" " + w for w in cases.written], vocabulary) == cases.pieces
    assert min(map(len, cases.pieces)) >= 2
    for text, written in zip(cases.text, cases.written, strict=True):
        assert written[0] == text[0]
        assert written.lower() not in known
    check_context(cases, lexicon, 20)


def test_a_misspelling_that_is_a_word_of_the_corpus_is_none():
    text = "so the and the and"
    options = {"typos": ("delete",), "min_letters": 3, "min_context": 0}
    found = typo_cases(Lexicon.of(ti.Prompts.from_texts([text], byte_tokenizer())), **options)
    assert {*found.written} <= {"te", "th", "ad", "an"}
    assert len(found) > 1
    known = f"{text} te th ad an"
    with pytest.raises(ValueError, match="no word of one token can be misspelt"):
        typo_cases(Lexicon.of(ti.Prompts.from_texts([known], byte_tokenizer())), **options)


def test_natural_words_are_as_they_stand(lexicon):
    cases = natural_cases(lexicon, n_words=80, context=20)
    assert cases.pieces == cases.whole
    assert all(f"{len(p)} pieces" == d for p, d in zip(cases.pieces, cases.detail, strict=True))
    assert set(map(len, cases.pieces)) <= {2, 3, 4, 5}
    check_context(cases, lexicon, 20)


def test_cases_can_be_put_together_and_chosen(lexicon):
    one, two = split_cases(lexicon, n_words=10), typo_cases(lexicon, n_words=10)
    both = one + two
    assert len(both) == len(one) + len(two)
    again = both[both.kind == "typo"]
    assert again.pieces == two.pieces
    assert both[:3].text == one.text[:3]
    assert "2 pieces" in repr(both)
    assert split_cases(lexicon, n_words=10, seed=1).text != one.text
