"""Units known beforehand (words, entities, multiword expressions): are they what is erased, and what is read out?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..kernels.roc import auroc
from ..kernels.state import neutral
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of_prompts, interval_name
from ..results.stamp import derived
from ..settings import checked, count, instance, pair, ranks
from ..stats.resample import resample
from ..stats.tests import wilson
from .kernels import spans as seg
from .vocabulary import token_ids

if TYPE_CHECKING:
    from ..text.prompts import Prompts
    from ..text.spans import TokenSpans

DRAWS = 4000


@checked(controls=count(1), min_tokens=count(1))
@neutral()
def psi_of_spans(
    ds: xr.Dataset,
    prompts: Prompts,
    units: TokenSpans,
    *,
    controls: int = 1,
    min_tokens: int = 2,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Return psi of given spans beside that of random spans of the same prompt and length, and how well they differ.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ErasureScores` with ``delta`` per token (``tokens=None`` keeps it for all prompts).
    prompts : Prompts
        What it is of.
    units : TokenSpans
        Spans aligned with these prompts. Those shorter than ``min_tokens`` and those of prompts without delta are left
        out.
    controls : int
        Random spans for each unit: any place without special tokens where none of the units stands exactly.
    min_tokens : int
        Shortest unit.
    n_boot, level, seed
        Draws, level and seed of the bootstrap: whole documents are drawn where prompts are windows of documents, else
        prompts.

    Returns
    -------
    xarray.Dataset
        ``psi`` (span; its coordinates ``text``, ``kind`` and ``type`` say which), ``control_psi`` (span, replicate; NaN
        where a prompt has no other span of that length), and by kind (``subset``, the last one all together)
        ``auroc``, ``auroc_interval`` (NaN for fewer than 3 documents), ``n_spans`` and ``n_groups``, how many documents
        or prompts have a part (which: attribute ``groups``).

    Raises
    ------
    ValueError
        If no unit of that length is left, or the result has no delta per token.

    Examples
    --------
    >>> from tokinterp.text import Prompts, Spans
    >>> prompts = Prompts.from_ids([[5, 6, 7, 5, 6]])
    >>> delta = [[0, 0, 0], [0.9, 0.8, 0], [0, 0, 0], [0, 0, 0], [0.7, 0.9, 0]]
    >>> coords = {"token_prompt": ("token", [0] * 5), "offset": [0, -1, -2]}
    >>> settings = {"denominator": "code", "left_penalty": 1, "right_penalty": 0}
    >>> ds = xr.Dataset({"delta": (("token", "offset"), delta)}, coords, settings)
    >>> spans = [{"document": 0, "start": n, "stop": n + 6, "kind": "word"} for n in (0, 9)]  # "<5><6>", twice
    >>> psi_of_spans(ds, prompts, Spans.from_records(spans).align(prompts))["auroc"].values.tolist()
    [1.0, 1.0]
    """
    if "delta" not in ds:
        raise ValueError("the result keeps no delta per token: measure ErasureScores(..., tokens=None)")
    check_units(units, prompts, min_tokens)
    token_prompt = ds["token_prompt"].values
    begin = np.searchsorted(token_prompt, np.arange(len(prompts) + 1))
    kept = np.flatnonzero((units.n_tokens >= min_tokens) & (np.diff(begin) > 0)[units.prompt])
    if not len(kept):
        raise ValueError(
            f"none of the {len(units)} spans is in a prompt whose delta was kept: measure "
            "ErasureScores(..., tokens=None)"
        )
    number, start, stop = units.prompt[kept], units.start[kept], units.stop[kept]
    random = np.random.default_rng(seed)
    psi = np.full(len(kept), np.nan)
    control = np.full((len(kept), controls), np.nan)
    settings: dict[str, Any] = {k: bool(ds.attrs[k]) for k in ("left_penalty", "right_penalty")}
    offsets = ds["offset"].values.tolist()
    delta = ds["delta"].transpose("token", "offset").values
    text = np.full(len(kept), "", dtype=object)
    for i in np.unique(number):
        rows, strings = np.flatnonzero(number == i), prompts.strings(int(i))
        text[rows] = ["".join(strings[a:b]) for a, b in zip(start[rows].tolist(), stop[rows].tolist(), strict=True)]
        inside = ~prompts.special(int(i))
        length = stop[rows] - start[rows]
        scores = seg.span_scores(
            torch.from_numpy(delta[begin[i] : begin[i + 1]]), torch.from_numpy(inside), offsets,
            denominator=ds.attrs["denominator"], max_length=int(length.max()), **settings,
        ).numpy()  # fmt: skip
        psi[rows] = scores[start[rows], length - 1]
        is_unit = np.zeros_like(scores, dtype=bool)
        is_unit[start[rows], length - 1] = True
        for n in np.unique(length):
            here = rows[length == n]
            free = np.flatnonzero(np.isfinite(scores[:, n - 1]) & ~is_unit[:, n - 1])
            if len(free):
                control[here] = scores[random.choice(free, (len(here), controls)), n - 1]
    psi = np.where(np.isfinite(psi), psi, np.nan)
    kinds = units.kind[kept]
    names, masks = _subsets(kinds)
    group, groups = groups_of_prompts(prompts, number)
    area = np.full((4, len(names)), np.nan)
    for s, mask in enumerate(masks):
        area[:, s] = _auroc(psi[mask], control[mask], group[mask], n_boot, level, seed)
    v = variable
    what = "probability that a unit scores above a random span of its length and prompt"
    units_of_psi = str(ds["delta"].attrs.get("units", "1"))
    bounds = interval_name(what, level, groups, len(np.unique(group)))
    data = {
        "psi": v(
            "span", psi, "erasure score", units_of_psi, short="erasure score psi", beside=("control_psi",), chance=0,
        ),
        "control_psi": v(
            ("span", "replicate"), control, "erasure score of random spans of the same length", units_of_psi
        ),
        "auroc": v("subset", area[0], what, "1", short="AUROC", range=(0, 1), chance=0.5),
        "auroc_interval": v(("bound", "subset"), area[1:3], bounds, "1"),
        "n_groups": v("subset", area[3].astype(int), f"{groups} with a unit and its controls", "1"),
        "n_spans": v("subset", np.array([m.sum() for m in masks]), "units compared", "1"),
    }  # fmt: skip
    coords = {
        "span_prompt": v("span", number, "number of the prompt in the input", "1"),
        "start": v("span", start, "first token, BOS counted", "token"),
        "stop": v("span", stop, "token after the span", "token"),
        "text": v("span", text, "text of the span, leading space included", "1"),
        "kind": v("span", kinds.astype(object), "kind of the span", "1"),
        "type": v("span", units.type[kept].astype(object), "type of the span, of its kind", "1"),
        "subset": v("subset", np.array(names, object), "kind of unit", "1"),
        "bound": bound_coord(),
    }
    attrs = {"n_left_out": len(units) - len(kept), "n_groups": len(np.unique(group)), "groups": groups}
    out = xr.Dataset(data, coords, attrs)
    asked = {"units": units, "prompts": prompts, "controls": controls, "min_tokens": min_tokens, "n_boot": n_boot,
             "level": level}  # fmt: skip
    return derived(out, "psi_of_spans", [ds], asked, seed)


