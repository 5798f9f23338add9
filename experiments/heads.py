"""Heads that copy tokens and heads that copy words, what is lost without them, and the first block by its weights.

=========================================================  ============================================================
published                                                  here
=========================================================  ============================================================
token and concept induction heads (Feucht et al. 2025,     ``induction``: attention to the next token, to the end of
2504.03022)                                                the word; controls: shuffled copies, the untrained network
their copying scores                                       ``copying``: change of probability by what one head writes;
                                                           control: what it writes of another word
lists of words without these heads                         ``ablation``: by ranking and task; control: as many other
                                                           heads of the same blocks
detokenisation by weights (Kamoda et al. 2025,             ``detokenisation``: AUROC of first tokens; controls: those of
2501.15754)                                                another second token, the untrained network
=========================================================  ============================================================

Texts are halved: a head is chosen on every second one and judged on the others.  ``paper`` is Llama 2 7B, whose scores
of all heads the authors publish as files: with ``--set published=FILE,FILE`` they are compared, head by head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.contrasts import along
from tokinterp.results.dataset import variable
from tokinterp.results.stamp import derived

from .runner.claims import Claim, Number, Results, given, less, plain
from .runner.preset import Preset, place
from .runner.record import kept as keep
from .runner.record import stage

FILES = {"next_tok_attn": ("induction", "token_score"), "end_tok_attn": ("induction", "concept_score")}
"""Names of the authors' scores: which result and variable they are here."""
SPANISH = {
    "water": "agua", "house": "casa", "king": "rey", "night": "noche", "friend": "amigo", "bread": "pan",
    "book": "libro", "white": "blanco", "green": "verde", "tree": "árbol", "sun": "sol", "moon": "luna",
    "dog": "perro", "fish": "pez", "hand": "mano", "heart": "corazón", "city": "ciudad", "sea": "mar",
    "day": "día", "fire": "fuego", "milk": "leche", "horse": "caballo", "winter": "invierno", "sister": "hermana",
}  # fmt: skip
TITLES = {"copying": ("Words", "Words"), "capitals": ("Words", "In capitals"),
          "translation": ("English", "Spanish")}  # fmt: skip
HALVES = ("chosen on", "judged on")


@dataclass
class Settings(Preset):
    """Sizes."""

    n_tokens: int = 128  # of each prompt that the texts are cut into
    n_prompts: int | None = 200
    n: int = 64  # prompts of each kind whose attention is taken
    n_copying: int = 6  # prompts of each kind in which heads are exchanged one by one
    blocks: tuple[int, ...] | None = None  # in which they are exchanged; all by default
    sizes: tuple[int, ...] = (2, 3, 4)  # tokens of a word that is copied
    tasks: tuple[str, ...] = ("copying", "capitals")
    list_length: int = 6  # words in a list
    n_lists: int = 24
    counts: tuple[int, ...] = (1, 2, 4, 8)  # heads taken away
    draws: int = 3  # of other heads
    suffixes: int = 256  # second tokens whose first ones are looked for
    n_weighed: int = 32  # prompts in which terms of the first block are left out
    published: tuple[str, ...] = ()  # files with the authors' scores of all heads


