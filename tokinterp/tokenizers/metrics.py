"""What tokenizers make of texts in many languages: lengths, premiums, how evenly the vocabulary is used, overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import bound_coord, check, variable
from ..results.documents import interval_name
from ..results.stamp import stamped_tokenizers
from ..settings import checked, count, fraction, mapping, none, number, one_of, refuse, string, tokenizer
from ..settings.describe import hash_json
from ..stats.jackknife import jackknife_interval
from ..stats.resample import ratio, ratio_interval
from ..text.vocabulary import Vocabulary
from .corpora import as_corpora
from .counting import (
    FOLDS,
    GROUPS,
    SUMS,
    Counter,
    Tally,
    average_rank,
    divergence,
    renyi_efficiency,
    tally_all,
)

PETROV = "Petrov et al. 2023, Language model tokenizers introduce unfairness between languages, arXiv 2305.15425"
LIMISIEWICZ = "Limisiewicz et al. 2023, Tokenization impacts multilingual language modeling, arXiv 2305.17179"
ALI = "Ali et al. 2023, Tokenizer choice for LLM training, arXiv 2310.08754"
DAGAN = "Dagan et al. 2024, Getting the most out of your tokenizer, arXiv 2402.01035"
ZOUHAR = "Zouhar et al. 2023, Tokenization and the noiseless channel, arXiv 2306.16842"
QTOK = "Chelombitko and Komissarov 2024, Qtok, arXiv 2410.12989"
RATIOS = {
    "fertility": ("tokens", "words", "tokens per word", "token", ALI),
    "chars_per_token": ("chars", "tokens", "characters per token", "character", LIMISIEWICZ),
    "bytes_per_token": ("bytes", "tokens", "UTF-8 bytes per token (compression)", "byte", DAGAN),
    "tokens_per_text": ("tokens", "texts", "tokens per text", "token", None),
    "single_words": ("single_words", "words", "share of the words that are one token", "1", None),
    "unknown_chars": ("unknown_chars", "chars", "share of the characters in unknown tokens", "1", PETROV),
}
OF_COUNTS = {
    "average_rank": ("mean rank of the tokens, the most frequent 0", "1", LIMISIEWICZ),
    "renyi_efficiency": ("Renyi entropy of the tokens over its most", "1", ZOUHAR),
}


@checked(
    tokenizers=mapping(tokenizer, 1), corpora=mapping(), base=string | none, base_lang=string | none,
    words=one_of("whitespace", "space"), alpha=number(above=0), max_unknown=fraction, n_jobs=count(1, 256),
)  # fmt: skip
def tokenizer_metrics(
    tokenizers: Mapping[str, Any],
    corpora: Mapping[str, Any],
    *,
    base: str | None = None,
    base_lang: str | None = None,
    words: str = "whitespace",
    alpha: float = 2.5,
    max_unknown: float = 0.1,
    overlap: bool = True,
    n_jobs: int = 1,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Measure tokenizers on corpora of many languages, read as a stream in constant memory.

    Parameters
    ----------
    tokenizers : mapping
        Name -> Hugging Face tokenizer, fast or slow.
    corpora : mapping
        Language -> texts, or corpus -> language -> texts; texts are what `Corpus` takes.  `flores` reads FLORES-200.
    base : str, optional
        The tokenizer that ``nsl`` is relative to.
    base_lang : str, optional
        The language that ``premium`` and ``parity`` are relative to: all languages then have the same texts, in order.
    words : {"whitespace", "space"}
        Words are divided by white space, or by single spaces (an empty text is a word then), as published.
    alpha : float
        Order of the Renyi entropy.
    max_unknown : float
        Largest share of characters in unknown tokens at which a premium or parity is given.
    overlap : bool
        Whether to compare all pairs of languages (``jsd``), which takes long for hundreds of them.
    n_jobs : int
        Processes.
    level, n_boot, seed
        Of the intervals.

    Returns
    -------
    xarray.Dataset
        On ``corpus`` and ``lang``: ``n_texts``, ``n_words``, ``n_chars``, ``n_bytes``.  On ``tokenizer``, ``corpus``
        and ``lang``: ``n_tokens``, ``n_types`` (ids that occur), ``fertility``, ``chars_per_token``,
        ``bytes_per_token``, ``tokens_per_text``, ``single_words`` (STRR), ``coverage`` (1 - share of unknown tokens),
        ``unknown_chars``, ``average_rank``, ``renyi_efficiency``; with a base language ``premium`` (tokens of all texts
        over those of the base language), ``parity`` (mean of the ratio of the two texts of a pair) and ``n_pairs`` (of
        texts with tokens); with a base ``nsl`` (tokens over those of the base tokenizer).  On ``other_lang`` too:
        ``jsd``, in bits.  On ``tokenizer`` and ``other_tokenizer``: ``vocab_jaccard`` of the bytes that ids stand for,
        and ``vocab_jaccard_raw`` of the entries as they are written.  ``X_interval`` on ``bound``.  NaN where a corpus
        lacks a language, or the tokenizer does not say which characters are unknown.

    Raises
    ------
    ValueError
        If a base is none of the names, languages that should be parallel have different numbers of texts, or a text
        cannot be read or encoded.

    Notes
    -----
    No special tokens are added.  Ratios have bootstrap intervals over texts (from 1000 texts on, over 1000 groups of
    every 1000th text), the same draws for both sides of a pair; what is made of the counts of all tokens has jackknife
    intervals over 20 folds of texts.  ``renyi_efficiency`` is H_alpha / log(types that occur).  ``single_words`` are
    words that are one token when written after a space.  Unknown characters are counted by offsets.

    References
    ----------
    Petrov et al. 2023, arXiv 2305.15425; Ali et al. 2023, arXiv 2310.08754; Dagan et al. 2024, arXiv 2402.01035;
    Limisiewicz et al. 2023, arXiv 2305.17179; Zouhar et al. 2023, arXiv 2306.16842; Chelombitko and Komissarov 2024,
    arXiv 2410.12989.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = {"en": ["The sea.", "A blue door."], "de": ["Das Meer.", "Eine blaue Tuer."]}
    >>> ds = ti.tokenizers.tokenizer_metrics({"bundled": ti.load_tokenizer()}, texts, base_lang="en")
    >>> ds["n_tokens"].squeeze().values.tolist(), ds["premium"].sel(lang="de").item() > 1
    ([8.0, 14.0], True)
    """
    every = as_corpora(corpora)
    if base is not None and base not in tokenizers:
        refuse("base", base, f"give one of the tokenizers {', '.join(map(repr, tokenizers))}")
    for name, langs in every.items():
        if base_lang is not None and base_lang not in langs:
            refuse("base_lang", base_lang, f"corpus {name!r} has {', '.join(map(repr, langs))}")
    counters = {name: Counter(name, t, words) for name, t in tokenizers.items()}
    tasks = [
        (counter, part, corpus, base_lang)
        for counter in counters.values()
        for corpus, langs in every.items()
        for part in ([langs] if base_lang is not None else [{lang: one} for lang, one in langs.items()])
    ]
    keys = [(counter.name, corpus) for counter, _, corpus, _ in tasks]
    cells: dict[tuple[str, str, str], tuple[Tally, int]] = {}
    for (name, corpus), found in zip(keys, tally_all(tasks, n_jobs), strict=True):
        cells.update({(name, corpus, lang): (found, k) for k, lang in enumerate(found.langs)})
    langs = list(dict.fromkeys(lang for one in every.values() for lang in one))
    axes = (list(tokenizers), list(every), langs)
    draw: dict[str, Any] = {"level": level, "n_boot": n_boot, "seed": seed}
    data = {
        **_sums(cells, axes),
        **_ratios(cells, axes, draw),
        **_relative(cells, axes, base, base_lang, max_unknown, draw),
        **_of_counts(cells, axes, alpha, level),
        **(_overlap(cells, axes, level) if overlap and len(langs) > 1 else {}),
        **(_jaccard(tokenizers) if len(tokenizers) > 1 else {}),
    }
    coords = {
        "tokenizer": variable("tokenizer", np.array(axes[0]), "tokenizer", "1"),
        "corpus": variable("corpus", np.array(axes[1]), "corpus", "1"),
        "lang": variable("lang", np.array(langs), "language", "1"),
        "vocab_size": variable("tokenizer", [c.size for c in counters.values()], "ids of the tokenizer", "token"),
        "bound": bound_coord(),
    }
    if "jsd" in data:
        coords["other_lang"] = variable("other_lang", np.array(langs), "language compared with", "1")
    if len(tokenizers) > 1:
        coords["other_tokenizer"] = variable("other_tokenizer", np.array(axes[0]), "tokenizer compared with", "1")
    ds = xr.Dataset(data, coords, {"dimensions": "tokenizer, corpus, lang, other_lang, other_tokenizer"})
    marks = {f"{c}, {lang}": found.hashes[k] for (name, c, lang), (found, k) in cells.items() if name == axes[0][0]}
    settings = {"names": axes[0], "base": base or "", "base_lang": base_lang or "", "words": words, "alpha": alpha,
                "max_unknown": max_unknown, "level": level, "n_boot": n_boot}  # fmt: skip
    ds = stamped_tokenizers(ds, "tokenizer_metrics", list(tokenizers.values()), settings, hash_json(marks), seed)
    check(ds)
    return ds


