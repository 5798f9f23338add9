"""Texts with gold spans, and cloze questions, that come with the package."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.paths import local_path
from ..settings import checked, one_of
from .spans import Spans

DATA = Path(__file__).parent.parent / "data"
TEXT_KINDS = ("article", "story", "dialogue", "list")
SPAN_TYPES = {
    "entity": {"PER", "GPE", "LOC", "ORG", "WORK", "EVENT", "NORP", "DATE", "PRODUCT", "OTHER"},
    "mwe": {"compound", "idiom", "verb-particle", "light-verb", "phrasal-name"},
    "compound": {"compound"},
}


@dataclass(frozen=True)
class BundledText:
    """A text that comes with the package.

    Attributes
    ----------
    id, kind, topic, title, text : str
        ``kind`` is article, story, dialogue or list.
    spans : tuple of dict
        start, stop (characters), kind (entity, mwe, compound), type, and for compounds parts.
    """

    id: str
    kind: str
    topic: str
    title: str
    text: str
    spans: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Question:
    """A prompt that the bundled model may be able to finish.

    Attributes
    ----------
    id, kind, prompt, answer, category : str
        ``answer`` is what follows the prompt.
    """

    id: str
    kind: str
    prompt: str
    answer: str
    category: str


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in the package: install it again")
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


@checked(kind=one_of(*TEXT_KINDS))
def bundled_texts(kind: str | None = None) -> list[BundledText]:
    """Return the texts that come with the package.

    Parameters
    ----------
    kind : {"article", "story", "dialogue", "list"}, optional
        All kinds by default.

    Raises
    ------
    ValueError
        For an unknown kind.

    Examples
    --------
    >>> import tokinterp as ti
    >>> len(ti.bundled_texts("article")) > 20
    True
    """
    names = ("id", "kind", "topic", "title", "text")
    found = [BundledText(**{n: r[n] for n in names}, spans=tuple(r["spans"])) for r in _records(DATA / "texts.jsonl")]
    return [t for t in found if kind in (None, t.kind)]


@checked(kind=one_of(*TEXT_KINDS))
def bundled_spans(kind: str | None = None) -> Spans:
    """Return the gold spans of the bundled texts: entities, multiword expressions, morphological compounds.

    Parameters
    ----------
    kind : str, optional
        Kind of text, as in `bundled_texts`; text numbers count the texts of that kind.

    Examples
    --------
    >>> import tokinterp as ti
    >>> sorted(set(ti.bundled_spans("article").kind.tolist()))
    ['compound', 'entity', 'mwe']
    """
    texts = bundled_texts(kind)
    records = ({"document": n, **span} for n, text in enumerate(texts) for span in text.spans)
    return Spans.from_records(records, [t.text for t in texts])


@checked()
def bundled_questions(kind: str | None = None) -> list[Question]:
    """Return the cloze questions that come with the package.

    Parameters
    ----------
    kind : str, optional
        All kinds by default.

    Raises
    ------
    ValueError
        For an unknown kind.

    Examples
    --------
    >>> question = bundled_questions("cloze")[0]
    >>> bool(question.answer)
    True
    """
    names = ("id", "kind", "prompt", "answer", "category")
    found = [Question(**{n: str(r[n]) for n in names}) for r in _records(DATA / "questions.jsonl")]
    if kind is not None:
        one_of(*sorted({q.kind for q in found}))("kind", kind)
    return [q for q in found if kind in (None, q.kind)]


@checked()
def check_texts(path: str | Path | None = None) -> list[str]:
    """Check a file of texts with gold spans.

    Parameters
    ----------
    path : path, optional
        The file; by default the bundled one.

    Returns
    -------
    list of str
        What is wrong: fields missing, ids used twice, unknown kinds or types, spans outside their text, empty, with
        white space at an edge, inside a word, or overlapping another of the same kind; compounds whose parts do not
        begin and follow in the word. Empty if all is well.

    Examples
    --------
    >>> check_texts()
    []
    """
    wrong: list[str] = []
    seen: set[str] = set()
    file = local_path(path or DATA / "texts.jsonl")
    if not file.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: no such file")
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as e:
                wrong.append(f"line {number}: not JSON ({e})")
                continue
            name = entry.get("id", f"line {number}")
            missing = [f for f in ("id", "kind", "topic", "title", "text", "spans") if f not in entry]
            if missing:
                wrong.append(f"{name}: no {', '.join(missing)}")
                continue
            if name in seen:
                wrong.append(f"{name}: id used twice")
            seen.add(name)
            if entry["kind"] not in TEXT_KINDS:
                wrong.append(f"{name}: unknown kind of text {entry['kind']!r}")
            wrong += [f"{name}: {w}" for w in _check_spans(entry["text"], entry["spans"])]
    return wrong


def _check_spans(text: str, spans: list[dict[str, Any]]) -> list[str]:
    wrong: list[str] = []
    reached: dict[str, int] = {}
    for span in sorted(spans, key=lambda s: (s.get("start", -1), s.get("stop", -1))):
        a, b, kind, type_ = (span.get(n) for n in ("start", "stop", "kind", "type"))
        if not (isinstance(a, int) and isinstance(b, int) and 0 <= a < b <= len(text)):
            wrong.append(f"span {a}..{b} is not inside the text of {len(text)} characters")
            continue
        said = f"{kind} {text[a:b]!r} at {a}"
        if kind not in SPAN_TYPES or type_ not in SPAN_TYPES[kind]:
            wrong.append(f"{said}: unknown type {type_!r}")
        if text[a:b] != text[a:b].strip():
            wrong.append(f"{said}: white space at its edge")
        if re.match(r"\w\w", text[a - 1 : a + 1]) or re.match(r"\w\w", text[b - 1 : b + 1]):
            wrong.append(f"{said}: cuts a word")
        if a < reached.get(str(kind), 0):
            wrong.append(f"{said}: overlaps the {kind} before it")
        reached[str(kind)] = max(b, reached.get(str(kind), 0))
        if kind == "compound":
            wrong += [f"{said}: {w}" for w in _check_parts(text[a:b].lower(), span.get("parts"))]
    return wrong


def _check_parts(word: str, parts: Any) -> list[str]:
    if not isinstance(parts, list) or len(parts) < 2:
        return [f"has parts {parts!r}, not two or more"]
    *first, last = (str(p).lower() for p in parts)
    at = 0
    for part in first:
        found = word.find(part, at)
        if found < 0 or (at == 0 and found > 0):
            return [f"its part {part!r} is not found in its place"]
        at = found + len(part)
    # The last part may be inflected (craftsmen, bookshelves, understood): its first letter must be there.
    return [] if re.search(re.escape(last[:1]), word[at:]) else [f"its part {last!r} is not found in its place"]
