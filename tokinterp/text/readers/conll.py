"""Annotated texts from CoNLL, CoNLL-U and CoNLL-U-lex files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...settings import checked, integer
from ..spans import Spans
from . import Annotated
from .files import open_lines

_NO_SPACE_BEFORE = {
    *",.;:!?)]}%”’", "...", "..", "''", "'s", "n't", "'re", "'ve", "'ll", "'d", "'m",
}  # fmt: skip
_NO_SPACE_AFTER = {*"([{$£€“‘", "``"}
Group = tuple[str, str, list[int]]


@checked(token_column=integer, tag_column=integer)
def read_conll(file: str | Path, *, token_column: int = 0, tag_column: int = -1, encoding: str = "utf-8") -> Annotated:
    r"""Read named entities from a file with one token and its tag per line.

    Tags are IO, BIO or BIOES; ``I-`` after another type begins a new entity. A blank line ends a sentence. Sentences
    make up one text (joined by a space) where ``-DOCSTART-`` lines divide the file, else each is a text. The file has
    no raw text, so one is built: tokens are joined by spaces, except before closing and after opening punctuation,
    quotation marks taken in turn; a full stop after an abbreviation with its own is left out. MultiCoNER's files are of
    this kind; their lines ``# id`` above sentences are no tokens.

    Parameters
    ----------
    file : path
        The file, also compressed.
    token_column, tag_column : int
        Columns, divided by white space.
    encoding : str
        Of the file.

    Raises
    ------
    ValueError
        If a line has fewer columns than needed, or a tag is of another form.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.conll")
    ...     _ = file.write_text("The O\nNile B-LOC\n. O\n")
    ...     read = read_conll(file)
    >>> read.texts, read.spans.strings(), read.spans.type.tolist()
    (['The Nile.'], ['Nile'], ['LOC'])
    """
    documents: list[list[list[tuple[str, str]]]] = [[[]]]
    divided = False
    for number, line in enumerate(open_lines(file, encoding), 1):
        columns = line.split()
        if not columns:
            documents[-1].append([])
        elif columns[:2] == ["#", "id"]:
            continue  # MultiCoNER's line above a sentence
        elif columns[0].startswith("-DOCSTART-"):
            divided = True
            documents.append([[]])
        elif len(columns) < 2 or not all(-len(columns) <= c < len(columns) for c in (token_column, tag_column)):
            raise ValueError(
                f"{file} line {number}: {line!r} has no tag: expected a token and a tag, in the columns "
                f"token_column={token_column} and tag_column={tag_column}"
            )
        else:
            tag = columns[tag_column]
            if tag != "O" and (tag[1:2] != "-" or tag[0] not in "BIOESLU"):
                raise ValueError(
                    f"{file} line {number}: tag {tag!r} (tag_column={tag_column}) is none of O, B-, I-, E-, S-, L-, "
                    "U- with a type"
                )
            documents[-1][-1].append((columns[token_column], tag))
    units = documents if divided else [[s] for d in documents for s in d]
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for sentences in ([s for s in u if s] for u in units):
        if sentences:
            text, entities = _detokenise(sentences)
            records += [{"document": len(texts), "kind": "entity", **e} for e in entities]
            texts.append(text)
    return Annotated(texts, Spans.from_records(records, texts))


def _detokenise(sentences: Sequence[Sequence[tuple[str, str]]]) -> tuple[str, list[dict[str, Any]]]:
    """Return a text built from tokens, and the entities in it."""
    pieces: list[str] = []
    size = 0
    entities: list[dict[str, Any]] = []
    for sentence in sentences:
        glued, quoted, before = False, False, "O"
        for place, (token, tag) in enumerate(sentence):
            closing = token == '"' and quoted
            possessive = token == "'" and place > 0 and sentence[place - 1][0].endswith("s")
            if size and not glued and not (place and (token in _NO_SPACE_BEFORE or closing or possessive)):
                pieces.append(" ")
                size += 1
            if token == '"':
                quoted = not quoted
            if token == "." and place and sentence[place - 1][0].endswith("."):
                token = ""  # "Jr." at the end of a sentence keeps one full stop
            glued = token in _NO_SPACE_AFTER or (token == '"' and quoted)
            start, size = size, size + len(token)
            pieces.append(token)
            if tag != "O":
                follows = tag[0] in "IEL" and before != "O" and before[2:] == tag[2:] and before[0] in "BI"
                if follows:
                    entities[-1]["stop"] = size
                else:
                    entities.append({"start": start, "stop": size, "type": tag[2:]})
            before = tag
    return "".join(pieces), entities


@checked()
def read_conllu(
    file: str | Path,
    *,
    pos: bool = True,
    relations: Sequence[str] = ("fixed", "flat", "compound", "compound:prt"),
    documents: bool = True,
    encoding: str = "utf-8",
) -> Annotated:
    r"""Read parts of speech and multiword expressions from a CoNLL-U file.

    Offsets come from ``# text``, which every token must be found in. Spans of kind "pos" are the words, their type is
    the universal part of speech. Spans of kind "mwe" are words joined by one of ``relations``, their type is the
    relation; those with a gap are skipped and counted. Words of a token that is written together (``can't``) have the
    characters of their forms where these make up the token, else those of the whole token.

    Parameters
    ----------
    file : path
        The file, also compressed.
    pos : bool
        Whether to return the words.
    relations : sequence of str
        Dependency relations that make a multiword expression, with their subtypes (``flat`` includes ``flat:foreign``,
        but ``compound`` not ``compound:prt``).
    documents : bool
        Join the sentences of a document (``# newdoc``) to one text, paragraphs by a line break, sentences by a space.
        Without it, each sentence is a text.
    encoding : str
        Of the file.

    Raises
    ------
    ValueError
        If a sentence has no ``# text``, or a word is not found in it.

    References
    ----------
    https://universaldependencies.org/format.html

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.conllu")
    ...     _ = file.write_text("# text = Go!\n1\tGo\tgo\tVERB" + "\t_" * 6 + "\n2\t!\t!\tPUNCT" + "\t_" * 6)
    ...     read = read_conllu(file)
    >>> read.texts, read.spans.strings(), read.spans.type.tolist()
    (['Go!'], ['Go', '!'], ['VERB', 'PUNCT'])
    """

    def groups(rows: list[list[str]]) -> Iterator[Group]:
        if pos:
            yield from (("pos", row[3], [n]) for n, row in enumerate(rows))
        place = {row[0]: n for n, row in enumerate(rows)}
        for relation in relations:
            members: dict[int, set[int]] = {}
            for n, row in enumerate(rows):
                wanted = row[7] == relation or (relation != "compound" and row[7].startswith(relation + ":"))
                if wanted and row[6] in place:
                    head = place[row[6]]
                    members.setdefault(head, {head}).add(n)
            yield from (("mwe", relation, sorted(m)) for m in members.values())

    return _read_conllu(file, groups, documents, encoding)


@checked()
def read_conllulex(
    file: str | Path, *, weak: bool = False, pos: bool = False, documents: bool = True, encoding: str = "utf-8"
) -> Annotated:
    r"""Read multiword expressions from a CoNLL-U-lex file (STREUSLE).

    Strong expressions become spans of kind "mwe", their type is the lexical category (N, V.VPC.full, PP, ...).
    Expressions with a gap ("turn it off") are skipped and counted.

    Parameters
    ----------
    file : path
        The file, also compressed.
    weak : bool
        Also return weak expressions (collocations), as kind "weak mwe" with an empty type.
    pos : bool
        Also return the words, as in `read_conllu`.
    documents, encoding
        As in `read_conllu`.

    References
    ----------
    Schneider and Smith 2015; https://github.com/nert-nlp/streusle, CONLLULEX.md.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> words = "\n".join(f"{n}\t{w}\t{w}" + "\t_" * 16 for n, w in ((1, "Go"), (2, "!")))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.conllulex")
    ...     _ = file.write_text(f"# text = Go!\n{words}\n")
    ...     read_conllulex(file).texts
    ['Go!']
    """

    def groups(rows: list[list[str]]) -> Iterator[Group]:
        if pos:
            yield from (("pos", row[3], [n]) for n, row in enumerate(rows))
        for kind, column in (("mwe", 10), ("weak mwe", 15))[: 1 + weak]:
            members: dict[str, list[int]] = {}
            for n, row in enumerate(rows):
                if len(row) < 19:
                    raise ValueError(f"{file}: {len(row)} columns, not the 19 of CoNLL-U-lex: read it with read_conllu")
                if row[column] != "_":
                    members.setdefault(row[column].partition(":")[0], []).append(n)
            yield from ((kind, rows[m[0]][11] if column == 10 else "", m) for m in members.values())

    return _read_conllu(file, groups, documents, encoding)


def _read_conllu(file: str | Path, groups: Any, documents: bool, encoding: str) -> Annotated:
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for meta, rows, together in _sentences(file, encoding):
        text = meta.get("text")
        where = f"{file} sentence {meta.get('sent_id', '?')}"
        if text is None:
            raise ValueError(f"{where}: no '# text' line, so there are no offsets")
        edges = _locate(text, rows, together, where)
        if documents and texts and "newdoc" not in meta:
            base = len(texts[-1]) + 1
            texts[-1] += ("\n" if "newpar" in meta else " ") + text
        else:
            base = 0
            texts.append(text)
        for kind, type_, members in groups(rows):
            if members[-1] - members[0] >= len(members):
                skipped[f"{kind} with a gap"] += 1
                continue
            start, stop = edges[members[0]][0] + base, edges[members[-1]][1] + base
            records.append({"document": len(texts) - 1, "start": start, "stop": stop, "kind": kind, "type": type_})
    if not texts:
        raise ValueError(f"{file}: no sentence in it")
    return Annotated(texts, Spans.from_records(records, texts), dict(skipped))


def _sentences(
    file: str | Path, encoding: str
) -> Iterator[tuple[dict[str, str], list[list[str]], list[tuple[int, int, str]]]]:
    """Yield metadata, rows of words, and (first id, last id, form) of words written together, per sentence."""
    meta: dict[str, str] = {}
    rows: list[list[str]] = []
    together: list[tuple[int, int, str]] = []
    for number, line in enumerate([*open_lines(file, encoding), ""], 1):
        if not line.strip():
            if rows:
                yield meta, rows, together
            meta, rows, together = {}, [], []
        elif line.startswith("#"):
            key, _, value = line[1:].strip().partition(" = ")
            # "# newdoc" and "# newpar" may stand without a value
            meta[key.split(" ")[0] if key.startswith("new") else key] = value
        else:
            row = line.split("\t")
            if len(row) < 10:
                raise ValueError(f"{file} line {number}: {len(row)} columns, expected 10 or more divided by tabs")
            first, dash, last = row[0].partition("-")
            if dash:
                together.append((int(first), int(last), row[1]))
            elif "." not in row[0]:
                rows.append(row)


def _locate(
    text: str, rows: list[list[str]], together: list[tuple[int, int, str]], where: str
) -> list[tuple[int, int]]:
    """Return start and stop of each word in the text of its sentence."""
    out: list[tuple[int, int]] = []
    at = 0

    def take(form: str) -> tuple[int, int]:
        nonlocal at
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(form, at):
            raise ValueError(f"{where}: {form!r} is not found at character {at} of its text {text!r}")
        start, at = at, at + len(form)
        return start, at

    surface = {first: (last, form) for first, last, form in together}
    n = 0
    while n < len(rows):
        if n + 1 not in surface:
            out.append(take(rows[n][1]))
            n += 1
            continue
        last, form = surface[n + 1]
        start, stop = take(form)
        forms = [row[1] for row in rows[n:last]]
        if "".join(forms) == form:
            for one in forms:
                out.append((start, start + len(one)))
                start += len(one)
        else:
            out += [(start, stop)] * len(forms)
        n = last
    return out
