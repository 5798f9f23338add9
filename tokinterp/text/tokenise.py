"""From texts to ids and offsets in chunks: limits, BOS, truncation, windows, and the checks on what comes in."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..files.bars import progress_bar
from ..settings import refuse, short, string
from .offsets import offsets_of
from .prefix import prefix
from .vocabulary import Vocabulary

CHUNK_TEXTS, CHUNK_CHARS = 512, 2_000_000


@dataclass
class Source:
    """Tokenizer and limits of a model, or of a tokenizer alone."""

    name: str
    tokenizer: Any
    max_tokens: int | None
    d_vocab: int | None


@dataclass
class Tokenised:
    """The arrays of `Prompts`; see there."""

    ids: np.ndarray
    starts: np.ndarray
    documents: np.ndarray
    window_starts: np.ndarray
    chars: np.ndarray
    half: np.ndarray
    offsets: np.ndarray | None
    truncated: np.ndarray
    dropped: np.ndarray

    @classmethod
    def bare(cls, ids: np.ndarray, starts: np.ndarray, truncated: np.ndarray | None = None) -> Tokenised:
        """Return ids without a text: each prompt is a document of its own."""
        numbers = np.arange(len(starts) - 1, dtype=np.int64)
        zeros = np.zeros((len(numbers), 2), np.int64)
        cut = np.zeros(len(numbers), bool) if truncated is None else truncated
        return cls(ids, starts, numbers, zeros[:, 0], zeros, zeros.astype(bool), None, cut, numbers[:0])


def unpack(model_or_tokenizer: Any) -> Source:
    """Return tokenizer, context length and vocabulary size of a model or a tokenizer (or of nothing)."""
    given = model_or_tokenizer
    if given is None:
        return Source("the prompts", None, None, None)
    if hasattr(given, "info"):
        info = given.info
        return Source(getattr(info, "id", "the model"), given.tokenizer, info.max_tokens or None, info.d_vocab or None)
    if hasattr(given, "convert_ids_to_tokens"):
        limit = getattr(given, "model_max_length", None)
        limit = int(limit) if limit and limit < 10_000_000 else None
        return Source(getattr(given, "name_or_path", "") or type(given).__name__, given, limit, None)
    what = repr(given) if isinstance(given, str) else type(given).__name__
    raise TypeError(
        f"{what} is neither a model nor a tokenizer: load one with ti.load_model(name), wrap a loaded one with "
        "ti.wrap(model), or give a Hugging Face tokenizer"
    )


@dataclass
class Limits:
    """How long prompts may be, and what happens to the others."""

    longest: int | None
    shortest: int
    on_long: str
    stride: int | None
    on_empty: str
    bos: bool

    @classmethod
    def make(
        cls,
        source: Source,
        vocabulary: Vocabulary,
        max_tokens: int | None,
        bos: bool | str,
        on_long: str | None,
        stride: int | None,
        min_tokens: int,
        on_empty: str,
    ) -> Limits:
        """Check the arguments of `Prompts.from_texts` against each other and the model."""
        if bos is True and vocabulary.bos is None:
            raise ValueError(f'bos=True, but the tokenizer of {source.name} has no BOS token: use bos=False or "auto"')
        on_long = on_long or ("error" if max_tokens is None else "truncate")
        if max_tokens is not None and source.max_tokens and max_tokens > source.max_tokens:
            raise ValueError(f"max_tokens={max_tokens} is more than the context of {source.name}, {source.max_tokens}")
        longest = max_tokens if max_tokens is not None else source.max_tokens
        if longest is None and on_long != "error":
            raise ValueError(f'on_long="{on_long}" needs max_tokens: {source.name} states no context length')
        add = vocabulary.adds_bos if bos == "auto" else bool(bos)
        if longest is not None and longest < 1 + add:
            raise ValueError(f"max_tokens={longest} leaves no room for text{' after BOS' if add else ''}")
        if stride is not None and (on_long != "window" or longest is None or not 1 <= stride <= longest - add):
            top = "max_tokens" if longest is None else longest - add
            raise ValueError(f'stride={stride}: it needs on_long="window" and lies between 1 and {top}')
        if min_tokens < 1 or (longest is not None and min_tokens > longest):
            raise ValueError(f"min_tokens={min_tokens}: it lies between 1 and max_tokens={longest}")
        return cls(longest, min_tokens, on_long, stride, on_empty, add)


def check_texts(texts: Sequence[Any], limits: Limits) -> None:
    """Raise a clear error for an empty list, an empty text, something that is no text, or broken Unicode."""
    if not texts:
        raise ValueError(f"texts={short(texts)}: the list of texts is empty: give at least one text")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"texts[{number}]={short(text)}: text {number} is {type(text).__name__}, not a string: leave it out"
            )
        if not text and limits.on_empty == "error":
            raise ValueError(f'texts[{number}]={text!r}: text {number} is empty: leave it out, or give on_empty="drop"')
        string(f"texts[{number}]", text)


def check_ids(ids: Iterable[Any], source: Source, vocabulary: Vocabulary, bos: bool) -> list[np.ndarray]:
    """Return ids as int32 arrays, BOS added if asked for, or raise a clear error."""
    if bos and vocabulary.bos is None:
        raise ValueError(f"bos=True, but the tokenizer of {source.name} has no BOS token: use bos=False")
    out = []
    if isinstance(ids, Mapping | UserDict) and "input_ids" in ids:
        refuse("ids", ids, "give its ids alone, without padding: tokens['input_ids']")
    if (
        isinstance(ids, str | bytes | Mapping | set | frozenset)
        or hasattr(ids, "columns")
        or not isinstance(ids, Iterable)
    ):
        refuse("ids", ids, "give a list with one list of token ids per prompt")
    padding = _padding(source.tokenizer)
    for number, one in enumerate(ids):
        if isinstance(one, Mapping | UserDict):
            refuse("ids", one, f"prompt {number} is no list of ids: give [t['input_ids'] for t in ...]")
        try:
            array = np.asarray(one)
        except (ValueError, TypeError):  # lists of different lengths, a table
            array = np.empty((0, 0))
        if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"ids[{number}]={short(one)}: prompt {number} has shape {array.shape} and type {array.dtype}: give a "
                "list of at least one token id per prompt"
            )
        check_vocabulary(array, f"ids[{number}]: prompt {number}", source, vocabulary)
        if padding is not None and padding in (array[0], array[-1]):
            raise ValueError(
                f"ids[{number}]: prompt {number} begins or ends with the padding token {padding} of {source.name}: "
                "give ids without "
                "padding (those where attention_mask is 1)"
            )
        if bos and array[0] != vocabulary.bos:
            array = np.append(np.int64(vocabulary.bos or 0), array)
        if source.max_tokens and len(array) > source.max_tokens:
            raise ValueError(
                f"ids[{number}]: prompt {number} has {len(array)} tokens, more than the context of {source.name}, "
                f"{source.max_tokens}: cut it"
            )
        out.append(array.astype(np.int32))
    if not out:
        raise ValueError("ids=[]: the list of prompts is empty: give at least one list of token ids")
    return out


def _padding(tokenizer: Any) -> int | None:
    """Return the id of a token that does nothing but pad, if there is one."""
    pad = getattr(tokenizer, "pad_token_id", None)
    others = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "sep", "cls", "mask"))
    return None if pad in (None, *others) else int(pad)


def check_vocabulary(ids: np.ndarray, where: str, source: Source, vocabulary: Vocabulary) -> None:
    """Raise ValueError if an id is negative or beyond the vocabulary."""
    top = vocabulary.size or 2**31
    bad = np.flatnonzero((ids < 0) | (ids >= top))
    if len(bad):
        raise ValueError(
            f"{where} has token id {ids[bad[0]]} at position {bad[0]}, but {source.name} has ids 0 to "
            f"{top - 1}: were these ids made with another tokenizer?"
        )


def tokenise(
    texts: Sequence[str], source: Source, vocabulary: Vocabulary, limits: Limits, progress: bool = True
) -> Tokenised:
    """Tokenise checked texts in chunks; see `Prompts.from_texts`."""
    check_texts(texts, limits)
    most = None if limits.on_long == "window" else limits.longest
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    facts: list[tuple[int, ...]] = []
    dropped: list[int] = []
    with progress_bar(progress, len(texts), unit="text", desc="tokenise", delay=2) as bar:
        for chunk in _chunks(texts):
            for number, ids, offsets, all_of_it in _encode(chunk, texts, source, vocabulary, most):
                check_vocabulary(ids, f"texts[{number}]: text {number}", source, vocabulary)
                if not len(ids) and limits.on_empty == "error":
                    raise ValueError(
                        f"texts[{number}]: text {number} ({texts[number]!r}) has no tokens: leave it out, or give "
                        'on_empty="drop"'
                    )
                cuts = _windows(number, ids, source, vocabulary, limits, all_of_it)
                chars = _characters(texts[number], offsets, cuts)
                for (start, stop, whole), edges in zip(cuts, chars, strict=True):
                    bos = int(limits.bos and not (len(ids) and ids[start] == vocabulary.bos))
                    if stop - start + bos < limits.shortest or stop == start:
                        dropped.append(number)
                        continue
                    row = np.full(stop - start + bos, vocabulary.bos or 0, np.int32)
                    place = np.full((stop - start + bos, 2), -1, np.int32)
                    row[bos:], place[bos:] = ids[start:stop], offsets[start:stop]
                    rows.append((row, place))
                    facts.append((number, start, *edges, not whole))
            bar.update(len(chunk))
    if not rows:
        raise ValueError(
            f"none of the {len(texts)} texts has min_tokens={limits.shortest} tokens: lower "
            "min_tokens or give longer texts"
        )
    ids = np.concatenate([r[0] for r in rows])
    offsets = np.concatenate([r[1] for r in rows])
    starts = np.concatenate([[0], np.cumsum([len(r[0]) for r in rows])]).astype(np.int64)
    table = np.array(facts, dtype=np.int64)
    return Tokenised(
        ids,
        starts,
        table[:, 0],
        table[:, 1],
        table[:, 2:4],
        table[:, 4:6].astype(bool),
        offsets,
        table[:, 6].astype(bool),
        np.array(dropped, np.int64),
    )


def _chunks(texts: Sequence[str]) -> Iterator[range]:
    """Yield runs of text numbers of bounded size."""
    start, size = 0, 0
    for number, text in enumerate(texts):
        if number > start and (number - start >= CHUNK_TEXTS or size + len(text) > CHUNK_CHARS):
            yield range(start, number)
            start, size = number, 0
        size += len(text)
    yield range(start, len(texts))


def _encode(
    chunk: range, texts: Sequence[str], source: Source, vocabulary: Vocabulary, most: int | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, bool]]:
    """Yield (number, ids, offsets, whether all) of the texts of a chunk, without special tokens added.

    Of a long text of which no more than ``most`` tokens are kept, those of a beginning that has more.
    """
    tokenizer = source.tokenizer

    def count(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    given = {n: texts[n] if most is None else prefix(texts[n], most, count, vocabulary) for n in chunk}
    fast = getattr(tokenizer, "is_fast", False)
    options = {"return_offsets_mapping": True} if fast else {}
    batch = tokenizer(
        list(given.values()), add_special_tokens=False, return_attention_mask=False, verbose=False, **options
    )
    for place, number in enumerate(chunk):
        ids = np.array(batch["input_ids"][place], dtype=np.int64)
        if fast:
            pairs = batch["offset_mapping"][place]
            claimed = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(pairs)).reshape(-1, 2)
        else:
            claimed = None
        offsets = offsets_of(given[number], ids, claimed, vocabulary)
        offsets[vocabulary.special(ids)] = -1
        yield number, ids, offsets, len(given[number]) == len(texts[number])


def _windows(
    number: int, ids: np.ndarray, source: Source, vocabulary: Vocabulary, limits: Limits, all_of_it: bool = True
) -> list[tuple[int, int, bool]]:
    """Return (start, stop, nothing cut off) of the prompts to be cut from one tokenised text."""
    begins = limits.bos and len(ids) > 0 and ids[0] == vocabulary.bos
    n, add = len(ids), int(limits.bos and not begins)
    if limits.longest is None or n + add <= limits.longest:
        return [(0, n, True)]
    if limits.on_long == "error":
        raise ValueError(
            f"texts[{number}]: text {number} has {'' if all_of_it else 'at least '}{n + add} tokens, more than the "
            f"limit of {limits.longest} ({source.name}): "
            'give max_tokens to truncate, or on_long="window"'
        )
    if limits.on_long == "truncate":
        return [(0, limits.longest - add, False)]
    width = limits.longest - int(limits.bos)
    step = limits.stride or width
    return [
        (s, min(s + width, n), True) for s in range(0, max(n - width, 0) + step, step) if s == 0 or s - step + width < n
    ]


def _characters(text: str, offsets: np.ndarray, cuts: Sequence[tuple[int, int, bool]]) -> list[tuple[int, ...]]:
    """Return (start, stop, begins, ends) of each window.

    Start and stop are the characters that it covers, from the end of the token before it; begins and ends say whether
    it does so inside a character, whose other bytes are in another token.
    """
    n = len(offsets)
    known = offsets[:, 0] >= 0
    if not known.any():
        return [(0, len(text), 0, 0)] * len(cuts)
    reached = np.maximum.accumulate(np.concatenate([[0], np.where(known, offsets[:, 1], 0)]))
    begins = np.append(np.where(known, offsets[:, 0], len(text)), len(text))
    begins = np.minimum.accumulate(begins[::-1])[::-1]
    out = []
    for start, stop, _ in cuts:
        first = int(begins[start]) if start else 0
        if text[reached[start] : first].isspace():
            first = int(reached[start])  # tokenizers that trim offsets leave out the space before a word
        last = len(text) if stop == n else max(first, int(reached[stop]))
        out.append((first, last, int(reached[start] > begins[start]), int(reached[stop] > begins[stop])))
    return out
