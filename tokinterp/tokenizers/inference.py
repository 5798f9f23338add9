"""How a vocabulary may cut a word into tokens: the tokenizer's own way, greedily, by merges, by likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..settings import checked, mapping, none, one_of, refuse, some_strings, tokenizer
from ..text.vocabulary import Vocabulary
from .reachability import check_supported, encode

METHODS = ("own", "longest_prefix", "longest_suffix", "longest_token", "merges", "likelihood", "fewest", "order")
Pieces = list[bytes]


class Inference:
    """The ways to cut words into the tokens of one vocabulary.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow; its special tokens take no part.
    scores : mapping, optional
        Token, as in the vocabulary, -> log probability or priority; those of a Unigram tokenizer by default.
    space : bool
        Whether words are cut as they are after a space, or as at the beginning of a text.
    """

    def __init__(self, tokenizer: Any, scores: Mapping[str, float] | None = None, space: bool = True) -> None:
        self.tokenizer, self.vocabulary = tokenizer, Vocabulary(tokenizer)
        check_supported(self.vocabulary)
        self.kind, prefix = self.vocabulary.kind, self.vocabulary.prefix_space
        marked = self.kind in ("byte-level", "sentencepiece")
        self.text = " " if space and marked and not prefix else ""
        self.before = b" " if self.kind == "wordpiece" or (marked and (space or prefix)) else b""
        special = set(self.vocabulary.special_ids.tolist())
        unknown = getattr(tokenizer, "unk_token_id", None)
        ids = [i for i in np.flatnonzero(self.vocabulary.there).tolist() if i not in special and i != unknown]
        self.pieces = dict(zip(self.vocabulary.bytes(ids), ids, strict=True))
        self.pieces.pop(b"", None)
        self.longest = max(map(len, self.pieces))
        self._given = scores
        self._state: dict[str, Any] | None = None

    # -- what the tokenizer knows beside its vocabulary -------------------------------------------------------
    @property
    def state(self) -> dict[str, Any]:
        """The model of the tokenizer as it is written to tokenizer.json, {} for slow ones."""
        if self._state is None:
            inner = getattr(self.tokenizer, "backend_tokenizer", None)
            self._state = json.loads(inner.to_str())["model"] if inner is not None else {}
        return self._state or {}

    def _raw(self, token: str) -> bytes | None:
        i = self.tokenizer.convert_tokens_to_ids(token)
        return None if i is None else self.vocabulary.bytes([i])[0]

    def scores(self) -> dict[bytes, float]:
        """Return the score of each piece, the highest of those that stand for the same bytes.

        Raises
        ------
        ValueError
            If none were given and the tokenizer has none.
        """
        given = self._given
        if given is None and self.state.get("type") == "Unigram":
            given = dict(self.state["vocab"])
        if given is None:
            name = type(self.tokenizer).__name__
            refuse("scores", None, f"{name} has no scores of its tokens: give them for likelihood and order")
        out: dict[bytes, float] = {}
        for token, score in given.items():
            raw = self._raw(token)
            if raw is not None and raw in self.pieces:
                out[raw] = max(float(score), out.get(raw, -math.inf))
        return out

    def merges(self) -> dict[tuple[bytes, bytes], int]:
        """Return the rank of each merge.

        Raises
        ------
        ValueError
            If the tokenizer has no merges.
        """
        if self.state.get("type") != "BPE" or not self.state.get("merges"):
            name = type(self.tokenizer).__name__
            refuse("method", "merges", f"{name} has no list of merges: use a fast BPE tokenizer, or another method")
        out: dict[tuple[bytes, bytes], int] = {}
        for rank, pair in enumerate(self.state["merges"]):
            left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
            sides = (self._raw(left), self._raw(right))
            if sides[0] is not None and sides[1] is not None:
                out.setdefault((sides[0], sides[1]), rank)
        return out

    # -- ways -------------------------------------------------------------------------------------------------
    def way(self, method: str) -> Callable[[bytes], Pieces]:
        """Return the function that cuts the bytes of a word."""
        ways = {"longest_prefix": self._prefix, "longest_suffix": self._suffix, "fewest": self._fewest}
        if method in ways:
            return ways[method]
        if method == "longest_token":
            return lambda word: self._take_out(word, lambda start, piece: (-len(piece), start))
        if method == "merges":
            ranks = self.merges()
            return lambda word: self._merged(word, ranks)
        scores = self.scores()
        if method == "order":
            return lambda word: self._take_out(word, lambda start, piece: (-scores.get(piece, -math.inf), start))
        return lambda word: self._best(word, lambda piece: (scores.get(piece, -math.inf), 0))

    def cut(self, words: Sequence[str], method: str = "own") -> list[Pieces | None]:
        """Return the pieces of each word, a space before it included; None where they do not spell it."""
        wanted = [self.before + w.encode("utf-8", "surrogatepass") for w in words]
        if method != "own":
            way = self.way(method)
            cache = {w: way(w) for w in dict.fromkeys(wanted)}
            return [cache[w] for w in wanted]
        out: list[Pieces | None] = []
        for word, ids in zip(wanted, self._own([self.text + w for w in words]), strict=True):
            pieces = [p for p in self.vocabulary.bytes(ids) if p]
            out.append(pieces if b"".join(pieces) == word else None)
        return out

    def _own(self, words: list[str]) -> list[list[int]]:
        """Return the ids of each word, none for one that the tokenizer refuses."""
        try:
            return encode(self.tokenizer, words)
        except Exception:  # the library raises no narrower class
            return [[]] if len(words) == 1 else [self._own([w])[0] for w in words]

    def _char(self, word: bytes, start: int) -> bytes:
        """Return the whole character at a place: what stands for itself where no token does."""
        stop = start + 1
        while stop < len(word) and word[stop] & 0xC0 == 0x80:
            stop += 1
        return word[start:stop]

    def _prefix(self, word: bytes) -> Pieces:
        out, at = [], 0
        while at < len(word):
            sizes = range(min(self.longest, len(word) - at), 0, -1)
            piece = next((word[at : at + n] for n in sizes if word[at : at + n] in self.pieces), self._char(word, at))
            out.append(piece)
            at += len(piece)
        return out

    def _suffix(self, word: bytes) -> Pieces:
        out, at = [], len(word)
        while at > 0:
            starts = range(max(0, at - self.longest), at)
            start = next((k for k in starts if word[k:at] in self.pieces), None)
            if start is None:
                start = at - 1
                while start > 0 and word[start] & 0xC0 == 0x80:
                    start -= 1
            out.append(word[start:at])
            at = start
        return out[::-1]

    def _take_out(self, word: bytes, rank: Callable[[int, bytes], Any]) -> Pieces:
        """Return the pieces when the first in rank is taken out of the word, then of what is left on both sides."""
        if not word:
            return []
        found = [
            (rank(k, word[k : k + n]), k, k + n)
            for k in range(len(word))
            for n in range(1, min(self.longest, len(word) - k) + 1)
            if word[k : k + n] in self.pieces
        ]
        if not found:
            head = self._char(word, 0)
            return [head, *self._take_out(word[len(head) :], rank)]
        _, start, stop = min(found)
        return [*self._take_out(word[:start], rank), word[start:stop], *self._take_out(word[stop:], rank)]

    def _fewest(self, word: bytes) -> Pieces:
        return self._best(word, lambda piece: (-1.0, len(piece) ** 2))

    def _best(self, word: bytes, score: Callable[[bytes], tuple[float, float]]) -> Pieces:
        """Return the pieces whose scores have the largest sum; the second score decides between equals."""
        lost = (-1e6, 0.0)
        best: list[tuple[tuple[float, float], int] | None] = [((0.0, 0.0), 0)] + [None] * len(word)
        for stop in range(1, len(word) + 1):
            for start in range(max(0, stop - max(self.longest, 4)), stop):
                before, piece = best[start], word[start:stop]
                known = piece in self.pieces
                if before is None or not (known or piece == self._char(word, start)):
                    continue
                own = score(piece) if known else lost
                own = own if own[0] > lost[0] else lost
                total = (before[0][0] + own[0], before[0][1] + own[1])
                if best[stop] is None or total > best[stop][0]:  # pyright: ignore[reportOptionalSubscript]
                    best[stop] = (total, start)
        out, at = [], len(word)
        while at > 0:
            found = best[at]
            start = at - 1 if found is None else found[1]
            out.append(word[start:at])
            at = start
        return out[::-1]

    def _merged(self, word: bytes, ranks: Mapping[tuple[bytes, bytes], int]) -> Pieces:
        """Return the pieces after all merges, the first in the list first, from left to right."""
        single = self.kind in ("byte-level", "bytes")
        parts = [bytes([b]) for b in word] if single else [c.encode() for c in word.decode("utf-8", "replace")]
        while len(parts) > 1:
            pairs = [(ranks.get(pair, len(ranks) + 1), k) for k, pair in enumerate(pairwise(parts))]
            rank, _ = min(pairs)
            if rank > len(ranks):
                break
            joined, k = [], 0
            while k < len(parts):
                if k + 1 < len(parts) and ranks.get((parts[k], parts[k + 1])) == rank:
                    joined.append(parts[k] + parts[k + 1])
                    k += 2
                else:
                    joined.append(parts[k])
                    k += 1
            parts = joined
        return parts


@checked(tokenizer=tokenizer, words=some_strings, method=one_of(*METHODS), scores=mapping() | none)
def segment_words(
    tokenizer: Any,
    words: Sequence[str],
    method: str = "own",
    *,
    scores: Mapping[str, float] | None = None,
    space: bool = True,
) -> list[list[str] | None]:
    r"""Cut words into tokens of a vocabulary.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    words : sequence of str
        Without spaces.
    method : str
        - ``own``: as the tokenizer does,
        - ``longest_prefix``, ``longest_suffix``: the longest token that begins (ends) what is left,
        - ``longest_token``: the longest token anywhere, the leftmost of equals, then the same on both sides of it,
        - ``merges``: all merges of the tokenizer in their order,
        - ``likelihood``: the largest sum of scores, which are log probabilities,
        - ``fewest``: the fewest tokens, of equals those with the longest (largest sum of squared lengths),
        - ``order``: the token of the highest score anywhere first, as vocabularies of SaGe are ordered, then the same
          on both sides of it.
    scores : mapping, optional
        Token -> score, for ``likelihood`` and ``order``; those of a Unigram tokenizer by default.
    space : bool
        Whether words are cut as they are after a space (the first token then holds it), or as at the beginning of a
        text.

    Returns
    -------
    list
        The tokens of each word, as text; None where the tokenizer's own do not spell the word (unknown characters,
        letters that it changes).  A character without a token stands for itself; half a character is written as
        ``\xe2``.

    Raises
    ------
    ValueError
        If scores or merges are needed and missing, or a word has a space.

    References
    ----------
    Uzan et al. 2024, Greed is all you need, arXiv 2403.01289; Yehezkel and Pinter 2023, SaGe, arXiv 2210.07095.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ti.tokenizers.segment_words(ti.load_tokenizer(), ["unhappiness"], "longest_prefix")
    [[' un', 'ha', 'pp', 'iness']]
    """
    check_words("words", words)
    found = Inference(tokenizer, scores, space).cut(words, method)
    return [None if p is None else [x.decode("utf-8", "backslashreplace") for x in p] for p in found]


def check_words(name: str, words: Sequence[str]) -> None:
    """Raise ValueError for a word that is empty or holds white space."""
    for n, word in enumerate(words):
        if not word or any(c.isspace() for c in word):
            refuse(name, word, f"number {n} is no single word: leave it out")
