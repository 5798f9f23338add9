"""Counts of tokens, words and characters, streamed over texts of any size in constant memory, in several processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from ..stats.resample import ratio
from ..text.vocabulary import Vocabulary
from .corpora import Corpus
from .encoding import Mixed, Pieces, sums_of

GROUPS = 1000
"""Groups of texts that intervals are drawn over: text i is of group i modulo so many."""
FOLDS = 20
"""Parts of the texts, each left out in turn for intervals of what is made of the counts of all tokens."""
SUMS = ("texts", "tokens", "words", "chars", "bytes", "single_words", "unknown_tokens", "unknown_chars", "unlocated")
BATCH_CHARS, BATCH_TEXTS, BUFFER = 1 << 20, 4096, 1 << 20


@dataclass
class Counts:
    """How often each token id occurs in each fold of the texts, as sorted keys fold * size + id."""

    size: int
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, folds: np.ndarray, ids: np.ndarray, times: np.ndarray) -> None:
        """Count ids, each of a fold, so many times."""
        self._waiting.append((folds * self.size + ids, times))
        if sum(len(keys) for keys, _ in self._waiting) > BUFFER:
            self.settle()

    def settle(self) -> Counts:
        """Take in what waits."""
        if self._waiting:
            keys, times = map(np.concatenate, zip(*self._waiting, strict=True))
            self._waiting = []
            self._add(keys, times)
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
        self.name, self.tokenizer = name, tokenizer
        vocabulary = Vocabulary(tokenizer)
        self.size = vocabulary.size
        self.pieces = Pieces(name, tokenizer, vocabulary, space=words == "space")
        self.unknown = self.pieces.unknown

    def count(
        self, texts: list[str], fold: np.ndarray, where: str
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return (sum, text) sums, and how often which ids occur in which of the folds that texts are of."""
        pieces, per_text = self.pieces.encode(texts, where)
        sums = np.zeros((len(SUMS), len(texts)), np.int64)
        sums[0], sums[1] = 1, sums_of(self.pieces.length[pieces], per_text)
        sums[3] = [len(t) for t in texts]
        sums[4] = [len(t.encode("utf-8", "surrogatepass")) for t in texts]
        sums[2], sums[5] = (sums_of(n[pieces], per_text) for n in (self.pieces.n_words, self.pieces.n_single))
        # each piece once for every fold that it is in
        kinds = len(self.pieces.length)
        keys, times = np.unique(np.repeat(fold, per_text) * kinds + pieces, return_counts=True)
        ids, of = self.pieces.tokens(keys % kinds)
        if self.unknown is not None and (ids == self.unknown).any():
            every, its = self.pieces.tokens(pieces)
            sums[6] = sums_of(np.bincount(its, every == self.unknown, len(pieces)).astype(np.int64), per_text)
            lost = np.flatnonzero(sums[6])
            sums[7, lost], sums[8, lost] = self._unknown_chars([texts[k] for k in lost])
        return sums, ((keys // kinds)[of], ids, times[of])

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
    try:
        return _tally(counter, corpus, name, base, shard, shards)
    except Mixed:  # from the first text on
        counter.pieces.give_up()
        return _tally(counter, corpus, name, base, shard, shards)


def _tally(
    counter: Counter, corpus: Mapping[str, Corpus], name: str, base: str | None, shard: int, shards: int
) -> Tally:
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
        sums, found = counter.count(texts, fold, f"{name}, {lang}" if name else lang)
        for s, values in zip(out.sums[k], sums, strict=True):
            np.add.at(s, group, values)
        out.counts[k].add(*found)
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


# -- how evenly tokens are used, of plain counts ----------------------------------------------------------------------
def average_rank(counts: np.ndarray) -> float:
    """Return the mean rank of the tokens of a text, the most frequent of rank 0.

    Examples
    --------
    >>> average_rank(np.array([1, 3]))
    0.25
    """
    ordered = np.sort(np.asarray(counts, np.float64))[::-1]
    return float(ratio(ordered @ np.arange(len(ordered)), ordered.sum()))


def renyi_entropy(counts: np.ndarray, alpha: float) -> float:
    """Return the Renyi entropy of counts in nat; Shannon's for alpha = 1."""
    p = counts[counts > 0] / counts.sum()
    return float(-p @ np.log(p) if alpha == 1 else np.log((p**alpha).sum()) / (1 - alpha))


def renyi_efficiency(counts: np.ndarray, alpha: float = 2.5) -> float:
    """Return the Renyi entropy of counts over the logarithm of the number of types that occur; NaN for one type.

    Examples
    --------
    >>> round(renyi_efficiency(np.array([5, 5, 0])), 6)
    1.0
    """
    n = int((counts > 0).sum())
    return renyi_entropy(counts, alpha) / float(np.log(n)) if n > 1 else float("nan")


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two arrays of counts, in bits.

    Examples
    --------
    >>> divergence(np.array([1, 0]), np.array([0, 5])), divergence(np.array([1, 2]), np.array([2, 4]))
    (1.0, 0.0)
    """
    if not a.any() or not b.any():
        return float("nan")
    p, q = a / a.sum(), b / b.sum()
    parts = [-x[x > 0] @ np.log2(x[x > 0]) for x in ((p + q) / 2, p, q)]
    return float(max(parts[0] - (parts[1] + parts[2]) / 2, 0.0))
