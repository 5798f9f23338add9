"""What to know before choosing a tokenizer: scripts and lengths of its entries, ranks, the words that cost most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import checked, count, mapping, tokenizer
from ..settings.describe import hash_json
from ..text.vocabulary import Vocabulary
from .categories import classify
from .corpora import as_corpora
from .counting import Counter as Counting
from .counting import tally
from .encoding import Pieces

LONGEST, KNOWN = 20, 200_000
RANKS = np.unique(np.round(np.geomspace(1, 10_000, 41)).astype(int))


@checked(tokenizers=mapping(tokenizer, 1), corpora=mapping(), worst=count(1))
def tokenizer_overview(tokenizers: Mapping[str, Any], corpora: Mapping[str, Any], *, worst: int = 20) -> xr.Dataset:
    """Say what vocabularies are made of, and how often their tokens occur in texts.

    Parameters
    ----------
    tokenizers : mapping
        Name -> Hugging Face tokenizer.
    corpora : mapping
        Language -> texts, as for `tokenizer_metrics`.
    worst : int
        Words listed for each tokenizer.

    Returns
    -------
    xarray.Dataset
        On ``tokenizer`` and ``script`` (those of the largest share first): ``share_script`` of the entries that have a
        script.  On ``tokenizer`` and ``n_chars``: ``share_length`` of the entries that are so many whole characters
        (more count as the last).  On ``tokenizer``, ``lang`` and ``token_rank``: ``frequency`` of the token of that
        rank among those of the texts.  On ``tokenizer`` and ``place``: the ``word`` whose occurrences cost most tokens
        beyond one each, its ``n_tokens``, ``count`` and ``lang_of_word``; of the first 200,000 different words, as many
        of each language, so that memory stays constant.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = tokenizer_overview({"bundled": ti.load_tokenizer()}, {"en": ["The Zugspitze, the Zugspitze!"]}, worst=1)
    >>> ds["word"].item(), ds["count"].item()
    ('Zugspitze,', 1)
    """
    names, every = list(tokenizers), as_corpora(corpora)
    vocabularies = {name: Vocabulary(t) for name, t in tokenizers.items()}
    words: Counter[tuple[str, str]] = Counter()
    different: Counter[str] = Counter()
    langs = list(dict.fromkeys(lang for one in every.values() for lang in one))
    tokens = {(name, lang): np.zeros(v.size, np.int64) for name, v in vocabularies.items() for lang in langs}
    counters = {name: Counting(name, t, "whitespace") for name, t in tokenizers.items()}
    for where, of_lang in every.items():
        for lang, corpus in of_lang.items():
            for text in corpus:
                for word in text.split():
                    if (lang, word) in words or different[lang] < max(KNOWN // len(langs), 1):
                        different[lang] += (lang, word) not in words
                        words[lang, word] += 1
            if not different[lang]:
                raise ValueError(f"corpora, {where}, {lang}: no word in its texts")
            for name, counter in counters.items():
                ids, times = tally(counter, {lang: corpus}, where, None).counts[0].table()
                tokens[name, lang][ids] += times.sum(0)
    found = [_entries(v) for v in vocabularies.values()]
    totals = [max(sum(of.values()), 1) for of, _ in found]
    largest = {s: max(of[s] / n for (of, _), n in zip(found, totals, strict=True)) for of, _ in found for s in of}
    scripts = sorted(largest, key=lambda s: (-largest[s], s))
    share = np.array([[of[s] / n for s in scripts] for (of, _), n in zip(found, totals, strict=True)]).reshape(
        len(names), -1
    )
    frequency = np.full((len(names), len(langs), len(RANKS)), np.nan)
    for t, name in enumerate(names):
        for k, lang in enumerate(langs):
            ranked = np.sort(tokens[name, lang])[::-1] / max(tokens[name, lang].sum(), 1)
            inside = len(ranked) >= RANKS
            frequency[t, k, inside] = ranked[RANKS[inside] - 1]
    rows = [_worst(counters[name].pieces, words, worst) for name in names]
    table = {"word": "1", "lang_of_word": "1", "n_tokens": "token", "count": "word"}
    says = {"word": "word that costs most tokens beyond one each", "lang_of_word": "language of the word",
            "n_tokens": "tokens of the word", "count": "times the word occurs"}  # fmt: skip
    data = {
        "share_script": variable(("tokenizer", "script"), share, "share of the entries that have a script", "1",
                                 short="share of entries", range=(0, 1)),
        "share_length": variable(("tokenizer", "n_chars"), np.array([lengths for _, lengths in found]),
                                 "share of the entries of so many characters", "1", short="share of entries"),
        "frequency": variable(("tokenizer", "lang", "token_rank"), np.where(frequency > 0, frequency, np.nan),
                              "share of the tokens of the texts", "1", log=True, short="frequency",
                              along=("token_rank",)),
        **{n: variable(("tokenizer", "place"), np.array([[row[k] for row in r] for r in rows]), says[n], unit)
           for k, (n, unit) in enumerate(table.items())},
    }  # fmt: skip
    coords = {
        "tokenizer": variable("tokenizer", np.array(names), "tokenizer", "1"),
        "lang": variable("lang", np.array(langs), "language", "1"),
        "script": variable("script", np.array(scripts, dtype=object), "script", "1"),
        "n_chars": variable("n_chars", np.arange(1, LONGEST + 1), "characters of the entry", "character"),
        "token_rank": variable("token_rank", RANKS, "rank of the token in the texts, the most frequent 1", "1"),
        "place": variable("place", np.arange(len(rows[0])), "place in the list of words", "1"),
    }
    ds = xr.Dataset(data, coords, {"dimensions": "tokenizer, lang, script, n_chars, token_rank, place"})
    texts = hash_json(sorted([*key, n] for key, n in words.items()))
    ds = stamped_tokenizers(
        ds, "tokenizer_overview", list(tokenizers.values()), {"names": names, "worst": worst}, texts
    )
    check(ds)
    return ds


def _entries(vocabulary: Vocabulary) -> tuple[Counter[str], np.ndarray]:
    """Return how many entries each script has, and (n_chars,) the share of those of whole characters by length."""
    scripts: Counter[str] = Counter()
    lengths = np.zeros(LONGEST)
    ids = np.setdiff1d(np.flatnonzero(vocabulary.there), vocabulary.special_ids)
    for piece in vocabulary.bytes(ids):
        if script := classify(piece, False)[1]:
            scripts[script] += 1
        try:
            n = len(piece.decode())
        except UnicodeDecodeError:
            continue
        lengths[min(max(n, 1), LONGEST) - 1] += 1
    return scripts, lengths / max(lengths.sum(), 1)


def _worst(cutter: Pieces, words: Counter[tuple[str, str]], most: int) -> list[tuple[str, str, int, int]]:
    """Return (word, language, tokens, occurrences) of the words with most tokens beyond one in all."""
    keys = list(words)
    lead = cutter.before if cutter.lead is None else cutter.lead
    n = np.array([len(ids) for ids in cutter.whole([lead + w for _, w in keys])])
    cost = (n - 1) * np.array([words[k] for k in keys])
    order = np.argsort(-cost, kind="stable")[:most]
    return [(keys[i][1], keys[i][0], int(n[i]), words[keys[i]]) for i in order]
