"""Text and tokenizer for the bundled model: clean, deduplicate, hold out, train a BPE, tokenise once.

    python -m experiments.bundled.data --vocab 512 --out DATA/narrow    # parts to take to another machine

``prepare(folder, vocab_size)`` reads ``text/enwiki2015_A?.jsonl.xz`` below ``$TOKINTERP_DATA`` and writes into
``folder``: ``tokenizer/``, ``train_*.npy`` (uint16, at most 60 MB a part), ``val.npy``, ``val.jsonl`` and
``data.json`` (every count that the model card quotes).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import lzma
import os
import random
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tokinterp.files.whole import write_text

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
TEST_SETS = ("wikipedia_val_500", "wikipedia_test_500", "wikipedia_train_1000", "wikitext103_1000")
NGRAM = 13  # words; a shared n-gram of this length counts as overlap with a test set
SHINGLE = 8  # words; near-duplicates are found by sampled shingles of this length
PART_TOKENS = 28_000_000
SPLIT = r"'(?:s|t|re|ve|m|ll|d)\b| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "…": "...", "‑": "-", "−": "-", "\u00ad": None}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")
    | dict.fromkeys(
        "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t", " "
    )
)
_SUBSTITUTIONS = [
    (re.compile(p), r)
    for p, r in [
        (r"<[^<>]{1,200}>", ""),  # left-over tags
        (r"\(\s*(?:or|and|,|;|:|\s)*[;,]\s*", "("),  # "( or; fl. 434" -> "(fl. 434"
        (r"[;,]?\s*\](?=[;,)])", ""),  # a lost pronunciation: "; ];"
        (r"\[\s*\]", ""),
        (r"[;,:\s]+\)", ")"),
        (r"\(\s+", "("),
        (r"\s*\(\W*\)", ""),  # empty brackets
        (r'(?<=[\w.,)"]):\d{1,4}(?=\s|$)', ""),  # a lost page reference: "language.:444"
        (r'""+', '"'),
        (r"\s+([,;.])(?=\s|$)", r"\1"),
        (r" {2,}", " "),
    ]
]
_WORD = re.compile(r"\w+")


def data_folder() -> Path:
    """The folder of the input data: ``$TOKINTERP_DATA``, else ``../shared/data``."""
    return Path(os.environ.get("TOKINTERP_DATA", "../shared/data"))


def normalise(text: str) -> str:
    """NFC, plain quotes, minus and spaces, nothing invisible."""
    return unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)


def clean(text: str) -> list[str]:
    """The paragraphs of an extracted article worth training on.

    Headings ("Etymology."), list items, formula and table debris are dropped: a kept line has at least 12 words,
    ends a sentence, has no extraction placeholder and is not mostly digits and marks.
    """
    kept = []
    for line in normalise(text).split("\n"):
        line = line.strip()
        if "formula_" in line or "codice_" in line or line[:1] in "-*#|!{}•" or line.count(" ") < 11:
            continue
        for pattern, replacement in _SUBSTITUTIONS:
            line = pattern.sub(replacement, line)
        line = line.strip()
        letters = sum(c.isalpha() or c == " " for c in line)
        if line.count(" ") >= 11 and line[-1] in ".!?\"')" and letters > 0.85 * len(line):
            kept.append(line)
    return kept


@lru_cache(maxsize=2_000_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """64-bit hashes of all word n-grams (lower case, words only) of a text."""
    words = np.array([_word_hash(w) for w in _WORD.findall(text.lower())], dtype=np.uint64)
    if len(words) < n:
        return np.empty(0, np.uint64)
    out = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            out = out * np.uint64(0x9E3779B97F4A7C15) + words[i : len(words) - n + 1 + i]
        return out ^ (out >> np.uint64(29))


def test_documents(name: str) -> list[dict]:
    """Documents (id, title, text) of one test set, text as it is scored.

    The wikitext spacing (`` @-@ ``, a blank before marks) is left as it is.
    """
    folder = data_folder() / "text"
    if name.startswith("wikipedia"):
        csv.field_size_limit(10**9)
        with lzma.open(folder / f"{name}.csv.xz", "rt", encoding="utf-8", newline="") as file:
            return [{k: row[k] for k in ("id", "title", "text")} for row in csv.DictReader(file)]
    texts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    titles = [m.group(1) if (m := re.match(r"\s*= ([^=]+) = \s*\n", t)) else "" for t in texts]
    return [{"id": "", "title": t, "text": x} for t, x in zip(titles, texts, strict=True)]


def articles() -> Iterator[dict]:
    """The raw articles of all parts, in order."""
    for path in sorted((data_folder() / "text").glob("enwiki2015_A?.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line) for line in file)


_test_ngrams: list[np.ndarray] = []


def _load_test_ngrams() -> None:
    """In each worker: one sorted array of n-gram hashes per test set."""
    _test_ngrams.clear()
    for name in TEST_SETS:
        texts = [re.sub(r" @([-,.])@ ", r"\1", normalise(d["text"])) for d in test_documents(name)]
        hashes = [ngram_hashes(t, NGRAM) for t in texts]
        last = np.array([2**64 - 1], np.uint64)  # a place to point to when all are smaller
        _test_ngrams.append(np.unique(np.concatenate([*hashes, last])))


def _digest(article: dict) -> tuple[dict, list[str], list[np.ndarray], list[int]]:
    """Clean one article; sample its shingles; count the n-grams it shares with each test set."""
    paragraphs = clean(article["text"])
    shingles = []
    for paragraph in paragraphs:
        h = ngram_hashes(paragraph, SHINGLE)
        shingles.append(h[h % np.uint64(8) == 0])
    long = np.unique(ngram_hashes(" ".join(paragraphs), NGRAM))
    shared = [int((t[np.searchsorted(t, long)] == long).sum()) for t in _test_ngrams]
    return {"id": str(article["id"]), "title": article["title"]}, paragraphs, shingles, shared


def _is_validation(article_id: str) -> bool:
    return int(hashlib.sha256(f"tokinterp-{article_id}".encode()).hexdigest(), 16) % 100 == 0


def _digests(processes: int) -> Iterator[tuple[dict, list[str], list[np.ndarray], list[int]]]:
    """Every article, digested, in order."""
    if processes == 1:
        _load_test_ngrams()
        yield from map(_digest, articles())
        return
    with get_context("spawn").Pool(processes, _load_test_ngrams) as pool:
        yield from pool.imap(_digest, articles(), chunksize=64)


def select(processes: int = 2) -> tuple[list[dict], list[dict], dict]:
    """Cleaned training and validation articles (id, title, paragraphs), and the counts."""
    ids, titles = {}, {}
    for name in TEST_SETS:
        for document in test_documents(name):
            ids.setdefault(document["id"], set()).add(name)
            titles.setdefault(document["title"].casefold(), set()).add(name)
    for known in (ids, titles):
        known.pop("", None)
    counts = dict.fromkeys(
        ["articles", "clean_bytes", "empty", "duplicate_articles", "duplicate_paragraphs", "short", "overlap"], 0
    )
    overlap = {name: {"by_id_or_title": 0, "by_13gram": 0, "either": 0} for name in TEST_SETS}
    seen: set[int] = set()
    train, val = [], []
    for meta, paragraphs, shingles, shared in _digests(processes):
        counts["articles"] += 1
        counts["clean_bytes"] += sum(len(p.encode()) for p in paragraphs)
        if not paragraphs:
            counts["empty"] += 1
            continue
        named = ids.get(meta["id"], set()) | titles.get(meta["title"].casefold(), set())
        for name, n in zip(TEST_SETS, shared, strict=True):
            overlap[name]["by_id_or_title"] += name in named
            overlap[name]["by_13gram"] += n > 0
            overlap[name]["either"] += n > 0 or name in named
        if named or any(shared):
            counts["overlap"] += 1
            continue
        flat = [int(h) for s in shingles for h in s]
        if flat and sum(h in seen for h in flat) > 0.5 * len(flat):
            counts["duplicate_articles"] += 1
            continue
        fresh = []
        for paragraph, s in zip(paragraphs, shingles, strict=True):
            if len(s) and sum(int(h) in seen for h in s) > 0.5 * len(s):
                counts["duplicate_paragraphs"] += 1
            else:
                fresh.append(paragraph)
            seen.update(s.tolist())
        if sum(map(len, fresh)) < 250:
            counts["short"] += 1
            continue
        (val if _is_validation(meta["id"]) else train).append(meta | {"paragraphs": fresh})
    for name, part in (("train", train), ("val", val)):
        counts[f"{name}_articles"] = len(part)
        counts[f"{name}_bytes"] = sum(len(document_text(a).encode()) for a in part)
    return train, val, counts | {"overlap_by_set": overlap}


def document_text(article: dict) -> str:
    """Paragraphs joined by a blank line (one article in six: by a single line break)."""
    single = int(hashlib.sha256(f"break-{article['id']}".encode()).hexdigest(), 16) % 6 == 0
    return ("\n" if single else "\n\n").join(article["paragraphs"])


def train_tokenizer(texts: list[str], vocab_size: int, max_length: int = 1024):
    """A byte-level BPE with GPT-2 spaces and single digits that puts BOS first; a fast Hugging Face tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
    )


