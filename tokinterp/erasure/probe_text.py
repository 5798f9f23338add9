"""What a text says about its own labels, without any model: counts, unigram and bigram answers, pairs seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..text.prompts import Prompts

OFFSETS = (-3, -2, -1, 0, 1)


def choose_offsets(offsets: Sequence[int]) -> list[int]:
    """Return sorted offsets without repetition.

    Raises
    ------
    ValueError
        If there is none.
    """
    chosen = sorted({int(o) for o in offsets})
    if not chosen:
        raise ValueError("offsets is empty: give for example (-2, -1, 0)")
    return chosen


def label_ids(prompts: Prompts, offset: int, bos: bool = False) -> np.ndarray:
    """Return (token,) int64 id of the token at t + offset for every token t of all prompts, -1 where there is none.

    Without ``bos``, special tokens are neither labels nor sources.  With it they are both, as in the code of Feucht et
    al. (2024), except that position 0 does not predict itself.

    Examples
    --------
    >>> import tokinterp as ti
    >>> label_ids(ti.Prompts.from_ids([[5, 6, 7]]), -1).tolist()
    [-1, 5, 6]
    """
    ids = prompts.token_ids.astype(np.int64)
    lengths = np.diff(prompts.starts)
    position = np.arange(len(ids)) - np.repeat(prompts.starts[:-1], lengths)
    goal = position + offset
    there = (goal >= 0) & (goal < np.repeat(lengths, lengths))
    label = np.where(there, ids[np.clip(np.arange(len(ids)) + offset, 0, len(ids) - 1)], -1)
    if bos:
        return np.where((offset == 0) & (position == 0), -1, label)
    special = prompts.vocabulary.special_ids
    return np.where(np.isin(ids, special) | np.isin(label, special), -1, label)


class TextStatistics:
    """Counts of labels and of (token, label) pairs in the text that probes were fitted on.

    Attributes
    ----------
    offsets : list of int
        Offsets.
    labels : torch.Tensor
        (class,) int64 types of the text that can be labels (all but special ones), sorted; the same for all offsets.
    counts : torch.Tensor
        (offset, class) int64.
    unigram : torch.Tensor
        (offset,) int64 the most frequent label.
    bigram : torch.Tensor
        (offset, vocab) int32 argmax_x P(x at t + offset | token t), the unigram answer where token t was never seen;
        ties go to the smaller id.
    pairs : list of torch.Tensor
        Per offset, sorted int64 ``token * d_vocab + label`` of the pairs (skip-grams) seen.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], offsets: Sequence[int], d_vocab: int) -> None:
        self.offsets, self.d_vocab = list(offsets), d_vocab
        self.labels, self.counts = tensors["labels"], tensors["counts"]
        self.unigram, self.bigram = tensors["unigram"], tensors["bigram"]
        self.pairs = [tensors[f"pairs.{o}"] for o in self.offsets]

    @classmethod
    def of(cls, prompts: Prompts, offsets: Sequence[int], d_vocab: int, bos: bool, all_types: bool) -> TextStatistics:
        """Count a text.

        Raises
        ------
        ValueError
            If no token has a label at one of the offsets.
        """
        source = prompts.token_ids.astype(np.int64)
        found = {o: label_ids(prompts, o, bos) for o in offsets}
        for o, label in found.items():
            if not (label >= 0).any():
                raise ValueError(
                    f"offsets={list(offsets)}: offset {o}: no token of these prompts has a label there (the longest "
                    f"has {max(prompts.lengths)} tokens): give longer prompts or smaller offsets"
                )
        kept = np.unique(source)
        kept = kept if bos else kept[~np.isin(kept, prompts.vocabulary.special_ids)]
        labels = np.arange(d_vocab) if all_types else kept
        counts = np.zeros((len(offsets), d_vocab), np.int64)
        bigram = np.empty((len(offsets), d_vocab), np.int32)
        tensors = {"labels": torch.from_numpy(labels)}
        for n, (o, label) in enumerate(found.items()):
            rows = label >= 0
            counts[n] = np.bincount(label[rows], minlength=d_vocab)
            keys, times = np.unique(source[rows] * d_vocab + label[rows], return_counts=True)
            first, second = keys // d_vocab, keys % d_vocab
            order = np.lexsort((second, -times, first))
            first, second = first[order], second[order]
            head = np.append(True, first[1:] != first[:-1])
            bigram[n] = counts[n].argmax()
            bigram[n, first[head]] = second[head]
            tensors[f"pairs.{o}"] = torch.from_numpy(keys)
        tensors["unigram"] = torch.from_numpy(counts.argmax(1))
        tensors["bigram"], tensors["counts"] = torch.from_numpy(bigram), torch.from_numpy(counts[:, labels].copy())
        return cls(tensors, list(found), d_vocab)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as named tensors, for a file."""
        named = {n: getattr(self, n).contiguous() for n in ("labels", "counts", "unigram", "bigram")}
        return {**named, **{f"pairs.{o}": p for o, p in zip(self.offsets, self.pairs, strict=True)}}

    def seen_pair(self, offset: int, source: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return (row,) bool: whether this token was seen with this label at the offset."""
        keys = self.pairs[self.offsets.index(offset)].to(source.device)
        wanted = source * self.d_vocab + label
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return (keys[place] == wanted) & (label >= 0)

    def class_of(self) -> torch.Tensor:
        """Return (offset, vocab) int64 the class of every type, -1 where it was never a label at the offset."""
        out = torch.full((len(self.offsets), self.d_vocab), -1, dtype=torch.int64, device="cpu")
        out[:, self.labels] = torch.where(
            self.counts > 0, torch.arange(len(self.labels), dtype=torch.int64, device="cpu"), -1
        )
        return out
