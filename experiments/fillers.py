"""Fillers, separators and sinks in a frozen model: does it use them, and what do they do?

The bundled model and its cloze questions by default, with random words of equal token count, the placement before the
question and an untrained copy of the model as controls.  Expected, and found in published work on models of this size:
no gain from fillers.  A null result is reported as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.attention import (
    massive_effects,
    massive_roles,
    policy_loss,
    registers,
    segment_probe,
    sentinels,
    separator_windows,
)
from tokinterp.fillers import (
    cell_clusters,
    filler_probes,
    filler_states,
    insert,
    insertion_tests,
    intervene,
    read_fillers,
    routing,
    shift,
    verdict,
)
from tokinterp.fillers.interventions import ALL
from tokinterp.text import build_items

from .runner.claims import Claim, Number, Results, given, mean, plain
from .runner.preset import Preset
from .runner.record import stage

CONTROL = tuple(i for i in ALL if i not in ("windows", "patches"))


@dataclass
class Settings(Preset):
    """Numbers of fillers, questions, texts."""

    n_fillers: int = 10  # where there is one number of them
    grid: tuple[int, ...] = (0, 2, 10, 50)  # where there are several
    kinds: tuple[str, ...] = ("dots", "counting", "words")  # of the insertion
    every: int = 1  # only every so-manieth question
    n_questions: int | None = None
    n_texts: int = 12  # for separators and sinks
    max_tokens: int = 300  # longest text
    window: int = 32  # of the policies
    chunk: int = 32  # of the sentinels
    few_layers: bool = False  # three layers for the clusters of cells

    def questions(self) -> list[Any]:
        """Return the items of the insertion, of the bundled cloze questions."""
        items = list(ti.bundled_questions("cloze"))[:: self.every][: self.n_questions]
        self.found["questions"] = [repr(item) for item in items]
        return items


PRESETS = {
    "tiny": Settings(
        n_questions=10, n_texts=3, grid=(0, 4), kinds=("dots", "words"), n_fillers=4, max_tokens=60, window=8, chunk=12,
        few_layers=True,
    ),
    "bundled": Settings(),
    "paper": Settings(model="meta-llama/Llama-3.2-1B", grid=(0, 2, 10, 50, 200), n_texts=50, max_tokens=1024),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Run every part on the model, and the main ones on an untrained copy.

    Returns insertion, tests, interventions, control (interventions on random words), verdict, shift, states, probes,
    lens, clusters, routing, attention (of items), text_attention, sinks, roles, massive, policies, coverage, segments,
    windows, registers, sentinels, and the same names with ``untrained_`` for insertion, tests, text_attention, sinks,
    coverage, segments, routing.
    """
    model, questions = p.lm, p.questions()
    longest = min(p.max_tokens, model.info.max_tokens)
    prompts = ti.Prompts.from_texts(p.read()[: p.n_texts], model, max_tokens=longest, progress=False)
    blank = ti.untrained(model, seed=p.seed)
    one: dict[str, Any] = {"n_fillers": p.n_fillers}
    nodes: dict[str, xr.Dataset] = {}
    for name, m in (("", model), ("untrained_", blank)):
        nodes[f"{name}insertion"] = insert(m, questions, n_fillers=p.grid, kinds=p.kinds if m is model else p.kinds[:1])
        nodes[f"{name}tests"] = insertion_tests(nodes[f"{name}insertion"])
        asked = {
            "text_attention": ti.attention.AttentionMass(),
            "sinks": ti.attention.AttentionSinks(tokens=min(64, max(prompts.lengths))),
            "coverage": ti.attention.SegmentCoverage(),
        }
        found = ti.measure(m, prompts, asked, store=stage(kept, f"{name}text.zarr"), progress=False)
        nodes |= {f"{name}{k}": found[k].to_dataset() for k in asked}
        if len(prompts) >= 5:
            nodes[f"{name}segments"] = segment_probe(m, prompts)
        nodes[f"{name}routing"] = routing(m, questions, **one)
    nodes["interventions"] = intervene(model, questions, **one)
    nodes["control"] = intervene(model, questions, kind="words", interventions=CONTROL, **one)
    nodes["verdict"] = verdict(model, questions, **one)
    nodes["shift"] = shift(model, questions, n_fillers=p.grid)
    nodes["states"] = filler_states(model, questions, **one)
    if len(questions) >= 10:
        nodes["probes"] = filler_probes(model, questions, **one)
        some = [1, model.info.n_layers // 2, model.info.n_layers] if p.few_layers else None
        nodes["clusters"] = cell_clusters(model, questions[:100], n_fillers=min(4, p.n_fillers), layers=some)
    nodes["lens"] = read_fillers(model, questions, **one)
    items = build_items(model, questions, **one)
    keys = {"fillers": items.mark("filler"), "question": items.mark("question"), "sink": "first", "other": "other"}
    looking = {"answer": "last", "fillers": items.mark("filler")}
    found = ti.measure(model, items.prompts, {"attention": ti.attention.AttentionMass(keys, looking)}, progress=False)
    nodes["attention"] = found["attention"].to_dataset()
    nodes["roles"] = massive_roles(model, prompts)
    nodes["massive"] = massive_effects(model, prompts)
    nodes["policies"] = policy_loss(model, prompts, window=p.window)
    nodes["windows"] = separator_windows(model, prompts)
    short = [np.asarray(prompts.ids(i))[: model.info.max_tokens - 4] for i in range(len(prompts))]
    nodes["registers"] = registers(model, ti.Prompts.from_ids(short, model))
    nodes["sentinels"] = sentinels(model, prompts, chunk=p.chunk)
    return nodes


# -- claims ---------------------------------------------------------------------------------------------------
PFAU, SEPARATORS, SINKS = "Pfau et al. 2024", "Chen et al. 2025", "Xiao et al. 2024"
BOTH = ("", "untrained_")


def some_fillers(r: Results) -> int:
    """Return 10 fillers, or the most that there are."""
    n = r["tests"]["n_fillers"].values
    return int(10 if 10 in n else n[-1])


def change(r: Results, name: str, filler: str, placement: str) -> Number:
    """Return the change of log p(answer) by fillers."""
    ds = r[name].sel(filler=filler, placement=placement, n_fillers=some_fillers(r))
    return given(ds, "log_prob_change")


def inserted(r: Results) -> dict[str, Any]:
    """Return the changes by kind, place and network, dots after the question first, and the accuracies."""
    tests = r["tests"]
    out: dict[str, Any] = {"dots after the question": change(r, "tests", "dots", "post")}
    out["dots before the question"] = change(r, "tests", "dots", "pre")
    out |= {f"{k} after it": change(r, "tests", k, "post") for k in map(str, tests["filler"].values) if k != "dots"}
    out["only announced"] = given(tests, "announced_change")
    out["dots after it, untrained"] = change(r, "untrained_tests", "dots", "post")
    k = some_fillers(r)
    for n in (0, k):
        out[f"accuracy with {n}"] = plain(tests["accuracy"].sel(filler="dots", placement="post", n_fillers=n))
    return out


def intervened(r: Results, name: str) -> dict[str, Any]:
    """Return the change of log p(answer) by an intervention on dots, and on random words."""
    out = {"dots": mean(r["interventions"]["log_prob_change"], intervention=name)}
    if name in r["control"]["intervention"].values:
        out["random words"] = mean(r["control"]["log_prob_change"], intervention=name)
    return out


def enrichment(r: Results, name: str, key: str = "") -> dict[str, Any]:
    """Return how many times their share separators get, trained and untrained."""
    out = {}
    for m in BOTH:
        ds = r[f"{m}{name}"]
        v = ds["net_enrichment"].isel(query_set=0).sel(key_set=key) if key else ds["enrichment"]
        out[m.rstrip("_") or "trained"] = mean(v)
    return out


def best_segments(r: Results, name: str, source: str) -> Number:
    """Return the share of a segment's content read at a token, best layer, with an interval for all layers at once."""
    d = r[name].isel(target=-1).sel(source=source)
    return given(d.isel(layer=int(d["explained"].argmax("layer"))), "explained", "explained_band")


def segments(r: Results) -> dict[str, Any]:
    """Return what the separator holds of its segment, and the controls."""
    first, *others = map(str, r["segments"]["source"].values)
    out = {first: best_segments(r, "segments", first)}
    out |= {s: best_segments(r, "segments", s) for s in others}
    if "untrained_segments" in r:
        out[f"{first}, untrained"] = best_segments(r, "untrained_segments", first)
    return out


def by(r: Results, name: str, variable: str, dim: str, first: str | None = None) -> dict[str, Any]:
    """Return a variable at every value of a dimension (one of them first), with its interval."""
    ds = r[name]
    values = [str(x) for x in ds[dim].values]
    values.sort(key=lambda x: x != first)
    own = f"{variable}_interval" in ds
    typed = {str(x): x for x in ds[dim].values}
    return {x: given(ds, variable, **{dim: typed[x]}) if own else mean(ds[variable], **{dim: typed[x]}) for x in values}


def difference(r: Results, name: str, variable: str, dim: str, one: str, other: str, **where: Any) -> dict[str, Any]:
    """Return the paired difference of two values of a dimension, and both."""
    v = r[name][variable].sel(where)
    pair = {x: v.sel({dim: x}) for x in (one, other)}
    return {f"{one} less {other}": mean(pair[one] - pair[other]), **{x: mean(y) for x, y in pair.items()}}


CLAIMS = [
    Claim(
        "fillers help a frozen model", PFAU, "change of log p(answer) by 10 fillers (nat; 4 in the preset tiny)",
        inserted, ("tests", "untrained_tests"), above=0,
    ),
    Claim(
        "the verdict rule finds fillers used", "control", "the rule on the criteria, 1 where it finds them used",
        lambda r: {"used": plain(r["verdict"].attrs["verdict"] == "used"), **by(r, "verdict", "value", "criterion")},
        ("verdict",), near=(1, 0),
    ),
    Claim(
        "what fillers do is to move places", "control", "change of log p(answer) when their places are closed (nat)",
        lambda r: intervened(r, "places closed"), ("interventions", "control"), above=0,
    ),
    Claim(
        "fillers hold content of their item", PFAU, "change of log p(answer) by another item's keys and values (nat)",
        lambda r: {**intervened(r, "transplant"), "the question's instead": mean(
            r["interventions"]["log_prob_change"], intervention="transplant of the question")},
        ("interventions", "control"), below=0,
    ),
    Claim(
        "the answer reads the question by way of the fillers", PFAU, "attention by way of them less the direct one",
        lambda r: {
            "by way of them less direct": mean(r["routing"]["routed"] - r["routing"]["direct"]),
            "by way of them": mean(r["routing"]["routed"]), "direct": mean(r["routing"]["direct"]),
            "change of the direct one by fillers": mean(r["routing"]["direct_change"]),
            "the same by their number alone": mean(r["routing"]["chance_change"]),
            "untrained, by way of them": mean(r["untrained_routing"]["routed"]),
        }, ("routing", "untrained_routing"), above=0,
    ),
    Claim(
        "cells (layer, filler) share hidden variables", "control",
        "information within less that between clusters",
        lambda r: {"within less between": given(r["clusters"], "contrast"),
                   "labels shuffled": plain(r["clusters"]["contrast_shuffled"])}, ("clusters",), above=0,
    ),
    Claim(
        "separators get more attention than their share", SEPARATORS, "times their share, net of sink and self",
        lambda r: enrichment(r, "text_attention", "separators"), ("text_attention", "untrained_text_attention"),
        above=1,
    ),
    Claim(
        "beyond the own segment, too", SEPARATORS, "times as often as their number would give",
        lambda r: enrichment(r, "coverage"), ("coverage", "untrained_coverage"), above=1,
    ),
    Claim(
        "the first position is a sink", SINKS, "share of heads and texts, trained less untrained",
        lambda r: {
            "trained less untrained": mean(r["sinks"]["first_above"] - r["untrained_sinks"]["first_above"]),
            "trained": mean(r["sinks"]["first_above"]), "untrained": mean(r["untrained_sinks"]["first_above"]),
        }, ("sinks", "untrained_sinks"), above=0,
    ),
    Claim(
        "separators hold the content of their segment", SEPARATORS, "share of the variance read there, best layer",
        segments, ("segments",), above=0,
    ),
    Claim(
        "the model relies on separators", SEPARATORS, "KL when they are hidden, less that of as many others (nat)",
        lambda r: difference(r, "windows", "kl", "policy", "separators", "random", intervention="all blocks"),
        ("windows",), above=0,
    ),
    Claim(
        "separators, start and a window are enough", SEPARATORS, "rise of the loss (nat)",
        lambda r: by(r, "policies", "loss_change", "policy", "separators"), ("policies",), below=0.01,
    ),
    Claim(
        "a sentinel at the end of a chunk summarises it", SEPARATORS, "share of the gap left (1: it holds nothing)",
        lambda r: by(r, "sentinels", "gap_left", "filler", "dots"), ("sentinels",), below=1,
    ),
    Claim(
        "massive channels matter in the rows where they are massive", "Sun et al. 2024",
        "change of the loss when they are set to zero (nat)",
        lambda r: by(r, "massive", "loss_change", "intervention"), ("massive",), above=0,
    ),
    Claim(
        "added blank tokens become registers", SINKS, "change of the loss by the most of them (nat)",
        lambda r: {f"{n} of them": mean(r["registers"]["loss_change"], n_fillers=n)
                   for n in r["registers"]["n_fillers"].values[::-1]}, ("registers",), below=0,
    ),
]  # fmt: skip
