"""Units of several words in a text, without a tagger: names, and the multiword entries of a word list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokinterp.text import Spans, find_words, read_conll, read_conllulex, read_spans_jsonl, read_texts
from tokinterp.text.readers.files import open_lines

NAME = r"[^\W\d_a-z](?:\.|[\w'’-]+|\b)"
LONGEST = 6
FUNCTION = frozenset(
    ["A", "After", "Although", "An", "And", "As", "At", "Both", "But", "By", "During", "For", "From", "He", "Her",
     "His", "However", "If", "In", "It", "Its", "Of", "On", "She", "Since", "That", "The", "Their", "There", "These",
     "They", "This", "Those", "To", "When", "While", "With"]
)  # fmt: skip


def names(texts: Sequence[str]) -> Spans:
    """Find runs of two or more capitalised words, one space apart, "of", "de" and the like allowed between.

    A stand-in for an entity tagger: it misses names of one word and takes some headings and sentence beginnings for
    names. The first word of a sentence only counts if it is no function word.
    """
    between = r"(?: (?:of|of the|de|de la|da|del|van|van der|von|la|le))?"
    pattern = re.compile(rf"(?<!\w){NAME}(?:{between} {NAME})+")
    records = []
    for d, text in enumerate(texts):
        for m in pattern.finditer(text):
            found = m.group().rstrip(".'’-")
            start = m.start()
            first, _, rest = found.partition(" ")
            if first in FUNCTION:
                start, found = start + len(first) + 1, rest
            if " " in found and found.split(" ")[0][:1].isupper():
                records.append({"document": d, "start": start, "stop": start + len(found), "kind": "name"})
    return Spans.from_records(records, texts)


def listed(texts: Sequence[str], lexicon: str | Path, kind: str = "listed") -> Spans:
    """Find the entries of several words of a word list (first column of a tab-separated file), longest first."""
    known = {}
    for line in open_lines(lexicon):
        words = tuple(w.lower() for w in find_words(line.split("\t")[0])[1])
        if 1 < len(words) <= LONGEST:
            known.setdefault(words[0], set()).add(words)
    records = []
    for d, text in enumerate(texts):
        edges, words = find_words(text)
        lower, at = [w.lower() for w in words], 0
        while at < len(lower):
            sizes = sorted({len(w) for w in known.get(lower[at], ())}, reverse=True)
            here = (n for n in sizes if at + n <= len(lower) and tuple(lower[at : at + n]) in known[lower[at]])
            n = next(here, 0)
            blank = n and all(not text[edges[k, 1] : edges[k + 1, 0]].strip() for k in range(at, at + n - 1))
            if blank:
                records.append(
                    {"document": d, "start": int(edges[at, 0]), "stop": int(edges[at + n - 1, 1]), "kind": kind}
                )
            at += n if blank else 1
    return Spans.from_records(records, texts)


def subjects(texts: Sequence[str], column: Iterable[str]) -> Spans:
    """Find the subject of each prompt of a table (COUNTERFACT): its first occurrence; absent ones are left out."""
    records = []
    for d, (text, subject) in enumerate(zip(texts, column, strict=True)):
        start = text.find(subject)
        if subject and start >= 0:
            records.append({"document": d, "start": start, "stop": start + len(subject), "kind": "subject"})
    return Spans.from_records(records, texts)


def read_annotated(file: str | Path, lexicon: str | Path | None = None, limit: int | None = None) -> Any:
    """Read texts and their units: (texts, spans).

    CoNLL (``.conll.txt``), CoNLL-U-lex and jsonl bring spans of their own; a csv with a column ``subject`` brings its
    subjects; in any other file, `names` are found. Entries of a ``lexicon`` are added.
    """
    name = Path(file).name
    if ".conllulex" in name:
        found: Any = read_conllulex(file)
    elif ".conll" in name:
        found = read_conll(file)
    elif ".jsonl" in name:
        try:
            found = read_spans_jsonl(file)
        except ValueError:  # texts without spans
            found = None
    else:
        found = None
    if found is not None:
        texts, spans = list(found.texts), found.spans
        if limit is not None:
            texts = texts[:limit]
            spans = Spans.where(spans, spans.document < limit)
            spans.texts = texts
    else:
        texts = [t for t in read_texts(file, limit=limit) if t]
        column = _subject_column(file, limit)
        spans = names(texts) if column is None else subjects(texts, column)
    if lexicon is not None:
        spans = spans + listed(texts, lexicon)
    return texts, spans


def _subject_column(file: str | Path, limit: int | None) -> list[str] | None:
    """Return the column ``subject`` of a table, or None."""
    if ".csv" not in Path(file).name:
        return None
    try:
        return list(read_texts(file, field="subject", limit=limit))
    except ValueError:
        return None
