"""What a BPE tokenizer was trained on: shares of sources that explain the order of its merges."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import bound_coord, check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import checked, count, flag, mapping, none, refuse, several, tokenizer
from ..settings.describe import hash_json
from ..stats.jackknife import jackknife_interval
from .corpora import as_corpora

HAYASE = "Hayase et al. 2024, Data mixture inference, arXiv 2407.16607"
PER_MERGE, ROUNDS = 10, 200


@checked(
    tokenizer=tokenizer,
    sources=mapping(None, 2),
    n_merges=count(1) | none,
    folds=count(0, 100),
    leave_out=several(count(0), 0),
    published_bug=flag,
)
def infer_mixture(
    tokenizer: Any,
    sources: Mapping[str, Any],
    *,
    n_merges: int | None = None,
    folds: int = 5,
    level: float = 0.95,
    leave_out: Sequence[int] = (),
    published_bug: bool = False,
) -> xr.Dataset:
    """Estimate the shares of sources in the text that a BPE tokenizer was trained on, from the order of its merges.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast, with a list of merges.
    sources : mapping
        Name -> texts like those of the source, what `Corpus` takes; a megabyte or more each.
    n_merges : int, optional
        Take only the first merges.
    folds : int
        Parts of the texts, each left out in turn for the intervals; fewer than 3 for none.
    level : float
        Of the intervals.
    leave_out : sequence of int
        Ranks of merges that were added by hand, as those of spaces in Gemma: they are made, and say nothing of shares.
    published_bug : bool
        Leave out the merge of the pair that is numbered 0, as the published code does, which takes the number for a
        merge that is missing.

    Returns
    -------
    xarray.Dataset
        On ``source``: ``share`` of the pairs of tokens that text begins with, ``share_bytes``, both with intervals, and
        ``n_pairs``, ``n_bytes`` of its sample.  On ``merge``: ``slack``, by how much the merge came earlier than its
        count allows (share of the pairs), and ``n_constraints`` on it; merges that no text has are left out and counted
        (``n_absent``), as are those that were left out or make a token that another makes, too (``n_silent``): a list
        converted from SentencePiece has every way to make a token, and only the most frequent can have been learned.

    Raises
    ------
    ValueError
        If the tokenizer has no merges, a source has no pairs, or no merge occurs in the texts.

    Notes
    -----
    Each merge is of the pair that was then the most frequent: sum_i share_i (c_i(merge) - c_i(other)) + v_merge +
    v_other >= 0 for every other pair, counts c after the merges before it over the number of pairs of the source at
    first; the sum of all slacks v is made least.  Constraints are added where they are violated until none is (HiGHS).
    Intervals are jackknife intervals over folds; they do not know of differences between sample and source.

    References
    ----------
    Hayase et al. 2024, arXiv 2407.16607; github.com/alisawuffles/tokenizer-attack.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("story")[:8]]
    >>> capitals = [t.upper() for t in texts]
    >>> ds = ti.tokenizers.infer_mixture(ti.load_tokenizer(), {"usual": texts, "CAPITALS": capitals}, n_merges=50)
    >>> ds["source"].values[ds["share"].values.argmax()]
    'usual'
    """
    merges, words = _read(tokenizer, n_merges)
    corpora = as_corpora(sources)["texts"]
    parts = max(folds, 1)
    table, n_bytes, digest = _word_counts(corpora, words, parts)
    if far := [k for k in leave_out if k >= len(merges)]:
        refuse("leave_out", far[0], f"there are {len(merges)} merges, 0 first")
    steps = replay(table, merges, leave_out)
    if published_bug:
        steps = without_pair_zero(steps)
    pairs = steps.first.sum(0)
    if empty := [name for name, n in zip(corpora, pairs.reshape(len(corpora), parts).sum(1), strict=True) if not n]:
        refuse("sources", empty[0], "its texts have no pair of letters in a word: give text")
    if not steps.steps:
        refuse("n_merges", n_merges, "none of the merges occurs in the texts: give more merges, or other texts")

    def solved(left: Sequence[int]) -> Solution:
        mixing = np.zeros((len(corpora) * parts, len(corpora)))
        for i in range(len(corpora)):
            columns = [i * parts + f for f in left]
            mixing[columns, i] = 1 / max(pairs[columns].sum(), 1)
        return solve(steps, mixing * pairs.sum() / len(corpora))

    whole = solved(range(parts))
    per_pair = n_bytes / np.maximum(pairs.reshape(len(corpora), parts).sum(1), 1)
    values = np.stack([whole.share, _bytes(whole.share, per_pair)])
    interval = np.full((2, *values.shape), np.nan)
    if folds >= 3:
        alone = [solved([f for f in range(parts) if f != k]).share for k in range(parts)]
        each = np.array([np.stack([s, _bytes(s, per_pair)]) for s in alone])
        interval = jackknife_interval(values, each, 1, parts, level)
    said = f"{level:.0%} jackknife interval over {folds} folds of the texts"
    unit = pairs.sum() / len(corpora)
    ds = xr.Dataset(
        {
            "share": variable("source", values[0], "share of the pairs", "1", HAYASE),
            "share_interval": variable(("source", "bound"), interval[:, 0].T, said, "1"),
            "share_bytes": variable("source", values[1], "share of the bytes", "1", HAYASE),
            "share_bytes_interval": variable(("source", "bound"), interval[:, 1].T, said, "1"),
            "n_pairs": variable("source", pairs.reshape(len(corpora), parts).sum(1), "pairs in the sample", "1"),
            "n_bytes": variable("source", n_bytes, "bytes in the sample", "byte"),
            "slack": variable("merge", whole.slack / unit, "share of pairs it came too early by", "1", HAYASE),
            "n_constraints": variable("merge", whole.constraints, "constraints on the merge", "1"),
            "n_absent": variable((), steps.n_absent, "merges that no text has", "1"),
            "n_silent": variable((), steps.n_silent, "merges left out, or of a token that another makes, too", "1"),
        },
        {
            "source": variable("source", np.array(list(corpora)), "source of text", "1"),
            "merge": variable("merge", [s[3] for s in steps.steps], "rank of the merge, 0 first", "1"),
            "bound": bound_coord(),
        },
        {"dimensions": "source, merge", "objective": float(whole.objective / unit)},
    )
    settings = {"n_merges": n_merges, "folds": folds, "level": level, "published_bug": published_bug}
    settings["leave_out"] = [*leave_out]
    ds = stamped_tokenizers(ds, "infer_mixture", [tokenizer], settings, digest)
    check(ds)
    return ds


def _bytes(share: np.ndarray, per_pair: np.ndarray) -> np.ndarray:
    return share * per_pair / (share @ per_pair)


def _read(tokenizer: Any, most: int | None) -> tuple[list[tuple[str, str]], Any]:
    """Return the merges, and a function that divides text into words in which they take place."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if inner is None else json.loads(inner.to_str())["model"]
    if inner is None or state.get("type") != "BPE" or not state.get("merges"):
        refuse("tokenizer", type(tokenizer).__name__, "it has no list of merges: a fast BPE tokenizer is needed")
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in state["merges"][:most]]
    merges = [(left, right) for left, right in pairs]

    def words(text: str) -> list[str]:
        text = text if inner.normalizer is None else inner.normalizer.normalize_str(text)
        if inner.pre_tokenizer is None:
            return re.findall(r"▁*[^▁]+|▁+", text)
        return [w for w, _ in inner.pre_tokenizer.pre_tokenize_str(text)]

    return merges, words


