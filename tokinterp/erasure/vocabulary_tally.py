"""Adding up the segments of shards of a corpus: counts and scores of each unit, and the ranked table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..results.dataset import bound_coord, variable
from ..results.documents import interval_name
from ..results.stamp import derived
from ..stats.resample import ratio, resample_columns
from ..text import find_words
from ..text.classes import word_range
from ..text.vocabulary import show

if TYPE_CHECKING:
    from ..text.prompts import Prompts

BOUNDARIES = ("any", "word")
PAPER = "Feucht et al. 2024, arXiv 2406.20086, section 5"
COLUMNS: dict[str, Any] = {
    "key": np.int64, "document": np.int64, "edges": np.int8, "count": np.int64, "total": np.float64,
    "squares": np.float64, "seen": np.float64,
}  # fmt: skip
SCORING = ("scale", "denominator", "left_penalty", "right_penalty", "segmentation", "start_layer", "end_layer")
MADE_BY = ("identity", "weights", "tokenizer", "dtype", "edits")
EXAMPLE = {
    "example_shard": "shard of an occurrence", "example_prompt": "prompt of that occurrence",
    "example_start": "its first token, BOS counted",
}  # fmt: skip


class Tally:
    """Counts and sums of psi for each unit and document: what shards of a corpus are added up in.

    Attributes
    ----------
    numbers : dict of bytes to int
        Number of each unit; the key is its token ids as little-endian int32.
    columns : dict of str to numpy.ndarray
        One row for each unit, document and kind of edges: ``key``, ``document``, ``edges`` (1: begins at a word
        boundary, 2: ends at one), ``count``, ``total`` and ``squares`` of psi, ``seen``.
    example : list of (int, int, int)
        Shard, prompt and first token of the first occurrence of each unit.

    Notes
    -----
    Memory grows with the number of different units and documents that hold them, not with the tokens read.

    Examples
    --------
    >>> from tokinterp.text import Prompts
    >>> prompts = Prompts.from_ids([[5, 6, 7, 5, 6]])
    >>> coords = {"span_prompt": ("span", [0, 0]), "start": ("span", [0, 3]), "stop": ("span", [2, 5])}
    >>> ds = xr.Dataset({"psi": ("span", [0.3, 0.5]), "seen": ("span", [1.0, 1.0])}, coords)
    >>> tally = Tally().add(ds, prompts).merge(Tally().add(ds, prompts))
    >>> tally.table()["count"].item()
    4
    """

    def __init__(self, keep_single: bool = False) -> None:
        self.keep_single = keep_single
        self.numbers: dict[bytes, int] = {}
        self.columns: dict[str, np.ndarray] = {n: np.zeros(0, t) for n, t in COLUMNS.items()}
        self.example: list[tuple[int, int, int]] = []
        self.n_segments, self.n_documents, self.n_shards = 0, 0, 0
        self.vocabulary: Any = None
        self.attrs: list[dict[str, Any]] = []
        self.units = "1"

    def add(self, ds: xr.Dataset, prompts: Prompts) -> Tally:
        """Add the segments of one result of `ErasureScores` over these prompts; the documents are taken as new ones.

        Raises
        ------
        ValueError
            If the result is of other prompts, or has no segments.
        """
        check_segments(ds, prompts)
        self._same_scores([dict(ds.attrs)])
        number, start, stop = (ds[n].values.astype(np.int64) for n in ("span_prompt", "start", "stop"))
        keep = np.flatnonzero(stop - start >= (1 if self.keep_single else 2))
        number, start, stop = number[keep], start[keep], stop[keep]
        key = self._number(prompts, number, start, stop)
        edges = word_edges(prompts, number, start, stop)
        new = {
            "key": key, "document": prompts.documents[number] + self.n_documents, "edges": edges,
            "count": np.ones(len(key), np.int64), "total": ds["psi"].values[keep].astype(np.float64),
            "squares": ds["psi"].values[keep].astype(np.float64) ** 2,
            "seen": ds["seen"].values[keep].astype(np.float64),
        }  # fmt: skip
        self._append(new)
        self.n_segments += len(key)
        self.n_documents += int(prompts.documents.max()) + 1
        self.n_shards += 1
        self.vocabulary = prompts.vocabulary
        self.units = str(ds["psi"].attrs.get("units", "1"))
        self.attrs.append(dict(ds.attrs))
        return self

    def merge(self, other: Tally) -> Tally:
        """Add another tally, of other documents."""
        if self.keep_single != other.keep_single:
            raise ValueError("one tally keeps single tokens and the other does not: make both alike")
        self._same_scores(other.attrs)
        self.units = other.units if not self.attrs else self.units
        shift = np.zeros(len(other.numbers), dtype=np.int64)
        for ids, n in other.numbers.items():
            known = self.numbers.setdefault(ids, len(self.numbers))
            shift[n] = known
            if known == len(self.example):
                shard, prompt, start = other.example[n]
                self.example.append((shard + self.n_shards, prompt, start))
        columns = dict(other.columns)
        columns["key"] = shift[columns["key"]]
        columns["document"] = columns["document"] + self.n_documents
        self._append(columns)
        self.n_segments += other.n_segments
        self.n_documents += other.n_documents
        self.n_shards += other.n_shards
        self.vocabulary = self.vocabulary or other.vocabulary
        self.attrs += other.attrs
        return self

    def _same_scores(self, attrs: Sequence[dict[str, Any]]) -> None:
        """Refuse scores that were made otherwise than those added before."""
        for a, b in ((a, b) for a in self.attrs[:1] for b in attrs):
            one, two = _scoring(a), _scoring(b)
            names = dict.fromkeys((*one, *two))
            differ = [f"{n} ({one.get(n)} before, {two.get(n)} now)" for n in names if one.get(n) != two.get(n)]
            if differ:
                raise ValueError(f"scores of different kinds cannot be added up: {', '.join(differ)}")

    def _number(self, prompts: Prompts, number: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Return (segment,) the number of each segment's unit; new units are numbered on."""
        out = np.empty(len(number), dtype=np.int64)
        first, length = prompts.starts[number] + start, stop - start
        for n in np.unique(length):
            here = np.flatnonzero(length == n)
            rows = prompts.token_ids[first[here][:, None] + np.arange(n)].astype("<i4")
            units, example, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
            known = np.empty(len(units), dtype=np.int64)
            for u, (row, e) in enumerate(zip(units, here[example].tolist(), strict=True)):
                known[u] = self.numbers.setdefault(row.tobytes(), len(self.numbers))
                if known[u] == len(self.example):
                    self.example.append((self.n_shards, int(number[e]), int(start[e])))
            out[here] = known[inverse.reshape(-1)]
        return out

    def _append(self, new: dict[str, np.ndarray]) -> None:
        """Add rows, those of the same unit, document and edges together."""
        names = ("key", "document", "edges")
        order = np.lexsort([new[n] for n in names[::-1]])
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = np.logical_or.reduce([new[n][order][1:] != new[n][order][:-1] for n in names])
        first = np.flatnonzero(fresh)
        for name in COLUMNS:
            column = new[name][order]
            column = column[first] if name in names else np.add.reduceat(column, first) if len(first) else column
            self.columns[name] = np.concatenate([self.columns[name], column.astype(COLUMNS[name])])

    def table(
        self,
        *,
        min_count: int = 2,
        min_psi: float | None = 0.0,
        boundaries: str = "any",
        n_boot: int = 200,
        level: float = 0.95,
        seed: int = 0,
    ) -> xr.Dataset:
        """Return the ranked units; see `read_out`."""
        if not len(self.columns["key"]):
            raise ValueError("no segment has two or more tokens, so there is no vocabulary: check layers and probes")
        c = self.columns if boundaries == "any" else {n: v[self.columns["edges"] == 3] for n, v in self.columns.items()}
        size = len(self.numbers)

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(c["key"], weights=values, minlength=size)

        count, sums = total(c["count"]), total(c["total"])
        with np.errstate(invalid="ignore"):
            mean = sums / count
        kept = np.flatnonzero((count >= min_count) & (True if min_psi is None else mean > min_psi))
        if not len(kept):
            raise ValueError(
                f"none of the {int((count > 0).sum())} units occurs {min_count} times or more with a mean psi above "
                f"{min_psi} (boundaries={boundaries!r}): read more text, or ask for less"
            )
        ids = _unpack(self.numbers, kept)
        order = np.array(sorted(range(len(kept)), key=lambda n: (-mean[kept[n]], -count[kept[n]], ids[n])))
        kept, ids = kept[order], [ids[n] for n in order]
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.maximum(total(c["squares"]) - sums * mean, 0) / (count - 1))
            shares = {n: (total(v) / count)[kept] for n, v in _shares(c).items()}
        pairs = np.unique(c["key"] * max(1, self.n_documents) + c["document"])
        documents = np.bincount(pairs // max(1, self.n_documents), minlength=size)
        interval = _interval(c, kept, size, self.n_documents, n_boot, level, seed)
        v = variable
        data = {
            "psi": v("rank", mean[kept], "mean erasure score of the segments", self.units, PAPER),
            "psi_sd": v("rank", np.where(count > 1, spread, np.nan)[kept], "standard deviation of psi", self.units),
            "psi_interval": v(("bound", "rank"), interval, interval_name("mean psi", level, "documents"), self.units),
            "count": v("rank", count[kept].astype(np.int64), "segments that are this unit", "1"),
            "n_documents": v("rank", documents[kept], "documents with such a segment", "1"),
            "n_groups": v("rank", documents[kept], "documents drawn for the interval", "1"),
            "seen": v("rank", shares["seen"], "mean share of terms whose target was a label of the probes", "1"),
            "left_boundary": v("rank", shares["left"], "share of the segments that begin at a word boundary", "1"),
            "right_boundary": v("rank", shares["right"], "share of the segments that end at a word boundary", "1"),
            **self._strings(ids),
        }
        for n, (name, what) in enumerate(EXAMPLE.items()):
            data[name] = v("rank", np.array([self.example[k][n] for k in kept]), what, "1")
        coords = {
            "rank": v("rank", np.arange(len(kept)), "order by psi, 0 first", "1"),
            "bound": bound_coord(),
        }
        reading = {
            "min_count": min_count, "min_psi": "none" if min_psi is None else float(min_psi), "boundaries": boundaries,
            "keep_single": int(self.keep_single), "n_segments": self.n_segments,
        }  # fmt: skip
        settings = {**reading, "n_boot": n_boot, "level": level, "counts": self.columns, "units": list(self.numbers)}
        of = [xr.Dataset(attrs=a) for a in self.attrs]
        attrs = {**reading, "n_groups": self.n_documents, "groups": "documents"}
        return derived(xr.Dataset(data, coords, attrs), "vocabulary", of, settings, seed)

    def _strings(self, ids: Sequence[tuple[int, ...]]) -> dict[str, xr.Variable]:
        """Return the variables that say what the ids stand for."""
        raw = [b"".join(self.vocabulary.bytes(np.array(i))) for i in ids]
        v = variable
        return {
            "ids": v("rank", np.array([" ".join(map(str, i)) for i in ids], object), "token ids", "1"),
            "n_tokens": v("rank", np.array([len(i) for i in ids]), "tokens of the unit", "token"),
            "text": v("rank", np.array([show(b) for b in raw], object), "text, leading space included", "1"),
            "leading_space": v("rank", np.array([b[:1] == b" " for b in raw]), "whether it begins with a space", "1"),
            "valid_utf8": v("rank", np.array([_valid(b) for b in raw]), "whether its bytes are whole characters", "1"),
        }


def word_edges(prompts: Prompts, number: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return (span,) int8: 1 where the span begins where no word is cut, 2 where it ends so, 3 for both.

    Parameters
    ----------
    prompts : Prompts
        With character offsets.
    number, start, stop : numpy.ndarray
        (span,) prompt, first token, token after the last one.
    """
    out = np.zeros(len(number), dtype=np.int8)
    if not len(number):
        return out
    order = np.argsort(number, kind="stable")
    used, first = np.unique(number[order], return_index=True)
    words: tuple[int, np.ndarray] = (-1, np.zeros((0, 2), np.int64))
    for i, rows in zip(used.tolist(), np.split(order, first[1:]), strict=True):
        document = int(prompts.documents[i])
        if words[0] != document:
            words = (document, find_words(prompts.document_text(document))[0])
        begin, end, *_ = word_range(prompts, i, words[1])
        left = ~_cut(words[1], begin[start[rows]])
        right = ~_cut(words[1], end[stop[rows] - 1])
        out[rows] = left + 2 * right
    return out


def check_segments(ds: xr.Dataset, prompts: Prompts) -> None:
    """Raise ValueError unless a result has segments and is of these prompts."""
    if "psi" not in ds or "span" not in ds["psi"].dims:
        raise ValueError(f"no segments in this result ({', '.join(map(str, ds.data_vars))}): measure ErasureScores")
    mine = str(ds.attrs.get("prompts", prompts.hash))
    numbers, stop = ds["span_prompt"].values, ds["stop"].values
    if mine != prompts.hash or (len(numbers) and numbers.max() >= len(prompts)):
        raise ValueError(f"the result is of other prompts ({mine[:8]}) than those given ({prompts.hash[:8]})")
    if len(numbers) and (stop > np.asarray(prompts.lengths)[numbers]).any():
        raise ValueError("a segment of the result runs over the end of its prompt: the result is of other prompts")


# -- pieces ---------------------------------------------------------------------------------------------------
def _scoring(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides a score: the model, the probes and every setting but how many deltas are kept."""
    settings = json.loads(str(attrs.get("parameters", "{}")))
    chosen = {n: v for n, v in settings.items() if n not in ("tokens", "start", "end", *SCORING)}
    return {n: attrs.get(n) for n in (*SCORING, *MADE_BY)} | chosen


def _cut(words: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return whether each character place lies strictly inside a word."""
    if not len(words):
        return np.zeros(len(place), dtype=bool)
    which = np.searchsorted(words[:, 1], place, side="right")
    return (which < len(words)) & (words[np.minimum(which, len(words) - 1), 0] < place)


def _shares(c: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"seen": c["seen"], "left": c["count"] * (c["edges"] & 1), "right": c["count"] * (c["edges"] >> 1 & 1)}


def _unpack(numbers: dict[bytes, int], kept: np.ndarray) -> list[tuple[int, ...]]:
    wanted = {int(n): place for place, n in enumerate(kept)}
    out: list[tuple[int, ...]] = [()] * len(kept)
    for ids, n in numbers.items():
        if n in wanted:
            out[wanted[n]] = tuple(np.frombuffer(ids, dtype="<i4").tolist())
    return out


def _valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _interval(
    c: dict[str, np.ndarray], kept: np.ndarray, size: int, documents: int, n_boot: int, level: float, seed: int
) -> np.ndarray:
    """Return (2, unit) interval of the mean psi, documents drawn; a unit is in few of them, so sums are sparse."""
    from scipy import sparse

    place = np.full(size, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    rows = np.flatnonzero(place[c["key"]] >= 0)
    where, shape = (c["document"][rows], place[c["key"][rows]]), (documents, len(kept))
    total, count = (sparse.csc_array((c[n][rows].astype(float), where), shape=shape) for n in ("total", "count"))
    have = np.diff(count.indptr)

    def mean(w: np.ndarray, part: slice) -> np.ndarray:
        return ratio(w @ total[:, part], w @ count[:, part])

    return resample_columns(mean, documents, have, level=level, n_boot=n_boot, seed=seed)
