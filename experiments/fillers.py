"""Fillers, separators and sinks in a frozen model: does it use them, and what do they do?

    python -m experiments.fillers --out runs/fillers.zarr [--small] [--json results.json]

``--grid 0,2,10,50 --texts 12 --max-tokens 300`` takes five minutes of one core.

The bundled model and its cloze questions by default, with random words of equal token count, the placement before the
question and an untrained copy of the model as controls.  Expected, and found in published work on models of this size:
no gain from fillers.  A null result is reported as one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    segment_coverage,
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
from tokinterp.models import HookedLM
from tokinterp.results.dataset import provenance
from tokinterp.text import build_items

from .record import about, as_json, rounded, write

RESULTS = Path("runs/fillers.zarr")
CONTROL = tuple(i for i in ALL if i not in ("windows", "patches"))


def run(
    model: HookedLM | None = None,
    questions: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    *,
    n_fillers: int = 10,
    grid: Sequence[int] = (0, 4, 10, 50),
    kinds: Sequence[str] = ("dots", "counting", "words"),
    every: int = 1,
    n_texts: int = 12,
    max_tokens: int = 400,
    window: int = 32,
    chunk: int = 32,
    small: bool = False,
    out: str | Path | None = None,
) -> xr.DataTree:
    """Run every part on the model, and the main ones on an untrained copy.

    Parameters
    ----------
    model : Model, optional
        The bundled one by default.
    questions, texts : sequence, optional
        Items of the insertion and texts for separators and sinks; the bundled ones by default.
    n_fillers : int
        Fillers where there is one number of them.
    grid : sequence of int
        Numbers of fillers where there are several.
    kinds : sequence of str
        Kinds of fillers of the insertion.
    every, n_texts : int
        Only every so-manieth of the questions, and only so many texts.
    max_tokens, window, chunk : int
        Longest text, window of the policies, chunk of the sentinels.
    small : bool
        A few items and texts, to see that everything runs.
    out : path, optional
        Where the result is written.

    Returns
    -------
    DataTree
        Groups insertion, tests, interventions, control (interventions on random words), verdict, shift, states, probes,
        lens, clusters, routing, attention (of items), text_attention, sinks, roles, massive, policies, coverage,
        segments, windows, registers, sentinels, and the same names with ``untrained_`` for insertion, tests,
        text_attention, sinks, coverage, segments, routing.
    """
    model = ti.load_model() if model is None else model
    questions = list(ti.bundled_questions("cloze") if questions is None else questions)[::every]
    texts = [t.text for t in ti.bundled_texts()] if texts is None else list(texts)
    if small:
        questions, texts, grid, kinds = questions[:12], texts[:3], (0, 4), ("dots", "words")
        n_fillers, max_tokens, window, chunk = 4, min(max_tokens, 100), 8, 12
    texts = texts[:n_texts]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=min(max_tokens, model.info.max_tokens), progress=False)
    blank = ti.untrained(model, seed=0)
    one: dict[str, Any] = {"n_fillers": n_fillers}
    nodes = {}
    for name, m in (("", model), ("untrained_", blank)):
        nodes[f"{name}insertion"] = insert(m, questions, n_fillers=grid, kinds=kinds if m is model else kinds[:1])
        nodes[f"{name}tests"] = insertion_tests(nodes[f"{name}insertion"])
        asked = {
            "text_attention": ti.attention.AttentionMass(),
            "sinks": ti.attention.AttentionSinks(tokens=min(64, max(prompts.lengths))),
        }
        found = ti.measure(m, prompts, asked, progress=False)
        nodes |= {f"{name}{k}": found.children[k].to_dataset(inherit=False) for k in asked}
        nodes[f"{name}coverage"] = segment_coverage(m, prompts)
        if len(prompts) >= 5:
            nodes[f"{name}segments"] = segment_probe(m, prompts)
        nodes[f"{name}routing"] = routing(m, questions, **one)
    nodes["interventions"] = intervene(model, questions, **one)
    nodes["control"] = intervene(model, questions, kind="words", interventions=CONTROL, **one)
    nodes["verdict"] = verdict(model, questions, **one)
    nodes["shift"] = shift(model, questions, n_fillers=grid)
    nodes["states"] = filler_states(model, questions, **one)
    if len(questions) >= 10:
        nodes["probes"] = filler_probes(model, questions, **one)
        some = [1, model.info.n_layers // 2, model.info.n_layers] if small else None
        nodes["clusters"] = cell_clusters(model, questions[:100], n_fillers=min(4, n_fillers), layers=some)
    nodes["lens"] = read_fillers(model, questions, **one)
    items = build_items(model, questions, **one)
    keys = {"fillers": items.mark("filler"), "question": items.mark("question"), "sink": "first", "other": "other"}
    looking = {"answer": "last", "fillers": items.mark("filler")}
    found = ti.measure(model, items.prompts, {"attention": ti.attention.AttentionMass(keys, looking)}, progress=False)
    nodes["attention"] = found.children["attention"].to_dataset(inherit=False)
    nodes["roles"] = massive_roles(model, prompts)
    nodes["massive"] = massive_effects(model, prompts)
    nodes["policies"] = policy_loss(model, prompts, window=window)
    nodes["windows"] = separator_windows(model, prompts)
    short = [np.asarray(prompts.ids(i))[: model.info.max_tokens - 4] for i in range(len(prompts))]
    nodes["registers"] = registers(model, ti.Prompts.from_ids(short, model))
    nodes["sentinels"] = sentinels(model, prompts, chunk=chunk)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = provenance(
        model.info, prompts.hash, {"questions": len(questions), **one}, nodes["insertion"].attrs["fingerprint"]
    )
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


def headline(tree: xr.DataTree) -> dict[str, Any]:
    """Return the few numbers that answer the question, as JSON types; intervals are 95 % over items or texts."""
    sets = {n: node.to_dataset(inherit=False) for n, node in tree.children.items()}
    k = int(sets["insertion"]["n_fillers"].values[-1])
    out: dict[str, Any] = about("fillers", tree.attrs)
    out |= {"model": tree.attrs["model"], "n_items": int(sets["insertion"].sizes["prompt"])}
    shown = {0, 4, 10, k} & {*sets["insertion"]["n_fillers"].values.tolist()}
    for name in ("", "untrained_"):
        t = sets[f"{name}tests"]
        out[f"{name}insertion"] = [
            {
                "filler": str(f), "placement": str(p), "n_fillers": int(n),
                **{v: _number(t[v].sel(filler=f, placement=p, n_fillers=n))
                   for v in ("accuracy", "accuracy_change", "mcnemar_p", "log_prob_change", "sign_p")},
                "interval": _pair(t["log_prob_change_interval"].sel(filler=f, placement=p, n_fillers=n)),
            }
            for f in t["filler"].values for p in t["placement"].values for n in sorted(shown)
        ]  # fmt: skip
    t = sets["tests"]
    out["placement_specificity"] = {
        str(f): _pair(t["placement_specificity_interval"].sel(filler=f, n_fillers=k)) for f in t["filler"].values
    }
    out["announced"] = {"change": _number(t["announced_change"]), "interval": _pair(t["announced_change_interval"])}
    for name in ("interventions", "control"):
        s = ti.summary(sets[name])
        out[name] = {
            str(i): {v: [_number(s[v].sel(intervention=i)), *_pair(s[f"{v}_interval"].sel(intervention=i))]
                     for v in ("kl", "log_prob_change", "flip")}
            for i in s["intervention"].values
        }  # fmt: skip
    v = sets["verdict"]
    out["verdict"] = v.attrs["verdict"]
    out["evidence"] = {
        str(c): [_number(v["value"].sel(criterion=c)), *_pair(v["value_interval"].sel(criterion=c)),
                 bool(v["passed"].sel(criterion=c))]
        for c in v["criterion"].values
    }  # fmt: skip
    for name in ("text_attention", "untrained_text_attention"):
        d = sets[name][["mass", "net_enrichment", "valued_mass"]].mean(("block", "head"))
        s = ti.summary(d.isel(query_set=0))
        out[name] = {
            str(key): {n: [_number(s[n].sel(key_set=key)), *_pair(s[f"{n}_interval"].sel(key_set=key))]
                       for n in ("mass", "net_enrichment", "valued_mass")}
            for key in d["key_set"].values
        }  # fmt: skip
    for name in ("sinks", "untrained_sinks"):
        rate = sets[name]["sink_rate"].mean(("block", "head"))
        rate = rate[sets[name]["n_queries"].values >= 16]
        out[name] = {"first": _number(rate[0]), "largest_later": _number(rate[1:].max())}
    for name, dim in (("policies", "policy"), ("sentinels", "filler"), ("massive", "intervention")):
        s = ti.summary(sets[name])
        for n in ("loss_change", "retention", "gap_left", "sentinel_change", "enrichment"):
            found = s if n in s else sets[name]  # a ratio of sums over prompts has its interval with it
            if f"{n}_interval" in found:
                out.setdefault(name, {})[n] = {
                    str(x): [_number(found[n].sel({dim: x})), *_pair(found[f"{n}_interval"].sel({dim: x}))]
                    for x in found[dim].values
                }
    out |= beyond_the_answer(sets)
    out["massive"]["note"] = sets["massive"].attrs["note"]
    out["seen"] = seen(out)
    return out


def beyond_the_answer(sets: dict[str, xr.Dataset]) -> dict[str, Any]:
    """Return the numbers of separators, registers, routing and clusters, each with its interval."""

    def means(ds: xr.Dataset, *names: str) -> dict[str, list[float | None]]:
        kept = xr.Dataset({n: ds[n].mean([d for d in ds[n].dims if d != "prompt"]) for n in names})
        s = ti.summary(kept)
        return {n: [_number(s[n]), *_pair(s[f"{n}_interval"])] for n in names}

    out: dict[str, Any] = {}
    for name in ("", "untrained_"):
        out[f"{name}coverage"] = means(sets[f"{name}coverage"], "far_mass", "separator_share", "chance", "enrichment")
        names = ("direct", "answer_to_fillers", "fillers_to_question", "routed", "direct_change", "chance_change")
        out[f"{name}routing"] = means(sets[f"{name}routing"], *names)
        if f"{name}segments" in sets:
            d = sets[f"{name}segments"].isel(target=-1)
            best = d["explained"].argmax("layer")
            out[f"{name}segments"] = {
                str(s): {
                    "layer": int(d["layer"][best.sel(source=s)]),
                    "explained": [_number(d["explained"].sel(source=s).isel(layer=best.sel(source=s))),
                                  *_pair(d["explained_band"].sel(source=s).isel(layer=best.sel(source=s)))],
                } for s in d["source"].values
            }  # fmt: skip
    s = ti.summary(sets["windows"])
    out["windows"] = {
        str(i): {str(p): [_number(s["kl"].sel(intervention=i, policy=p)),
                          *_pair(s["kl_interval"].sel(intervention=i, policy=p))] for p in s["policy"].values}
        for i in s["intervention"].values
    }  # fmt: skip
    d = sets["registers"]
    s = ti.summary(xr.Dataset({"mass": d["mass"].mean("block"), "loss_change": d["loss_change"]}))
    out["registers"] = {
        str(r): {
            **{str(k): [_number(s["mass"].sel(n_fillers=r, key_set=k)),
                        *_pair(s["mass_interval"].sel(n_fillers=r, key_set=k))] for k in ("registers", "first")},
            "loss_change": [_number(s["loss_change"].sel(n_fillers=r)),
                            *_pair(s["loss_change_interval"].sel(n_fillers=r))],
        } for r in d["n_fillers"].values
    }  # fmt: skip
    if "clusters" in sets:
        c = sets["clusters"]
        out["clusters"] = {"contrast": [_number(c["contrast"]), *_pair(c["contrast_interval"])],
                           "shuffled": _number(c["contrast_shuffled"])}  # fmt: skip
    return out


def seen(out: dict[str, Any]) -> list[str]:
    """Return sentences that say what the numbers show; an interval that holds 0 (or 1) is called a null."""

    def change(low: float, high: float, middle: float = 0.0) -> str:
        return "raise" if low > middle else "lower" if high < middle else "do not measurably change"

    said = []
    for r in out["insertion"]:
        if r["n_fillers"] == 10 or (r["n_fillers"] and len({x["n_fillers"] for x in out["insertion"]}) == 2):
            low, high = r["interval"]
            if low is None:  # of fewer than three items
                continue
            said.append(
                f"{r['n_fillers']} {r['filler']} {'after' if r['placement'] == 'post' else 'before'} the question "
                f"{change(low, high)} log p(answer): {r['log_prob_change']:+.2f} [{low:+.2f}, {high:+.2f}] nat"
            )
    for name, text in (
        (
            "places closed",
            "closing only the places behind the fillers, so that the cue keeps its distance to the question,",
        ),
        ("knock-out", "hiding the fillers while all places stay"),
        ("mean ablation", "putting the mean over items in the place of the fillers' states"),
        ("transplant", "the fillers' keys and values of another item"),
        ("transplant of the question", "the question's keys and values of another item (positive control)"),
    ):
        mean, low, high = out["interventions"][name]["log_prob_change"]
        if mean is not None:
            interval = "no interval of so few items" if low is None else f"{low:+.2f}, {high:+.2f}"
            said.append(f"{text}: log p(answer) {mean:+.2f} [{interval}] nat")
    said.append(f"verdict on the fillers: {out['verdict']}")
    for name in ("text_attention", "untrained_text_attention"):
        mean, low, high = out[name]["separators"]["net_enrichment"]
        what = "untrained" if name.startswith("un") else "trained"
        interval = "no interval of so few texts" if low is None else f"{low:.2f}, {high:.2f}"
        said.append(f"{what}: separators get {mean:.2f} [{interval}] times their share, net of sink and self")
    said.append(
        f"position 0 is a sink in {out['sinks']['first']:.0%} of heads and texts, "
        f"untrained {out['untrained_sinks']['first']:.0%}"
    )
    kept, share = out["policies"]["loss_change"], out["policies"]["retention"]
    said += [
        f"{name} kept: loss {v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}] nat at {share[name][0]:.0%} of keys"
        for name, v in kept.items()
    ]
    for name in ("coverage", "untrained_coverage"):
        mean, low, high = out[name]["enrichment"]
        what = "untrained" if name.startswith("un") else "trained"
        said.append(
            f"{what}: attention beyond the own segment is on separators {mean:.2f} [{low:.2f}, {high:.2f}] times as "
            "often as their number would give"
        )
    for name in ("segments", "untrained_segments"):
        what = "untrained" if name.startswith("un") else "trained"
        said += [
            f"{what}: content of a segment read at the {source}, best layer {v['layer']}: "
            "{:.3f} [{:.3f}, {:.3f}] of the variance (for all layers at once)".format(*v["explained"])
            for source, v in out.get(name, {}).items()
        ]
    both = out["windows"]["all blocks"]
    said.append("separators hidden in all blocks: KL {:.3f} [{:.3f}, {:.3f}] nat, as many random tokens "
                "{:.3f} [{:.3f}, {:.3f}]".format(*both["separators"], *both["random"]))  # fmt: skip
    said += [
        f"{r} blank tokens before the text: attention on its first token {v['first'][0]:.3f}, "
        f"on them {v['registers'][0]:.3f}, loss "
        "{:+.4f} [{:+.4f}, {:+.4f}] nat".format(*v["loss_change"])
        for r, v in out["registers"].items() if r != "0"
    ]  # fmt: skip
    for name in ("routing", "untrained_routing"):
        r = out[name]
        what = "untrained" if name.startswith("un") else "trained"
        said.append(
            f"{what}: attention of the answer on the question {r['direct'][0]:.3f}, by way of the fillers "
            f"{r['routed'][0]:.3f}; fillers change the direct one by "
            "{:+.3f} [{:+.3f}, {:+.3f}], their number alone by {:+.3f}".format(
                *r["direct_change"], r["chance_change"][0]
            )
        )
    if "clusters" in out:
        numbers = (*out["clusters"]["contrast"], out["clusters"]["shuffled"])
        said.append(
            "cells (layer, filler) that decode alike: within less between clusters {:.3f} [{:.3f}, {:.3f}], labels "
            "shuffled {:.3f}".format(*numbers)
        )
    for name, (mean, low, high) in out["sentinels"]["gap_left"].items():
        said.append(f"{name} as sentinels leave {mean:.2f} [{low:.2f}, {high:.2f}] of the gap (1: they hold nothing)")
    return said


def _number(x: Any) -> float | None:
    value = float(x)
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _pair(x: xr.DataArray) -> list[float | None]:
    return [_number(v) for v in x.values]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.fillers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=None, help="hub name or folder; the bundled model when left out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, default=None, help="file for the main numbers")
    parser.add_argument("--grid", default="0,4,10,50", help="numbers of fillers")
    parser.add_argument("--every", type=int, default=1, help="use only every so-manieth question")
    parser.add_argument("--texts", type=int, default=12, help="texts for separators and sinks")
    parser.add_argument("--max-tokens", type=int, default=400, help="longest text")
    parser.add_argument("--small", action="store_true", help="a few items and texts, to see that everything runs")
    args = parser.parse_args()
    size = {"every": args.every, "n_texts": args.texts, "max_tokens": args.max_tokens}
    grid = [int(k) for k in args.grid.split(",")]
    tree = run(ti.load_model(args.model), grid=grid, small=args.small, out=args.out, **size)
    found = headline(tree)
    if args.json is not None:
        write(found, args.json)
    print(as_json(rounded(found)))


if __name__ == "__main__":
    main()
