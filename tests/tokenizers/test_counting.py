"""Counts are the same in any batches and shares, and take no more memory with more texts."""

import random
import tracemalloc

import numpy as np
from tiny import byte_tokenizer

import tokinterp as ti
from tokinterp.tokenizers import counting, encoding, tokenizer_metrics

STORIES = [t.text for t in ti.bundled_texts("story")[:8]]
TWO = {"en": [t[:200] for t in STORIES], "de": [t[90:200] for t in STORIES]}


def test_same_numbers_in_any_batches_and_shares(monkeypatch):
    whole = tokenizer_metrics({"bytes": byte_tokenizer()}, TWO, base_lang="en")
    monkeypatch.setattr(counting, "BATCH_TEXTS", 6)
    monkeypatch.setattr(counting, "BUFFER", 5)
    monkeypatch.setattr(encoding, "CACHE", 3)
    small = tokenizer_metrics({"bytes": byte_tokenizer()}, TWO, base_lang="en")
    assert small.attrs["fingerprint"] == whole.attrs["fingerprint"]
    counter = counting.Counter("bytes", byte_tokenizer(), "whitespace")
    corpora = {k: ti.tokenizers.Corpus(v) for k, v in TWO.items()}
    parts = [counting.tally(counter, corpora, "", "en", s, 3) for s in range(3)]
    for part in parts[1:]:
        parts[0].merge(part)
    alone = counting.tally(counter, corpora, "", "en")
    assert np.array_equal(parts[0].sums, alone.sums)
    assert np.allclose(parts[0].parity, alone.parity)
    assert [c.table()[1].tolist() for c in parts[0].counts] == [c.table()[1].tolist() for c in alone.counts]
    assert parts[0].hashes == alone.hashes


def test_memory_does_not_grow_with_the_texts(monkeypatch):
    monkeypatch.setattr(counting, "BUFFER", 1000)
    counts, most = counting.Counts(50), 0
    for _ in range(40):
        counts.add(np.zeros(400, np.int64), np.arange(400) % 50, np.ones(400, np.int64))
        most = max(most, sum(len(keys) for keys, _ in counts._waiting))
    assert most <= 1000
    assert len(counts.settle().keys) == 50
    assert counts.table()[1][0].tolist() == [320] * 50


class Drawn:
    """Texts that are drawn when they are read, as many as are asked for; most of their words never come again."""

    column_names = ("text",)

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        draw = random.Random(0)
        for _ in range(self.n):
            words = ("".join(draw.choice("abcdefghij") for _ in range(9)) for _ in range(40))
            yield {"text": " ".join(words)}


def test_memory_is_that_of_a_batch_however_large_the_corpus(monkeypatch):
    """Of 24 batches no more is held at once than of 6: neither texts, nor their tokens, nor the words seen."""
    for module, name, value in ((counting, "BATCH_CHARS", 8000), (counting, "BUFFER", 4000), (encoding, "CACHE", 1500)):
        monkeypatch.setattr(module, name, value)
    most = []
    for n in (8, 60, 240):  # the first warms up
        counter = counting.Counter("bytes", byte_tokenizer(), "whitespace")
        corpora = {lang: ti.tokenizers.Corpus(Drawn(n)) for lang in ("en", "de")}
        tracemalloc.start()
        found = counting.tally(counter, corpora, "", "en")
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.sums[:, 2].sum() == 2 * 40 * n
    assert most[2] < 1.25 * most[1]
