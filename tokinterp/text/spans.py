"""Spans of characters on raw texts, and the tokens that they are made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..settings import (
    checked,
    integer,
    kept_texts,
    mapping,
    places,
    prompts,
    refuse,
    several,
    short,
    string,
    strings,
    whole,
    words,
)
from .words import find_words, marks, trimmed

if TYPE_CHECKING:
    from .spelled import Spelled

CROSSES, OUTSIDE, TRUNCATED, DROPPED = (
    "token crosses the border", "outside the window", "truncated", "no prompt of this text",
)  # fmt: skip
COLUMNS = ("document", "start", "stop", "kind", "type")


@checked(
    texts=kept_texts,
    parts=several(several(string)),
    **dict.fromkeys(("document", "start", "stop"), whole),
    kind=words,
    type=words,
)
@dataclass
class Spans:
    """Character spans on numbered texts: words, entities, multiword expressions, and so on.

    Attributes
    ----------
    document : numpy.ndarray
        (span,) int64 number of the text.
    start, stop : numpy.ndarray
        (span,) int64 characters, half open.
    kind : numpy.ndarray
        (span,) str: word, entity, mwe, compound, pos, ...
    type : numpy.ndarray
        (span,) str within the kind: PER, V.VPC.full, NOUN, ...
    texts : sequence of str, optional
        The texts. Where they are kept, `align` checks that the prompts were made from the same.
    parts : list of list of str, optional
        Constituents, for morphological compounds.

    Examples
    --------
    >>> spans = Spans.words(["Paris is old."])
    >>> spans.strings()
    ['Paris', 'is', 'old']
    """

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    kind: np.ndarray
    type: np.ndarray
    texts: Sequence[str] | None = None
    parts: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.start)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {k}" for k, n in Counter(self.kind.tolist()).most_common())
        return f"Spans({counts}, on {len(np.unique(self.document))} texts)" if counts else "Spans(none)"

    @classmethod
    @checked(records=several(mapping()), texts=strings)
    def from_records(cls, records: Iterable[Mapping[str, Any]], texts: Sequence[str] | None = None) -> Spans:
        """Build from mappings with document, start, stop, kind, and optionally type and parts.

        Raises
        ------
        ValueError
            If a span is empty or does not lie in its text.
        """
        rows = list(records)
        column = {
            name: np.array(
                [integer(f"records[{n}][{name!r}]", _value(r, n, name)) for n, r in enumerate(rows)], np.int64
            )
            for name in ("document", "start", "stop")
        }
        parts = [list(r.get("parts") or []) for r in rows]
        out = cls(
            **column,
            kind=np.array([str(_value(r, n, "kind")) for n, r in enumerate(rows)], dtype=np.str_),
            type=np.array([str(r.get("type", "")) for r in rows], dtype=np.str_),
            texts=texts,
            parts=parts if any(parts) else None,
        )
        sizes = np.array([len(t) for t in texts]) if texts is not None else None
        outside = sizes is not None and len(out) and (out.document.min() < 0 or out.document.max() >= len(sizes))
        bad = (out.start < 0) | (out.stop <= out.start)
        if outside:
            raise ValueError(f"records: spans on text {out.document.max()}, but there are {len(texts or ())} texts")
        if sizes is not None and len(out):
            bad |= out.stop > sizes[out.document]
        if bad.any():
            n = int(np.flatnonzero(bad)[0])
            size = "" if sizes is None else f", which has {sizes[out.document[n]]} characters"
            raise ValueError(
                f"records[{n}]={short(rows[n])}: span {n} is {out.start[n]}..{out.stop[n]} of text "
                f"{out.document[n]}{size}"
            )
        return out

    @classmethod
    @checked(texts=prompts | strings)
    def words(cls, texts: Sequence[str] | Spelled) -> Spans:
        """Find the words of texts, or of the texts of prompts; see `find_words` for what a word is."""
        numbered, kept = _numbered(texts)
        found = [(d, find_words(text)[0]) for d, text in numbered]
        edges = np.concatenate([e for _, e in found]) if found else np.zeros((0, 2), np.int64)
        document = np.repeat(np.array([d for d, _ in found], np.int64), [len(e) for _, e in found])
        kind = np.full(len(edges), "word")
        return cls(document, edges[:, 0], edges[:, 1], kind, np.full(len(edges), ""), kept)

    @classmethod
    @checked(texts=prompts | strings, words=strings)
    def find(
        cls, texts: Sequence[str] | Spelled, words: Sequence[str], *, whole: bool = True, ignore_case: bool = False,
        kind: str = "found",
    ) -> Spans:  # fmt: skip
        """Find every place of some words or phrases; ``type`` of a span is the word that was looked for.

        Parameters
        ----------
        texts : sequence of str or Prompts
            The texts, or those of prompts.
        words : sequence of str
            What to look for. At one place the longest counts, and none overlaps another.
        whole : bool
            Only where no letter, digit or combining mark stands directly before or after.
        ignore_case : bool
            Whether case does not count.
        kind : str
            Of the spans.

        Raises
        ------
        ValueError
            For an empty word.

        Examples
        --------
        >>> spans = Spans.find(["The Nile and the Niles flow."], ["Nile", "the"], ignore_case=True)
        >>> spans.strings(), spans.type.tolist()
        (['The', 'Nile', 'the'], ['the', 'Nile', 'the'])
        """
        if not words or not all(words):
            refuse("words", words, "give at least one word, none of them empty")
        flags = re.IGNORECASE if ignore_case else 0
        edge = rf"[\w{marks()}]" if whole else "(?!)"
        named = {w.casefold() if ignore_case else w: w for w in words}
        either = "|".join(re.escape(w) for w in sorted(named.values(), key=len, reverse=True))
        pattern = re.compile(rf"(?<!{edge})(?:{either})(?!{edge})" if whole else either, flags)
        numbered, kept = _numbered(texts)
        found = [(d, m) for d, text in numbered for m in pattern.finditer(text)]
        looked_for = [named.get(m[0].casefold() if ignore_case else m[0], m[0]) for _, m in found]
        document, start, stop = (
            np.array(column, np.int64)
            for column in ([d for d, _ in found], [m.start() for _, m in found], [m.end() for _, m in found])
        )
        return cls(document, start, stop, np.full(len(found), kind), np.array(looked_for, np.str_), kept)

    @checked(mask=places)
    def where(self, mask: np.ndarray) -> Spans:
        """Return the spans at which ``mask`` (bool or places) is true."""
        rows = _rows(mask, len(self))
        parts = None if self.parts is None else [self.parts[n] for n in rows]
        columns: Any = {n: getattr(self, n)[rows] for n in COLUMNS}
        return Spans(**columns, texts=self.texts, parts=parts)

    @checked()
    def of_kind(self, kind: str, type: str | None = None) -> Spans:
        """Return the spans of one kind, and optionally one type."""
        mask = self.kind == kind
        return self.where(mask if type is None else mask & (self.type == type))

    def strings(self) -> list[str]:
        """Return the text of each span."""
        if self.texts is None:
            raise ValueError("these spans were made without keeping the texts")
        texts, edges = self.texts, zip(self.document.tolist(), self.start.tolist(), self.stop.tolist(), strict=True)
        return [str(texts[d][a:b]) for d, a, b in edges]

    def __add__(self, other: Spans) -> Spans:
        """Return the spans of both; they must be on the same texts."""
        if self.texts is not None and other.texts is not None and list(self.texts) != list(other.texts):
            raise ValueError("the two sets of spans are on different texts")
        parts = None
        if self.parts is not None or other.parts is not None:
            parts = (self.parts or [[]] * len(self)) + (other.parts or [[]] * len(other))
        columns: Any = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in COLUMNS}
        return Spans(**columns, texts=self.texts if self.texts is not None else other.texts, parts=parts)

    @checked()
    def align(self, prompts: Spelled) -> TokenSpans:
        """Find the tokens of each span.

        A span aligns if its first token begins and its last token ends where the span does; white space at the edge of
        a token does not count, a token of white space alone belongs to no edge. Where windows overlap, a span can be
        found in several prompts.

        Parameters
        ----------
        prompts : Prompts
            Made from the same texts, in the same order.

        Raises
        ------
        ValueError
            If the spans' texts are not those of the prompts, or the tokenizer gives no offsets.

        Examples
        --------
        >>> import tokinterp as ti
        >>> texts = ["The Nile flows north."]
        >>> found = ti.Spans.words(texts).align(ti.Prompts.from_texts(texts, ti.load_model()))
        >>> len(found), len(found.unaligned)
        (4, 0)
        """
        order = np.lexsort((self.start, self.document))
        documents, begins = self.document[order], self.start[order]
        reason = np.full(len(self), DROPPED, dtype=object)
        found: list[np.ndarray] = []
        checked: set[int] = set()
        for i, document in enumerate(prompts.documents.tolist()):
            low, high = np.searchsorted(documents, [document, document + 1]).tolist()
            if low == high:
                continue
            if document not in checked:
                self._same_text(prompts, document)
                checked.add(document)
                reason[order[low:high]] = TRUNCATED if prompts.truncated[i] else OUTSIDE
            edges = [prompts.chars[i, 0], prompts.chars[i, 0] + len(prompts.text(i))]
            low, high = (np.searchsorted(begins[low:high], edges) + low).tolist()
            chosen = order[low:high]
            inside, first, last, aligned = self._align_one(prompts, i, chosen)
            part = reason[chosen]
            part[inside & ~aligned & (part != "")] = CROSSES
            part[aligned] = ""
            reason[chosen] = part
            keep = np.flatnonzero(aligned)
            found.append(np.stack([chosen[keep], np.full(len(keep), i), first[keep], last[keep] + 1], 1))
        table = np.concatenate(found) if found else np.zeros((0, 4), np.int64)
        table = table[np.lexsort((table[:, 3], table[:, 2], table[:, 1]))]
        failed = np.flatnonzero(reason != "")
        span, prompt, start, stop = table.T
        return TokenSpans(self, span, prompt, start, stop, failed, [str(r) for r in reason[failed]])

    def _same_text(self, prompts: Spelled, document: int) -> None:
        if self.texts is None:
            return
        mine = self.texts[document] if document < len(self.texts) else None
        if mine is not prompts.document_text(document) and mine != prompts.document_text(document):
            raise ValueError(
                f"prompts: text {document} of the spans is not text {document} of the prompts: make the prompts from "
                "the texts "
                "that came with the spans, in the same order, none left out"
            )

    def _align_one(self, prompts: Spelled, i: int, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return, for spans of one document and one prompt of it: whole inside, first token, last token, aligned."""
        text, base = prompts.text(i), int(prompts.chars[i, 0])
        token_start, token_stop, blank = trimmed(text, prompts.offsets(i))
        edges = np.stack([self.start[chosen], self.stop[chosen]], 1) - base
        inside = (edges[:, 0] >= 0) & (edges[:, 1] <= len(text))
        a, b, _ = trimmed(text, np.clip(edges, 0, len(text)))
        solid = np.flatnonzero(~blank)
        if not len(solid):
            return inside, a, b, np.zeros(len(chosen), bool)
        low = np.searchsorted(token_stop[solid], a, side="right")
        high = np.searchsorted(token_start[solid], b, side="left") - 1
        first, last = solid[np.minimum(low, len(solid) - 1)], solid[np.maximum(high, 0)]
        lead, tail = prompts.half[i]
        if lead:
            inside &= edges[:, 0] > token_start[solid[0]]
        if tail:
            inside &= edges[:, 1] < token_stop[solid[-1]]
        aligned = inside & (low <= high) & (token_start[first] == a) & (token_stop[last] == b)
        return inside, first, last, aligned


