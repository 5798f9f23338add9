"""Texts from files: plain, JSON, tables, and Hugging Face datasets, with errors that say where the file is wrong."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...files.paths import local_path
from ...settings import LARGEST, check_unicode, checked, count, refuse, source
from ...settings.kinds import Refused

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@checked(path=source, limit=count(1, LARGEST))
def read_texts(
    path: str | Path | Sequence[str | Path] | Any,
    *,
    field: str = "text",
    per_line: bool = False,
    limit: int | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
) -> list[str]:
    """Read texts from a file, several files, or a dataset.

    Parameters
    ----------
    path : path, list of paths, dataset, or name of a dataset on the hub
        See `Prompts.from_file`.
    field : str
        Field or column with the text.
    per_line : bool
        One text per line of a ``.txt`` file.
    limit : int, optional
        Stop after so many texts.
    split : str, optional
        Split of a dataset.
    encoding : str
        Of text files.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of unknown type, not in the encoding (names the byte), damaged, or has no such field.
    ImportError
        If ``datasets`` or ``pyarrow`` is needed and not installed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.jsonl")
    ...     _ = file.write_text('{"text": "One."}')
    ...     read_texts(file)
    ['One.']
    """
    return list(islice(_read(path, field, per_line, split, encoding, limit is not None), limit))


def iterate_texts(
    path: Any, *, field: str = "text", per_line: bool = False, split: str | None = None, encoding: str = "utf-8"
) -> Iterator[str]:
    r"""Yield the texts that `read_texts` returns one after the other, so that files may be larger than memory.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.txt")
    ...     _ = file.write_text("One.\nTwo.")
    ...     list(iterate_texts(file, per_line=True))
    ['One.', 'Two.']
    """
    return _read(path, field, per_line, split, encoding, streaming=True)


def _read(
    path: Any, field: str, per_line: bool, split: str | None, encoding: str, streaming: bool = False
) -> Iterator[str]:
    if hasattr(path, "column_names"):
        yield from _dataset(path, field, split, type(path).__name__)
        return
    if isinstance(path, Sequence) and not isinstance(path, str):
        for one in path:
            yield from _read(one, field, per_line, split, encoding)
        return
    if not isinstance(path, str | os.PathLike) or not str(path):
        refuse("path", path, "give a file, a list of files, or a dataset; for texts in memory Prompts.from_texts")
    file = local_path(path)
    if file.is_dir():
        yield from _folder(file, field, per_line, split, encoding)
        return
    inner = file.with_suffix("") if file.suffix in OPENERS else file
    suffix = inner.suffix.lower()
    if not file.exists():
        if suffix in SUFFIXES or file.suffix in OPENERS or str(path).count("/") > 1 or isinstance(path, Path):
            raise FileNotFoundError(f"path={path}: no such file")
        yield from _hub(str(path), field, split, streaming)
        return
    if split is not None:
        refuse("split", split, f"{file} is a file, which has no splits; leave it out")
    if suffix == ".parquet":
        yield from _parquet(file, field)
    elif suffix in (".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
        try:
            if suffix in (".txt", ".md"):
                lines = _lines(file, encoding)
                yield from (line.rstrip("\r\n") for line in lines) if per_line else ["".join(lines)]
            elif suffix in (".csv", ".tsv"):
                delimiter = "\t" if suffix == ".tsv" else ","
                yield from (row[0] for row in table(file, [field], encoding, delimiter))
            elif suffix == ".json":
                yield from _json(file, field, encoding)
            else:
                yield from _jsonl(file, field, encoding)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as e:
            if file.suffix in OPENERS and not isinstance(e, FileNotFoundError | PermissionError):
                raise ValueError(f"{file}: not a whole {file.suffix} file ({e}): copy it again") from None
            raise
    else:
        known = ", ".join(SUFFIXES)
        raise ValueError(
            f"{file}: unknown type {suffix or 'without suffix'!r}: the types are {known}, also with .gz, .bz2, .xz"
        )


def _lines(file: Path, encoding: str) -> Iterator[str]:
    """Yield decoded lines with their line ends; wrong bytes are named by their place in the (unpacked) file."""
    opener: Any = OPENERS.get(file.suffix, open)
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig"):
        with opener(file, "rt", encoding=encoding, newline="") as stream:
            try:
                yield from stream
            except UnicodeDecodeError as e:
                raise ValueError(f"{file}: not {encoding}: {e}") from None
        return
    place = 0
    with opener(file, "rb") as stream:
        for line in stream:
            try:
                text = line.decode()
            except UnicodeDecodeError as e:
                raise ValueError(
                    f"{file}: byte {place + e.start} (0x{line[e.start]:02x}) is not UTF-8: give the encoding, for "
                    f"example encoding='latin-1', or convert the file (iconv -f LATIN1 -t UTF-8)"
                ) from None
            yield text.removeprefix("\ufeff") if place == 0 else text
            place += len(line)


def _pick(record: Any, field: str, where: str) -> str:
    """Return the text of one record."""
    value = record
    if isinstance(record, dict):
        if field not in record:
            raise ValueError(
                f"{where}: no field {field!r}; there are {', '.join(map(str, record))}: name one with field="
            )
        value = record[field]
    if value is None:
        raise ValueError(f"{where}: {field!r} is null: leave the record out, or write an empty text (which is counted)")
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} is {type(value).__name__}, not text")
    return value


def from_json(text: str, where: str) -> Any:
    """Return what JSON says; a damaged text, or an object with one key twice, is an error that says where.

    Examples
    --------
    >>> from_json('{"a": 1, "a": 2}', "a.jsonl line 1")
    Traceback (most recent call last):
    ValueError: a.jsonl line 1: two values of 'a' in one object
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [k for k, _ in pairs]
            raise ValueError(f"two values of {max(keys, key=keys.count)!r} in one object")
        return out

    try:
        found = json.loads(text, object_pairs_hook=once)
        if "\\u" in text:
            check_unicode(json.dumps(found, ensure_ascii=False))
        return found
    except Refused as e:
        raise ValueError(f"{where}: {e}") from None
    except json.JSONDecodeError as e:
        line = f" line {e.lineno}" if "\n" in text.rstrip() else ""
        raise ValueError(f"{where}{line}: not JSON ({e})") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON (brackets within brackets without end)") from None
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None


