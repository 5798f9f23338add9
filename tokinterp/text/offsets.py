"""Which characters of a text each token stands for, decided by the bytes of the tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .vocabulary import Vocabulary, decode
from .words import marks

# White space takes no part in the comparison, since tokenizers add and drop it: first that of ASCII, then all of it.
WHITE = (" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f", "".join(chr(c) for c in range(0x3001) if chr(c).isspace()))
NONE = -1


@cache
def _cluster() -> re.Pattern[str]:
    """Return the pattern of a character and what normal forms may merge into it: marks, and vowels of Hangul."""
    return re.compile(rf"(?s:.)[{marks()}\u1160-\u11ff\ud7b0-\ud7fb]*")


def offsets_of(text: str, ids: np.ndarray, claimed: np.ndarray | None, vocabulary: Vocabulary) -> np.ndarray:
    """Return (token, 2) int64 characters of the text, start and stop of each token; -1 everywhere if unknown.

    A token covers the characters whose bytes it holds, after normalisation those that became these bytes: the whole of
    a letter with its marks where the tokenizer composes them. A space that the tokenizer added covers nothing.

    Parameters
    ----------
    text : str
        The text.
    ids : numpy.ndarray
        (token,) ids, no special ones added.
    claimed : numpy.ndarray or None
        (token, 2) offsets that the tokenizer gives. They are asked only where a token spells no text (unknown words,
        added tokens), or, if the tokens agree with them, where the tokenizer rewrites more than single characters.
    vocabulary : Vocabulary
        Of the tokenizer.
    """
    pieces = vocabulary.bytes(ids)
    joined = b"".join(pieces)
    raw = text.encode()
    if joined == raw:
        return decode(pieces)[1].astype(np.int64)
    if joined == b" " + raw and pieces[0]:
        return decode([pieces[0][1:], *pieces[1:]])[1].astype(np.int64)
    parts = _cluster().findall(text)
    stops = np.cumsum([len(p) for p in parts], dtype=np.int64)
    edges = np.stack([np.append(0, stops[:-1])[: len(stops)], stops], 1)
    claims = None if claimed is None else _widened(claimed, edges)
    normalise = _normaliser(vocabulary.tokenizer)
    normal = [normalise(p) for p in parts]
    strings = [p.decode("utf-8", "surrogateescape") for p in pieces]
    fixed = np.zeros(len(ids), bool) if claims is None else vocabulary.without_text(ids)
    for white in WHITE:
        none = dict.fromkeys(map(ord, white + "▁" * (vocabulary.kind == "sentencepiece")))
        black = [s.translate(none).encode() for s in normal]
        own = [s.translate(none).encode("utf-8", "surrogateescape") for s in strings]
        if claims is not None:
            for t in np.flatnonzero(fixed):
                own[t] = b"".join(black[slice(*np.searchsorted(edges[:, 0], claims[t]))])
        if b"".join(own) == b"".join(black):
            return _spaced(text, strings, _owners(own, black, edges), white)
        if claims is not None and _agree(text, own, claims, fixed, lambda s, none=none: normalise(s).translate(none)):
            return claims
    return np.full((len(ids), 2), NONE)


def _normaliser(tokenizer: Any) -> Callable[[str], str]:
    found = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return str if found is None else lru_cache(4096)(found.normalize_str)


def _owners(own: Sequence[bytes], black: Sequence[bytes], edges: np.ndarray) -> np.ndarray:
    """Return (token, 2) characters of the clusters whose bytes each token holds, -1 for a token without any."""
    cluster = np.repeat(np.arange(len(black)), [len(b) for b in black])
    sizes = np.array([len(p) for p in own], dtype=np.int64)
    stops = np.cumsum(sizes)
    starts = stops - sizes
    some = stops > starts
    out = np.full((len(own), 2), NONE, dtype=np.int64)
    out[some, 0] = edges[cluster[starts[some]], 0]
    out[some, 1] = edges[cluster[stops[some] - 1], 1]
    return out


def _spaced(text: str, strings: Sequence[str], out: np.ndarray, white: str) -> np.ndarray:
    """Give tokens the white space that they hold, as far as the text has it, from the right; in place."""
    reached = np.maximum.accumulate(np.concatenate([[0], out[:, 1].clip(0)]))[:-1]
    after = len(text)
    for t in range(len(strings) - 1, -1, -1):
        piece, low = strings[t], int(reached[t])
        if out[t, 0] < 0:
            out[t] = (_back(text, after, low, len(piece)), after)
        else:
            start, stop = out[t].tolist()
            tail = len(piece) - len(piece.rstrip(white))
            if tail and stop < after:
                stop = after if not text[stop:after].strip() and after - stop <= tail else stop
            out[t] = (_back(text, start, min(low, start), len(piece) - len(piece.lstrip(white))), stop)
        after = min(after, int(out[t, 0]))
    return out


def _back(text: str, at: int, low: int, most: int) -> int:
    """Return where up to ``most`` characters of white space before a place begin."""
    start = at
    while start > low and at - start < most and (text[start - 1].isspace() or text[start - 1] == "▁"):
        start -= 1
    return start


def _agree(
    text: str, own: Sequence[bytes], claimed: np.ndarray, fixed: np.ndarray, normal: Callable[[str], str]
) -> bool:
    """Whether the characters that a tokenizer claims become the bytes of its tokens, those that overlap together."""
    start, stop = claimed[:, 0], np.maximum.accumulate(claimed[:, 1])
    if (np.diff(start) < 0).any():
        return False
    first = np.flatnonzero(np.append(True, start[1:] >= stop[:-1]))
    for a, b in zip(first.tolist(), [*first[1:].tolist(), len(own)], strict=True):
        low, high = int(start[a]), int(stop[b - 1])
        if not fixed[a:b].any() and normal(text[low:high]).encode() != b"".join(own[a:b]):
            return False
    return True


def _widened(claimed: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return offsets that hold whole clusters only."""
    out = claimed.copy()
    some = out[:, 1] > out[:, 0]
    out[some, 0] = edges[np.searchsorted(edges[:, 0], out[some, 0], side="right") - 1, 0]
    out[some, 1] = edges[np.searchsorted(edges[:, 1], out[some, 1], side="left"), 1]
    return out
