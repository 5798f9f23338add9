"""Where tokens lie in a text, for every kind of tokenizer and every way to write the same characters."""

import re
import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import PieceTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tokinterp.text import Prompts, Spans, find_words

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
BYTES = [f"<0x{b:02X}>" for b in range(256)]
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
PIECES = [
    "café", "naïve", "ệ", "Å", "Å", "e\u0301\u0327", "Ελληνικά", "Ǆ", "ﬁ", "①", "½", "don't", "x", "İ", "𑂚",
    "한국어", "각", "\u1100\u1161\u11a8", "\uac00\u11a8", "שָׁלוֹם", "سَلَام", "नमस्ते", "ไทย", "👍🏽", "👩\u200d🚀",
    "🏳️\u200d🌈", "👨\u200d👩\u200d👧", "日本語", "が", "か\u3099", " ", "  ", "\n", "\t", "\u00a0", "\u200b", "▁",
    "<s>", ".", "-",
]  # fmt: skip
TEXT = st.tuples(
    st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map("".join),
    st.sampled_from(FORMS),
).map(lambda pair: unicodedata.normalize(pair[1], pair[0]))


def fast(tokenizer, **names):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(normalizer=None, prefix=False, trim=True):
    """One token per byte, and two for common pairs of them; offsets trimmed as in GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "f"), ("Ġ", "ca"), ("Ã", "©"), ("caf", "Ã©"), ("Ì", "ģ"), ("e", "Ì"), ("n", "a")]
    vocab = {t: n for n, t in enumerate(dict.fromkeys(["<s>", *alphabet, *(a + b for a, b in merges)]))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=trim)
    if normalizer is not None:
        tok.normalizer = normalizer
    return fast(tok, bos_token="<s>")


def space_bpe(by_normalizer=True, fallback=True, normalizer=None):
    """▁ for a space, one before the text, bytes for what is not in the vocabulary (or <unk>)."""
    merges = [("c", "a"), ("▁", "ca"), ("▁", "▁")]
    names = ["<unk>", "<s>", *BYTES, "▁", *LETTERS, "é", "́", *(a + b for a, b in merges)]
    vocab = {t: n for n, t in enumerate(names)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    own = [] if normalizer is None else [normalizer]
    if by_normalizer:
        tok.normalizer = normalizers.Sequence([*own, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        if own:
            tok.normalizer = own[0]
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>")])
    return fast(tok, bos_token="<s>", unk_token="<unk>")


def wordpiece(lowercase=True):
    names = ["[UNK]", "<s>", *LETTERS, *("##" + c for c in LETTERS), "cafe", "café", "##é", "é", "."]
    tok = Tokenizer(models.WordPiece(vocab={t: n for n, t in enumerate(names)}, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    return fast(tok, unk_token="[UNK]", bos_token="<s>")


def unigram(normalizer, fallback=True):
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS + "éと한")]
    pieces += [(b, -9.0) for b in BYTES] if fallback else []
    tok = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=fallback))
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    return fast(tok, unk_token="<unk>")


MAKERS = {
    "byte": byte_level,
    "byte, NFC": lambda: byte_level(normalizers.NFC()),
    "byte, NFD, not trimmed": lambda: byte_level(normalizers.NFD(), trim=False),
    "byte, NFKC, lower, prefix": lambda: byte_level(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), prefix=True
    ),
    "space": space_bpe,
    "space, before words": lambda: space_bpe(by_normalizer=False),
    "space, NFC": lambda: space_bpe(normalizer=normalizers.NFC()),
    "space, unknown": lambda: space_bpe(fallback=False, normalizer=normalizers.NFKC()),
    "wordpiece": wordpiece,
    "wordpiece, cased": lambda: wordpiece(lowercase=False),
    "unigram, NFKC": lambda: unigram(normalizers.NFKC()),
    "unigram, unknown": lambda: unigram(normalizers.NFKC(), fallback=False),
    "unigram, stripped": lambda: unigram(
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    ),
    "bytes": ByT5Tokenizer,
}
COMPOSE = ["byte, NFC", "byte, NFKC, lower, prefix", "space, NFC", "unigram, NFKC", "unigram, unknown"]
DELETE = ["wordpiece", "wordpiece, cased", "unigram, stripped"]


@cache
def tokenizer(name):
    return MAKERS[name]()


def black(text):
    return re.sub(r"[\s▁]+", "", text)


def made(text, name) -> Any:
    """The prompt of one text, or None where none of it is left."""
    if not tokenizer(name)(text, add_special_tokens=False)["input_ids"]:
        return None
    return Prompts.from_texts([text], tokenizer(name), bos=False)


def runs(offsets):
    """Tokens that overlap, together: (first, last + 1)."""
    begin = [t for t in range(len(offsets)) if t == 0 or offsets[t, 0] >= offsets[:t, 1].max()]
    return zip(begin, [*begin[1:], len(offsets)], strict=True)


@pytest.mark.parametrize("name", MAKERS)
@given(text=TEXT)
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_tokens_cover_the_characters_whose_bytes_they_hold(name, text):
    prompts = made(text, name)
    if prompts is None:
        return
    offsets, ids, vocabulary = prompts.offsets(0), prompts.ids(0), prompts.vocabulary
    special = offsets[:, 0] < 0
    assert (special == vocabulary.special(ids)).all()
    inside = offsets[~special]
    assert (inside >= 0).all()
    assert (inside <= len(text)).all()
    assert (inside[:, 0] <= inside[:, 1]).all()
    assert (np.diff(inside, axis=0) >= 0).all(), "tokens stand in the order of the text"
    covered = {c for a, b in inside.tolist() for c in range(a, b)}
    if name not in DELETE and not special.any():
        assert not black("".join(c for n, c in enumerate(text) if n not in covered)), "no character is lost"
    backend = getattr(tokenizer(name), "backend_tokenizer", None)
    normalise = backend.normalizer.normalize_str if backend is not None and backend.normalizer is not None else str
    unknown = tokenizer(name).unk_token_id
    pieces = vocabulary.bytes(ids)
    if special.any():
        return
    for a, b in runs(inside):
        if unknown not in ids[a:b]:
            there = black(normalise(text[inside[a, 0] : inside[a:b, 1].max()]))
            assert there == black(b"".join(pieces[a:b]).decode())


@pytest.mark.parametrize("name", COMPOSE)
@given(words=st.lists(st.sampled_from([p for p in PIECES if p.isalpha()]), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_words_are_found_however_their_letters_are_written(name, words):
    found = {}
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, " ".join(words))
        prompts, spans = made(text, name), Spans.words([text])
        aligned = spans.align(prompts)
        strings = [unicodedata.normalize("NFC", spans.strings()[s]) for s in aligned.span]
        found[form] = (prompts.ids(0).tolist(), strings, aligned.start.tolist(), aligned.stop.tolist())
        assert not len(aligned.unaligned) or "unknown" in name
    assert found["NFC"] == found["NFD"]


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
@pytest.mark.slow
def test_words_of_a_text_do_not_depend_on_its_normal_form(text):
    composed, apart = (find_words(unicodedata.normalize(form, text))[1] for form in ("NFC", "NFD"))
    assert [unicodedata.normalize("NFC", w) for w in apart] == composed


def test_known_offsets():
    def at(name, text):
        prompts = made(text, name)
        return list(zip(prompts.strings(0), map(tuple, prompts.offsets(0).tolist()), strict=True))

    assert at("byte, NFC", "a cafe\u0301 b") == [("a", (0, 1)), (" ", (1, 2)), ("café", (2, 7)), (" ", (7, 8)),
                                                 ("b", (8, 9))]  # fmt: skip
    assert at("unigram, NFKC", "\u1112\u1161\u11ab a")[1:] == [("한", (0, 3)), (" ", (3, 4)), ("a", (4, 5))]
    assert at("unigram, NFKC", "日本")[1:] == [(s, (n, n + 1)) for n, c in enumerate("日本") for s in
                                            (rf"\x{b:02x}" for b in c.encode())]  # fmt: skip
    assert at("wordpiece", "Cafe\u0301  b") == [("cafe", (0, 5)), (" b", (6, 8))]
    assert at("bytes", "aï") == [("a", (0, 1)), ("\\xc3", (1, 2)), ("\\xaf", (1, 2))]
    # The space that the tokenizer puts before the text, and again after an added token, covers nothing.
    assert at("space", "a<s> b") == [("", (0, 0)), ("a", (0, 1)), ("<s>", (-1, -1)), ("  ", (4, 5)), ("b", (5, 6))]
    assert at("byte, NFKC, lower, prefix", "Ab") == [("", (0, 0)), ("a", (0, 1)), ("b", (1, 2))]


def test_offsets_that_cannot_be_known_are_refused():
    tok = byte_level()
    tok.backend_tokenizer.normalizer = normalizers.Replace("ab", "c")  # and it says that c is only the b
    with pytest.raises(ValueError, match=r"prompt 0: no character offsets"):
        Prompts.from_texts(["x ab y"], tok).offsets(0)
    lying = PieceTokenizer("on|e two")
    lying.cuts = {"one two": ["on", "one"]}
    lying.vocab = {"on": 0, "one": 1}
    wrong = Prompts.from_texts(["one two"], lying)
    with pytest.raises(ValueError, match=r"prompt 0: no character offsets, since its tokens do not spell the text"):
        wrong.offsets(0)
    with pytest.raises(ValueError, match="no character offsets"):
        Spans.words(["one two"]).align(wrong)


@pytest.mark.parametrize("name", MAKERS)
def test_text_that_is_no_unicode_is_refused(name):
    for text in ("a \ud800 b", "\udcff"):
        with pytest.raises(ValueError, match=r"texts\[0\]=.*: a lone surrogate .* is not Unicode text"):
            Prompts.from_texts([text], tokenizer(name))