def _word_counts(corpora: Mapping[str, Any], words: Any, parts: int) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """Return word -> (source and fold,) counts, the bytes of each source, and a hash of the counts."""
    found = [Counter() for _ in range(len(corpora) * parts)]
    n_bytes = np.zeros(len(corpora), np.int64)
    for i, corpus in enumerate(corpora.values()):
        for n, text in enumerate(corpus):
            n_bytes[i] += len(text.encode())
            found[i * parts + n % parts].update(words(text))
    table: dict[str, np.ndarray] = {}
    for column, counter in enumerate(found):
        for word, n in counter.items():
            if len(word) > 1:
                table.setdefault(word, np.zeros(len(found), np.int64))[column] = n
    return table, n_bytes, hash_json({w: table[w].tolist() for w in sorted(table)})


@dataclass
class Steps:
    """Counts of pairs before each merge, as what changes from merge to merge.

    Attributes
    ----------
    first : numpy.ndarray
        (pair, column) counts before the first merge, rows for all pairs that ever occur.
    steps : list of (pair, changed pairs, their new counts, rank)
        Of each merge that occurs: its pair, and what was changed since the one before it in the list.
    n_absent, n_silent : int
        Merges that do not occur, and that are made without being asked about.
    """

    first: np.ndarray
    steps: list[tuple[int, np.ndarray, np.ndarray, int]]
    n_absent: int
    n_silent: int = 0


