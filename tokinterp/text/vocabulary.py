"""Token ids as bytes and as strings to show, for every kind of tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..settings import checked, count, none, several, tokenizer
from ..settings.describe import tokenizer_hash

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that byte-level BPE writes for the 256 bytes (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


ALPHABET = _byte_alphabet()


class Vocabulary:
    """What every token id stands for: bytes, a string to show, and whether it is special.

    Special are BOS, EOS, padding, and whatever else the tokenizer marks so; a token for unknown words stands for text
    and is not special (unless it is BOS at the same time, as in GPT-2).

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer or None
        None shows id 12 as ``<12>`` and knows no special tokens.
    size : int, optional
        Rows of the model's unembedding, where they are more than the tokenizer's tokens.

    Attributes
    ----------
    hash : str
        Hash of the tokenizer as it was when this was made; empty without one.

    Examples
    --------
    >>> import tokinterp as ti
    >>> Vocabulary(ti.load_tokenizer()).strings([300, 301])[0] == ti.load_tokenizer().decode([300])
    True
    """

    @checked(tokenizer=tokenizer | none, size=count(1))
    def __init__(self, tokenizer: Any = None, size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.hash = tokenizer_hash(tokenizer)  # as it is now: tokens that are added later made none of the ids
        self.kind = _kind(tokenizer)
        found = [*map(int, tokenizer.get_vocab().values())] if tokenizer is not None else []
        known = 1 + max(found, default=-1)  # ids may have gaps
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self._added = {int(i): (t.content, bool(t.special)) for i, t in added.items()}
        self._ids = np.unique(np.array([*found, *self._added], dtype=np.int64))
        known = max([known, *(i + 1 for i in self._added)])
        self.known = known
        self.size = int(size or known)
        self.bos: int | None = getattr(tokenizer, "bos_token_id", None)
        self.special_ids = self._find_special()
        self._bytes: dict[int, bytes] = {}
        self._shown: dict[int, str] = {}
        self._prefix: bool | None = None

    def __describe__(self) -> list[Any]:
        return [self.hash, self.size]

    def _find_special(self) -> np.ndarray:
        ids = {i for i, (_, special) in self._added.items() if special}
        ids |= {int(i) for i in getattr(self.tokenizer, "all_special_ids", None) or [] if i is not None}
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        others = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "sep", "cls")}
        if unknown is not None and unknown not in others:
            ids.discard(unknown)
        return np.array(sorted(ids), dtype=np.int32)

    def special(self, ids: np.ndarray) -> np.ndarray:
        """Return a bool array of the shape of ``ids``, true on special tokens."""
        return np.isin(ids, self.special_ids)

    def _learn(self, ids: Iterable[int]) -> None:
        new = sorted(i for i in set(ids) if i not in self._bytes)
        known = [i for i in new if i < self.known and i not in self._added]
        for i in new:
            self._bytes[i] = f"<{i}>".encode()
        tokens = self.tokenizer.convert_ids_to_tokens(known) if self.tokenizer is not None and known else []
        for i, token in zip(known, tokens, strict=True):
            if token is not None:
                self._bytes[i] = _token_bytes(token, self.kind)
        for i in new:
            if i in self._added:
                content, special = self._added[i]
                plain = content if special or self.kind != "sentencepiece" else content.replace("▁", " ")
                self._bytes[i] = plain.encode("utf-8", "backslashreplace")
        self._shown.update({i: show(self._bytes[i]) for i in new})

    def bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """Return the UTF-8 bytes that each id stands for, a leading space included."""
        listed = _listed(ids)
        self._learn(listed)
        return [self._bytes[i] for i in listed]

    def strings(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        r"""Return one string to show per id.

        Spaces and line breaks are real; bytes that are no whole UTF-8 character are written as ``\xe2``, NUL as
        ``\x00``.
        """
        listed = _listed(ids)
        self._learn(listed)
        return [self._shown[i] for i in listed]

    def without_text(self, ids: np.ndarray) -> np.ndarray:
        """Return a bool array, true on tokens whose bytes are not those of the text: unknown words, added tokens."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return np.isin(ids, [*self._added, *([] if unknown is None else [unknown])])

    @property
    def ordinary(self) -> np.ndarray:
        """(token,) ids that the tokenizer and the model have and that are not special, ascending."""
        ids = self._ids if self.tokenizer is not None else np.arange(self.size)  # other rows of the head mean nothing
        return np.setdiff1d(ids[ids < self.size], self.special_ids)

    @property
    def there(self) -> np.ndarray:
        """(vocab,) bool, whether the tokenizer has a token of each id."""
        there = np.zeros(self.size, dtype=bool)
        there[self._ids[self._ids < self.size]] = True
        return there

    @property
    def prefix_space(self) -> bool:
        """Whether the tokenizer puts a space before the first word of a text (Llama 1 and 2)."""
        if self._prefix is None:
            self._prefix = False
            if self.kind in ("byte-level", "sentencepiece", "wordpiece"):
                ids = self.tokenizer("a", add_special_tokens=False)["input_ids"]
                self._prefix = b"".join(self.bytes(ids)).startswith(b" ")
        return self._prefix

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts its BOS token before a text when nobody asks."""
        if self.bos is None or self.tokenizer is None:
            return False
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.bos


def _listed(ids: Sequence[int] | np.ndarray) -> list[int]:
    if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu":
        return ids.tolist()
    return several(count())("ids", ids)


def _kind(tokenizer: Any) -> str:
    """Return byte-level, bytes, sentencepiece, wordpiece or plain: how the tokenizer writes its tokens."""
    if tokenizer is None:
        return "plain"
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    described = json.dumps(json.loads(decoder.__getstate__()), ensure_ascii=False) if decoder is not None else ""
    for sign, kind in (("ByteLevel", "byte-level"), ("WordPiece", "wordpiece"), ("Metaspace", "sentencepiece")):
        if f'"{sign}"' in described:
            return kind
    if "▁" in described or "ByteFallback" in described:
        return "sentencepiece"
    tokens = list(tokenizer.get_vocab())
    for sign, kind in (("Ġ", "byte-level"), ("▁", "sentencepiece"), ("##", "wordpiece")):
        if sum(isinstance(t, str) and t.startswith(sign) for t in tokens) > len(tokens) // 20:
            return kind
    if decoder is None and {t for t in tokens if isinstance(t, str) and len(t) == 1} == {chr(b) for b in range(256)}:
        return "bytes"  # ByT5: each token is one byte, shown as the character of that number
    return "plain"


def _token_bytes(token: str | bytes, kind: str) -> bytes:
    """Return the bytes of one vocabulary entry."""
    if isinstance(token, bytes):
        return token
    if kind == "byte-level" and all(c in ALPHABET for c in token):
        return bytes(ALPHABET[c] for c in token)
    if kind == "bytes" and len(token) == 1 and ord(token) < 256:
        return bytes([ord(token)])
    if kind == "sentencepiece":
        if m := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(m[1], 16)])
        token = token.replace("▁", " ")
    if kind == "wordpiece":
        token = token[2:] if token.startswith("##") else " " + token
    return token.encode("utf-8", "backslashreplace")


def show(data: bytes) -> str:
    r"""Return bytes as a string that any file format can hold.

    Examples
    --------
    >>> show(b" caf\xc3\xa9"), show(b"\xe2\x80")
    (' café', '\\xe2\\x80')
    """
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def decode(pieces: Sequence[bytes]) -> tuple[str, np.ndarray]:
    """Join the bytes of tokens to a text and say where each token lies in it.

    Parameters
    ----------
    pieces : sequence of bytes
        Bytes of each token, in order.

    Returns
    -------
    text : str
        The joined text; each byte that is part of no whole character becomes one U+FFFD.
    offsets : numpy.ndarray
        (token, 2) int32 characters, start and stop. A token that holds part of a character covers the whole of it.
    """
    raw = b"".join(pieces).decode("utf-8", "surrogateescape")
    points = np.frombuffer(raw.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lone = (points >= 0xDC80) & (points <= 0xDCFF)
    width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    begins = np.concatenate([[0], np.cumsum(np.where(lone, 1, width))])
    stops = np.cumsum([len(p) for p in pieces], dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(pieces)]
    first = np.searchsorted(begins, starts, side="right") - 1
    last = np.maximum(np.searchsorted(begins, stops, side="left"), first)
    text = re.sub("[\udc80-\udcff]", "�", raw) if lone.any() else raw
    return text, np.stack([first, last], axis=1).astype(np.int32)


def extra_space(strings: Sequence[str], text: str) -> bool:
    """Return whether the tokens begin with one space more than the text (which the tokenizer put there)."""
    spaces = 0
    for string in strings:
        spaces += len(string) - len(string.lstrip(" "))
        if string.strip(" "):
            break
    return spaces > len(text) - len(text.lstrip(" "))