@checked(**dict.fromkeys(("span", "prompt", "start", "stop", "unaligned"), whole))
@dataclass
class TokenSpans:
    """Spans found as runs of tokens, and the ones that were not.

    Attributes
    ----------
    spans : Spans
        What was looked for.
    span : numpy.ndarray
        (row,) place in ``spans`` of each span found.
    prompt : numpy.ndarray
        (row,) number of the prompt in which it was found.
    start, stop : numpy.ndarray
        (row,) tokens of that prompt, half open, BOS counted.
    unaligned : numpy.ndarray
        Places in ``spans`` of those found in no prompt.
    reasons : list of str
        Why not, one for each of ``unaligned``: "token crosses the border", "outside the window" (no window holds the
        whole span), "truncated", "no prompt of this text".
    """

    spans: Spans
    span: np.ndarray
    prompt: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    unaligned: np.ndarray
    reasons: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.span)

    def __repr__(self) -> str:
        why = "".join(f"; {n} not: {reason}" for reason, n in sorted(self.report().items()))
        return f"TokenSpans({len(self.spans) - len(self.unaligned)} of {len(self.spans)} spans aligned{why})"

    def report(self) -> dict[str, int]:
        """Return how many spans did not align, by reason."""
        return dict(Counter(self.reasons))

    @property
    def kind(self) -> np.ndarray:
        """(row,) kind of each span found."""
        return self.spans.kind[self.span]

    @property
    def type(self) -> np.ndarray:
        """(row,) type of each span found."""
        return self.spans.type[self.span]

    @property
    def n_tokens(self) -> np.ndarray:
        """(row,) tokens of each span found."""
        return self.stop - self.start

    @checked(mask=places)
    def where(self, mask: np.ndarray) -> TokenSpans:
        """Return the rows at which ``mask`` is true; ``unaligned`` stays as it is."""
        rows = _rows(mask, len(self))
        span, prompt, start, stop = (r[rows] for r in (self.span, self.prompt, self.start, self.stop))
        return TokenSpans(self.spans, span, prompt, start, stop, self.unaligned, self.reasons)

    @checked()
    def last_tokens(self, prompts: Spelled, kind: str | None = None) -> np.ndarray:
        """Return (token,) bool over the stream of all tokens, true on the last token of each span (of a kind)."""
        rows = np.arange(len(self)) if kind is None else np.flatnonzero(self.kind == kind)
        out = np.zeros(prompts.n_tokens, dtype=bool)
        out[prompts.starts[self.prompt[rows]] + self.stop[rows] - 1] = True
        return out


def _numbered(texts: Any) -> tuple[Iterable[tuple[int, str]], list[str] | None]:
    """Return (document, text) of texts or prompts, and the texts where they are kept."""
    if hasattr(texts, "document_text"):
        return ((int(d), texts.document_text(int(d))) for d in np.unique(texts.documents)), None
    return enumerate(texts), texts


def _value(record: Mapping[str, Any], n: int, name: str) -> Any:
    if name not in record:
        raise ValueError(f"records[{n}]={short(record)}: no {name!r}: a span has document, start, stop and kind")
    return record[name]


def _rows(mask: Any, n: int) -> np.ndarray:
    """Return the places that a mask, or a list of places, chooses among n."""
    if isinstance(mask, np.ndarray) and mask.dtype == bool and len(mask) != n:
        refuse("mask", mask, f"there are {n} spans: give as many bools, or places")
    try:
        return np.arange(n)[mask]
    except IndexError:
        refuse("mask", mask, f"there are {n} spans, with places 0 to {n - 1}")