def _jsonl(file: Path, field: str, encoding: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file, encoding), 1):
        if line.strip():
            where = f"{file} line {number}"
            yield _pick(from_json(line, where), field, where)


def _json(file: Path, field: str, encoding: str) -> Iterator[str]:
    try:
        records = from_json("".join(_lines(file, encoding)), str(file))
    except ValueError as e:
        raise ValueError(f"{e}; one object per line is .jsonl" if "not JSON" in str(e) else str(e)) from None
    if not isinstance(records, list):
        raise ValueError(
            f"{file}: holds {type(records).__name__}, not a list of texts or of objects with field {field!r}"
        )
    for number, record in enumerate(records):
        yield _pick(record, field, f"{file} entry {number}")


def table(file: Path, fields: Sequence[str], encoding: str = "utf-8", delimiter: str = ",") -> Iterator[list[str]]:
    """Yield the values of some columns, row by row, or an error that names the line."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        rows = csv.reader(_lines(file, encoding), delimiter=delimiter, strict=True)
        header = next(rows, None)
        if not header:
            raise ValueError(f"{file}: the first line names no columns: write them, {fields[0]!r} among them")
        for field in fields:
            if header.count(field) != 1:
                many = f"{header.count(field)} columns {field!r}" if field in header else f"no column {field!r}"
                way = "name one with field=, each name once" if len(fields) == 1 else f"write {' and '.join(fields)}"
                raise ValueError(f"{file} line 1: {many}; there are {', '.join(header)}: {way}")
        places = [header.index(field) for field in fields]
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{file} line {rows.line_num}: {len(row)} columns instead of {len(header)}: write texts in quotes"
                )
            if any("\0" in cell for cell in row):
                raise ValueError(f"{file} line {rows.line_num}: a NUL character: is this its encoding?")
            if row:
                yield [row[k] for k in places]
    except csv.Error as e:
        raise ValueError(
            f"{file} line {rows.line_num}: {e}: a quote is not closed, or a quoted text is followed by something else"
        ) from None
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        found = parquet.ParquetFile(file)
    except Exception as e:
        raise ValueError(f"{file}: not a whole parquet file ({e})") from None
    names = found.schema_arrow.names
    if field not in names:
        raise ValueError(f"{file}: no column {field!r}; there are {', '.join(names)}: name one with field=")
    number = 0
    for batch in found.iter_batches(batch_size=1024, columns=[field]):
        for value in batch.column(0).to_pylist():
            yield _pick(value, field, f"{file} record {number}")
            number += 1


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError("Hugging Face datasets are read by the package datasets: pip install datasets") from None
    return datasets


def _folder(folder: Path, field: str, per_line: bool, split: str | None, encoding: str) -> Iterator[str]:
    if any((folder / name).exists() for name in ("dataset_info.json", "state.json", "dataset_dict.json")):
        yield from _dataset(_datasets().load_from_disk(str(folder)), field, split, str(folder))
        return
    files = sorted(f for f in folder.iterdir() if (f.with_suffix("") if f.suffix in OPENERS else f).suffix in SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: neither a saved dataset nor a folder with files of type {', '.join(SUFFIXES)}")
    for file in files:
        yield from _read(file, field, per_line, split, encoding)


def _hub(name: str, field: str, split: str | None, streaming: bool) -> Iterator[str]:
    if not name or "." in name.rsplit("/", 1)[-1][-6:]:
        raise FileNotFoundError(f"{name}: no such file")
    datasets = _datasets()
    repository, _, configuration = name.partition(":")
    try:
        data = datasets.load_dataset(repository, configuration or None, streaming=streaming)
    except Exception as e:
        raise FileNotFoundError(
            f"{name}: neither a file or folder here nor a dataset that the hub gives ({type(e).__name__}: {e})"
        ) from None
    yield from _dataset(data, field, split, name)


def _dataset(data: Any, field: str, split: str | None, where: str) -> Iterator[str]:
    if hasattr(data, "keys"):
        names = list(data.keys())
        chosen = split or (names[0] if len(names) == 1 else "train")
        if chosen not in names:
            raise ValueError(f"{where}: no split {chosen!r}; there are {', '.join(names)}: name one with split=")
        data = data[chosen]
    if data.column_names and field not in data.column_names:
        raise ValueError(
            f"{where}: no column {field!r}; there are {', '.join(data.column_names)}: name one with field="
        )
    for number, record in enumerate(data):
        yield _pick(record, field, f"{where} record {number}")


@checked()
def open_lines(file: str | Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the lines of a text file (also .gz, .bz2, .xz) without line ends, or a clear error for wrong bytes.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.txt")
    ...     _ = file.write_text("one")
    ...     list(open_lines(file))
    ['one']
    """
    file = local_path(file, "file")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    for line in _lines(file, encoding):
        yield line.rstrip("\r\n")


__all__ = ["iterate_texts", "open_lines", "read_texts"]
