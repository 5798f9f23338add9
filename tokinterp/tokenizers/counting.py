"""Counts of tokens, words and characters, streamed over texts of any size in constant memory, in several processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from ..settings import short
from ..text.vocabulary import Vocabulary
from .corpora import Corpus
from .reachability import encode

GROUPS = 1000
"""Groups of texts that intervals are drawn over: text i is of group i modulo so many."""
FOLDS = 20
"""Parts of the texts, each left out in turn for intervals of what is made of the counts of all tokens."""
SUMS = ("texts", "tokens", "words", "chars", "bytes", "single_words", "unknown_tokens", "unknown_chars", "unlocated")
BATCH_CHARS, BATCH_TEXTS, BUFFER, CACHE = 1 << 20, 4096, 1 << 20, 1 << 19


@dataclass
class Counts:
    """How often each token id occurs in each fold of the texts, as sorted keys fold * size + id."""

    size: int
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _waiting: list[np.ndarray] = field(default_factory=list)

    def add(self, folds: np.ndarray, ids: np.ndarray) -> None:
        """Count ids, each of a fold."""
        self._waiting.append(folds * self.size + ids)
        if sum(map(len, self._waiting)) > BUFFER:
            self.settle()

    def settle(self) -> Counts:
        """Take in what waits."""
        if self._waiting:
            keys, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting = []
            self._add(keys, counts)
        return self

    def merge(self, other: Counts) -> None:
        """Add what another counted."""
        self.settle()
        other.settle()
        self._add(other.keys, other.counts)

    def _add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        both, place = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        self.counts = np.bincount(place, np.concatenate([self.counts, counts]), len(both)).astype(np.int64)
        self.keys = both

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the (type,) ids that occur, and their (fold, type) counts."""
        self.settle()
        ids, place = np.unique(self.keys % self.size, return_inverse=True)
        out = np.zeros((FOLDS, len(ids)), np.int64)
        out[self.keys // self.size, place] = self.counts
        return ids, out


@dataclass
class Tally:
    """What was counted of some languages with one tokenizer."""

    langs: list[str]
    sums: np.ndarray  # (lang, sum, group) int64
    parity: np.ndarray  # (lang, 2, group) float64: sum of n / n of the base language over pairs, and number of pairs
    counts: list[Counts]
    hashes: list[str]

    def merge(self, other: Tally) -> None:
        """Add what was counted of other texts."""
        self.sums += other.sums
        self.parity += other.parity
        for mine, its in zip(self.counts, other.counts, strict=True):
            mine.merge(its)


class Counter:
    """Counts tokens with one tokenizer."""

    def __init__(self, name: str, tokenizer: Any, words: str) -> None:
        self.name, self.tokenizer, self.words = name, tokenizer, words
        vocabulary = Vocabulary(tokenizer)
        self.size = vocabulary.size
        self.before = "" if vocabulary.prefix_space or vocabulary.kind == "wordpiece" else " "
        unknown = getattr(tokenizer, "unk_token_id", None)
        self.unknown = None if unknown is None or unknown in vocabulary.special_ids else int(unknown)
        self.single: dict[str, bool] = {}

    def ids(self, texts: list[str], where: str) -> list[list[int]]:
        """Return the ids of each text, or raise ValueError that names the text."""
        try:
            return self._encode(texts)
        except Exception as error:  # the library raises no narrower class
            for n, text in enumerate(texts):
                try:
                    encode(self.tokenizer, [text])
                except Exception as one:
                    said = " ".join(str(one).split())[:120]
                    told = f"text {n} of a batch, {short(text, 40)}, cannot be encoded by {self.name!r} ({said})"
                    raise ValueError(f"corpora, {where}: {told}: leave it out") from None
            raise ValueError(f"corpora, {where}: {self.name!r} cannot encode a batch of its texts: {error}") from None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not getattr(self.tokenizer, "is_fast", False):
            return encode(self.tokenizer, texts)
        encode(self.tokenizer, ["a"])  # leaves the tokenizer without truncation and padding
        return [e.ids for e in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def count(self, texts: list[str], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (sum, text) sums, and the ids of all tokens with the text of each."""
        listed = self.ids(texts, where)
        n = np.fromiter(map(len, listed), np.int64, len(listed))
        ids = np.fromiter(chain.from_iterable(listed), np.int64, int(n.sum()))
        of = np.repeat(np.arange(len(n)), n)
        split = [t.split(" ") if self.words == "space" else t.split() for t in texts]
        sums = np.zeros((len(SUMS), len(texts)), np.int64)
        sums[0], sums[1] = 1, n
        sums[2] = [len(w) for w in split]
        sums[3] = [len(t) for t in texts]
        sums[4] = [len(t.encode()) for t in texts]
        self._learn({w for words in split for w in words})
        sums[5] = [sum(map(self.single.__getitem__, words)) for words in split]
        if self.unknown is not None and (lost := np.unique(of[ids == self.unknown])).size:
            sums[6] = np.bincount(of, ids == self.unknown, len(n))
            sums[7, lost], sums[8, lost] = self._unknown_chars([texts[k] for k in lost])
        return sums, ids, of

    def _learn(self, words: set[str]) -> None:
        """Find out which new words are one token, with a space before them where the tokenizer does not write one."""
        if len(self.single) > CACHE:
            self.single.clear()
        new = sorted(words - self.single.keys())
        found = self._encode([self.before + w for w in new])
        self.single.update({w: len(f) == 1 and f[0] != self.unknown for w, f in zip(new, found, strict=True)})

    def _unknown_chars(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the characters that unknown tokens stand for in each text, or that the tokenizer does not say."""
        if not getattr(self.tokenizer, "is_fast", False):
            return np.zeros(len(texts), np.int64), np.ones(len(texts), np.int64)
        made = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
        lost = [sum(b - a for i, (a, b) in zip(ids, at, strict=True) if i == self.unknown) for ids, at in pairs]
        return np.array(lost), np.zeros(len(texts), np.int64)


def tally(
    counter: Counter, corpus: Mapping[str, Corpus], name: str, base: str | None, shard: int = 0, shards: int = 1
) -> Tally:
    """Count the tokens of languages side by side, of every ``shards``-th batch of texts."""
    langs = list(corpus)
    out = Tally(
        langs, np.zeros((len(langs), len(SUMS), GROUPS), np.int64), np.zeros((len(langs), 2, GROUPS)),
        [Counts(counter.size) for _ in langs], ["" for _ in langs],
    )  # fmt: skip
    digests = [hashlib.sha256() for _ in langs]
    first = 0
    for number, batch in enumerate(batches(corpus, name)):
        for digest, texts in zip(digests, batch, strict=True):
            if shard == 0:
                for text in texts:
                    data = text.encode("utf-8", "surrogatepass")
                    digest.update(len(data).to_bytes(8, "little") + data)
        if number % shards == shard:
            _count_batch(counter, batch, name, base, first, out)
        first += len(batch[0])
    out.hashes = [d.hexdigest()[:16] for d in digests] if shard == 0 else out.hashes
    for counts in out.counts:
        counts.settle()
    return out


def _count_batch(
    counter: Counter, batch: Sequence[list[str]], name: str, base: str | None, first: int, out: Tally
) -> None:
    langs = out.langs
    number = np.arange(first, first + len(batch[0]))
    group, fold = number % GROUPS, number % FOLDS
    lengths = {}
    for k, (lang, texts) in enumerate(zip(langs, batch, strict=True)):
        sums, ids, of = counter.count(texts, f"{name}, {lang}" if name else lang)
        for s, values in zip(out.sums[k], sums, strict=True):
            np.add.at(s, group, values)
        out.counts[k].add(fold[of], ids)
        lengths[lang] = sums[1]
    if base is not None:
        for k, lang in enumerate(langs):
            both = (lengths[base] > 0) & (lengths[lang] > 0)
            np.add.at(out.parity[k, 0], group[both], lengths[lang][both] / lengths[base][both])
            np.add.at(out.parity[k, 1], group[both], 1)


def batches(corpus: Mapping[str, Corpus], name: str) -> Iterator[list[list[str]]]:
    """Yield lists of texts of each language, as many of each.

    Raises
    ------
    ValueError
        If one language ends before another.
    """
    waiting: list[tuple[str, ...]] = []
    size = n = 0
    for n, texts in enumerate(zip_longest(*corpus.values()), 1):
        if None in texts:
            ended = next(lang for lang, text in zip(corpus, texts, strict=True) if text is None)
            longer = next(lang for lang, text in zip(corpus, texts, strict=True) if text is not None)
            rest = sum(1 for _ in corpus[longer])
            raise ValueError(
                f"corpora, {name}: {n - 1} texts of {ended!r} and {rest} of {longer!r}: "
                "base_lang needs parallel texts, line by line"
            )
        waiting.append(texts)
        size += sum(map(len, texts))
        if size >= BATCH_CHARS or len(waiting) * len(texts) >= BATCH_TEXTS:
            yield [list(column) for column in zip(*waiting, strict=True)]
            waiting, size = [], 0
    if waiting:
        yield [list(column) for column in zip(*waiting, strict=True)]
    if not n:
        raise ValueError(f"corpora, {name}: no text in {', '.join(map(repr, corpus))}")


def _apart(*arguments: Any) -> Tally:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in a process of its own: one thread each
    return tally(*arguments)


def tally_all(tasks: Sequence[tuple[Counter, Mapping[str, Corpus], str, str | None]], n_jobs: int) -> list[Tally]:
    """Run every task, in several processes if ``n_jobs`` is more than 1; large tasks are shared out among them."""
    if n_jobs == 1:
        return [tally(*task) for task in tasks]
    from joblib import Parallel, delayed

    shards = -(-n_jobs // len(tasks)) if len(tasks) < n_jobs else 1
    parts: Any = Parallel(n_jobs=n_jobs)(delayed(_apart)(*t, shard, shards) for t in tasks for shard in range(shards))
    out = []
    for k in range(0, len(parts), shards):
        whole = parts[k]
        for part in parts[k + 1 : k + shards]:
            whole.merge(part)
        out.append(whole)
    return out
