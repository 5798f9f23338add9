"""Units of several words or parts: compounds of CompoundPiece, multiword expressions of CoAM."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...settings import checked, none, one_of, pair, several, string, strings
from ..spans import Spans
from . import Annotated
from .conll import _detokenise, _locate
from .files import from_json, open_lines

Compounds = list[tuple[str, list[str]]]


@checked(langs=several(string, 1) | none, parts=one_of("surface", "norm"), kind=one_of("positive", "negative"))
def read_compounds(
    file: str | Path,
    langs: Sequence[str] | None = None,
    *,
    parts: str = "surface",
    kind: str = "positive",
    encoding: str = "utf-8",
) -> Compounds:
    r"""Read words and their parts from a csv file of CompoundPiece.

    The columns are ``word`` (parts divided by hyphens, as they stand in the word), ``lang``, ``type`` (positive:
    compounds; negative: no compounds; unknown) and ``norm`` (the parts as words of their own, by hyphens too).

    Parameters
    ----------
    file : path
        The file, also compressed.
    langs : sequence of str, optional
        Codes of languages such as ``de``; all by default.
    parts : {"surface", "norm"}
        Parts as they stand in the word, or as words of their own, which need not make it up.
    kind : {"positive", "negative"}
        Compounds, or words that are none (their one part is themselves).
    encoding : str
        Of the file.

    Raises
    ------
    ValueError
        If the columns are not these, or there is no such word.

    References
    ----------
    Minixhofer et al. 2023, arXiv 2305.14214; github.com/bminixhofer/compoundpiece.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "valid.csv")
    ...     _ = file.write_text("word,lang,type,norm\nBahn-hof,de,positive,Bahn-Hof\nsea,en,negative,\n")
    ...     read_compounds(file), read_compounds(file, parts="norm")
    ([('Bahnhof', ['Bahn', 'hof'])], [('Bahnhof', ['Bahn', 'Hof'])])
    """
    rows = csv.DictReader(open_lines(file, encoding))
    out: Compounds = []
    for number, row in enumerate(rows, 2):
        if missing := [c for c in ("word", "lang", "type", "norm") if row.get(c) is None]:
            raise ValueError(
                f"{file} line {number}: no column {missing[0]!r}: CompoundPiece has word, lang, type, norm"
            )
        if row["type"] != kind or (langs is not None and row["lang"] not in langs):
            continue
        surface = [p for p in row["word"].split("-") if p]
        asked = surface if parts == "surface" or kind == "negative" else [p for p in row["norm"].split("-") if p]
        if not surface or not asked:
            raise ValueError(f"{file} line {number}: {row['word']!r} has no parts in column {parts!r}")
        out.append(("".join(surface), asked))
    if not out:
        raise ValueError(f"{file}: no {kind} word" + ("" if langs is None else f" of {', '.join(langs)}"))
    return out


@checked(compounds=several(pair(string, several(string, 1)), 1), texts=strings)
def compound_spans(compounds: Compounds, texts: Sequence[str], *, kind: str = "compound") -> Annotated:
    """Find compounds in texts, whole words only; ``parts`` of a span are those of its compound.

    Parameters
    ----------
    compounds : list of (str, list of str)
        From `read_compounds`.
    texts : sequence of str
        The texts.
    kind : str
        Of the spans.

    Examples
    --------
    >>> spans = compound_spans([("bookshelf", ["book", "shelf"])], ["A bookshelf fell."]).spans
    >>> spans.strings(), spans.parts
    (['bookshelf'], [['book', 'shelf']])
    """
    known = {word: list(p) for word, p in compounds}
    spans = Spans.find(texts, list(known), kind=kind)
    spans.parts = [known[w] for w in spans.type.tolist()]
    return Annotated(list(texts), spans)


@checked()
def read_coam(file: str | Path, *, encoding: str = "utf-8") -> Annotated:
    r"""Read multiword expressions from a json or jsonl file of CoAM; those with a gap and overlaps are flagged.

    Each sentence is an object with ``tokens`` (or ``words``) and ``mwes``, each of these with the numbers of its words,
    ``indices`` (from 0), and its ``type``.  Tokens are strings, or objects with their ``surface`` (or ``form``) and
    perhaps their number ``idx``.  Where the object has the ``text`` that they make up, that is taken; else one is built
    from the words as `read_conll` does.  An expression with a gap ("turn it off") becomes a span from its
    first to its last word of kind "mwe with a gap", whose parts are its own words; `tokinterp.erasure` compares kinds
    apart, and its runs of tokens include the gap, so leave that kind out (``spans.of_kind("mwe")``) where a unit has to
    be nothing but its words.  An expression that shares a word with another becomes one of kind "overlapping mwe"; both
    are kept.

    Parameters
    ----------
    file : path
        The file, also compressed.
    encoding : str
        Of the file.

    Raises
    ------
    ValueError
        If a sentence is not such an object, or an expression names a word that is not there.

    References
    ----------
    Ide et al. 2024, arXiv 2412.18151.  The data may not be shared openly: get it at its card on the hub.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.jsonl")
    ...     _ = file.write_text(
    ...         '{"tokens": ["Turn", "it", "off", "."], "mwes": [{"indices": [0, 2], "type": "Verb"}]}'
    ...     )
    ...     read = read_coam(file)
    >>> read.spans.strings(), read.spans.kind.tolist(), read.spans.type.tolist(), read.spans.parts
    (['Turn it off'], ['mwe with a gap'], ['Verb'], [['Turn', 'off']])
    """
    entries = list(_entries(file, encoding))
    if not entries:
        raise ValueError(f"{file}: no sentence in it")
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for where, entry in entries:
        try:
            words, number = _words(entry["tokens" if "tokens" in entry else "words"])
            found = [(sorted({number.get(int(i), -1) for i in m["indices"]}), str(m.get("type") or ""))
                     for m in entry["mwes"]]  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: no tokens with mwes ({type(error).__name__}: {error})") from None
        if bad := [m["indices"] for m, (at, _) in zip(entry["mwes"], found, strict=True) if not at or at[0] < 0]:
            raise ValueError(f"{where}: an expression of the words {bad[0]}, but there are {len(words)}")
        text, edges = entry.get("text"), _placed(entry.get("text"), words)
        if edges is None:
            text, edges = _detokenise([[(w, f"B-{n}") for n, w in enumerate(words)]])
        uses = Counter(i for at, _ in found for i in at)
        for at, type_ in found:
            gap, shared = at[-1] - at[0] >= len(at), any(uses[i] > 1 for i in at)
            kind = "mwe with a gap" if gap else "overlapping mwe" if shared else "mwe"
            records.append({"document": len(texts), "start": edges[at[0]]["start"], "stop": edges[at[-1]]["stop"],
                            "kind": kind, "type": type_, "parts": [words[i] for i in at]})  # fmt: skip
        texts.append(text)
    return Annotated(texts, Spans.from_records(records, texts))


def _words(tokens: Any) -> tuple[list[str], dict[int, int]]:
    """Return the words of a sentence, and the place of each by the number that expressions call it."""
    if not isinstance(tokens, list):
        raise TypeError("tokens are a list")
    named = [t if isinstance(t, dict) else {"surface": t} for t in tokens]
    words = [string("tokens", t["surface"] if t.get("surface") is not None else t["form"]) for t in named]
    return words, {int(t.get("idx", n)): n for n, t in enumerate(named)}


def _placed(text: Any, words: Sequence[str]) -> list[dict[str, int]] | None:
    """Return where words stand in a text, nothing but white space between them; None where they do not make it up."""
    if not isinstance(text, str) or not all(words):
        return None
    try:
        edges = _locate(text, [["", word] for word in words], [], "")
    except ValueError:
        return None
    return [{"start": start, "stop": stop} for start, stop in edges]


def _entries(file: str | Path, encoding: str) -> Any:
    """Yield (where, object) of the lines of a jsonl file, or of the list that a json file is."""
    lines = list(open_lines(file, encoding))
    if lines and lines[0].lstrip().startswith("["):
        try:
            every = json.loads("\n".join(lines))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: no JSON ({error})") from None
        yield from ((f"{file} number {n}", entry) for n, entry in enumerate(every, 1))
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{file} line {number}", from_json(line, f"{file} line {number}")
