"""Ways to cut words: equal to the libraries' where they have them, and to what can be seen where they have not."""

import itertools

import pytest
from tiny import byte_tokenizer
from tiny import unigram_tokenizer as plain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tokinterp as ti
from tokinterp.tokenizers import segment_words
from tokinterp.tokenizers.inference import METHODS, Inference

FOUND = {w.strip(".,\"'?!") for w in ti.bundled_texts("story")[0].text.split()} - {""}
WORDS = [*sorted(FOUND)[:60], "Züge", "naïve"]


def fast(inner, **names):
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def test_merges_are_those_of_the_library():
    for tok in (ti.load_tokenizer(), byte_tokenizer()):
        for space in (True, False):
            inference = Inference(tok, space=space)
            assert inference.cut(WORDS, "merges") == inference.cut(WORDS, "own")


def test_likelihood_is_that_of_the_library():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = [t.text for t in ti.bundled_texts("story")[:6]]
    inner.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=220, show_progress=False, unk_token="?"))
    inference = Inference(fast(inner))
    own, cut = inference.cut(WORDS[:60], "own"), inference.cut(WORDS[:60], "likelihood")
    scores = inference.scores()
    totals = [[sum(scores[p] for p in word) for word in cuts] for cuts in (own, cut)]
    assert totals[0] == pytest.approx(totals[1])
    assert own == cut


def test_longest_prefix_is_wordpiece():
    vocab = {p: n for n, p in enumerate(["?", *"abc", "##a", "##b", "##c", "ab", "abc", "##bc", "##cab"])}
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="?"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    tok = fast(inner, unk_token="?")
    words = ["".join(w) for n in range(1, 6) for w in itertools.product("abc", repeat=n)]
    inference = Inference(tok)
    assert inference.cut(words, "longest_prefix") == inference.cut(words, "own")


def test_every_way_on_a_word_made_for_it():
    scores = {"a": -3, "b": -3, "c": -3, "d": -3, "ab": -2, "bcd": -8, "cd": -1.5, "abc": -9, "bc": -1}
    tok = plain(*scores, scores=list(scores.values()))
    expected = {
        "own": ["ab", "cd"], "likelihood": ["ab", "cd"], "longest_prefix": ["abc", "d"], "longest_suffix": ["a", "bcd"],
        "longest_token": ["abc", "d"], "order": ["a", "bc", "d"],
    }  # fmt: skip
    for method, pieces in expected.items():
        assert segment_words(tok, ["abcd"], method) == [pieces], method
    assert segment_words(tok, ["bcdab"], "longest_token") == [["bcd", "ab"]]
    assert segment_words(tok, ["abcd"], "order", scores={"d": 2, "ab": 1, "c": 0}) == [["ab", "c", "d"]]


def test_fewest_is_the_least_of_all_ways_to_cut():
    tok = plain("a", "b", "ab", "ba", "aba", "bab", "abba")
    pieces = {"a", "b", "ab", "ba", "aba", "bab", "abba"}

    def least(word):
        if not word:
            return 0
        return 1 + min(least(word[n:]) for n in range(1, len(word) + 1) if word[:n] in pieces)

    words = ["".join(w) for w in itertools.product("ab", repeat=7)]
    assert [len(c) for c in segment_words(tok, words, "fewest")] == [least(w) for w in words]


def test_every_way_spells_the_word():
    tok = ti.load_tokenizer()
    scores = {t: -float(i) for t, i in tok.get_vocab().items()}
    for method in METHODS:
        for cut, word in zip(Inference(tok, scores).cut(WORDS, method), WORDS, strict=True):
            assert b"".join(cut) == b" " + word.encode(), method
    assert segment_words(tok, ["the"], space=False) == [["the"]]
    assert segment_words(tok, ["the"], "longest_prefix") == [[" the"]]


def test_characters_without_a_token_stand_for_themselves():
    tok = plain("a", "b", "ab")
    for method in ("longest_prefix", "longest_suffix", "longest_token", "fewest", "likelihood"):
        assert segment_words(tok, ["abéab"], method) == [["ab", "é", "ab"]], method
    assert segment_words(ByT5Tokenizer(extra_ids=0), ["é"], space=False) == [["\\xc3", "\\xa9"]]


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match=r"^scores=None: .* has no scores of its tokens"):
        segment_words(byte_tokenizer(), ["a"], "likelihood")
    with pytest.raises(ValueError, match=r"^method='merges': .* has no list of merges"):
        segment_words(plain("a"), ["a"], "merges")
    with pytest.raises(ValueError, match=r"^words='a b': number 1 is no single word"):
        segment_words(plain("a"), ["a", "a b"])
    with pytest.raises(ValueError, match=r"^method='longest'"):
        segment_words(plain("a"), ["a"], "longest")
