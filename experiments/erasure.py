"""Token erasure and the implicit vocabulary: what a model forgets of the tokens of a word at its end.

Token probes are fitted for every layer and five offsets on the training texts and scored on the test texts by group;
then psi, the segmentation and the vocabulary are computed for the text and for its controls: shuffled text, text drawn
from its bigrams, and an untrained network (with probes of its own).  Defaults are those of Feucht et al. 2024 (arXiv
2406.20086): Llama-2-7b, whole documents, the first 256 tokens for the segmentation.  The authors' documents are given
by path (``train=FILE``, ``test=FILE``); COUNTERFACT is a csv with the columns text and subject.

=============================================================  ======================================================
published                                                      how
=============================================================  ======================================================
figure 1, appendix: a text with its segments                   ``test=FILE.txt``: trained/text, `erasure_map`
figures 2 and 3: probe accuracy by layer and offset, last      ``test=counterfact_expanded.csv`` ("last of subject");
token of subjects, multi-token words, entities, against other  ``test=wikipedia_test_500.csv`` ("last piece",
tokens; all tokens of the Pile                                 "last of name"); ``test=test_tiny_500.csv`` ("all")
appendix: by position in the word and its length               the same run: first/middle/last piece, last of 1 to 4+
appendix B: skip-grams seen in training                        the same run: seen pair, unseen pair
table 2: precision and recall of the vocabulary                the same run: evaluation groups (words, names, listed)
table 3: choice of L                                           ``ends=6,10,14,18,22``: group trained/ends
appendix: highest-ranked units                                 the same run: vocabulary groups
=============================================================  ======================================================

Not published: intervals, bigram and label-coverage baselines, controls, AUROC against random spans, probes trained
again (``n_seeds=N``), another segmentation (``segmentation=dp``).  Entities need a tagger; without one "names" (runs
of capitalised words) stand in, and annotated texts (``.conll.txt``, ``.conllulex``, spans in jsonl) bring their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.erasure.erasure import default_layers, end_layer
from tokinterp.erasure.evaluation_seeds import seed_agreement
from tokinterp.text import shuffle_blocks
from tokinterp.text.bigrams import sample_bigrams

from .parts import units as known_units
from .parts.ends import ends_row, side_by_side
from .parts.precision import precision_difference
from .runner.claims import Claim, Number, Results, curve, given, mean, mean_difference, plain
from .runner.preset import Preset, place
from .runner.record import stage

SHOWN = 8
"""Prompts whose delta is kept in the result."""
FEWEST = 30
"""Positions or spans below which nothing is claimed."""


@dataclass
class Settings(Preset):
    """Texts, probes, layers of psi."""

    train: str | None = None  # file for the fit; every second bundled text without one
    test: str | None = None  # file for everything else, perhaps annotated; the other bundled texts without one
    lexicon: str | None = None  # word list whose entries of several words are units
    first_train: int = 0  # texts of these files left out at the beginning
    first_test: int = 0
    n_train: int | None = None
    n_test: int | None = None
    layers: tuple[int, ...] | None = None  # of the probes; all without any
    few_layers: bool = False  # the embedding, those of psi and the last
    offsets: tuple[int, ...] = (-3, -2, -1, 0, 1)
    start: int | None = None  # layers of psi: the paper's for 32 blocks, else the same start in proportion, and as end
    end: int | None = None  # the first layer after which the gap between other tokens and last tokens hardly grows
    ends: tuple[int, ...] | None = None  # further end layers; every later layer, of a deep model the published five
    fit_tokens: int | None = None  # longest prompts for the fit and the accuracies; the context without one
    score_tokens: int | None = None
    n_tokens: int = 256  # longest prompts for psi and the vocabulary
    probes: str = "default"  # or feucht2024
    products: str | None = None  # float32 or bfloat16
    n_seeds: int = 1  # fits for psi: with 2 or more, the probes that psi needs are trained again and compared
    controls: tuple[str, ...] = ("shuffled", "bigram", "untrained")
    untrained_layers: tuple[int, ...] | None = None
    segmentation: str = "greedy"  # or dp
    min_count: int = 2  # occurrences of a unit of the vocabulary
    max_gigabytes: float | None = None  # memory of a fit

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the fits."""
        return tuple(range(self.seed, self.seed + self.n_seeds))

    def train_texts(self) -> list[str]:
        """Return the texts of the fit."""
        if "train" not in self.found:
            if self.train is None:
                texts = [t.text for t in ti.bundled_texts()][::2]
            else:
                texts = known_units.read_annotated(place(self.train))[0]
            self.found["train"] = texts[self.first_train :][: self.n_train]
        return self.found["train"]

    def test_texts(self) -> tuple[list[str], ti.Spans | None]:
        """Return the texts for everything else, and their units beside the words."""
        if "test" in self.found:
            return self.found["test"], None
        if self.test is None:
            texts, spans = [t.text for t in ti.bundled_texts()][1::2], halved(ti.bundled_spans())
        else:
            lexicon = None if self.lexicon is None else place(self.lexicon)
            texts, spans = known_units.read_annotated(place(self.test), lexicon)
        last = len(texts) if self.n_test is None else self.first_test + self.n_test
        spans = spans.where((spans.document >= self.first_test) & (spans.document < last))
        spans.document = spans.document - self.first_test
        spans.texts = self.found["test"] = texts[self.first_test : last]
        return self.found["test"], spans


