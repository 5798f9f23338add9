"""How tokens lie to morphemes: boundaries, derivational coverage, chunkability and reading times, compounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import bound_coord, check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import (
    checked,
    mapping,
    none,
    number,
    one_of,
    refuse,
    several,
    some_strings,
    string,
    tokenizer,
)
from ..settings.describe import hash_json
from ..stats.resample import ratio, ratio_interval, resample
from ..text.vocabulary import Vocabulary
from .inference import METHODS, Inference, Pieces, check_words
from .reachability import check_supported

UZAN = "Uzan et al. 2024, Greed is all you need, arXiv 2403.01289"
BEINBORN = "Beinborn and Pinter 2023, Analyzing cognitive plausibility of subword tokenization, arXiv 2310.13348"
MINIXHOFER = "Minixhofer et al. 2023, CompoundPiece, arXiv 2305.14214"
CONVENTIONS = ("greed", "all")
LABELS = ("whole", "easy", "mixed", "hard")
Word = tuple[str, Sequence[str]]


def inner_places(pieces: Sequence[bytes] | Pieces) -> set[int]:
    """Return the byte places between pieces."""
    return set(accumulate(map(len, pieces[:-1])))


def gold_parts(name: str, words: Sequence[Word]) -> list[list[bytes]]:
    """Return the morphemes of each word as bytes, or raise ValueError where they are not those of the word."""
    out = []
    for n, (word, parts) in enumerate(words):
        check_words(name, [word])
        if isinstance(parts, str) or "".join(parts) != word or not all(parts):
            refuse(name, parts, f"number {n}: the parts do not make up {word!r}: give those of its own spelling")
        out.append([p.encode() for p in parts])
    if not out:
        refuse(name, "[]", "give at least one word")
    return out


@checked(
    tokenizer=tokenizer, resources=mapping(None, 1), methods=several(one_of(*METHODS), 1), scores=mapping() | none,
)  # fmt: skip
def boundary_scores(
    tokenizer: Any,
    resources: Mapping[str, Sequence[Word]],
    *,
    methods: Sequence[str] = ("own",),
    scores: Mapping[str, float] | None = None,
    space: bool = True,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Compare boundaries between tokens with boundaries between morphemes.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    resources : mapping
        Name -> pairs of a word and its morphemes, which make up the word.
    methods : sequence of str
        Ways to cut words, see `segment_words`.
    scores, space
        See `segment_words`.
    level, n_boot, seed
        Of the intervals, over words.

    Returns
    -------
    xarray.Dataset
        On ``inference``, ``convention`` and ``resource``: ``n_words`` that count, ``precision``, ``recall`` and
        ``boundary_f1`` of the places inside of words, all words of a resource together, and ``boundary_f1_interval``;
        without ``resource``: ``mean_f1``.  On ``inference`` and ``resource``: ``n_unspelt``, words that the tokens do
        not spell.  The convention ``greed`` counts words that are no token themselves and whose morphemes are all
        tokens (the first after a space where words are), ``all`` all words of two or more morphemes.

    Raises
    ------
    ValueError
        If morphemes do not make up their word, or scores or merges are needed and missing.

    Notes
    -----
    Places are counted in bytes of the word, the marks of word pieces (``##``) and of spaces not among them; the
    published code counts the former.  A boundary inside a character is a wrong one.

    References
    ----------
    Uzan et al. 2024, arXiv 2403.01289; github.com/MeLeLBGU/tokenizers_intrinsic_benchmark.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words = [("unhappiness", ["un", "happi", "ness"]), ("kindness", ["kind", "ness"])]
    >>> ds = ti.tokenizers.boundary_scores(ti.load_tokenizer(), {"mine": words}, methods=["own", "longest_prefix"])
    >>> ds["n_words"].sel(convention="all").values.ravel().tolist()
    [2, 2]
    """
    inference = Inference(tokenizer, scores, space)
    gold = {name: gold_parts(f"resources, {name}", words) for name, words in resources.items()}
    shape = (len(methods), len(CONVENTIONS), len(resources))
    values = {k: np.full(shape, np.nan) for k in ("precision", "recall", "boundary_f1")}
    interval, n = np.full((*shape, 2), np.nan), np.zeros(shape, np.int64)
    lost = np.zeros((shape[0], shape[2]), np.int64)
    for m, method in enumerate(methods):
        for r, (name, words) in enumerate(resources.items()):
            cuts = inference.cut([w for w, _ in words], method)
            lost[m, r] = sum(c is None for c in cuts)
            for c, convention in enumerate(CONVENTIONS):
                counts = np.array([
                    _hits(cut, parts, len(inference.before))
                    for cut, parts in zip(cuts, gold[name], strict=True)
                    if cut is not None and _counts(inference, parts, convention)
                ], dtype=np.float64).reshape(-1, 3)  # fmt: skip
                tp, fp, fn = counts.sum(0)
                n[m, c, r] = len(counts)
                values["precision"][m, c, r], values["recall"][m, c, r] = ratio(tp, tp + fp), ratio(tp, tp + fn)
                values["boundary_f1"][m, c, r] = ratio(2 * tp, 2 * tp + fp + fn)
                if len(counts):
                    interval[m, c, r] = ratio_interval(
                        2 * counts[:, 0], counts @ [2, 1, 1], level=level, n_boot=n_boot, seed=seed
                    )
    dims = ("inference", "convention", "resource")
    said = f"{level:.0%} bootstrap interval of the F1 of boundaries over words"
    found = values["boundary_f1"]
    ds = xr.Dataset(
        {
            "n_words": variable(dims, n, "words that count", "word"),
            "n_unspelt": variable(("inference", "resource"), lost, "words that their tokens do not spell", "word"),
            "precision": variable(dims, values["precision"], "share of token boundaries that are right", "1", UZAN),
            "recall": variable(dims, values["recall"], "share of morpheme boundaries found", "1", UZAN),
            "boundary_f1": variable(dims, found, "F1 of the boundaries inside of words", "1", UZAN),
            "boundary_f1_interval": variable((*dims, "bound"), interval, said, "1"),
            "mean_f1": variable(dims[:2], found.mean(2), "mean F1 of the resources", "1", UZAN),
        },
        {
            "inference": variable("inference", np.array(methods), "way to cut words", "1"),
            "convention": variable("convention", np.array(CONVENTIONS), "which words count", "1"),
            "resource": variable("resource", np.array(list(resources)), "resource", "1"),
            "bound": bound_coord(),
        },
        {"dimensions": ", ".join(dims)},
    )  # fmt: skip
    settings = {"methods": list(methods), "scores": hash_json(dict(scores or {})), "space": space, "level": level,
                "n_boot": n_boot}  # fmt: skip
    texts = hash_json({k: [[w, list(p)] for w, p in v] for k, v in resources.items()})
    ds = stamped_tokenizers(ds, "boundary_scores", [tokenizer], settings, texts, seed)
    check(ds)
    return ds


