"""Annotated texts, from jsonl with character offsets and from spaCy; conll.py reads those of CoNLL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...settings import checked, count, integer, mapping, of, several, string
from ..spans import Spans
from .files import from_json, open_lines


@checked(skipped=mapping(count()))
@dataclass
class Annotated:
    """Texts and the spans on them.

    Attributes
    ----------
    texts : list of str
        Raw texts.
    spans : Spans
        On these texts.
    skipped : dict of str to int
        Annotations that are no span of consecutive characters, by reason.
    """

    texts: list[str]
    spans: Spans
    skipped: dict[str, int] = field(default_factory=dict)


@checked()
def read_spans_jsonl(file: str | Path, *, kind: str = "entity", encoding: str = "utf-8") -> Annotated:
    """Read texts with character spans, one JSON object per line.

    Each object has ``text`` and ``spans`` (or ``entities``): a list of objects with ``start``, ``stop`` (or ``end``),
    and optionally ``kind``, ``type`` (or ``label``) and ``parts``; or of lists ``[start, stop, type]``.

    Parameters
    ----------
    file : path
        The file, also compressed.
    kind : str
        Kind of the spans that do not say theirs.
    encoding : str
        Of the file.

    Raises
    ------
    ValueError
        If a line is not such an object, or a span does not lie in its text (names the line).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.jsonl")
    ...     _ = file.write_text('{"text": "The Nile.", "spans": [{"start": 4, "stop": 8, "type": "LOC"}]}')
    ...     read = read_spans_jsonl(file)
    >>> read.texts, read.spans.strings(), read.spans.type.tolist()
    (['The Nile.'], ['Nile'], ['LOC'])
    """
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(open_lines(file, encoding), 1):
        if not line.strip():
            continue
        try:
            entry = from_json(line, f"{file} line {number}")
            text = string("text", entry["text"])
            for given in entry.get("spans", entry.get("entities", entry.get("label", []))):
                named = isinstance(given, dict)
                span: dict[str, Any] = given if named else dict(zip(("start", "stop", "type"), given, strict=False))
                start = integer("start", span["start"])
                stop = integer("stop", span["stop"] if "stop" in span else span["end"])
                if not 0 <= start < stop <= len(text):
                    where = f"{file} line {number}"
                    raise ValueError(
                        f"{where}: span {start}..{stop} does not lie in the text of {len(text)} characters"
                    )
                extra = {"type": span.get("type", span.get("label", "")), "parts": span.get("parts")}
                records.append(
                    {"document": len(texts), "start": start, "stop": stop, "kind": span.get("kind", kind), **extra}
                )
            texts.append(text)
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            if str(e).startswith(str(file)):
                raise
            raise ValueError(f"{file} line {number}: no text with spans ({type(e).__name__}: {e})") from None
    if not texts:
        raise ValueError(f"{file}: no text in it")
    return Annotated(texts, Spans.from_records(records, texts))


@checked(
    texts=several(of("a text, or a spaCy Doc", lambda v: isinstance(v, str) or hasattr(v, "ents"))),
    pipeline=string | of("a loaded pipeline", lambda v: hasattr(v, "pipe") and not hasattr(v, "dtypes")),
)
def spacy_spans(texts: Iterable[str], pipeline: Any = "en_core_web_sm") -> Annotated:
    """Find named entities with spaCy.

    Parameters
    ----------
    texts : iterable of str, or of spaCy Doc
        Texts, or documents already analysed.
    pipeline : str or spaCy Language
        Name of an installed pipeline, or a loaded one; not used for documents.

    Raises
    ------
    ImportError
        If spaCy is needed and not installed.

    Examples
    --------
    >>> class Analysed:  # a pipeline of spaCy: spacy.load("en_core_web_sm")
    ...     def pipe(self, texts):
    ...         return [type("Doc", (), {"text": t, "ents": []}) for t in texts]
    >>> len(spacy_spans(["The Nile flows north."], Analysed()).texts)
    1
    """
    given: list[Any] = list(texts)
    if given and all(isinstance(t, str) for t in given):
        if isinstance(pipeline, str):
            try:
                import spacy  # type: ignore[import-not-found]
            except ImportError:
                raise ImportError(
                    "spaCy is not installed: pip install spacy, then python -m spacy download " + pipeline
                ) from None
            pipeline = spacy.load(pipeline)
        given = list(pipeline.pipe(given))
    records = [
        {"document": n, "start": e.start_char, "stop": e.end_char, "kind": "entity", "type": e.label_}
        for n, doc in enumerate(given)
        for e in doc.ents
    ]
    kept = [doc.text for doc in given]
    return Annotated(kept, Spans.from_records(records, kept))
