"""Token erasure and the implicit vocabulary: what a model forgets of the tokens of a word at its end.

    python -m experiments.erasure --train train_tiny_1000.csv --test wikipedia_test_500.csv      # paper scale
    python -m experiments.erasure --small                                                        # seconds, bundled

Token probes are fitted for every layer and five offsets on the training texts and scored on the test texts by group;
then psi, the segmentation and the vocabulary are computed for the text and for its controls: shuffled text, text drawn
from its bigrams, and an untrained network (with probes of its own).  Defaults are those of Feucht et al. 2024 (arXiv
2406.20086): Llama-2-7b, whole documents, the first 256 tokens for the segmentation.  The authors' documents are given
by path; COUNTERFACT is a csv with the columns text and subject.

=============================================================  ======================================================
published                                                      how
=============================================================  ======================================================
figure 1, appendix: a text with its segments                   ``--test FILE.txt``: trained/text, plots.erasure_map
figures 2 and 3: probe accuracy by layer and offset, last      ``--test counterfact_expanded.csv`` ("last of subject");
token of subjects, multi-token words, entities, against other  ``--test wikipedia_test_500.csv`` ("last piece",
tokens; all tokens of the Pile                                 "last of name"); ``--test test_tiny_500.csv`` ("all")
appendix: by position in the word and its length               the same run: first/middle/last piece, last of 1 to 4+
appendix B: skip-grams seen in training                        the same run: seen pair, unseen pair
table 2: precision and recall of the vocabulary                the same run: evaluation groups (words, names, listed)
table 3: choice of L                                           ``--ends 6,10,14,18,22``: group trained/ends
appendix: highest-ranked units                                 the same run: vocabulary groups
=============================================================  ======================================================

Not published: intervals, bigram and label-coverage baselines, controls, AUROC against random spans, probes trained
again (``--seeds``), another segmentation (``--segmentation dp``).  Entities need a tagger; without one "names" (runs
of capitalised words) stand in, and annotated texts (``.conll.txt``, ``.conllulex``, spans in jsonl) bring their own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.erasure.depth import default_layers, end_layer
from tokinterp.erasure.replicates import seed_agreement
from tokinterp.results.dataset import variable
from tokinterp.text import shuffle_blocks
from tokinterp.text.bigrams import sample_bigrams

from . import erasure_units
from .erasure_summary import summarise
from .record import beside, write

RESULTS = Path("runs/erasure.zarr")
PAPER_MODEL = "meta-llama/Llama-2-7b-hf"
SHOWN = 8
"""Prompts whose delta is kept in the result."""


def run(
    model: ti.Model | None = None,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    *,
    spans: ti.Spans | None = None,
    layers: Sequence[int] | None = None,
    offsets: Sequence[int] = (-3, -2, -1, 0, 1),
    start: int | None = None,
    end: int | None = None,
    ends: Sequence[int] | None = None,
    fit_tokens: int | None = None,
    score_tokens: int | None = None,
    n_tokens: int = 256,
    settings: Any = "default",
    products: str | None = None,
    seeds: int = 1,
    controls: Sequence[str] = ("shuffled", "bigram", "untrained"),
    untrained_layers: Sequence[int] | None = None,
    segmentation: str = "greedy",
    min_count: int = 2,
    max_bytes: int | None = None,
    small: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Fit, score, segment and read out, with controls.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default.
    train, test : sequence of str, optional
        Texts for the fit and for everything else; by default two halves of the bundled texts.
    spans : Spans, optional
        Units on ``test`` beside the words, which are always compared with.
    layers, offsets
        Of the probes; all layers by default.
    start, end : int, optional
        Layers of psi.  Of a model with 32 blocks those of the paper, of another the same start in proportion, and as
        end the first layer after which the gap between other tokens and last tokens of words hardly grows.
    ends : sequence of int, optional
        Further end layers (the published table 3); by default every layer after ``start`` of a model with at most 16
        blocks, and the table's five of a deeper one.
    fit_tokens, score_tokens : int, optional
        Longest prompts for the fit and for the accuracies; the context of the model by default.
    n_tokens : int
        Longest prompts for psi and the vocabulary.
    settings, products
        Of `fit_probes`.
    seeds : int
        Fits for psi: with 2 or more, the probes that psi needs are trained again and compared.
    controls : sequence of str
        Some of shuffled, bigram, untrained.
    untrained_layers : sequence of int, optional
        Layers of the untrained network's probes; all by default.
    segmentation : str
        Of `ErasureScores`.
    min_count : int
        Occurrences of a unit of the vocabulary.
    max_bytes : int, optional
        Memory of each fit.
    small : bool
        Few short texts, three layers, two seeds, to see that everything runs.
    out : path, optional
        Where the result is written.  Probes and parts of the result are kept beside it in ``NAME.probes``: a run that
        was stopped goes on.
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        Groups ``trained`` and ``untrained`` with ``scores``, ``text``, ``shuffled``, ``bigram``, and of each text its
        ``_vocabulary`` and ``_evaluation``; ``trained/units`` (AUROC), ``trained/ends``, ``trained/seeds``.
    """
    begun = time.perf_counter()
    model = ti.load_model() if model is None else model
    if train is None or test is None:
        bundled = [t.text for t in ti.bundled_texts()]
        train, test = bundled[::2], bundled[1::2]
        spans = halved(ti.bundled_spans()) if spans is None else spans
    n_layers = model.info.n_layers
    if small:
        train, test = train[:16], test[:12]
        spans = spans if spans is None else spans.where(spans.document < 12)
        if spans is not None:
            spans.texts = test
        fit_tokens, score_tokens, n_tokens, seeds = 96, 96, min(n_tokens, 96), 2
        layers = sorted({0, *default_layers(n_layers), n_layers}) if layers is None else layers
    context = model.info.max_tokens or 2048
    make: Any = {"progress": progress, "on_long": "truncate", "min_tokens": 2}
    fit = ti.Prompts.from_texts(train, model, max_tokens=min(fit_tokens or context, context), **make)
    scored = ti.Prompts.from_texts(test, model, max_tokens=min(score_tokens or context, context), **make)
    cut = ti.Prompts.from_texts(test, model, max_tokens=min(n_tokens, context), **make)
    spans = None if spans is None or not len(spans) else spans
    words = ti.Spans.words(list(test))
    units = words if spans is None else words + spans
    probe_layers = list(range(n_layers + 1)) if layers is None else sorted(layers)
    folder = beside(out, "probes")
    common: Any = {"settings": settings, "products": products, "max_bytes": max_bytes, "progress": progress}

    def fitted(
        lm: ti.Model, name: str, where: Sequence[int], which: Sequence[int], seed: int = 0
    ) -> ti.erasure.TokenProbes:
        store = None if folder is None else folder / name
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return ti.erasure.fit_probes(lm, fit, layers=where, offsets=which, store=store, seed=seed, **common)

    def read(lm: ti.Model, name: str, p: ti.Prompts, asked: dict[str, ti.Measurement]) -> dict[str, xr.Dataset]:
        store = None if folder is None else folder / f"{name}.zarr"
        done = ti.measure(lm, p, asked, store=store, progress=progress)
        return {n: done[n].to_dataset() for n in asked}

    tree: dict[str, xr.Dataset] = {}
    clock = {"prepare": time.perf_counter() - begun}

    def tick(name: str) -> None:
        clock[name] = time.perf_counter() - begun - sum(clock.values())

    probes = fitted(model, "trained", probe_layers, offsets)
    tick("fit, trained")
    scores = read(model, "scores", scored, {"scores": ti.erasure.ProbeScores(probes, spans)})["scores"]
    tree["trained/scores"] = scores
    tick("score, trained")
    first, last = choose_ends(scores, n_layers, start, end)
    others = default_ends(probe_layers, n_layers, first) if ends is None else [e for e in ends if e > first]
    options: Any = {"start": first, "tokens": None, "segmentation": segmentation}
    past = [o for o in offsets if o in (0, -1, -2)][::-1]
    asked: dict[str, Any] = {
        f"end_{e}": ti.erasure.ErasureScores(probes, end=e, offsets=past, **options) for e in sorted({last, *others})
    }
    measured = read(model, "text", cut, asked)
    texts = {"text": measured[f"end_{last}"]}
    tick("psi of the text, all ends")
    rows = {e: ends_row(measured[f"end_{e}"], cut, units, min_count) for e in others}
    if rows:
        tree["trained/ends"] = side_by_side(rows)
    tree["trained/units"] = ti.erasure.psi_of_spans(texts["text"], cut, units.align(cut))
    shuffled = {"shuffled": shuffle_blocks(cut, 5), "bigram": sample_bigrams(cut)}
    kinds = {n: p for n, p in shuffled.items() if n in controls}
    for name, p in kinds.items():
        one = ti.erasure.ErasureScores(probes, end=last, offsets=past, **options)
        texts[name] = read(model, name, p, {name: one})[name]
    aligned = units.align(cut)
    threshold = ti.erasure.permutation_threshold(texts["shuffled"]) if "shuffled" in texts else None
    for name, ds in texts.items():
        add_vocabulary(tree, f"trained/{name}", ds, shuffled.get(name, cut), aligned, cut, min_count, threshold)
    tick("controls and vocabularies")
    if seeds > 1:
        again = [texts["text"]]
        for seed in range(1, seeds):
            other = fitted(model, f"seed_{seed}", [first, last], past, seed)
            asked = {"text": ti.erasure.ErasureScores(other, end=last, offsets=past, **options)}
            again.append(read(model, f"text_seed_{seed}", cut, asked)["text"])
        tree["trained/seeds"] = seed_agreement(again)
        tick("probes trained again")
    if "untrained" in controls:
        blank = ti.untrained(cast(Any, model), seed=0)
        where = sorted({*(untrained_layers or probe_layers), first, last})
        bare = fitted(blank, "untrained", where, offsets)
        tick("fit, untrained")
        asked = {"scores": ti.erasure.ProbeScores(bare, spans)}
        tree["untrained/scores"] = read(blank, "untrained_scores", scored, asked)["scores"]
        asked = {"text": ti.erasure.ErasureScores(bare, end=last, offsets=past, **options)}
        ds = read(blank, "untrained_text", cut, asked)["text"]
        tree["untrained/units"] = ti.erasure.psi_of_spans(ds, cut, aligned)
        add_vocabulary(tree, "untrained/text", ds, cut, aligned, cut, min_count, None)
        tick("score and segment, untrained")
    found = xr.DataTree.from_dict(tree)
    found.attrs = {
        **tree["trained/scores"].attrs, "train_prompts": fit.hash, "n_train": len(fit),
        "n_train_tokens": fit.n_tokens, "n_test": len(scored), "n_test_tokens": scored.n_tokens,
        "n_segmented_tokens": cut.n_tokens,
        **{f"seconds: {k}": round(v, 2) for k, v in clock.items()},
        "threshold": "none" if threshold is None else threshold,
    }  # fmt: skip
    ti.check(found)
    if out is not None:
        ti.write(found, out, overwrite=True)
    return found


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


