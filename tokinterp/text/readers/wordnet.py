"""Words by concept: the lemmas of each synset of a WordNet, from a list or from nltk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...settings import checked, count, flag, none, path
from .files import open_lines


@checked(file=path | none, least=count(1), variants=flag)
def read_wordnet(
    file: str | Path | None = None,
    *,
    least: int = 3,
    lang: str = "eng",
    variants: bool = False,
    encoding: str = "utf-8",
) -> dict[str, list[str]]:
    r"""Read the lemmas of each synset, as words to be tokenised.

    Parameters
    ----------
    file : path, optional
        A table with tabs, whose first line names the columns, ``lemma`` and ``synset`` among them; also compressed.
        By default the WordNet of nltk, if nltk and its data are installed: nothing is downloaded.
    least : int
        Lemmas that a synset must have.
    lang : str
        Of nltk's WordNet, such as ``"eng"``; a table has its own.
    variants : bool
        Whether each lemma comes in all four ways, with and without a space before and after it (as published), instead
        of with the space before it.
    encoding : str
        Of the file.

    Returns
    -------
    dict of str to list of str
        Synset -> lemmas, in the order of the file.

    Raises
    ------
    ValueError
        If a column is missing, or no synset has as many lemmas.
    ImportError
        Without a file, if nltk is not installed, or has no data of WordNet.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "wordnet.tsv")
    ...     _ = file.write_text("lemma\tsynset\nsea_lion\t1-n\nseal\t1-n\nriver\t2-n\n")
    ...     read_wordnet(file, least=2)
    {'1-n': [' sea lion', ' seal']}
    """
    found: dict[str, list[str]] = {}
    for synset, lemma in _of_nltk(lang) if file is None else _of_table(file, encoding):
        word = lemma.replace("_", " ").strip()
        if word and word not in (own := found.setdefault(synset, [])):
            own.append(word)
    out = {synset: own for synset, own in found.items() if len(own) >= least}
    if not out:
        most = max(map(len, found.values()), default=0)
        raise ValueError(f"least={least}: no synset of {file or 'nltk'} has so many lemmas, the largest has {most}")
    ways = ("{}", " {}", "{} ", " {} ") if variants else (" {}",)
    return {synset: [way.format(word) for word in own for way in ways] for synset, own in out.items()}


def _of_table(file: str | Path, encoding: str) -> list[tuple[str, str]]:
    lines = open_lines(file, encoding)
    header = next(lines, "").split("\t")
    if missing := [c for c in ("lemma", "synset") if c not in header]:
        raise ValueError(f"{file} line 1: no column {missing[0]!r}; there are {', '.join(header)}")
    lemma, synset = header.index("lemma"), header.index("synset")
    out = []
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{file} line {number}: {len(cells)} columns instead of {len(header)}")
        out.append((cells[synset], cells[lemma]))
    return out


def _of_nltk(lang: str) -> list[tuple[str, str]]:
    """Return (synset, lemma) of the WordNet that nltk has here."""
    try:
        from nltk.corpus import wordnet  # type: ignore[import-not-found]
    except ImportError:
        raise ImportError(
            "nltk is not installed: give file=, a table of lemmas and synsets, or pip install nltk"
        ) from None
    reader: Any = wordnet
    try:
        return [(s.name(), name) for s in reader.all_synsets() for name in s.lemma_names(lang)]
    except LookupError:
        raise ImportError(
            "nltk has no data of WordNet here: give file=, or python -m nltk.downloader wordnet"
        ) from None
