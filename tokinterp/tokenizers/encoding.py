"""Token ids of many texts, where what stands between two spaces is encoded once."""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import Any

import numpy as np

from ..settings import short
from ..text.vocabulary import Vocabulary
from .reachability import encode

CACHE, CACHE_CHARS, CHECKED, TOGETHER = 1 << 19, 1 << 25, 10_000, 64
_UNSAFE = r"\s\x00-\x1f\u00ad\u0300-\u036f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
_BORDER = re.compile(f"(?<=[^{_UNSAFE}]) (?=[^{_UNSAFE}])")
_ACROSS = re.compile(f"[^{_UNSAFE}] ")
PROBES = (
    "The Nile's 12,345 boats (c. 1999) aren't old: a_b = [c]; x+y != z.\n  So 'they' say...\tOK",
    " starts with a space and  has runs   of them \n\n and ends so ",
    "Größe über alles, déjà vu, «quoted» – dash… 50 % of 3.5 km² is ½",
    "Вот слово и ещё одно 12 раз, 水は 青い 。 그 물은 푸르다 यह पानी नीला है هذا الماء أزرق 😀 👩‍👩‍👧 ok",
    "def f(x, *args): return {'a': x[0] ** 2, \"b\": None} # \\n https://example.org/a?b=c&d=%20 e@f.gh",
)


class Numbers(dict[str, int]):
    """The number of each string, in order of first appearance."""

    def __missing__(self, key: str) -> int:
        self[key] = n = len(self)
        return n


class Mixed(Exception):  # noqa: N818
    """The tokens of a text are not those of what stands between its spaces."""