TEXT, LEXICON = "$TOKINTERP_DATA/text/", "$TOKINTERP_DATA/spans/wordnet_multiword.tsv.xz"
STORIES = f"{TEXT}tinystories_1000.json"
PRESETS = {
    "tiny": Settings(
        model="bundled/narrow",
        n_train=12, n_test=8, fit_tokens=64, score_tokens=64, n_tokens=64, n_seeds=2, few_layers=True, offsets=(-1, 0)
    ),
    "bundled": Settings(fit_tokens=256, score_tokens=256, few_layers=True, offsets=(-1, 0), n_seeds=2),
    "wikipedia": Settings(
        train=f"{TEXT}wikipedia_train_1000.csv.xz", test=f"{TEXT}wikipedia_test_500.csv.xz", lexicon=LEXICON,
        n_train=500, n_test=500, fit_tokens=256, score_tokens=256, products="bfloat16", ends=(2, 3, 4, 6, 8),
        untrained_layers=(0, 1, 2, 8), n_seeds=2,
    ),
    "narrow": Settings(
        model="bundled/narrow", train=f"{TEXT}wikipedia_train_1000.csv.xz", test=f"{TEXT}wikipedia_test_500.csv.xz",
        lexicon=LEXICON, fit_tokens=256, score_tokens=256, start=4, end=7, n_seeds=2,  # the best of other articles
    ),
    "stories": Settings(
        model="$TOKINTERP_DATA/models/stories260K", train=STORIES, test=STORIES, n_train=600, first_test=600,
        n_test=200, lexicon=LEXICON, fit_tokens=256, score_tokens=256, n_seeds=3,
    ),
    "paper": Settings(model="meta-llama/Llama-2-7b-hf", train="train_tiny_1000.csv", test="wikipedia_test_500.csv"),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Fit, score, segment and read out, with controls.

    Returns groups ``trained`` and ``untrained`` with ``scores``, ``text``, ``shuffled``, ``bigram``, and of each text
    its ``_vocabulary`` and ``_evaluation``; ``trained/units`` (AUROC), ``trained/ends``, ``trained/precision``,
    ``trained/seeds``.
    """
    model = p.lm
    train, (test, spans) = p.train_texts(), p.test_texts()
    n_layers = model.info.n_layers
    layers = p.layers
    if p.few_layers:
        layers = tuple(sorted({0, *default_layers(n_layers), n_layers}))
    context = model.info.max_tokens or 2048
    make: Any = {"progress": p.progress, "on_long": "truncate", "min_tokens": 2}
    fit = ti.Prompts.from_texts(train, model, max_tokens=min(p.fit_tokens or context, context), **make)
    scored = ti.Prompts.from_texts(test, model, max_tokens=min(p.score_tokens or context, context), **make)
    cut = ti.Prompts.from_texts(test, model, max_tokens=min(p.n_tokens, context), **make)
    spans = None if spans is None or not len(spans) else spans
    words = ti.Spans.words(list(test))
    units = words if spans is None else words + spans
    probe_layers = list(range(n_layers + 1)) if layers is None else sorted(layers)
    common: Any = {
        "settings": p.probes, "products": p.products, "progress": p.progress,
        "memory": None if p.max_gigabytes is None else int(p.max_gigabytes * 2**30),
    }  # fmt: skip
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)

    def fitted(
        lm: ti.Model, name: str, where: Sequence[int], which: Sequence[int], seed: int = 0
    ) -> ti.erasure.TokenProbes:
        store = stage(kept, name)
        return ti.erasure.fit_probes(lm, fit, layers=where, offsets=which, store=store, seed=p.seed + seed, **common)

    def read(lm: ti.Model, name: str, ps: ti.Prompts, asked: dict[str, ti.Measurement]) -> dict[str, xr.Dataset]:
        done = ti.measure(lm, ps, asked, store=stage(kept, f"{name}.zarr"), progress=p.progress)
        return {n: done[n].to_dataset() for n in asked}

    tree: dict[str, xr.Dataset] = {}
    probes = fitted(model, "trained", probe_layers, p.offsets)
    scores = read(model, "scores", scored, {"scores": ti.erasure.ProbeScores(probes, spans)})["scores"]
    tree["trained/scores"] = scores
    first, last = choose_ends(scores, n_layers, p.start, p.end)
    others = default_ends(probe_layers, n_layers, first) if p.ends is None else [e for e in p.ends if e > first]
    options: Any = {"start": first, "tokens": None, "segmentation": p.segmentation}
    past = [o for o in p.offsets if o in (0, -1, -2)][::-1]
    asked: dict[str, Any] = {
        f"end_{e}": ti.erasure.ErasureScores(probes, end=e, offsets=past, **options) for e in sorted({last, *others})
    }
    measured = read(model, "text", cut, asked)
    texts = {"text": measured[f"end_{last}"]}
    all_at_once = 1 - 0.05 / max(1, len(others))  # the best is chosen
    rows = {e: ends_row(measured[f"end_{e}"], cut, units, p.min_count, all_at_once) for e in others}
    if rows:
        tree["trained/ends"] = side_by_side(rows)
    tree["trained/units"] = ti.erasure.psi_of_spans(texts["text"], cut, units.align(cut))
    shuffled = {"shuffled": shuffle_blocks(cut, 5), "bigram": sample_bigrams(cut)}
    kinds = {n: ps for n, ps in shuffled.items() if n in p.controls}
    for name, ps in kinds.items():
        one = ti.erasure.ErasureScores(probes, end=last, offsets=past, **options)
        texts[name] = read(model, name, ps, {name: one})[name]
    aligned = units.align(cut)
    threshold = ti.erasure.permutation_threshold(texts["shuffled"]) if "shuffled" in texts else None
    for name, ds in texts.items():
        add_vocabulary(tree, f"trained/{name}", ds, shuffled.get(name, cut), aligned, cut, p.min_count, threshold)
    if "shuffled" in texts:
        pairs = (texts["text"], cut), (texts["shuffled"], shuffled["shuffled"])
        tree["trained/precision"] = precision_difference(*pairs, aligned, p.min_count)
    if p.n_seeds > 1:
        again = [texts["text"]]
        for seed in range(1, p.n_seeds):
            other = fitted(model, f"seed_{seed}", [first, last], past, seed)
            asked = {"text": ti.erasure.ErasureScores(other, end=last, offsets=past, **options)}
            again.append(read(model, f"text_seed_{seed}", cut, asked)["text"])
        tree["trained/seeds"] = seed_agreement(again)
    if "untrained" in p.controls:
        blank = ti.untrained(cast(Any, model), seed=p.seed)
        where = sorted({*(p.untrained_layers or probe_layers), first, last})
        bare = fitted(blank, "untrained", where, p.offsets)
        asked = {"scores": ti.erasure.ProbeScores(bare, spans)}
        tree["untrained/scores"] = read(blank, "untrained_scores", scored, asked)["scores"]
        asked = {"text": ti.erasure.ErasureScores(bare, end=last, offsets=past, **options)}
        ds = read(blank, "untrained_text", cut, asked)["text"]
        tree["untrained/units"] = ti.erasure.psi_of_spans(ds, cut, aligned)
        add_vocabulary(tree, "untrained/text", ds, cut, aligned, cut, p.min_count, None)
    return tree


# -- pieces ---------------------------------------------------------------------------------------------------
def halved(spans: ti.Spans) -> ti.Spans:
    """Return the spans of every second text, renumbered, as `run` halves the bundled texts."""
    out = spans.where(spans.document % 2 == 1)
    out.document = out.document // 2
    out.texts = None if spans.texts is None else list(spans.texts[1::2])
    return out


def choose_ends(scores: xr.Dataset, n_layers: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return start and end of psi: those given, the paper's for 32 blocks, else by the gap at offset 0."""
    fitted = scores["layer"].values.tolist()
    first, usual = default_layers(n_layers)
    first = min(fitted, key=lambda n: abs(n - first)) if start is None else start
    later = [n for n in fitted if n > first]
    if end is None and n_layers == 32 and usual in later:
        end = usual
    if end is None:
        accuracy = scores["accuracy"].sel(offset=0, layer=later)
        others, last = (accuracy.sel(subset=s).values.tolist() for s in ("other", "last piece"))
        end = end_layer(later, others, last)
    return first, end


def default_ends(layers: Sequence[int], n_layers: int, start: int) -> list[int]:
    """Return the end layers to compare."""
    wanted = layers if n_layers <= 16 else [n for n in (6, 10, 14, 18, 22) if n in layers]
    return [n for n in wanted if n > start]


def add_vocabulary(
    tree: dict[str, xr.Dataset], name: str, ds: xr.Dataset, prompts: ti.Prompts, units: Any, cut: ti.Prompts,
    min_count: int, threshold: float | None,
) -> None:  # fmt: skip
    """Add the segments of a text, its vocabulary as published (no threshold), and how many known units are in it."""
    kept = ds.isel(token=np.flatnonzero(ds["token_prompt"].values < SHOWN))
    tree[name] = kept.assign_attrs(threshold="none" if threshold is None else threshold)
    try:
        vocabulary = ti.erasure.read_out(ds, prompts, min_count=min_count, min_psi=None)
    except ValueError:  # no unit occurs twice: a vocabulary of nothing
        return
    tree[f"{name}_vocabulary"] = vocabulary
    tree[f"{name}_evaluation"] = ti.erasure.evaluate(vocabulary, units, cut)


# -- claims ---------------------------------------------------------------------------------------------------
AUTHORS = "Feucht et al. 2024"


def gap(r: Results, subset: str, offset: int) -> dict[str, Number | list[float]]:
    """Return the largest gap of the layers behind the embedding, with an interval for all layers at once.

    Beside it the untrained network at that layer, with an interval of its own, and the accuracies by layer.
    """
    if subset not in r["trained/scores"]["subset"].values or offset not in r["trained/scores"]["offset"].values:
        return {"largest gap": plain(np.nan)}
    ds = r["trained/scores"].sel(subset=subset, offset=offset)
    values = ds["gap"].values
    if int(ds["n_positions"]) < FEWEST or not np.isfinite(values[1:]).any():
        return {"largest gap": plain(np.nan)}
    k = int(np.nanargmax(values[1:])) + 1
    layer = int(ds["layer"][k])
    out: dict[str, Number | list[float]] = {f"largest gap, layer {layer}": given(ds.isel(layer=k), "gap", "gap_band")}
    if "untrained/scores" in r and layer in r["untrained/scores"]["layer"].values:
        blank = r["untrained/scores"].sel(subset=subset, offset=offset, layer=layer)
        out[f"untrained, layer {layer}"] = given(blank, "gap")
    return {**out, "accuracy by layer": curve(ds["accuracy"]), "gap by layer": curve(ds["gap"])}


def several(r: Results, name: str) -> xr.DataArray:
    """Return psi of the segments of two or more tokens."""
    ds = r[name]
    return ds["psi"].isel(span=np.flatnonzero((ds["stop"] - ds["start"]).values > 1))


def psi(r: Results, name: str) -> Number:
    """Return the mean psi of segments of two or more tokens, with an interval over prompts."""
    v = several(r, name)
    return mean(v, "span") if v.size else plain(np.nan)


def auroc(r: Results, subset: str) -> dict[str, Number]:
    """Return the AUROC of known units against random spans of their length and prompt, and of the untrained network."""
    out = {}
    for network in ("trained", "untrained"):
        ds = r.get(f"{network}/units")
        if ds is None or subset not in ds["subset"].values or int(ds["n_spans"].sel(subset=subset)) < FEWEST:
            out[network] = plain(np.nan)
        else:
            out[network] = given(ds, "auroc", subset=subset)
    return out


def precision(r: Results) -> dict[str, Number]:
    """Return the word precision of the vocabularies of text and controls, less that of random spans first."""
    names = {"text": "trained/text", "shuffled": "trained/shuffled", "bigram text": "trained/bigram",
             "untrained": "untrained/text"}  # fmt: skip
    found = {n: r[f"{g}_evaluation"].sel(subset="word") for n, g in names.items() if f"{g}_evaluation" in r}
    out = {n: plain(ds["precision"].isel(rank=-1)) for n, ds in found.items()}
    if "trained/precision" not in r:
        return {"text less shuffled": plain(np.nan), **out}
    return {
        "text less shuffled": given(r["trained/precision"], "difference"), **out,
        "random spans": plain(found["text"]["chance"]), "recall": plain(found["text"]["recall"].isel(rank=-1)),
    }  # fmt: skip


def ends(r: Results) -> dict[str, Number]:
    """Return the AUROC of words by end layer of psi, the largest first."""
    ds = r["trained/ends"]
    rows = {f"end {int(n)}": given(ds, "auroc", layer=n) for n in ds["layer"].values}
    best = max(rows, key=lambda n: rows[n].value)
    return {best: rows.pop(best), **rows}


CLAIMS = [
    *[
        Claim(
            f"{said} is forgotten at last tokens of {unit}", AUTHORS,
            "accuracy at other tokens less that at the last, largest of all layers",
            lambda r, subset=subset, offset=offset: gap(r, subset, offset), ("trained/scores",), above=0,
        )
        for unit, subset in (("words", "last piece"), ("names", "last of name"), ("entities", "last of entity"))
        for said, offset in (("the own token", 0), ("the token before", -1))
    ],
    Claim(
        "psi is higher in text than in shuffled text", AUTHORS, "mean psi of segments of two or more tokens",
        lambda r: {
            "text less shuffled": mean_difference(several(r, "trained/text"), several(r, "trained/shuffled"), "span"),
            **{n.replace("trained/text", "trained").replace("trained/", ""): psi(r, n) for n in (
                "trained/text", "trained/shuffled", "trained/bigram", "untrained/text") if n in r},
        }, ("trained/text", "trained/shuffled"), above=0,
    ),
    *[
        Claim(
            f"psi marks {plural}", AUTHORS, "AUROC against random spans of the same length and prompt",
            lambda r, kind=kind: auroc(r, kind), ("trained/units",), above=0.5,
        ) for kind, plural in (
            ("word", "words"), ("name", "names"), ("entity", "entities"), ("listed", "entries of a word list"))
    ],
    Claim(
        "psi marks words at its best end layer (chosen on the same texts)", AUTHORS,
        "AUROC of words, interval for all end layers at once", ends,
        ("trained/ends",), above=0.5,
    ),
    Claim(
        "the vocabulary of a text holds more words than that of shuffled text", AUTHORS, "precision, difference",
        precision, ("trained/text_evaluation",), above=0,
    ),
    Claim(
        "segments do not depend on the probes' seeds", "control",
        "share of segments that two fits have in common, of these fits",
        lambda r: {"same segments": given(r["trained/seeds"], "shared_segments"),
                   "correlation of delta, offset 0": plain(r["trained/seeds"]["delta_correlation"].sel(offset=0))},
        ("trained/seeds",), above=0.95,
    ),
]  # fmt: skip