def _counts(inference: Inference, parts: Sequence[bytes], convention: str) -> bool:
    if convention == "all":
        return len(parts) > 1
    marked = [inference.before + parts[0], *parts[1:]]
    return b"".join(marked) not in inference.pieces and all(p in inference.pieces for p in marked)


def _hits(cut: Sequence[bytes], parts: Sequence[bytes], before: int) -> tuple[int, int, int]:
    """Return right, wrong and missing boundaries of a word."""
    made = {place - before for place in inner_places(cut)} - {0}
    wanted = inner_places(parts)
    return len(made & wanted), len(made - wanted), len(wanted - made)


@checked(tokenizer=tokenizer, morphemes=several(string, 1), least=number(0, 1))
def derivational_coverage(tokenizer: Any, morphemes: Sequence[str], *, least: float = 0.001) -> xr.Dataset:
    """Say which derivational morphemes are tokens.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    morphemes : sequence of str
        That of each entry of a list of derivations (MorphyNet), as often as it occurs.
    least : float
        Morphemes in no more than this share of the entries are left out.

    Returns
    -------
    xarray.Dataset
        On ``morpheme``: ``covered``, whether it is a token of the vocabulary as it stands, in lower case, or as a
        continuing piece, and ``n_entries``; ``derivational_coverage``, the share of those covered.

    Raises
    ------
    ValueError
        If no morpheme is frequent enough.

    References
    ----------
    Beinborn and Pinter 2023, arXiv 2310.13348; github.com/clap-lab/cogtok.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.derivational_coverage(ti.load_tokenizer(), ["ness", "ness", "ation", "ize", "xyz"])
    >>> ds["covered"].to_series().to_dict(), ds["derivational_coverage"].item()
    ({'ation': True, 'ize': True, 'ness': True, 'xyz': False}, 0.75)
    """
    vocabulary = Vocabulary(tokenizer)
    check_supported(vocabulary)
    names, counts = np.unique(np.array(list(morphemes), dtype=object), return_counts=True)
    frequent = counts > int(len(morphemes) * least)
    if not frequent.any():
        refuse("least", least, f"no morpheme is in more than that share of the {len(morphemes)} entries: give less")
    tokens = {*vocabulary.bytes(np.flatnonzero(vocabulary.there))}
    covered = np.array([bool({m.encode(), m.lower().encode()} & tokens) for m in names[frequent]])
    ds = xr.Dataset(
        {
            "covered": variable("morpheme", covered, "whether the morpheme is a token", "1", BEINBORN),
            "n_entries": variable("morpheme", counts[frequent], "entries with the morpheme", "1"),
            "derivational_coverage": variable((), covered.mean(), "share of the morphemes covered", "1", BEINBORN),
        },
        {"morpheme": variable("morpheme", names[frequent], "morpheme", "1")},
        {"dimensions": "morpheme"},
    )
    ds = stamped_tokenizers(ds, "derivational_coverage", [tokenizer], {"least": least}, hash_json(list(morphemes)))
    check(ds)
    return ds