Cells = Mapping[tuple[str, str, str], tuple[Tally, int]]
Axes = tuple[list[str], list[str], list[str]]
DIMS = ("tokenizer", "corpus", "lang")


def _sum(cells: Cells, key: tuple[str, str, str], name: str) -> np.ndarray:
    """Return the (group,) sums of a cell, of the groups that have texts."""
    found, k = cells[key]
    n = int((found.sums[k, 0] > 0).sum())
    return found.sums[k, SUMS.index(name), :n].astype(np.float64)


def _table(cells: Cells, axes: Axes, make: Any, *extra: int) -> np.ndarray:
    """Return a (tokenizer, corpus, lang, *extra) array of what is made of each cell, NaN where there is none."""
    out = np.full((*map(len, axes), *extra), np.nan)
    for t, name in enumerate(axes[0]):
        for c, corpus in enumerate(axes[1]):
            for k, lang in enumerate(axes[2]):
                if (name, corpus, lang) in cells:
                    out[t, c, k] = make((name, corpus, lang))
    return out


def _sums(cells: Cells, axes: Axes) -> dict[str, Any]:
    units = {"texts": "text", "words": "word", "chars": "character", "bytes": "byte"}
    says = {"texts": "texts", "words": "words", "chars": "characters", "bytes": "UTF-8 bytes"}
    out = {
        f"n_{name}": variable(
            DIMS[1:], _table(cells, axes, lambda key, n=name: _sum(cells, key, n).sum())[0], says[name], unit
        )
        for name, unit in units.items()
    }
    tokens = _table(cells, axes, lambda key: _sum(cells, key, "tokens").sum())
    return {**out, "n_tokens": variable(DIMS, tokens, "tokens", "token")}


