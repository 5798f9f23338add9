"""Tokenizers for the tests of tokinterp.text: small ones built here, and that of the bundled model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "tokinterp" / "data" / "reader"

TEXTS = [
    "The old lighthouse keeper doesn't sleep; he counts 1,867 ships, well-known and unknown.",
    "Once upon  a café’s 😀 time\n naïve façade\tdon't",
    " leading space, 日本語 and Ελληνικά.",
    "x",
    "Zoë said: \"It's O'Brien's re-entry (again)!\"\n\n  Two spaces.",
    "e\u0301tude \u200b zero width, nul \0 end",
]
CORPUS = [*TEXTS, "the cat sat on the mat and the dog ran", "lighthouse keepers keep lighthouses", "1867 1945 2001"] * 3


@cache
def byte_tokenizer(bos: bool = True) -> Any:
    """A byte-level BPE as in GPT-2 whose post-processor puts BOS first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=["<|bos|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if bos:
        tok.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|bos|>", pad_token="<|pad|>")


@cache
def space_tokenizer() -> Any:
    """A BPE with ▁ and byte tokens as in Llama 2, which puts a space before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "n"), ("k", "e"), ("ke", "ep"), ("e", "p"), ("▁", "a")]
    merges += [("e", "r"), ("u", "p"), ("▁", "up"), ("▁up", "on"), ("▁", "▁")]
    names = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *letters, *(x + y for x, y in merges)]
    vocabulary = {t: n for n, t in enumerate(dict.fromkeys(names))}
    tok = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens(["<unk>", "<s>"])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", unk_token="<unk>")


@cache
def bundled_tokenizer() -> Any:
    """The tokenizer of the model in the package: a byte-level BPE of 4,096 tokens with BOS."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BUNDLED)


@cache
def bare_tokenizer() -> Any:
    """A byte-level BPE that puts nothing before a text, as those of GPT-2 and Pythia."""
    return byte_tokenizer(bos=False)


MAKERS = {"byte": byte_tokenizer, "space": space_tokenizer, "bare": bare_tokenizer, "bundled": bundled_tokenizer}


def tokenizer(name: str) -> Any:
    """One of `MAKERS`."""
    return MAKERS[name]()


class PieceTokenizer:
    """Cuts texts at ``|`` marks given beforehand, so that a test can say what the tokens are."""

    bos_token_id = None
    unk_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, *marked: str, fast: bool = True) -> None:
        self.is_fast = fast
        self.cuts = {m.replace("|", ""): m.split("|") for m in marked}
        pieces = sorted({p for c in self.cuts.values() for p in c})
        self.vocab = {p: n for n, p in enumerate(pieces)}

    def __len__(self) -> int:
        return len(self.vocab)

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [list(self.vocab)[i] for i in ids]

    def __call__(self, texts: Any, **options: Any) -> dict[str, Any]:
        if options.get("return_offsets_mapping") and not self.is_fast:
            raise NotImplementedError
        if isinstance(texts, str):
            return {"input_ids": [0]}
        pieces = [self.cuts[t] for t in texts]
        stops = [np.cumsum([len(p) for p in ps]).tolist() for ps in pieces]
        return {
            "input_ids": [[self.vocab[p] for p in ps] for ps in pieces],
            "offset_mapping": [
                [(b - len(p), b) for p, b in zip(ps, ss, strict=True)] for ps, ss in zip(pieces, stops, strict=True)
            ],
        }


def lexicon_of(source: Any, bos: Any = "auto") -> Any:
    """The words of six bundled articles, in the tokens of a model or tokenizer."""
    import tokinterp as ti

    texts = [t.text for t in ti.bundled_texts("article")[:6]]
    return ti.lexicon.Lexicon.of(ti.Prompts.from_texts(texts, source, max_tokens=400, on_long="window", bos=bos))