@checked(tokenizer=tokenizer, words=some_strings, kinds=several(string, 1), method=one_of(*METHODS),
         scores=mapping() | none, measures=mapping(None, 1))  # fmt: skip
def chunkability(
    tokenizer: Any,
    words: Sequence[str],
    kinds: Sequence[str],
    measures: Mapping[str, Sequence[float]],
    *,
    method: str = "own",
    scores: Mapping[str, float] | None = None,
    space: bool = False,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Correlate into how few tokens words are cut with how people respond to them.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    words : sequence of str
        Words and pseudowords of a lexical decision experiment.
    kinds : sequence of str
        The kind of each, such as ``W`` and ``N``: correlations are within kinds.
    measures : mapping
        Name -> value of each word, such as reading times and accuracies; NaN is left out.
    method, scores, space
        See `segment_words`.
    level, n_boot, seed
        Of the intervals, over words.

    Returns
    -------
    xarray.Dataset
        On ``item``: ``chunkability``, 1 - tokens / characters, and ``n_tokens``.  On ``word_kind`` and ``measure``:
        ``correlation`` (Pearson's), its interval, and ``n_words``; ``cognitive_score``, the mean of their absolute
        values.

    Raises
    ------
    ValueError
        If lengths differ or a word has a space.

    References
    ----------
    Beinborn and Pinter 2023, arXiv 2310.13348; github.com/clap-lab/cogtok.

    Examples
    --------
    >>> import tokinterp as ti
    >>> words, times = ["water", "stone", "blicket", "xylograph"], [500.0, 520.0, 700.0, 900.0]
    >>> ds = ti.tokenizers.chunkability(ti.load_tokenizer(), words, ["W"] * 4, {"time": times})
    >>> ds["n_words"].item(), ds["correlation"].sel(word_kind="W").dims
    (4, ('measure',))
    """
    check_words("words", words)
    for name, given in {"kinds": kinds, **measures}.items():
        if len(given) != len(words):
            refuse(name, list(given), f"{len(given)} values for {len(words)} words: give one for each")
    cuts = Inference(tokenizer, scores, space).cut(words, method)
    n = np.array([np.nan if c is None else len(c) for c in cuts])
    value = 1 - n / np.array([len(w) for w in words])
    known = np.array([[float(x) for x in v] for v in measures.values()])
    every = sorted(set(kinds))
    shape = (len(every), len(measures))
    r, interval, used = np.full(shape, np.nan), np.full((*shape, 2), np.nan), np.zeros(shape, np.int64)
    for k, kind in enumerate(every):
        for m, values in enumerate(known):
            have = (np.array(list(kinds)) == kind) & np.isfinite(values) & np.isfinite(value)
            x, y = value[have], values[have]
            used[k, m] = len(x)
            if len(x) > 2:
                r[k, m] = _pearson(np.ones((1, len(x))), x, y)[0]
                interval[k, m] = resample(
                    lambda w, x=x, y=y: _pearson(w, x, y), len(x), level=level, n_boot=n_boot, seed=seed
                )
    dims = ("word_kind", "measure")
    said = f"{level:.0%} bootstrap interval of the correlation over words"
    ds = xr.Dataset(
        {
            "chunkability": variable("item", value, "1 - tokens / characters", "1", BEINBORN),
            "n_tokens": variable("item", n, "tokens of the word", "token"),
            "correlation": variable(dims, r, "correlation of chunkability with a measure", "1", BEINBORN),
            "correlation_interval": variable((*dims, "bound"), interval, said, "1"),
            "n_words": variable(dims, used, "words with a value", "word"),
            "cognitive_score": variable((), np.abs(r).mean(), "mean absolute correlation", "1", UZAN),
        },
        {
            "item": variable("item", np.arange(len(words)), "number of the word", "1"),
            "word": variable("item", np.array(words), "word", "1"),
            "word_kind": variable("word_kind", np.array(every), "kind of word", "1"),
            "measure": variable("measure", np.array(list(measures)), "what was measured of people", "1"),
            "bound": bound_coord(),
        },
        {"dimensions": "item, word_kind, measure"},
    )
    settings = {"method": method, "scores": hash_json(dict(scores or {})), "space": space, "level": level,
                "n_boot": n_boot}  # fmt: skip
    texts = hash_json([list(words), list(kinds), np.nan_to_num(known, nan=-1e300).tolist()])
    ds = stamped_tokenizers(ds, "chunkability", [tokenizer], settings, texts, seed)
    check(ds)
    return ds


def _pearson(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the (draw,) weighted correlations."""
    total = w.sum(1)
    x, y = x - x.mean(), y - y.mean()
    mx, my, xy, xx, yy = (w @ v / total for v in (x, y, x * y, x * x, y * y))
    spread = (xx - mx**2) * (yy - my**2)
    return ratio(xy - mx * my, np.sqrt(np.where(spread > 1e-18, spread, 0.0)))