def _pair(name: str, what: str, units: str, found: np.ndarray, drawn: np.ndarray, level: float, source: Any) -> Any:
    """Return a variable and its interval."""
    said = interval_name(what, level, f"texts or groups of them (at most {GROUPS})", GROUPS)
    return {
        name: variable(DIMS, found, what, units, source),
        f"{name}_interval": variable((*DIMS, "bound"), drawn, said.replace(f" {GROUPS} ", " "), units),
    }


def _ratios(cells: Cells, axes: Axes, draw: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, (above, below, what, units, source) in RATIOS.items():

        def value(key: Any, a: str = above, b: str = below) -> float:
            known = a != "unknown_chars" or not _sum(cells, key, "unlocated").any()
            top, bottom = _sum(cells, key, a).sum(), _sum(cells, key, b).sum()
            return float(ratio(top, bottom)) if known else np.nan

        def interval(key: Any, a: str = above, b: str = below) -> np.ndarray:
            if a == "unknown_chars" and _sum(cells, key, "unlocated").any():
                return np.full(2, np.nan)
            return ratio_interval(_sum(cells, key, a), _sum(cells, key, b), **draw)

        found, drawn = _table(cells, axes, value), _table(cells, axes, interval, 2)
        out |= _pair(name, what, units, found, drawn, draw["level"], source)
    lost = _table(
        cells, axes, lambda k: 1 - ratio(_sum(cells, k, "unknown_tokens").sum(), _sum(cells, k, "tokens").sum())
    )
    return {**out, "coverage": variable(DIMS, lost, "share of the tokens that are not unknown", "1", LIMISIEWICZ)}


def _relative(
    cells: Cells, axes: Axes, base: str | None, base_lang: str | None, most: float, draw: dict[str, Any]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if base_lang is not None:

        def above_below(key: tuple[str, str, str], name: str) -> tuple[np.ndarray, np.ndarray]:
            tokens = _sum(cells, key, "tokens")
            if name == "premium":
                return tokens, _sum(cells, (*key[:2], base_lang), "tokens")
            found, k = cells[key]
            return found.parity[k, 0, : len(tokens)], found.parity[k, 1, : len(tokens)]

        def known(key: tuple[str, str, str]) -> bool:
            parts = (key, (*key[:2], base_lang))
            lost = [ratio(_sum(cells, p, "unknown_chars").sum(), _sum(cells, p, "chars").sum()) for p in parts]
            return bool(max(lost) <= most) and not any(_sum(cells, p, "unlocated").any() for p in parts)

        told = {
            "premium": f"tokens over those of {base_lang}",
            "parity": f"mean tokens over those of {base_lang}, a pair",
        }
        for name, what in told.items():
            found = _table(
                cells, axes,
                lambda key, n=name: ratio(*(x.sum() for x in above_below(key, n))) if known(key) else np.nan,
            )  # fmt: skip
            drawn = _table(
                cells, axes,
                lambda key, n=name: ratio_interval(*above_below(key, n), **draw) if known(key) else np.full(2, np.nan),
                2,
            )  # fmt: skip
            out |= _pair(name, what, "1", found, drawn, draw["level"], PETROV if name == "premium" else ALI)
        pairs = _table(cells, axes, lambda key: above_below(key, "parity")[1].sum())
        out["n_pairs"] = variable(DIMS, pairs, "pairs of texts that both have tokens", "text")
    if base is not None:
        found = _table(
            cells, axes, lambda k: ratio(_sum(cells, k, "tokens").sum(), _sum(cells, (base, *k[1:]), "tokens").sum())
        )
        drawn = _table(
            cells, axes,
            lambda k: ratio_interval(_sum(cells, k, "tokens"), _sum(cells, (base, *k[1:]), "tokens"), **draw), 2,
        )  # fmt: skip
        out |= _pair("nsl", f"tokens over those of {base}", "1", found, drawn, draw["level"], DAGAN)
    return out


def _of_counts(cells: Cells, axes: Axes, alpha: float, level: float) -> dict[str, Any]:
    tables = {key: found.counts[k].table() for key, (found, k) in cells.items()}
    types = _table(cells, axes, lambda key: len(tables[key][0]))
    out: dict[str, Any] = {"n_types": variable(DIMS, types, "token ids that occur", "token")}
    statistics = {"average_rank": average_rank, "renyi_efficiency": lambda n: renyi_efficiency(n, alpha)}
    for name, (what, units, source) in OF_COUNTS.items():
        values = _table(cells, axes, lambda key, n=name: _folded(statistics[n], [tables[key][1]], level), 3)
        said = f"{level:.0%} jackknife interval over {FOLDS} folds of the texts"
        out[name] = variable(DIMS, values[..., 0], what, units, source)
        out[f"{name}_interval"] = variable((*DIMS, "bound"), values[..., 1:], said, units)
    return out


def _folded(statistic: Any, tables: list[np.ndarray], level: float) -> np.ndarray:
    """Return (3,) a statistic of counts, and the two ends of its interval over folds."""
    sums = [t.sum(0) for t in tables]
    whole = statistic(*sums)
    used = np.flatnonzero(sum(t.sum(1) for t in tables))
    if len(used) < 3:
        return np.array([whole, np.nan, np.nan])
    parts = np.array([statistic(*(s - t[f] for s, t in zip(sums, tables, strict=True))) for f in used])
    return np.array([whole, *jackknife_interval(whole, parts, 1, len(used), level)])


def _overlap(cells: Cells, axes: Axes, level: float) -> dict[str, Any]:
    shape = (*map(len, axes), len(axes[2]))
    values = np.full((*shape, 3), np.nan)
    tables = {key: found.counts[k].table() for key, (found, k) in cells.items()}
    for t, name in enumerate(axes[0]):
        for c, corpus in enumerate(axes[1]):
            for i, one in enumerate(axes[2]):
                for j, other in enumerate(axes[2][:i]):
                    keys = [(name, corpus, lang) for lang in (one, other)]
                    if all(key in tables for key in keys):
                        pair = _aligned(*(tables[key] for key in keys))
                        values[t, c, i, j] = values[t, c, j, i] = _folded(divergence, pair, level)
                if (name, corpus, one) in tables:
                    values[t, c, i, i] = 0
    said = f"{level:.0%} jackknife interval over {FOLDS} folds of the texts"
    what = "Jensen-Shannon divergence of the tokens of two languages"
    dims = (*DIMS, "other_lang")
    return {
        "jsd": variable(dims, values[..., 0], what, "bit", LIMISIEWICZ),
        "jsd_interval": variable((*dims, "bound"), values[..., 1:], said, "bit"),
    }


def _aligned(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Return two tables of counts on the ids that occur in either."""
    ids = np.union1d(a[0], b[0])
    out = []
    for own, table in (a, b):
        wide = np.zeros((len(table), len(ids)), table.dtype)
        wide[:, np.searchsorted(ids, own)] = table
        out.append(wide)
    return out


def _jaccard(tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    vocabularies = {name: Vocabulary(t) for name, t in tokenizers.items()}
    sets = {
        "vocab_jaccard": [{*v.bytes(np.flatnonzero(v.there))} for v in vocabularies.values()],
        "vocab_jaccard_raw": [{*t.get_vocab()} for t in tokenizers.values()],
    }
    says = {"vocab_jaccard": "what ids stand for, shared over all of either",
            "vocab_jaccard_raw": "entries as written, shared over all of either"}  # fmt: skip
    return {
        name: variable(
            ("tokenizer", "other_tokenizer"), [[len(a & b) / len(a | b) for b in every] for a in every], says[name],
            "1", QTOK,
        )
        for name, every in sets.items()
    }  # fmt: skip
