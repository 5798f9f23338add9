"""Texts to count tokens in, read as a stream: files of any size, texts in memory, and FLORES-200."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.paths import local_path
from ..settings import checked, one_of, refuse, several, short, string
from ..text.prompts import Prompts
from ..text.readers.files import OPENERS, SUFFIXES, iterate_texts, open_lines


@dataclass(frozen=True)
class Corpus:
    """Texts of one language, read anew each time.

    Parameters
    ----------
    source : path, list of paths, dataset, or name of a dataset on the hub
        As for `Prompts.from_file`; a file of unknown type has one text per line.  Or a list of texts, or `Prompts`,
        whose prompts are the texts.
    field : str
        Field or column with the text.
    per_line : bool
        One text per line of a ``.txt`` file, which keeps memory constant.
    split : str, optional
        Split of a dataset.
    encoding : str
        Of text files.
    joined : bool
        Make one text of all lines of the files, joined by spaces, the empty line that ends each file included.

    Examples
    --------
    >>> list(Corpus(["One.", "Two."]))
    ['One.', 'Two.']
    """

    source: Any
    field: str = "text"
    per_line: bool = True
    split: str | None = None
    encoding: str = "utf-8"
    joined: bool = False

    def __iter__(self) -> Iterator[str]:
        if not self.joined:
            yield from self._texts()
            return
        parts = []
        for file in _as_list(self.source):
            parts += [*_lines(local_path(file, "corpora"), self.encoding), ""]
        yield " ".join(parts)

    def _texts(self) -> Iterator[str]:
        if isinstance(self.source, Prompts):
            yield from (self.source.text(n) for n in range(len(self.source)))
        elif in_memory(self.source):
            yield from self.source
        elif not hasattr(self.source, "column_names") and all(map(_unknown_type, _as_list(self.source))):
            for file in _as_list(self.source):
                yield from _lines(local_path(file, "corpora"), self.encoding)
        else:
            yield from iterate_texts(
                self.source, field=self.field, per_line=self.per_line, split=self.split, encoding=self.encoding
            )


def in_memory(source: Any) -> bool:
    """Return whether a source is a list of texts."""
    return isinstance(source, list | tuple) and bool(source) and all(isinstance(t, str) for t in source)


def _as_list(source: Any) -> list[Any]:
    return list(source) if isinstance(source, list | tuple) else [source]


def _unknown_type(file: Any) -> bool:
    path = Path(file)
    inner = path.with_suffix("") if path.suffix in OPENERS else path
    return path.is_file() and inner.suffix.lower() not in SUFFIXES


def _lines(file: Path, encoding: str) -> Iterator[str]:
    yield from open_lines(file, encoding)


def as_corpora(given: Mapping[str, Any]) -> dict[str, dict[str, Corpus]]:
    """Return corpus -> language -> texts of what was given: one corpus by languages, or several of them.

    Raises
    ------
    ValueError
        If a source is no source, or a list of strings that are names of files.
    """
    if not given:
        refuse("corpora", dict(given), "give a dictionary of languages and their texts, such as {'en': 'en.txt'}")
    nested = {k: v for k, v in given.items() if isinstance(v, Mapping)}
    if nested and len(nested) < len(given):
        name = next(k for k in given if k not in nested)
        refuse("corpora", name, "give languages to all corpora, or to none: {'wiki': {'en': 'en.txt'}}")
    return {
        name: {lang: _as_corpus(f"{name}, {lang}" if nested else lang, one) for lang, one in langs.items()}
        for name, langs in (nested or {"texts": given}).items()
    }


def _as_corpus(name: str, given: Any) -> Corpus:
    if isinstance(given, Corpus):
        return given
    if isinstance(given, Prompts | str | Path) or hasattr(given, "column_names"):
        return Corpus(given)
    if isinstance(given, list | tuple) and given:
        if all(isinstance(g, Path) for g in given):
            return Corpus(given)
        if in_memory(given):
            if all(len(g) < 250 and Path(g).is_file() for g in given[:10]):
                raise ValueError(f"corpora, {name}={short(given)}: a list of names of files: write Path(...) for each")
            return Corpus(given)
    raise ValueError(f"corpora, {name}={short(given)}: give a file, a list of texts, Prompts, or a Corpus")


@checked(langs=several(string, 1), splits=several(one_of("dev", "devtest"), 1))
def flores(
    folder: str | Path,
    langs: Sequence[str] | None = None,
    *,
    splits: Sequence[str] = ("dev", "devtest"),
    joined: bool = False,
    encoding: str = "utf-8",
) -> dict[str, Corpus]:
    r"""Return the languages of a FLORES-200 folder, 2,009 parallel sentences each.

    Parameters
    ----------
    folder : path
        Holds ``dev/eng_Latn.dev`` and ``devtest/eng_Latn.devtest`` and so on.
    langs : sequence of str, optional
        Codes such as ``eng_Latn``; all by default.
    splits : sequence of {"dev", "devtest"}
        In this order.
    joined : bool
        One text of all sentences, as Petrov et al. (2023) count tokens, instead of a text for each.
    encoding : str
        Of the files.

    Raises
    ------
    ValueError
        If the folder is no such folder or lacks a language.

    References
    ----------
    NLLB Team 2022, arXiv 2207.04672; Petrov et al. 2023, arXiv 2305.15425.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "dev", "eng_Latn.dev")
    ...     file.parent.mkdir()
    ...     _ = file.write_text("One.\nTwo.\n")
    ...     [*flores(folder, splits=["dev"])["eng_Latn"]]
    ['One.', 'Two.']
    """
    here = local_path(folder, "folder")
    found = {s: {f.name.removesuffix(f".{s}"): f for f in sorted((here / s).glob(f"*.{s}"))} for s in splits}
    for split, files in found.items():
        if not files:
            refuse("folder", str(folder), f"it has no files {split}/LANG.{split}, as FLORES-200 has")
    names = sorted(set.union(*map(set, found.values()))) if langs is None else list(langs)
    for lang in names:
        for split, files in found.items():
            if lang not in files:
                refuse("langs", lang, f"the folder has no {split}/{lang}.{split}; there are {short(sorted(files))}")
    return {lang: Corpus([found[s][lang] for s in splits], encoding=encoding, joined=joined) for lang in names}
