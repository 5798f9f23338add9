"""Tokens as the bytes they stand for: which sequences of them are encodings of a text, and where words part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..settings import refuse
from ..text.vocabulary import Vocabulary
from .reachability import check_supported, encode

Encode = Callable[[list[bytes]], list[tuple[int, ...] | None]]
LONGEST = 256  # bytes of a token that are looked at: beyond are runs of spaces and rulers
FOLLOWING = (b"a", b"1", b"!")  # white space may be cut otherwise before each of these than at the end of a text


class ByteTokens:
    """The tokens of a vocabulary by their bytes, and the encodings that its tokenizer gives.

    Parameters
    ----------
    pieces : sequence of bytes
        What each id stands for; nothing for special and unknown tokens, which are no part of a text.
    encode : callable
        Returns the ids of byte strings that are whole characters, None where these do not spell them.
    spaced : bool
        Whether the tokenizer puts a space before a text, so that only what begins with one can stand alone.
    ends : sequence of int, optional
        Special ids, after which there is no text; by default all that stand for nothing.

    Attributes
    ----------
    table : numpy.ndarray
        (vocab, longest + 1) int16 bytes of each token, -1 beyond its end.
    """

    def __init__(
        self, pieces: Sequence[bytes], encode: Encode, spaced: bool = False, ends: Sequence[int] | None = None
    ) -> None:
        self.pieces, self.encode, self.spaced = list(pieces), encode, spaced
        self.size = np.array([len(p) if len(p) <= LONGEST else 0 for p in pieces], dtype=np.int64)
        self.longest = int(self.size.max(initial=0))
        self.ends = np.array([i for i, p in enumerate(pieces) if not p] if ends is None else [*ends], dtype=np.int64)
        if not self.longest:
            refuse("tokenizer", type(self).__name__, "none of its tokens stands for text")
        self.table = np.full((len(pieces), self.longest + 1), -1, dtype=np.int16)
        self.ids: dict[bytes, list[int]] = {}
        self.pairs = np.zeros((256, 256), dtype=bool)
        for i, (piece, n) in enumerate(zip(self.pieces, self.size.tolist(), strict=True)):
            if n:
                self.table[i, :n] = np.frombuffer(piece, np.uint8)
                self.ids.setdefault(piece, []).append(i)
                self.pairs[self.table[i, : n - 1], self.table[i, 1:n]] = True
        self._known: dict[tuple[tuple[int, ...], int], bool] = {}

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> ByteTokens:
        """Return the tokens of a Hugging Face tokenizer, with as many ids as the model has."""
        vocabulary = Vocabulary(tokenizer, max(size, len(tokenizer)))
        check_supported(vocabulary)
        if vocabulary.kind == "wordpiece":
            refuse("tokenizer", type(tokenizer).__name__, "WordPiece marks no spaces, so its tokens spell no text")
        every = np.arange(size)
        absent = ~vocabulary.there[:size] | np.isin(every, vocabulary.special_ids)
        unknown = getattr(tokenizer, "unk_token_id", None)
        absent |= every == (-1 if unknown is None else unknown)
        pieces = [b"" if no else p for p, no in zip(vocabulary.bytes(every), absent.tolist(), strict=True)]
        spaced = vocabulary.prefix_space
        many, lone = _batches(tokenizer), None
        for ids in many([*"\n\t~1"]) if spaced else ():  # the space before a text is never encoded alone
            lone = (ids[0],) if ids and ids[0] < size and pieces[ids[0]] == b" " else lone

        def encoded(data: list[bytes]) -> list[tuple[int, ...] | None]:
            """With the space that the tokenizer writes before a text, or without where it writes none."""
            out: list[tuple[int, ...] | None] = [None] * len(data)
            for cut in (1, 0) if spaced else (0,):
                left = [n for n, d in enumerate(data) if out[n] is None and (d.startswith(b" ") or not cut)]
                for n, found in zip(left, many([data[n][cut:].decode() for n in left]), strict=True):
                    if all(i < size for i in found) and b"".join(pieces[i] for i in found) == data[n]:
                        out[n] = tuple(found)
            return [lone if o is None and d == b" " else o for o, d in zip(out, data, strict=True)]

        special = vocabulary.special_ids
        return cls(pieces, encoded, spaced, special[(special < size) & vocabulary.there[special]].tolist())

    def spelled(self, text: str) -> bytes:
        """Return the bytes that the tokens of a text stand for: a space first where the tokenizer adds one.

        Raises
        ------
        ValueError
            If they are not those of the text.
        """
        data = text.encode()
        for own in (b" " + data, data) if self.spaced and data else (data,):
            if not own or self.encode([own])[0] is not None:
                return own
        refuse("text", text, "its tokens do not spell it (unknown or rewritten characters, a special token in it)")

    def valid(self, asked: Sequence[tuple[tuple[int, ...], int]]) -> np.ndarray:
        r"""Return (asked,) bool, whether tokens since a border, with one more, are the encoding of what they spell.

        Where they end inside a character or in white space, of some text that begins so: many tokenizers cut the last
        white space before a word off, so that the tokens of ``"\n\nA"`` do not begin with those of ``"\n\n"``.
        """
        known = self._known
        alone = {a: ((), a[1]) if a[0] and self._parts(a[0][-1], a[1]) else a for a in asked}
        new = [a for a in dict.fromkeys(alone.values()) if a not in known]
        starts = {before: b"".join(self.pieces[t] for t in before) for before in {a[0] for a in new}}
        texts: list[bytes] = []
        counts = []
        for before, i in new:
            options = completed(starts[before] + self.pieces[i])
            texts += options
            counts.append(len(options))
        found, at = self.encode(texts) if texts else [], 0
        for (before, i), n in zip(new, counts, strict=True):
            own, part = (*before, i), found[at : at + n]
            known[before, i] = part[0] == own if n == 1 else any(f and f[: len(own)] == own for f in part)
            at += n
        return np.array([known[alone[a]] for a in asked], dtype=bool)

    def _parts(self, before: int, after: int) -> bool:
        """Whether a space parts two tokens whatever else there is: one that no token holds after a letter or digit."""
        last, first = self.pieces[before][-1:], self.pieces[after][:1]
        return first == b" " and last.isalnum() and not self.pairs[last[0], 0x20]

    def border(self, data: bytes, at: int) -> bool:
        """Whether no token reaches over a place inside a byte string, so that what stands after it can stand alone."""
        apart = not self.pairs[data[at - 1], data[at]]
        return apart and data[at] & 0xC0 != 0x80 and (not self.spaced or data[at] == 0x20)


@dataclass(eq=False)
class Node:
    """A sequence of tokens with which the encoding of a text may begin, and that spells its first ``at`` bytes."""

    at: int
    ids: tuple[int, ...]
    parent: Node | None
    token: int


class Spelling:
    """The encodings of all beginnings of a text that grows byte by byte.

    Parameters
    ----------
    tokens : ByteTokens
        The vocabulary.
    context : tuple of int
        Tokens before the text: BOS, or what the text is to follow.

    Attributes
    ----------
    base, held : int
        The last border: bytes of the text, and tokens with the context, that nothing after it can change.
    """

    def __init__(self, tokens: ByteTokens, context: tuple[int, ...] = ()) -> None:
        self.tokens, self.data = tokens, bytearray()
        self.base, self.held = 0, len(context)
        self.root = Node(0, context, None, -1)
        self.nodes: dict[int, list[Node]] = {0: [self.root]}

    def since(self, node: Node) -> tuple[int, ...]:
        """Return the tokens of a node since the last border."""
        return node.ids[self.held :]

    def copy(self) -> Spelling:
        """Return one that goes on by itself."""
        out = copy.copy(self)
        out.data, out.nodes = bytearray(self.data), dict(self.nodes)
        return out

    def push(self, byte: int) -> list[Node]:
        """Take one byte more, and return the tokens that spell the text as it is now.

        The encoding of it first; where it ends in white space, others that its encoding begins with once it goes on;
        none where no token ends inside a character.
        """
        self.data.append(byte)
        n, tokens = len(self.data), self.tokens
        asked, parents = [], []
        for start in range(max(self.base, n - tokens.longest), n):
            for i in tokens.ids.get(bytes(self.data[start:n]), ()) if start in self.nodes else ():
                for node in self.nodes[start]:
                    asked.append((self.since(node), i))
                    parents.append(node)
        fine = tokens.valid(asked).tolist() if asked else []
        made = [
            Node(n, (*p.ids, i), p, i) for (_, i), p, good in zip(asked, parents, fine, strict=True) if good
        ]  # fmt: skip
        if len(made) > 1:
            (usual,) = tokens.encode([bytes(self.data[self.base :])])
            made.sort(key=lambda m: self.since(m) != usual)
        if made:
            self.nodes[n] = made
        self._move(n)
        return made

    def _move(self, n: int) -> None:
        """Take the last border that is sure: both sides of it have the tokens of the text since the one before."""
        data, tokens = bytes(self.data), self.tokens
        if data[-1] >= 0x80 and not _whole(data[self.base :]):
            return
        for at in range(n - 1, self.base, -1):
            nodes = self.nodes.get(at, ())
            if len(nodes) != 1 or not tokens.border(data, at):
                continue
            left, right, both = tokens.encode([data[self.base : at], data[at:n], data[self.base : n]])
            if left is None or right is None or both != left + right or left != self.since(nodes[0]):
                return
            self.base, self.held = at, len(nodes[0].ids)
            self.nodes = {k: v for k, v in self.nodes.items() if k >= at}
            return


def completed(data: bytes) -> list[bytes]:
    r"""Return a byte string, with what may follow white space at its end, or 64 ways to end the character it ends in.

    Examples
    --------
    >>> completed(b"a"), len(completed(b"a\xe2\x80")), completed(b"\xff")
    ([b'a'], 64, [])
    >>> completed(b"a\n")
    [b'a\n', b'a\na', b'a\n1', b'a\n!']
    """
    if data.isascii() or _whole(data):
        return [data, *(data + b for b in FOLLOWING)] if data.decode()[-1:].isspace() else [data]
    lead = next((k for k in range(1, min(4, len(data)) + 1) if data[-k] & 0xC0 != 0x80), 0)
    first = data[-lead] if lead else 0
    missing = (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0) + 1 - lead
    ends = [bytes([b]) + b"\xa0" * (missing - 1) for b in range(0x80, 0xC0)] if missing > 0 else []
    return [data + end for end in ends if _whole(data + end)]


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _batches(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Return the fastest way to encode many short texts."""
    encode(tokenizer, ["a"])  # no padding, no truncation from here on
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or not hasattr(inner, "encode_batch_fast"):
        return lambda texts: encode(tokenizer, texts)
    return lambda texts: [e.ids for e in inner.encode_batch_fast(texts, add_special_tokens=False)]
