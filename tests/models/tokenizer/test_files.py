"""Tokenizers of folders and of single files; where something is missing, it is said."""

from __future__ import annotations

import base64
import json
import random
import shutil

import pytest
import regex
import sentencepiece as spm

from tokinterp import bundled_texts, load_tokenizer
from tokinterp.models.bundled import bundled_folder
from tokinterp.models.tokenizer.files import ENCODINGS
from tokinterp.models.tokenizer.sentencepiece import HARD
from tokinterp.text.vocabulary import Vocabulary

GPT4 = ENCODINGS["cl100k_base"][1]
TEXTS = [*HARD, *(t.text[:500] for t in bundled_texts("story")[:6])]


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_alone_gives_the_same_ids(tmp_path):
    file = shutil.copy(bundled_folder() / "tokenizer.json", tmp_path / "some.json")
    made = load_tokenizer(file)
    assert made(TEXTS)["input_ids"] == load_tokenizer()(TEXTS)["input_ids"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_file_that_changes_texts_gives_its_own_ids(tmp_path, kind, prefix):
    (tmp_path / "text.txt").write_text("\n".join(t.text[:2000] for t in bundled_texts()[:20]), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "own"), model_type=kind, vocab_size=600,
        byte_fallback=kind == "bpe", add_dummy_prefix=prefix, user_defined_symbols=[] if prefix else ["<user>"],
        minloglevel=2,
    )  # fmt: skip
    own, made = (
        spm.SentencePieceProcessor(model_file=str(tmp_path / "own.model")),
        load_tokenizer(tmp_path / "own.model"),
    )
    for text in TEXTS:
        assert made(text, add_special_tokens=False)["input_ids"] == own.encode(text)
    assert made.eos_token_id == own.eos_id()


def ranks_file(file, tokens):
    lines = [base64.b64encode(t) + b" %d" % n for n, t in enumerate([*(bytes([b]) for b in range(256)), *tokens])]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def test_a_tiktoken_file_merges_by_rank_and_never_divides_a_whole_token(tmp_path):
    file = ranks_file(tmp_path / "own.tiktoken", [b"bc", b"ab", b"abc", b" xyz"])
    made = load_tokenizer(file, pattern=GPT4)
    ids = {t: made(t)["input_ids"] for t in ("abc", "abcd", "abd", "ab xyz", "xyz")}
    bc, ab, abc, xyz = range(256, 260)
    assert ids["abc"] == [abc]
    assert ids["abcd"] == [abc, ord("d")]  # bc first, by rank, then a and bc
    assert ids["abd"] == [ab, ord("d")]
    assert ids["ab xyz"] == [ab, xyz]  # whole, though no two tokens make it
    assert not any(bc in found for found in ids.values())
    assert made.decode(made("dé 日\n")["input_ids"]) == "dé 日\n"
    assert Vocabulary(made).bytes([259]) == [b" xyz"]


def test_bundled_tokens_as_ranks_give_the_bundled_ids(tmp_path):
    """The bundled tokenizer is byte-level BPE too; its merges in order are ranks."""
    bundled = load_tokenizer()
    inner = json.loads(bundled.backend_tokenizer.to_str())
    written = [a + b for a, b in inner["model"]["merges"]]
    vocabulary = Vocabulary(bundled)
    tokens = vocabulary.bytes(bundled.convert_tokens_to_ids(written))
    made = load_tokenizer(ranks_file(tmp_path / "own.tiktoken", tokens), pattern=ENCODINGS["r50k_base"][1])
    for text in TEXTS[-6:]:
        ids, known = (t(text, add_special_tokens=False)["input_ids"] for t in (made, bundled))
        assert Vocabulary(made).bytes(ids) == vocabulary.bytes(known)


PUBLISHED = {  # of tiktoken 0.14, $ being the end of the text
    "r50k_base": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\Z|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++\Z|\s*[\r\n]|\s+(?!\S)|\s",
}
SIGNS = ["a", "B", "é", "ſ", "İ", "日", "😀", "1", "²", "Ⅷ", "'", "’", "'s", "'S", "'ſ", "'LL", "'re", " ", "  ", "\n",
         "\r\n",
         "\r", "\t", "\xa0", "\u2003", "\u200b", "\u0301", "ǅ", "_", "-", "...", "\x85", "\u2028", "\x1c"]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_texts_are_divided_as_by_the_published_pattern(name, tmp_path):
    file = ranks_file(tmp_path / "own.tiktoken", [])
    divide = load_tokenizer(file, pattern=ENCODINGS[name][1]).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    draw = random.Random(0)
    drawn = ["".join(draw.choice(SIGNS) for _ in range(draw.randint(1, 12))) for _ in range(3000)]
    published = regex.compile(PUBLISHED[name])
    for text in [*drawn, "a  ", "a \n ", "  \n\n  a", "a\n  \n", " \r\n \r\n", "12345", "don'T I’ll"]:
        assert [text[a:b] for _, (a, b) in divide(text)] == published.findall(text), repr(text)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b'{"a": 0, "ab": 1}', "no tokenizer.json"),
        ("a.json", b'{"model": 3}', "a.json"),
        ("a.model", b"some text", "neither tokenizer.json"),
        ("a.tiktoken", b"YQ== 0\nYg== 1\n", "0x00 has no rank"),
        ("a.tiktoken", b"YQ== 0\nno rank\n", "line 2: b'no rank'"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value)


def test_patterns_are_asked_for_and_checked(tmp_path):
    file = ranks_file(tmp_path / "cl100k_base.tiktoken", [b"ab"])
    with pytest.raises(ValueError, match="257 ranks of no encoding known by this name"):
        load_tokenizer(file)
    with pytest.raises(ValueError, match=r"'\{1,3\}\+' is possessive"):
        load_tokenizer(file, pattern=r"\p{N}{1,3}+|.")
    with pytest.raises(ValueError, match="is no file of tiktoken"):
        load_tokenizer(bundled_folder(), pattern=".")
    with pytest.raises(ValueError, match=r"tokenizer.json is no file of tiktoken"):
        load_tokenizer(bundled_folder() / "tokenizer.json", pattern=".")
    assert load_tokenizer(tmp_path, pattern=GPT4)("ab")["input_ids"] == [256]  # the only one in its folder


@pytest.mark.parametrize("as_file", [True, False])
def test_missing_merges_are_noticed(tmp_path, as_file):
    made = json.loads((bundled_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    made["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(ValueError, match="no merges that make them"):
        load_tokenizer(tmp_path / "tokenizer.json" if as_file else tmp_path)


def test_vocabularies_without_the_rest_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    with pytest.raises(ValueError, match="does not say how texts are divided"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ValueError, match=r"without merges\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(tmp_path).tokenize("ab") == ["ab"]
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    with pytest.raises(ValueError, match="OpenAI's names"):
        load_tokenizer(tmp_path)