def ends_row(ds: xr.Dataset, prompts: ti.Prompts, units: ti.Spans, min_count: int) -> dict[str, Any]:
    """Return what the published table 3 has of one end layer, and the AUROC."""
    compared = ti.erasure.psi_of_spans(ds, prompts, units.align(prompts), n_boot=100)
    out: dict[str, Any] = {
        "auroc": compared["auroc"].sel(subset="word").item(),
        "auroc_interval": compared["auroc_interval"].sel(subset="word").values, "attrs": ds.attrs,
        "n_entries": 0, "precision": np.nan, "recall": np.nan, "attainable_recall": np.nan,
    }  # fmt: skip
    try:
        vocabulary = ti.erasure.read_out(ds, prompts, min_count=min_count, min_psi=None, n_boot=1)
    except ValueError:
        return out
    score = ti.erasure.evaluate(vocabulary, units.align(prompts), prompts).sel(subset="word").isel(rank=-1)
    out |= {n: score[n].item() for n in ("precision", "recall", "attainable_recall")}
    return out | {"n_entries": vocabulary.sizes["rank"]}


def side_by_side(rows: dict[int, dict[str, Any]]) -> xr.Dataset:
    """Return the rows of several end layers along ``layer``."""
    what = {
        "auroc": "probability that a word of several tokens scores above a random span of its length and prompt",
        "n_entries": "entries of the vocabulary", "precision": "share of the entries that are words",
        "recall": "share of the words of several tokens in the prompts that are entries",
        "attainable_recall": "the same of words that occur often enough",
    }  # fmt: skip
    v = variable
    data = {n: v("layer", [r[n] for r in rows.values()], text, "1") for n, text in what.items()}
    bounds = np.stack([r["auroc_interval"] for r in rows.values()], 1)
    data["auroc_interval"] = v(("bound", "layer"), bounds, "95% bootstrap interval over prompts", "1")
    coords = {
        "layer": v("layer", list(rows), "end layer of psi, blocks applied", "1"),
        "bound": v("bound", ["lower", "upper"], "bound of the interval", "1"),
    }
    attrs = {k: x for k, x in next(iter(rows.values()))["attrs"].items() if k not in ("end_layer", "parameters")}
    return xr.Dataset(data, coords, {**attrs, "parameters": "{}", "measurement": "choice of the end layer"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.erasure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=PAPER_MODEL, help="hub name, folder, or bundled")
    parser.add_argument("--train", type=Path, help="texts for the fit (train_tiny_1000.csv); bundled when left out")
    parser.add_argument("--test", type=Path, help="texts for everything else, perhaps annotated")
    parser.add_argument("--lexicon", type=Path, help="word list whose entries of several words are units")
    parser.add_argument("--limit", type=int, help="read only so many texts of each")
    parser.add_argument("--max-tokens", type=int, help="longest prompts of the fit and the scores")
    parser.add_argument("--layers", help="for example 0,2,10; all by default")
    parser.add_argument("--ends", help="end layers to compare, for example 6,10,14,18,22")
    parser.add_argument("--start", type=int)
    parser.add_argument("--end", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="fits of the probes that psi needs")
    parser.add_argument("--settings", default="default", help="default or feucht2024")
    parser.add_argument("--products", help="float32 or bfloat16")
    parser.add_argument("--segmentation", default="greedy", help="greedy or dp")
    parser.add_argument("--untrained-layers", help="layers of the untrained network's probes; all by default")
    parser.add_argument("--max-gigabytes", type=float, help="memory of a fit")
    parser.add_argument("--small", action="store_true", help="the bundled model, a few short texts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, help="summary to write")
    args = parser.parse_args()
    given: dict[str, Any] = {}
    for name in ("layers", "ends", "untrained_layers"):
        text = getattr(args, name)
        given[name] = None if text is None else [int(n) for n in text.split(",")]
    texts: dict[str, Any] = {}
    if args.train is not None and args.test is not None:
        texts["train"], _ = erasure_units.read_annotated(args.train, limit=args.limit)
        texts["test"], texts["spans"] = erasure_units.read_annotated(args.test, args.lexicon, args.limit)
    bundled = args.small or args.model == "bundled"
    tree = run(
        ti.load_model(None if bundled else args.model), **texts, **given, start=args.start, end=args.end,
        fit_tokens=args.max_tokens, score_tokens=args.max_tokens, seeds=args.seeds, settings=args.settings,
        products=args.products, segmentation=args.segmentation, small=args.small, out=args.out,
        max_bytes=None if args.max_gigabytes is None else int(args.max_gigabytes * 2**30),
    )  # fmt: skip
    record = summarise(tree)
    for line in record["seen"]:
        print("-", line)
    if args.json is not None:
        write(record, args.json)


if __name__ == "__main__":
    main()
