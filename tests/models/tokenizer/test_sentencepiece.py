"""Tokenizers: the ids that the model's own tokenizer gives."""

from __future__ import annotations

import json

import pytest
import sentencepiece as spm

from tokinterp import Prompts, bundled_texts, load_tokenizer
from tokinterp.models.tokenizer.sentencepiece import read_tokenizer, sentencepiece_tokenizer

TEXTS = [t.text for t in bundled_texts()]
HARD = ["", " ", "  two", "a  b   c", " x", "\n\n  The", "\ttab", "é 日本 😀", "▁ mark", "The <s> sign", "x" * 40, "  "]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A SentencePiece BPE file made like that of Llama 2: byte fallback, spaces kept, one written before a text."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text("\n".join(t[:2000] for t in TEXTS[:20]), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<user>"],
        minloglevel=2,
    )
    return folder


def texts(n: int) -> list[str]:
    return [*HARD, *(t[:3000] for t in TEXTS[:n]), *("  ".join(t.split(" ")[:300]) for t in TEXTS[:5])]


def write(trained, folder, prefix: bool):
    """The trained file with a prefix and no symbol of a user, or the other way round."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString((trained / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = prefix
    if prefix:
        symbol = next(p for p in proto.pieces if p.piece == "<user>")
        symbol.piece, symbol.type = "<control>", 3
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_are_those_of_sentencepiece(trained, tmp_path, prefix):
    own = spm.SentencePieceProcessor(model_file=str(write(trained, tmp_path, prefix) / "tokenizer.model"))
    made = load_tokenizer(tmp_path)
    for text in [*texts(20), "said <user> and"]:
        if "<s>" not in text:  # there a text may hold BOS
            assert made(text, add_special_tokens=False)["input_ids"] == own.encode(text)
            assert made(text)["input_ids"] == [own.bos_id(), *own.encode(text)]
    assert made.decode(made("  the  end é")["input_ids"], skip_special_tokens=True) == "  the  end é"


@pytest.mark.parametrize("prefix", [True, False])
def test_offsets_and_strings(trained, tmp_path, prefix):
    prompts = Prompts.from_texts(["the  end of 日"], load_tokenizer(write(trained, tmp_path, prefix)))
    text = prompts.text(0)
    for string, (a, b) in list(zip(prompts.strings(0), prompts.offsets(0), strict=True))[1:]:
        assert "\\x" in string or text[a:b].strip() == string.strip()


def test_settings_beside_the_file_are_kept(trained, tmp_path):
    write(trained, tmp_path, prefix=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "chat_template": "{{ x }}"}))
    made = read_tokenizer(str(tmp_path))
    assert made("the")["input_ids"] == made("the", add_special_tokens=False)["input_ids"]
    assert made.chat_template == "{{ x }}"


def test_a_prefix_with_symbols_is_left_to_transformers(trained):
    assert sentencepiece_tokenizer(trained / "tokenizer.model") is None


def test_unigram_files_are_left_to_transformers(trained, tmp_path):
    spm.SentencePieceTrainer.train(
        input=str(trained / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="unigram",
        vocab_size=400,
        minloglevel=2,
    )
    assert sentencepiece_tokenizer(tmp_path / "tokenizer.model") is None