class Pieces:
    """Encodes texts piece by piece, if the tokens of a text are those of its pieces, as is shown by value.

    A piece ends before a single space between two characters that are no white space.  Where an entry of the vocabulary
    reaches over such a border, or texts with many scripts and signs are cut otherwise, ``lead`` is None: texts then are
    encoded whole.  Of every batch some texts are encoded whole as well and compared.  ``numbers`` holds what stands
    after a space, without it; the beginnings of texts with a space before them, which nothing else has.

    Parameters
    ----------
    name : str
        Of the tokenizer, for messages.
    tokenizer, vocabulary
        The tokenizer.
    space : bool
        Whether words are divided by single spaces, not by white space.
    """

    def __init__(self, name: str, tokenizer: Any, vocabulary: Vocabulary, space: bool = False) -> None:
        self.name, self.tokenizer, self.divider = name, tokenizer, " " if space else None
        self.divides = re.compile(" " if space else r"\s").search
        unknown = getattr(tokenizer, "unk_token_id", None)
        self.unknown = None if unknown is None or unknown in vocabulary.special_ids else int(unknown)
        self.before = "" if vocabulary.prefix_space or vocabulary.kind == "wordpiece" else " "
        self.lead: str | None = None
        entries = vocabulary.bytes(np.arange(vocabulary.size))
        self.opens = np.array([piece.startswith(b" ") for piece in entries])
        if not any(_ACROSS.search(piece.decode("utf-8", "replace")) for piece in entries):
            self.lead = next((lead for lead in (" ", "") if self._agrees(lead)), None)
        self.shown = self.lead is not None and vocabulary.kind in ("byte-level", "sentencepiece")
        self.clear()

    def _agrees(self, lead: str) -> bool:
        try:
            whole = self.whole(list(PROBES))
            parts = [self.whole([p if n == 0 else lead + p for n, p in enumerate(_BORDER.split(t))]) for t in PROBES]
        except Exception:  # the library raises no narrower class: a probe that it cannot encode
            return False
        return whole == [list(chain.from_iterable(p)) for p in parts]

    def give_up(self) -> None:
        """Encode texts whole from now on."""
        self.lead, self.shown = None, False
        self.clear()

    def clear(self) -> None:
        """Forget the pieces seen."""
        self.numbers, self.chars = Numbers(), 0
        self.length = self.start = self.ids = self.n_words = self.n_single = np.zeros(0, np.int64)

    def whole(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, encoded as it is."""
        if not texts or not getattr(self.tokenizer, "is_fast", False):
            return encode(self.tokenizer, texts)
        encode(self.tokenizer, ["a"])  # leaves the tokenizer without truncation and padding
        return [e.ids for e in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode(self, texts: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the pieces of all texts, and (text,) how many each text has.

        Raises
        ------
        ValueError
            If a text cannot be encoded; names it.
        Mixed
            If the pieces of a text have other tokens than the text.
        """
        if len(self.numbers) > CACHE or self.chars > CACHE_CHARS:
            self.clear()
        if self.lead is None:
            split = [[" " + t] for t in texts]
        else:
            split = [_BORDER.split(t) for t in texts]
            for parts in split:
                parts[0] = " " + parts[0]  # no other piece begins with a space
        n = np.fromiter(map(len, split), np.int64, len(split))
        known = len(self.numbers)
        pieces = np.fromiter(map(self.numbers.__getitem__, chain.from_iterable(split)), np.int64, int(n.sum()))
        try:
            self._learn(known)
            if self.lead is not None:
                self._check(texts, pieces, n)
        except Mixed:
            raise
        except Exception as error:  # the library raises no narrower class
            self.clear()
            self._refuse(texts, where, error)
        return pieces, n

    def _learn(self, known: int) -> None:
        """Encode the pieces from number ``known`` on, and find their words."""
        new = self._take(known)
        inner = [k for k, piece in enumerate(new) if self.divides(piece)]
        of = [[self.numbers[w] for w in new[k].removeprefix(" ").split(self.divider)] for k in inner]
        self._take(known + len(new))
        single = self.length == 1
        if self.unknown is not None:
            single[single] = self.ids[self.start[single]] != self.unknown
        self.n_words = np.concatenate([self.n_words, np.ones(len(self.length) - known, np.int64)])
        self.n_single = np.concatenate([self.n_single, single[known:]])
        place = known + np.array(inner, np.int64)
        self.n_words[place] = [len(numbers) for numbers in of]
        self.n_single[place] = [int(single[numbers].sum()) for numbers in of]

    def _take(self, first: int) -> list[str]:
        """Encode the pieces from number ``first`` on, many together where their spaces show them; return them."""
        new = list(islice(self.numbers, first, None))
        lead = self.before if self.lead is None else self.lead
        start, length = np.zeros((2, len(new)), np.int64)
        parts, at, left = [self.ids], len(self.ids), np.ones(len(new), bool)
        plain = np.array([k for k, p in enumerate(new) if self.shown and p and " " not in p], np.int64)
        groups = [plain[a : a + TOGETHER] for a in range(0, len(plain), TOGETHER)]
        joined = self.whole([lead + " ".join([new[k] for k in group]) for group in groups])
        for group, found in zip(groups, joined, strict=True):
            ids = np.array(found, np.int64)
            begins = np.flatnonzero(self.opens[ids])
            known = self.unknown is None or self.unknown not in found
            if known and len(begins) == len(group) and begins[0] == 0:
                start[group], length[group], left[group] = at + begins, np.diff(begins, append=len(ids)), False
                parts.append(ids)
                at += len(ids)
        alone = np.flatnonzero(left)
        others = [new[k] for k in alone]
        each = self.whole([p[1:] if p.startswith(" ") else lead + p for p in others])
        length[alone] = n = np.fromiter(map(len, each), np.int64, len(each))
        start[alone] = at + n.cumsum() - n
        self.ids = np.concatenate([*parts, np.fromiter(chain.from_iterable(each), np.int64, int(n.sum()))])
        self.start, self.length = np.concatenate([self.start, start]), np.concatenate([self.length, length])
        self.chars += sum(map(len, new))
        return new

    def _check(self, texts: list[str], pieces: np.ndarray, n: np.ndarray) -> None:
        """Compare some texts of a batch, of so many characters, with what they are encoded as whole."""
        order = np.random.default_rng(len(texts)).permutation(len(texts))
        sizes = np.array([len(texts[k]) for k in order]).cumsum()
        chosen = order[: 1 + int((sizes < CHECKED).sum())]
        ends = n.cumsum()
        for k, ids in zip(chosen, self.whole([texts[k] for k in chosen]), strict=True):
            if self.tokens(pieces[ends[k] - n[k] : ends[k]])[0].tolist() != ids:
                raise Mixed(f"{self.name}: {short(texts[k], 40)}")

    def tokens(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of pieces, and the place among these of the piece that each id is of."""
        n = self.length[pieces]
        of = np.repeat(np.arange(len(pieces)), n)
        return self.ids[(self.start[pieces] - n.cumsum() + n)[of] + np.arange(len(of))], of

    def _refuse(self, texts: list[str], where: str, error: Exception) -> None:
        for n, text in enumerate(texts):
            try:
                encode(self.tokenizer, [text])
            except Exception as one:
                said = " ".join(str(one).split())[:120]
                told = f"text {n} of a batch, {short(text, 40)}, cannot be encoded by {self.name!r} ({said})"
                raise ValueError(f"corpora, {where}: {told}: leave it out") from None
        raise ValueError(f"corpora, {where}: {self.name!r} cannot encode a batch of its texts: {error}") from None


def sums_of(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the sum of every next n[k] values.

    Examples
    --------
    >>> sums_of(np.array([1, 2, 3]), np.array([2, 0, 1])).tolist()
    [3, 0, 3]
    """
    total = np.concatenate([[0], np.cumsum(values)])
    ends = n.cumsum()
    return total[ends] - total[ends - n]