@checked(k=ranks, min_count=count(1), whole=pair(instance("TokenSpans"), instance("Prompts")))
@neutral()
def evaluate(
    vocabulary: xr.Dataset,
    units: TokenSpans,
    prompts: Prompts,
    *,
    k: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    min_count: int | None = None,
    whole: tuple[TokenSpans, Prompts] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Compare a vocabulary with units found in the same prompts: precision, recall, attainable recall.

    A unit is a sequence of two or more token ids as it stands in the text; an entry of the vocabulary is a hit if some
    unit has the same ids.

    Parameters
    ----------
    vocabulary : xarray.Dataset
        From `read_out`.
    units : TokenSpans
        Words, entities, expressions, ... aligned with ``prompts``.
    prompts : Prompts
        What the vocabulary was read from.
    k : sequence of int
        How many of the best entries ``precision_at_k`` looks at; those beyond the size of the vocabulary are left out.
    min_count : int, optional
        Occurrences without which a unit cannot get into the vocabulary; by default that of `read_out`.
    whole : (TokenSpans, Prompts), optional
        Units of the whole documents, where ``prompts`` hold only their beginnings: recall is then the share of these,
        as published.
    level : float
        Of the Wilson interval of ``precision_at_k``.
    seed : int
        Of the random spans behind ``chance``.

    Returns
    -------
    xarray.Dataset
        By ``subset`` (kind of unit; "any" if there are several) and ``rank``: ``hit``, ``precision`` and ``recall`` of
        the entries up to this rank, ``attainable_recall`` (share of the units that occur ``min_count`` times). By
        ``subset`` and ``k``: ``precision_at_k`` with its interval. By ``subset``: ``n_units``, ``n_attainable``,
        ``average_precision`` (hits beyond the attainable do not count), ``chance`` (share of random spans of the same
        lengths that are units).

    Raises
    ------
    ValueError
        If no unit has two or more tokens or aligns, or the vocabulary is of other prompts.

    Examples
    --------
    >>> from tokinterp.erasure.vocabulary import read_out
    >>> from tokinterp.text import Prompts, Spans
    >>> prompts = Prompts.from_ids([[5, 6, 7, 5, 6]])
    >>> coords = {"span_prompt": ("span", [0, 0]), "start": ("span", [0, 3]), "stop": ("span", [2, 5])}
    >>> ds = xr.Dataset({"psi": ("span", [0.3, 0.5]), "seen": ("span", [1.0, 1.0])}, coords)
    >>> spans = [{"document": 0, "start": n, "stop": n + 6, "kind": "word"} for n in (0, 9)]  # "<5><6>", twice
    >>> scores = evaluate(read_out(ds, prompts), Spans.from_records(spans).align(prompts), prompts)
    >>> scores["precision"].item(), scores["attainable_recall"].item()
    (1.0, 1.0)
    """
    check_units(units, prompts, 2)
    entries = [np.array(i, dtype="<i4").tobytes() for i in token_ids(vocabulary)]
    lengths = vocabulary["n_tokens"].values
    least = int(min_count if min_count is not None else vocabulary.attrs.get("min_count", 2))
    kinds = units.kind
    names = sorted(set(kinds.tolist()))
    names += ["any"] if len(names) > 1 else []
    counts = {s: _unit_counts(units, prompts, None if s == "any" else s) for s in names}
    every = counts
    if whole is not None:
        every = {s: _unit_counts(*whole, None if s == "any" else s) for s in names}
    hit = np.array([[e in counts[s] or e in every[s] for e in entries] for s in names])
    attainable = [{u for u, n in counts[s].items() if n >= least} for s in names]
    got = np.array([[e in a for e in entries] for a in attainable])
    n_units = np.array([len(every[s]) for s in names])
    n_attainable = np.array([len(a) for a in attainable])
    ranks = np.arange(1, len(entries) + 1)
    precision, found = hit.cumsum(1) / ranks, hit.cumsum(1)
    ks = [n for n in sorted(set(k)) if 1 <= n <= len(entries)] or [len(entries)]
    at = np.array(ks) - 1
    interval = wilson(found[:, at], np.array(ks), level)
    chance = _chance(counts, names, lengths, prompts, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        attained = got.cumsum(1) / n_attainable[:, None]
        average = (precision * got).sum(1) / n_attainable
        recall = found / n_units[:, None]

    def v(dims: Any, values: np.ndarray, what: str, **facts: Any) -> xr.Variable:
        return variable(dims, values, what, "1", **facts)

    each, top, short = ("subset", "rank"), ("subset", "k"), "entries of the vocabulary that are units"
    data = {
        "hit": v(each, hit, "whether the entry is a unit"),
        "precision": v(each, precision, f"share of the {short}, up to this rank"),
        "recall": v(each, recall, "share of the units found up to this rank"),
        "attainable_recall": v(each, attained, f"share of the units that occur {least} times or more found"),
        "precision_at_k": v(
            top, precision[:, at], f"share of the k best {short}", short="precision at k", range=(0, 1),
            chance="chance",
        ),
        "precision_at_k_interval": v(("bound", *top), interval, f"{level:.0%} Wilson interval of precision at k"),
        "n_units": v("subset", n_units, "different units of two or more tokens"),
        "n_attainable": v("subset", n_attainable, f"units that occur {least} times or more in the prompts"),
        "average_precision": v(
            "subset", average, "mean precision at the ranks of the attainable units, 0 if not found",
            short="average precision", range=(0, 1),
        ),
        "chance": v("subset", chance, "share of random spans of these lengths that are units", short="random spans"),
    }  # fmt: skip
    coords = {
        "subset": v("subset", np.array(names, object), "kind of unit"),
        "rank": v("rank", np.arange(len(entries)), "order by psi, 0 first"),
        "k": v("k", np.array(ks), "number of best entries"),
        "bound": bound_coord(),
    }
    out = xr.Dataset(data, coords, {"min_count": least, "n_unaligned": len(units.unaligned)})
    asked = {"units": units, "prompts": prompts, "k": list(k), "min_count": least, "whole": whole, "level": level}
    return derived(out, "vocabulary evaluation", [vocabulary], asked, seed)


def check_units(units: TokenSpans, prompts: Prompts, min_tokens: int) -> None:
    """Raise ValueError if spans do not fit the prompts or none has so many tokens."""
    why = "; ".join(f"{n} {reason}" for reason, n in units.report().items())
    if not len(units):
        raise ValueError(
            f"none of the {len(units.spans)} spans aligns with tokens of the prompts ({why or 'no spans'})"
        )
    longest = np.asarray(prompts.lengths)[np.minimum(units.prompt, len(prompts) - 1)]
    if units.prompt.max() >= len(prompts) or (units.stop > longest).any():
        raise ValueError("the spans were aligned with other prompts: call spans.align(prompts) with these")
    if not (units.n_tokens >= min_tokens).any():
        raise ValueError(
            f"none of the {len(units)} aligned spans has {min_tokens} or more tokens"
            + (f" ({why} did not align)" if why else "")
        )


# -- pieces ---------------------------------------------------------------------------------------------------
def _subsets(kinds: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    names = sorted(set(kinds.tolist()))
    masks = [kinds == n for n in names]
    return [*names, "all"], [*masks, np.ones(len(kinds), dtype=bool)]


def _auroc(psi: np.ndarray, control: np.ndarray, group: np.ndarray, n_boot: int, level: float, seed: int) -> np.ndarray:
    """Return AUROC, its interval and the number of groups; whole groups are drawn."""
    ok = np.isfinite(psi) & np.isfinite(control).all(1)
    if not ok.any():
        return np.array([np.nan, np.nan, np.nan, 0])
    psi, control, group = psi[ok], control[ok], group[ok]
    score = torch.from_numpy(np.concatenate([psi, control.ravel()]))[None]
    positive = torch.arange(score.shape[1], dtype=torch.int64, device="cpu") < len(psi)
    found, place = np.unique(np.concatenate([group, np.repeat(group, control.shape[1])]), return_inverse=True)

    def area(w: np.ndarray) -> np.ndarray:
        parts = [torch.from_numpy(w[a : a + 50][:, place]) for a in range(0, len(w), 50)]
        return torch.cat([auroc(score, p * positive, p * ~positive) for p in parts]).numpy()

    bounds = resample(area, len(found), level=level, n_boot=n_boot, seed=seed)
    return np.array([float(auroc(score[0], positive, ~positive)), *bounds, len(found)])


def _unit_counts(units: TokenSpans, prompts: Prompts, kind: str | None) -> Counter[bytes]:
    """Return how often each unit of two or more tokens occurs, keyed by its ids."""
    rows = np.flatnonzero((units.n_tokens >= 2) & (True if kind is None else units.kind == kind))
    first = prompts.starts[units.prompt[rows]] + units.start[rows]
    ids = prompts.token_ids.astype("<i4")
    places = np.unique(np.stack([first, first + units.n_tokens[rows]], 1), axis=0)  # a place counts once
    return Counter(ids[a:b].tobytes() for a, b in places.tolist())


def _chance(
    counts: dict[str, Counter[bytes]], names: list[str], lengths: np.ndarray, prompts: Prompts, seed: int
) -> np.ndarray:
    """Return (subset,) the share of random spans, as long as the entries, that are units."""
    random = np.random.default_rng(seed)
    ids = prompts.token_ids.astype("<i4")
    special = np.concatenate([[0], np.cumsum(prompts.vocabulary.special(ids))])
    end = np.repeat(prompts.starts[1:], np.diff(prompts.starts))
    out = np.zeros(len(names))
    for n, share in zip(*np.unique(lengths, return_counts=True), strict=True):
        last = np.arange(len(ids)) + n
        free = np.flatnonzero(last <= end)
        free = free[special[free + n] == special[free]]
        if len(free):
            drawn = random.choice(free, max(50, int(DRAWS * share / len(lengths))))
            keys = [ids[a : a + n].tobytes() for a in drawn.tolist()]
            out += share / len(lengths) * np.array([np.mean([key in counts[s] for key in keys]) for s in names])
    return out
