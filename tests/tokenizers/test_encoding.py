"""Pieces of texts, each encoded once, have the tokens of the texts; where they have not, texts are encoded whole."""

import copy
import random

import numpy as np
import pytest
from tiny import byte_tokenizer, unigram_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tokinterp as ti
from tokinterp.text.vocabulary import Vocabulary
from tokinterp.tokenizers import encoding, tokenizer_metrics

SIGNS = [
    "a",
    "the",
    "é",
    "é",
    "日本",
    "12",
    "3.5",
    "'s",
    "(",
    "_x",
    "😀",
    "\u200b",
    "\xa0",
    "\u3000",
    "<mask>",
    "▁",
    "I'll",
]
GAPS = [" ", " ", " ", " ", "  ", "\n", " \n", "\t ", "", "\u2028 "]


def drawn(n=60, seed=0):
    """Texts of words and signs with every kind of white space between them."""
    draw = random.Random(seed)
    return ["".join(draw.choice(SIGNS) + draw.choice(GAPS) for _ in range(draw.randint(0, 30))) for _ in range(n)]


TEXTS = [*drawn(), *(t.text[:400] for t in ti.bundled_texts("story")[:4]), "", " ", "a", " a", "a "]


def metaspace():
    """A BPE that writes a space before the text and keeps spaces in its tokens, as Llama 2."""
    vocab = {t: n for n, t in enumerate(["<unk>", "▁", *"aethx1235", "th", "the", "▁the", "▁a"])}
    inner = Tokenizer(
        models.BPE(vocab, [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")], unk_token="<unk>", fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Replace("▁", " ")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def wordpiece():
    vocab = {
        t: n for n, t in enumerate(["[UNK]", "the", "a", "th", "##e", "##a", "1", "##2", "'", "s", "(", "##x", "_"])
    }
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def across():
    """A tokenizer one of whose entries reaches over a space, between letters that the texts it is tried on lack."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: n for n, t in enumerate([*alphabet, "ZĠ", "ZĠZ"])}
    inner = Tokenizer(models.BPE(vocab, [("Z", "Ġ"), ("ZĠ", "Z")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


MADE = {"bundled": ti.load_tokenizer, "bytes": byte_tokenizer, "prefix": metaspace, "wordpiece": wordpiece,
        "unigram": lambda: unigram_tokenizer("▁the", "the", "a")}  # fmt: skip


def pieces_of(tokenizer, space=False):
    return encoding.Pieces("some", tokenizer, Vocabulary(tokenizer), space)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("together", [1, 7])
def test_tokens_of_the_pieces_are_those_of_the_texts(name, together, monkeypatch):
    monkeypatch.setattr(encoding, "TOGETHER", together)
    tokenizer = MADE[name]()
    made = pieces_of(tokenizer)
    assert made.lead is not None or name == "unigram"
    for batch in (TEXTS[:20], TEXTS[20:]):
        pieces, n = made.encode(batch, "en")
        for text, ids in zip(batch, np.split(pieces, n.cumsum()[:-1]), strict=True):
            assert made.tokens(ids)[0].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"], repr(text)
    known = len(made.ids)
    made.encode(TEXTS, "en")
    assert len(made.ids) == known, "pieces that are known are encoded again"


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("name", ["bundled", "prefix"])
def test_words_are_those_of_the_texts(name, space):
    tokenizer = MADE[name]()
    made = pieces_of(tokenizer, space)
    pieces, n = made.encode(TEXTS, "en")
    for text, found, single in zip(
        TEXTS, encoding.sums_of(made.n_words[pieces], n), encoding.sums_of(made.n_single[pieces], n), strict=True
    ):
        words = text.split(" ") if space else text.split()
        ids = [tokenizer(made.before + w, add_special_tokens=False)["input_ids"] for w in words]
        assert (found, single) == (len(words), sum(len(i) == 1 and i[0] != made.unknown for i in ids)), repr(text)


def test_an_entry_over_a_space_makes_texts_be_encoded_whole():
    made = pieces_of(across())
    assert made.lead is None
    pieces, n = made.encode(["Z Z", "Z"], "en")
    assert n.tolist() == [1, 1]
    assert made.tokens(pieces[:1])[0].tolist() == across()("Z Z")["input_ids"]


def test_a_text_whose_pieces_have_other_tokens_is_found_and_all_are_encoded_whole():
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens([AddedToken("<eats>", rstrip=True)])
    texts = [*TEXTS, "of <eats> and <eats> and"] * 3
    with pytest.raises(encoding.Mixed):
        pieces_of(tokenizer).encode(texts, "en")
    n = tokenizer_metrics({"bytes": tokenizer}, {"en": texts})["n_tokens"].item()
    assert n == sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(encoding, "CACHE_CHARS", 500)
    made = pieces_of(ti.load_tokenizer())
    for seed in range(20):
        made.encode(drawn(4, seed), "en")
        assert made.chars < 500 + 4 * 200