PRESETS = {
    "tiny": Settings(
        model="bundled/narrow",
        n_tokens=48, n_prompts=24, n=8, n_copying=2, sizes=(2,), tasks=("copying",), list_length=2, n_lists=6,
        counts=(2,), draws=1, suffixes=8, blocks=(1, 5),
        n_weighed=2,
    ),
    "bundled": Settings(),
    "paper": Settings(
        model="meta-llama/Llama-2-7b-hf", texts=("NeelNanda/pile-10k",), split="train", read_limit=2000, n_prompts=2000,
        n=2048, n_copying=64, sizes=(2, 3, 4, 5), tasks=("copying", "capitals", "translation"), list_length=10,
        counts=(4, 8, 16, 32, 64),
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return the results named above, ``induction`` and ``detokenisation`` by half of the texts."""
    model, halves = p.lm, (p.read()[0::2], p.read()[1::2])
    cut: dict[str, Any] = {"max_tokens": p.n_tokens, "on_long": "window", "min_tokens": p.n_tokens // 2}
    own: list[dict[str, xr.Dataset]] = []
    blank = ti.untrained(model, seed=p.seed)
    for k, texts in enumerate(halves):
        prompts = ti.Prompts.from_texts(texts, model, progress=False, **cut)[: p.n_prompts]
        words = ti.Spans.words(list(texts))
        common: dict[str, Any] = {"sizes": p.sizes, "seed": p.seed}
        found = {
            "induction": ti.attention.induction_scores(
                model, prompts, words, n=p.n, untrained=True, store=stage(kept, f"induction.{k}.zarr"),
                progress=p.progress, **common,
            ),
            **{
                name: ti.attention.detokenisation_scores(
                    one, prompts, suffixes=p.suffixes, texts=p.n_weighed, seed=p.seed
                )
                for name, one in (("detokenisation", model), ("blank", blank))
            },
        }  # fmt: skip
        if k == 0:
            found["copying"] = ti.attention.copying_scores(
                model,
                prompts,
                words,
                n=p.n_copying,
                blocks=p.blocks,
                store=stage(kept, "copying.zarr"),
                progress=p.progress,
                **common,
            )
        own.append(found)
    first, second = own
    out = {"induction": side_by_side(first["induction"], second["induction"]), "copying": first["copying"]}
    networks = {n: side_by_side(*(_flat(f[k]) for f in own)) for n, k in
                (("none", "detokenisation"), ("untrained", "blank"))}  # fmt: skip
    out["detokenisation"] = beside(networks, "null", "network")
    facts = {"model": model.info.identity, "settings": p.settings(), "texts": p.hashes()}
    rank = {name: ranking(out["copying"][f"{name}_copying"]) for name in ("token", "concept")}
    out["ablation"] = keep(stage(kept, "ablation.zarr"), facts | {"heads": rank}, partial(without, model, p, rank))
    return out | published(out, p)


def side_by_side(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """Return the results of both halves of the texts."""
    return beside(dict(zip(HALVES, (one, other), strict=True)), "half", "half of the texts")


def beside(sets: dict[str, xr.Dataset], dim: str, long_name: str) -> xr.Dataset:
    """Return results side by side along a dimension of their names, which is none of the usual ones."""
    out = along(sets, dim, long_name)
    own = [d for d in next(iter(sets.values())).attrs["dimensions"].split(", ") if d in out.dims]
    return out.assign_attrs(dimensions=", ".join([*own, dim]))


def _flat(ds: xr.Dataset) -> xr.Dataset:
    """Return what is known of heads, without what is of single pairs, which are others in each half."""
    return ds.drop_dims("bigram")


def ranking(v: xr.DataArray) -> list[list[int]]:
    """Return block and head, the largest value first."""
    order = np.argsort(-v.transpose("block", "head").values.ravel(), kind="stable")
    blocks, heads = np.unravel_index(order, (v.sizes["block"], v.sizes["head"]))
    return [[int(v["block"][b]), int(v["head"][h])] for b, h in zip(blocks, heads, strict=True)]


def without(model: ti.Model, p: Settings, rank: dict[str, list[list[int]]]) -> xr.Dataset:
    """Return what lists of words lose without the heads of each ranking."""
    words = list(SPANISH)
    answer = {"copying": str, "capitals": str.upper, "translation": SPANISH.__getitem__}
    tasks = {
        name: ti.attention.word_lists(
            model, [(w, answer[name](w)) for w in words], TITLES[name], length=p.list_length, n=p.n_lists, seed=p.seed
        )
        for name in p.tasks
    }  # fmt: skip
    counts = [k for k in p.counts if k <= len(rank["token"]) // 2]
    found = {
        name: ti.attention.head_ablation(
            model, tasks, heads, counts=counts, draws=p.draws, seed=p.seed, progress=p.progress
        )
        for name, heads in rank.items()
    }  # fmt: skip
    return beside(found, "ranking", "copying score by which heads are taken away")


def published(found: Results, p: Settings) -> dict[str, xr.Dataset]:
    """Return the published scores of all heads beside those found, none without files."""
    scores = {k: v for f in p.published for k, v in ti.attention.read_head_scores(place(f)).items() if k in FILES}
    if not scores:
        return {}
    rows: dict[str, Any] = {"target": [], "value": []}
    for name, target in scores.items():
        result, var = FILES[name]
        rows["target"].append(target)
        rows["value"].append(found[result][var].isel(half=1).values)
    target, value = (np.stack(rows[k]) for k in ("target", "value"))
    dims = ("score", "block", "head")
    ds = xr.Dataset(
        {
            "target": variable(dims, target, "published score", "1"),
            "value": variable(dims, value, "score found", "1"),
            "difference": variable(dims, value - target, "score found less the published one", "1"),
        },
        {"score": variable("score", np.array(list(scores)), "the authors' name of the score", "1")},
        {"dimensions": "score"},
    )
    return {"targets": derived(ds, "targets", [found["induction"]], {"files": list(p.published)})}


# -- claims ---------------------------------------------------------------------------------------------------
FEUCHT, KAMODA = "Feucht et al. 2025", "Kamoda et al. 2025"
KINDS = {"token": ("random tokens", "next"), "concept": ("entities", "end")}


def chosen(score: xr.DataArray, control: xr.DataArray) -> dict[str, Any]:
    """Return the head with the most beyond its control on the one half of the texts."""
    gain = (score - control).sel(half=HALVES[0])
    at = gain.argmax([*gain.dims])
    return {str(d): gain[d].values[int(k)] for d, k in at.items()}


def looks(r: Results, kind: str) -> dict[str, Any]:
    """Return where the best head looks beyond the shuffled copy, trained and untrained, on the other half."""
    what, key = KINDS[kind]
    ds = r["induction"].sel(key_set=key)
    v = ds["attention"]
    head = chosen(v.sel(condition=what), v.sel(condition=f"{what}, shuffled"))
    each = (v.sel(condition=what) - v.sel(condition=f"{what}, shuffled")).sel(half=HALVES[0]).argmax("head")
    other = chosen(v.sel(condition=f"{what}, untrained"), ds["chance"].sel(condition=what))

    def at(condition: str, place: dict[str, Any]) -> Number:
        return given(ds, "attention", half=HALVES[1], condition=condition, **place)

    own, shuffled = at(what, head), at(f"{what}, shuffled", head)
    return {
        "own less shuffled": less(own, shuffled), f"head {head['block']}.{head['head']}": own, "shuffled": shuffled,
        f"untrained, head {other['block']}.{other['head']}": at(f"{what}, untrained", other),
        "chance": plain(ds["chance"].sel(half=HALVES[1], condition=what)),
        "head of each block": v.sel(half=HALVES[1], condition=what).isel(head=each).values.tolist(),
    }  # fmt: skip


def copies(r: Results, kind: str) -> dict[str, Number]:
    """Return what the head that looks most adds to the probability, less the same of another word, and correlations.

    What a head of the last block writes at one token changes nothing at the next, where the second token is said.
    """
    what, key = KINDS[kind]
    last = int(r["induction"]["block"][-1])
    blocks = [b for b in r["copying"]["block"].values.tolist() if kind == "token" or b != last]
    v = r["induction"]["attention"].sel(key_set=key, block=blocks)
    head = chosen(v.sel(condition=what), v.sel(condition=f"{what}, shuffled"))
    ds, name = r["copying"].sel(head), f"{kind}_copying"
    own, null = given(ds, name), float(ds[f"{name}_null"])
    scores = r["induction"][f"{kind}_score"].sel(half=HALVES[1], block=blocks)
    every = xr.corr(ranks(scores), ranks(r["copying"][name].sel(block=blocks)))
    return {
        f"head {head['block']}.{head['head']}, less another word": Number(
            own.value - null, own.low - null, own.high - null, own.why
        ),
        "own": own, "another word": plain(null), "rank correlation of copying and attention": plain(every),
    }  # fmt: skip


def ranks(v: xr.DataArray) -> xr.DataArray:
    """Return the rank of each head."""
    from scipy.stats import rankdata

    return xr.DataArray(rankdata(v.values).reshape(v.shape), v.coords, v.dims)


def lost(r: Results, kind: str, task: str) -> dict[str, Any]:
    """Return how much less probable answers are without most heads of a ranking than without as many others."""
    ds = r["ablation"].isel(n_heads=-1)

    def of(name: str, choice: str, ranking: str) -> Number:
        return given(ds, name, choice=choice, ranking=ranking, task=task)

    out = {f"{k} heads less others": less(of("log_prob", "ranked", k), of("log_prob", "random", k))
           for k in (kind, *({"token", "concept"} - {kind}))}  # fmt: skip
    whole = r["ablation"].isel(n_heads=0)
    out |= {"whole model": given(whole, "log_prob", choice="ranked", ranking=kind, task=task)}
    return out | {"whole model, accuracy": given(whole, "accuracy", choice="ranked", ranking=kind, task=task),
                  **{f"accuracy without {c} heads": of("accuracy", c, kind) for c in ("ranked", "random")}}  # fmt: skip


def gathers(r: Results) -> dict[str, Number]:
    """Return the excess AUROC of the head chosen on the other half, trained less untrained, and what it is of."""
    ds = r["detokenisation"]
    out: dict[str, Number] = {}
    for null in ("none", "untrained"):
        v = ds["excess"].sel(null=null)
        head = int(v["head"].values[int(v.sel(half=HALVES[0]).argmax("head"))])
        said = "trained" if null == "none" else null
        out[f"{said}, head {head}"] = given(ds, "excess", null=null, half=HALVES[1], head=head)
    own, blank = out.values()
    return {"trained less untrained": less(own, blank), **out}


def agreement(r: Results, score: str) -> dict[str, Number]:
    """Return the correlation with the published scores over heads, and how far they are apart."""
    ds = r["targets"].sel(score=score)
    apart = np.abs(ds["difference"]).max()
    return {"correlation": plain(xr.corr(ds["value"], ds["target"])), "largest difference": plain(apart)}


CLAIMS = [
    Claim("a head looks at the token that comes next in what is repeated", FEUCHT, "weighted attention of the head "
          "chosen on other texts, own less shuffled", partial(looks, kind="token"), ("induction",), above=0),
    Claim("a head looks at the end of the word that comes next", FEUCHT, "weighted attention of the head chosen on "
          "other texts, own less shuffled", partial(looks, kind="concept"), ("induction",), above=0),
    Claim("the head that looks at the next token makes the model say it", FEUCHT, "change of the probability of the "
          "token less the mean change by another word (the interval is of the former)", partial(copies, kind="token"),
          ("induction", "copying"), above=0),
    Claim("the head that looks at the end of the word makes the model go on with it", FEUCHT, "change of the "
          "probability of the second token less the mean change by another word (the interval is of the former)",
          partial(copies, kind="concept"), ("induction", "copying"), above=0),
    Claim("words are copied by token heads", FEUCHT, "log-probability (nat) of answers without the most heads, token "
          "heads less others", partial(lost, kind="token", task="copying"), ("ablation",), below=0),
    Claim("words are translated by concept heads", FEUCHT, "log-probability (nat) of answers without the most heads, "
          "concept heads less others", partial(lost, kind="concept", task="translation"), ("ablation",), below=0,
          model="meta-llama/Llama-2-7b-hf"),
    Claim("a head of the first block gathers the tokens of words", KAMODA, "AUROC of first tokens beyond those of "
          "another second token, head chosen on other texts, trained less untrained", gathers, ("detokenisation",),
          above=0),
    *[
        Claim(f"published {name} of Llama 2 7B", FEUCHT, "correlation over heads", partial(agreement, score=name),
              ("targets",), model="meta-llama/Llama-2-7b-hf", near=(1, 0.1))
        for name in FILES
    ],
]  # fmt: skip