def tokenise(tokenizer, texts: list[str]) -> np.ndarray:
    """One uint16 stream: BOS text EOS, BOS text EOS, ..."""
    backend, bos, eos = tokenizer.backend_tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id
    out = []
    for i in range(0, len(texts), 1000):
        for e in backend.encode_batch_fast(texts[i : i + 1000], add_special_tokens=False):
            out.append(np.array([bos, *e.ids, eos], np.uint16))
    return np.concatenate(out)


def prepare(
    folder: Path,
    vocab_size: int,
    tokenizer_bytes: int = 60_000_000,
    seed: int = 0,
    processes: int = 2,
    part_tokens: int = PART_TOKENS,
) -> dict:
    """Write tokenizer, tokens and counts into ``folder``; articles are in one fixed random order."""
    train, val, counts = select(processes)
    random.Random(seed).shuffle(train)
    return parts(folder, train, val, vocab_size, counts | {"seed": seed}, tokenizer_bytes, part_tokens)


def parts(
    folder: Path,
    train: list[dict],
    val: list[dict],
    vocab_size: int,
    counts: dict,
    tokenizer_bytes: int = 60_000_000,
    part_tokens: int = PART_TOKENS,
) -> dict:
    """Write what `prepare` does, of articles that were selected and are in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, val_texts = [document_text(a) for a in train], [document_text(a) for a in val]
    sample, size = [], 0
    for text in texts:
        sample.append(text)
        size += len(text)
        if size > tokenizer_bytes:
            break
    tokenizer = train_tokenizer(sample, vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokens = tokenise(tokenizer, texts)
    for old in folder.glob("train_*.npy"):
        old.unlink()
    for i in range(0, len(tokens), part_tokens):
        np.save(folder / f"train_{i // part_tokens:02d}.npy", tokens[i : i + part_tokens])
    val_tokens = tokenise(tokenizer, val_texts)
    np.save(folder / "val.npy", val_tokens)
    with (folder / "val.jsonl").open("w", encoding="utf-8") as file:
        for article, text in zip(val, val_texts, strict=True):
            file.write(
                json.dumps({"id": article["id"], "title": article["title"], "text": text}, ensure_ascii=False) + "\n"
            )
    counts |= {"vocab_size": len(tokenizer), "train_tokens": len(tokens), "val_tokens": len(val_tokens)}
    write_text(folder / "data.json", json.dumps(counts, indent=1))
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bundled.data", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--vocab", type=int, required=True, help="pieces of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer and tokens")
    parser.add_argument("--part-mb", type=float, default=56, help="largest file of tokens")
    parser.add_argument("--processes", type=int, default=2)
    a = parser.parse_args()
    counts = prepare(a.out, a.vocab, processes=a.processes, part_tokens=int(a.part_mb * 500_000))
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