def replay(
    table: Mapping[str, np.ndarray], merges: Sequence[tuple[str, str]], leave_out: Collection[int] = ()
) -> Steps:
    """Apply merges to counted words, and write down the counts of pairs before each that may have been learned.

    Of merges that make the same token the one most frequent at the first of them is asked about.

    Examples
    --------
    >>> steps = replay({"aab": np.array([2]), "ab": np.array([1])}, [("a", "b")])
    >>> steps.first.ravel().tolist(), steps.steps[0][0]
    ([2, 3, 0], 1)
    """
    words, counts = [list(w) for w in table], list(table.values())
    number: dict[tuple[str, str], int] = {}
    now: list[np.ndarray] = []
    where: list[set[int]] = []

    def add(pair: tuple[str, str], n: np.ndarray, w: int) -> int:
        k = number.setdefault(pair, len(number))
        if k == len(now):
            now.append(np.zeros_like(n))
            where.append(set())
        now[k] = now[k] + n
        where[k].add(w)
        return k

    for w, symbols in enumerate(words):
        for pair in pairwise(symbols):
            add(pair, counts[w], w)
    first = [n.copy() for n in now]
    same: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        same.setdefault(left + right, []).append(rank)
    silent, steps, changed, absent = {*leave_out}, [], set(), 0
    for rank, (left, right) in enumerate(merges):
        if (alike := same[left + right])[0] == rank and len(alike) > 1:
            often = [0 if (k := number.get(merges[r])) is None else int(now[k].sum()) for r in alike]
            silent |= {*alike} - {alike[int(np.argmax(often))]}
        k = number.get((left, right))
        if k is None or not now[k].any():
            absent += 1
            continue
        if rank not in silent:
            which = np.array(sorted(changed), np.int64)
            steps.append((k, which, np.array([now[c] for c in which]), rank))
            changed = set()
        for w in sorted(where[k]):
            old = words[w]
            new, at = [], 0
            while at < len(old):
                if at + 1 < len(old) and old[at] == left and old[at + 1] == right:
                    new.append(left + right)
                    at += 2
                else:
                    new.append(old[at])
                    at += 1
            if len(new) == len(old):
                continue
            for pair in pairwise(old):
                gone = number[pair]
                now[gone] = now[gone] - counts[w]
                changed.add(gone)
            for pair in pairwise(new):
                changed.add(add(pair, counts[w], w))
            words[w] = new
    start = np.zeros((len(now), len(first[0]) if first else 0), np.int64)
    start[: len(first)] = first
    return Steps(start, steps, absent, len(silent))


def without_pair_zero(steps: Steps) -> Steps:
    """Return the steps without the merge of pair 0; what was changed before it is changed before the next one."""
    out: list[tuple[int, np.ndarray, np.ndarray, int]] = []
    waiting: dict[int, np.ndarray] = {}
    for pair, which, new, rank in steps.steps:
        waiting.update(zip(which.tolist(), new, strict=True))
        if pair == 0:
            continue
        at = sorted(waiting)
        out.append((pair, np.array(at, np.int64), np.array([waiting[k] for k in at]), rank))
        waiting = {}
    return Steps(steps.first, out, steps.n_absent, steps.n_silent)


@dataclass
class Solution:
    """Shares, slack of each merge, constraints on each merge, and the sum of all slacks."""

    share: np.ndarray
    slack: np.ndarray
    constraints: np.ndarray
    objective: float


def solve(steps: Steps, mixing: np.ndarray) -> Solution:
    """Return the shares with the least slack.

    Parameters
    ----------
    steps : Steps
        Counts.
    mixing : numpy.ndarray
        (column, source) weights that make normalised counts of sources out of the columns.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    n, k = len(steps.steps), mixing.shape[1]
    rows: dict[tuple[int, int], np.ndarray] = {}
    share, slack, of_pair = np.full(k, 1 / k), np.zeros(n), np.zeros(len(steps.first))
    objective = 0.0
    for _ in range(ROUNDS):
        before = len(rows)
        for t, other, difference in _violated(steps, mixing, share, slack, of_pair):
            rows.setdefault((t, other), difference)
        if len(rows) == before:
            break
        keys = np.array(list(rows))
        others, place = np.unique(keys[:, 1], return_inverse=True)
        m = len(rows)
        body = np.stack(list(rows.values()))
        at = np.arange(m)
        data = np.concatenate([-body.ravel(), -np.ones(m), -np.ones(m)])
        row = np.concatenate([np.repeat(at, k), at, at])
        column = np.concatenate([np.tile(np.arange(k), m), k + keys[:, 0], k + n + place])
        wide = k + n + len(others)
        cost = np.concatenate([np.zeros(k), np.ones(wide - k)])
        equal = np.concatenate([np.ones(k), np.zeros(wide - k)])[None]
        found = linprog(
            cost, coo_array((data, (row, column)), (m, wide)).tocsr(), np.zeros(m), equal, [1.0], method="highs"
        )
        if found.status != 0:
            raise RuntimeError(f"the linear program was not solved: {found.message}")
        share, slack, objective = found.x[:k], found.x[k : k + n], float(found.fun)
        of_pair = np.zeros(len(steps.first))
        of_pair[others] = found.x[k + n :]
    constraints = np.bincount([t for t, _ in rows], minlength=n)
    return Solution(np.maximum(share, 0) / np.maximum(share, 0).sum(), slack, constraints, objective)


def _violated(
    steps: Steps, mixing: np.ndarray, share: np.ndarray, slack: np.ndarray, of_pair: np.ndarray
) -> list[tuple[int, int, np.ndarray]]:
    """Return merge, pair and difference of counts of the most violated constraints of each merge."""
    counts = steps.first @ mixing
    mixed = counts @ share
    out = []
    for t, (pair, which, new, _) in enumerate(steps.steps):
        if len(which):
            counts[which] = new @ mixing
            mixed[which] = counts[which] @ share
        over = mixed - of_pair - (mixed[pair] + slack[t])
        over[pair] = -np.inf
        worst = np.flatnonzero(over > 1e-6 * max(1.0, mixed[pair]))
        if len(worst) > PER_MERGE:
            worst = worst[np.argpartition(over[worst], -PER_MERGE)[-PER_MERGE:]]
        out += [(t, int(p), counts[pair] - counts[p]) for p in worst]
    return out
