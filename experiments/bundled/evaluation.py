"""Bits per byte of the bundled model beside a unigram, a 5-gram and stories260K, on the same bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.bundled.data import data_folder, test_documents
from tokinterp.files.whole import write_text

BITS = 12  # of one token id: five tokens are one uint64 key while the vocabulary is at most 4096


def text_sets(folder: Path, package_texts: Path, limit: int = 1_000_000) -> dict[str, list[str]]:
    """The texts that are scored, cut after the document that passes ``limit`` bytes (``wikipedia_test_500`` is whole).

    Held-out articles are as cleaned for training; the other sets are scored exactly as they are distributed.
    """
    sets = {"held-out articles": [json.loads(x)["text"] for x in (folder / "val.jsonl").read_text().splitlines()]}
    for name in ("wikipedia_test_500", "wikitext103_1000"):
        sets[name] = [d["text"] for d in test_documents(name)]
    if package_texts.exists():
        sets["bundled texts"] = [json.loads(x)["text"] for x in package_texts.read_text().splitlines()]
    for name, texts in sets.items():
        if name == "wikipedia_test_500":
            continue  # whole
        ends = np.cumsum([len(t.encode()) for t in texts])
        sets[name] = texts[: int(np.searchsorted(ends, limit)) + 1]
    return sets


@torch.no_grad()
def token_nats(model: Any, ids: list[int], context: int, bos: int) -> np.ndarray:
    """Negative log-likelihood of every token of one document, each scored once.

    Windows are BOS and ``context - 1`` tokens; the next window begins half a context later and only its second half
    counts, so a token has at least half a context before it (or the whole document so far).
    """
    out = np.empty(len(ids))
    half, start, scored = context // 2, 0, 0
    while scored < len(ids):
        stop = min(start + context, len(ids))
        x = torch.tensor([[bos, *ids[start : stop - 1]]], device=model.device, dtype=torch.int64)
        logp = model(input_ids=x).logits[0].float().log_softmax(-1)
        nats = -logp.gather(1, torch.tensor(ids[start:stop], device=x.device, dtype=torch.int64)[:, None])[:, 0]
        out[scored:stop] = nats[scored - start :].cpu().numpy()
        scored, start = stop, stop - half
    return out


def model_bits(model: Any, tokenizer: Any, texts: list[str], context: int) -> dict:
    """Bits per byte: all nats / ln 2 / UTF-8 bytes of the texts."""
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    nats = tokens = 0.0
    for e in encode(texts, add_special_tokens=False):
        nats += token_nats(model, e.ids, context, tokenizer.bos_token_id).sum()
        tokens += len(e.ids)
    size = sum(len(t.encode()) for t in texts)
    return {"bits_per_byte": nats / math.log(2) / size, "nats_per_token": nats / tokens, "tokens": int(tokens)}


class KneserNey:
    """Interpolated Kneser-Ney over token ids; one discount per order; uniform below the unigrams."""

    def __init__(self, stream: np.ndarray, vocab: int, order: int = 5) -> None:
        self.vocab, self.order, self.tables = vocab, order, []
        keys = np.zeros(len(stream) - order + 1, np.uint64)
        for i in range(order):
            keys = (keys << np.uint64(BITS)) | stream[i : len(stream) - order + 1 + i].astype(np.uint64)
        grams, counts = np.unique(keys, return_counts=True)
        del keys
        for n in range(order, 0, -1):
            ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
            discount = ones / (ones + 2 * twos) if ones else 0.5
            histories, first, types = np.unique(grams >> np.uint64(BITS), return_index=True, return_counts=True)
            totals = np.add.reduceat(counts, first)
            self.tables.append((grams, counts.astype(np.int32), histories, totals, types.astype(np.int32), discount))
            if n > 1:  # continuation counts: in how many types does the shorter gram end
                grams, counts = np.unique(grams & np.uint64((1 << BITS * (n - 1)) - 1), return_counts=True)

    def nats(self, ids: np.ndarray, prefix: tuple[int, ...]) -> np.ndarray:
        """Negative log-likelihood of every token after ``prefix`` (order - 1 ids)."""
        all_ids = np.concatenate([prefix, ids]).astype(np.uint64)
        p = np.full(len(ids), 1 / self.vocab)
        for n, (grams, counts, histories, totals, types, discount) in zip(
            range(1, self.order + 1), reversed(self.tables), strict=True
        ):
            key = np.zeros(len(ids), np.uint64)
            for i in range(self.order - n, self.order):
                key = (key << np.uint64(BITS)) | all_ids[i : i + len(ids)]
            at = np.minimum(np.searchsorted(grams, key), len(grams) - 1)
            count = np.where(grams[at] == key, counts[at], 0)
            history = key >> np.uint64(BITS)
            at = np.minimum(np.searchsorted(histories, history), len(histories) - 1)
            known = histories[at] == history
            here = (np.maximum(count - discount, 0) + discount * types[at] * p) / totals[at]
            p = np.where(known, here, p)
        return -np.log(p)


def baselines(folder: Path, tokenizer: Any, sets: dict[str, list[str]], part_tokens: int) -> dict:
    """Unigram (add one) and 5-gram, both counted on the first ``part_tokens`` tokens of the training stream."""
    stream = np.concatenate([np.load(p) for p in sorted(folder.glob("train_*.npy"))])[:part_tokens]
    vocab = len(tokenizer)
    unigram = -np.log((np.bincount(stream, minlength=vocab) + 1) / (len(stream) + vocab))
    kneser_ney = KneserNey(stream, vocab) if vocab <= 1 << BITS else None
    out: dict[str, dict] = {}
    for name, texts in sets.items():
        ids = [np.array(e.ids) for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        size = sum(len(t.encode()) for t in texts) * math.log(2)
        out[name] = {"unigram": float(sum(unigram[x].sum() for x in ids) / size)}
        if kneser_ney is not None:
            out[name]["5-gram"] = float(sum(kneser_ney.nats(x, (2, 2, 1, 0)).sum() for x in ids if len(x)) / size)
    return out


def evaluate(
    folder: Path, model_folder: Path, package_texts: Path, only: str | None = None, part_tokens: int = 28_000_000
) -> dict:
    """All of it, or only ``"model"``, ``"stories260K"`` or ``"ngrams"``; merged into ``folder/evaluation.json``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sets = text_sets(folder, package_texts)
    new: dict[str, dict] = {
        name: {"documents": len(texts), "bytes": sum(len(x.encode()) for x in texts)} for name, texts in sets.items()
    }
    for label, source in (("model", model_folder), ("stories260K", data_folder() / "models" / "stories260K")):
        if only in (None, label):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
            tokenizer = AutoTokenizer.from_pretrained(source)
            for name, texts in sets.items():
                new[name][label] = model_bits(model, tokenizer, texts, model.config.max_position_embeddings)
    if only in (None, "ngrams"):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        for name, row in baselines(folder, tokenizer, sets, part_tokens).items():
            new[name] |= row
    path = folder / "evaluation.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results |= {name: results.get(name, {}) | row for name, row in new.items()}
    if only in (None, "ngrams"):
        results["ngram_training_tokens"] = part_tokens
    write_text(path, json.dumps(results, indent=1))
    return results
