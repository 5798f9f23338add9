"""A long text that is cut to a few tokens: its beginning alone gives the same tokens, or the whole is read."""

import numpy as np
import pytest
from tiny import byte_tokenizer
from tokenizers import AddedToken

import tokinterp as ti
from tokinterp.text import Vocabulary, prefix
from tokinterp.text.prompts import Prompts

WORDS = (
    "the",
    "river",
    "and",
    "3.5",
    "naïve",
    "“quoted”",
    "x" * 30,
    "\n",
    "  ",
    "singing",
    "日本語",
    "e\u0301t\u00e9",
    "—",
)


def long_text(n, seed=0):
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[k] for k in rng.integers(0, len(WORDS), n))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(prefix, "LONG_TEXT", 200)


def whole(text, tokenizer, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "LONG_TEXT", 10**9)
        return Prompts.from_texts([text], tokenizer, progress=False, **options)


@pytest.mark.parametrize("load", [byte_tokenizer, ti.load_tokenizer])
@pytest.mark.parametrize("most", [2, 9, 60])
@pytest.mark.slow
def test_the_tokens_of_the_beginning_are_those_of_the_whole(load, most, short):
    tokenizer = load()
    assert prefix.begins_anew(Vocabulary(tokenizer))
    for seed in range(4):
        text = long_text(3000, seed)
        options = {"max_tokens": most, "on_long": "truncate"}
        found, expected = Prompts.from_texts([text], tokenizer, **options), whole(text, tokenizer, **options)
        assert found.hash == expected.hash
        assert found.truncated.all()
        assert found.text(0) == expected.text(0)
        assert np.array_equal(found.offsets(0), expected.offsets(0))


def reading(tokenizer):
    """A function for `prefix`, and how many characters it was given."""
    seen = []

    def count(text):
        seen.append(len(text))
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return count, seen


def test_what_is_read_does_not_grow_with_the_text(short):
    tokenizer = byte_tokenizer()
    for n in (2_000, 50_000):
        count, seen = reading(tokenizer)
        kept = prefix.prefix(long_text(n), 10, count, Vocabulary(tokenizer))
        assert len(kept) < 500
        assert sum(seen) < 2_000


def test_a_token_across_a_space_means_the_whole_is_read(short):
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens([AddedToken("the river", normalized=False)])
    assert not prefix.begins_anew(Vocabulary(tokenizer))
    text = "the river " * 300
    count, seen = reading(tokenizer)
    assert prefix.prefix(text, 3, count, Vocabulary(tokenizer)) == text
    assert not seen


def test_a_tokenizer_that_looks_ahead_means_the_whole_is_read(short):
    text = "on and on " * 300
    for long in (1, 7):  # tokens that depend on how much text there is
        assert prefix.prefix(text, 3, lambda t, k=long: [len(t) // k] * 9, Vocabulary(byte_tokenizer())) == text


def test_a_text_without_a_border_is_read_as_a_whole(short):
    count, _ = reading(byte_tokenizer())
    assert prefix.prefix("x" * 3000, 3, count, Vocabulary(byte_tokenizer())) == "x" * 3000
    assert prefix.prefix("x." * 1500 + " ", 3, count, Vocabulary(byte_tokenizer())) == "x." * 1500 + " "


def test_too_long_a_text_is_refused_without_reading_all_of_it(short):
    with pytest.raises(ValueError, match=r"texts\[0\]: text 0 has at least \d+ tokens, more than the limit of 64"):
        Prompts.from_texts([long_text(3000)], byte_tokenizer())
