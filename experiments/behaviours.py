"""What a model does with repeated tokens, with texts in cipher, and with the letters of its tokens.

==========================================================  ===========================================================
published                                                   here
==========================================================  ===========================================================
repetition binds tokens (Yan et al. 2024, 2310.00297):      ``repetition``: tokens kept in each copy; control: the same
TP, TPL, IP over repetitions                                tokens at places drawn anew, and none kept
the same by distance of two tokens                          ``distance``; control: the two apart
texts in cipher (Huang et al. 2023, 2305.16349)             ``ciphers``, ``half_life``; controls: symbols without a
                                                            key, readings at other places, the untrained network
CUTE (Edman et al. 2024, 2409.15452), 14 tasks              ``cute``; controls: the most common answer, answers to
                                                            other items, the input given back
letters in embeddings (our probe)                           ``spelling``; controls: labels exchanged among words of one
                                                            length, random vectors, length and frequency alone
==========================================================  ===========================================================

``paper`` is OPT-125m, of which the authors of the first give one example of TP over 101 repetitions; which study it is
of they do not say.  ``instruct`` is Llama 3 8B, with the published scores of CUTE, which are of the model in 4 bits
and of the published items (``--set cute=FOLDER``); without these, items are made of the texts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.behaviour.cute_tasks import TASKS

from .runner.claims import Claim, Number, Results, curve, given, less, mean, plain
from .runner.preset import Preset, place
from .runner.record import stage

PARTS = ("repetition", "ciphers", "cute", "spelling")
RELATED = {
    "big": "large", "small": "tiny", "happy": "glad", "house": "home", "road": "street", "begin": "start",
    "end": "finish", "child": "kid", "stone": "rock", "sea": "ocean", "boat": "ship", "cold": "chilly",
    "fast": "quick", "speak": "talk", "ill": "sick", "rich": "wealthy", "hard": "difficult", "shut": "close",
    "wood": "forest", "job": "work",
}  # fmt: skip
OPT, LLAMA = "facebook/opt-125m", "meta-llama/Meta-Llama-3-8B-Instruct"
TP = {1: 0.0037, 2: 0.1362, 3: 0.5625, 4: 0.7539, 11: 0.9595, 101: 0.9897}
"""Published probability of targets of OPT-125m by repetition: one example."""
CUTE = {"spell": 0.994, "spell_inverse": 0.982, "contains_char": 0.657, "contains_word": 0.795, "ins_char": 0.072,
        "ins_word": 0.655}  # fmt: skip
"""Published accuracy of Llama 3 8B."""


@dataclass
class Settings(Preset):
    """Sizes."""

    parts: tuple[str, ...] = PARTS
    n_sequences: int = 40  # that are repeated
    copies: int = 21
    distances: tuple[int, ...] = (0, 1, 3)
    n_tokens: int = 128  # of each text in cipher, BOS counted; shorter ones are left out
    n_texts: int | None = 20
    cute: str = ""  # folder with the published items
    n_items: int = 10  # of each task, where there is none
    tasks: tuple[str, ...] = TASKS  # of CUTE
    corrected: bool = True  # CUTE without the slips of the published prompts
    n_decoded: int = 16  # most tokens of an answer
    n_words: int | None = 2000  # whose letters are looked for
    letters: str = "abcdefghijklmnopqrstuvwxyz"


PRESETS = {
    "tiny": Settings(
        n_sequences=6, copies=3, distances=(0, 2), n_tokens=40, n_texts=6, tasks=("spell", "ins_char", "ins_word"),
        n_items=1, n_decoded=2, n_words=100, letters="aes",
    ),
    "bundled": Settings(),
    "paper": Settings(
        model=OPT, texts=("NeelNanda/pile-10k",), split="train", read_limit=2000, n_sequences=1000, copies=101,
        distances=(0, 1, 2, 3), n_tokens=512, n_texts=200, parts=("repetition", "ciphers", "spelling"),
    ),
    "instruct": Settings(
        model=LLAMA, texts=("NeelNanda/pile-10k",), split="train", read_limit=2000, parts=("cute", "spelling"),
        n_items=1000, corrected=False, n_decoded=100, n_words=5000,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return the results named above, as far as ``parts`` asks for them."""
    if unknown := [n for n in p.parts if n not in PARTS]:
        raise ValueError(f"parts={unknown[0]!r}: there are {', '.join(PARTS)}")
    each = {"repetition": repetitions, "ciphers": ciphers, "cute": cute, "spelling": spelling}
    out: dict[str, xr.Dataset] = {}
    for part in p.parts:
        out |= each[part](p, kept)
    return out


def repetitions(p: Settings, kept: Path | None) -> dict[str, xr.Dataset]:
    """Return ``repetition`` and ``distance``, by condition."""
    asked = {"r": ti.behaviour.Repetition(p.copies, "target")}
    common: dict[str, Any] = {"copies": p.copies, "seed": p.seed}
    sets = {
        "repetition": ti.behaviour.repetition_conditions(p.lm, p.n_sequences, **common),
        "distance": ti.behaviour.distance_conditions(p.lm, p.n_sequences, distances=p.distances, **common),
    }
    return {
        name: ti.measure_conditions(
            p.lm, conditions, asked, store=stage(kept, f"{name}.zarr"), progress=p.progress
        )["r"].to_dataset()
        for name, conditions in sets.items()
    }  # fmt: skip


def ciphers(p: Settings, kept: Path | None) -> dict[str, xr.Dataset]:
    """Return ``ciphers`` by condition, and the ``half_life`` of what the cipher takes."""
    n = min(p.n_tokens, p.lm.info.max_tokens)
    plain_text = ti.Prompts.from_texts(p.read(), p.lm, max_tokens=n, min_tokens=n, progress=False)[: p.n_texts]
    conditions = ti.behaviour.cipher_conditions(plain_text, seed=p.seed)
    blank = ti.untrained(p.lm, seed=p.seed)
    conditions["cipher, untrained"] = ti.Condition(conditions["cipher"].prompts, model=blank)
    asked = {"d": ti.behaviour.Decipherment(plain_text)}
    store = stage(kept, "ciphers.zarr")
    found = ti.measure_conditions(p.lm, conditions, asked, store=store, progress=p.progress)["d"].to_dataset()
    return {"ciphers": found, "half_life": ti.behaviour.half_life(found, seed=p.seed)}


def cute(p: Settings, kept: Path | None) -> dict[str, xr.Dataset]:
    """Return ``cute`` by task: the published items, or as many made of the words and sentences of the texts."""
    if p.cute:
        items = ti.behaviour.read_cute(place(p.cute), p.tasks, p.n_items)
    else:
        words = Counter(w for t in p.read() for w in re.findall(r"\b[a-z]{3,10}\b", t))
        frequent = [w for w, _ in sorted(words.items(), key=lambda w: (-w[1], w[0]))]
        sentences = [s for t in p.read() for s in re.split(r"(?<=[.!?])\s+", t) if 4 <= len(s.split()) <= 9]
        items = ti.behaviour.cute_items(p.tasks, [*frequent, *RELATED], sentences, RELATED, p.n_items, seed=p.seed)
    store = stage(kept, "cute.zarr")
    return {"cute": ti.behaviour.score_cute(
        p.lm, items, corrected=p.corrected, n_tokens=p.n_decoded, store=store, progress=p.progress
    )}  # fmt: skip


def spelling(p: Settings, kept: Path | None) -> dict[str, xr.Dataset]:
    """Return ``spelling`` by layer and letter."""
    words = ti.lexicon.word_tokens(p.lm, p.n_words, seed=p.seed)
    store = stage(kept, "spelling.zarr")
    return {"spelling": ti.lexicon.spelling_probe(
        p.lm, words, letters=p.letters, seed=p.seed, store=store, progress=p.progress
    )}  # fmt: skip


# -- claims ---------------------------------------------------------------------------------------------------
YAN, HUANG, EDMAN = "Yan et al. 2024", "Huang et al. 2023", "Edman et al. 2024"


def bound(r: Results, name: str) -> dict[str, Number]:
    """Return a number of the last repetition (or of all) of two tokens kept, less the same tokens moved, and of all."""
    v = r["repetition"][name]
    v = v.isel(repetition=-1) if "repetition" in v.dims else v
    pairs = {k: mean(v.sel(condition=k) - v.sel(condition=f"{k}, moved")) for k in ("2 kept", "4 kept", "all kept")}
    each = {f"{c}": mean(v, condition=c) for c in map(str, v["condition"].values)}
    return {f"{k}, less moved": x for k, x in pairs.items()} | each


def targets(r: Results) -> dict[str, Any]:
    """Return the probability of targets at the last but one published repetition, all kept, and it over repetitions."""
    v = r["repetition"]["prob"]
    out: dict[str, Any] = {}
    for k in (11, *(k for k in TP if k != 11)):
        found = mean(v, condition="all kept", repetition=k)
        out |= {f"repetition {k}": found, f"repetition {k}, published": plain(TP[k]),
                f"repetition {k}, difference": plain(found.value - TP[k])}  # fmt: skip
    return out


def near(r: Results) -> dict[str, Number]:
    """Return the slope of the closest distance less that of the farthest, and all of them."""
    v = r["distance"]["slope"]
    close, far = (str(v["condition"].values[k]) for k in (0, -2))
    each = {str(c): mean(v, condition=c) for c in v["condition"].values}
    return {f"{close} less {far}": mean(v.sel(condition=close) - v.sel(condition=far)),
            f"{close} less apart": mean(v.sel(condition=close) - v.sel(condition="apart")), **each}  # fmt: skip


def recovered(r: Results) -> dict[str, Any]:
    """Return by how much more the loss falls along a text in cipher than along one without a key."""
    v = r["ciphers"]["loss"]
    known = v["place"].values[np.isfinite(v.mean(("condition", "prompt")).values)]
    fall = v.sel(place=known[1]) - v.sel(place=known[-1])
    each = {str(c): mean(fall, condition=c) for c in v["condition"].values}
    half = given(r["half_life"], "half_life")
    losses = {f"loss, {c}, by place": v.sel(condition=c, place=known).mean("prompt").values.tolist()
              for c in map(str, v["condition"].values)}  # fmt: skip
    return {"cipher less no key": mean(fall.sel(condition="cipher") - fall.sel(condition="no key")),
            **each, "half-life of the excess, token": half, **losses}  # fmt: skip


def deciphered(r: Results) -> dict[str, Any]:
    """Return how often the lens says the plain token beyond other places, cipher less no key, mean over layers."""
    ds = r["ciphers"].sel(target="plain").isel(place=slice(-2, None), layer=slice(1, None)).mean("place")
    gain = ds["share"] - ds["share_null"]
    own = {str(c): mean(gain, condition=c) for c in gain["condition"].values}
    return {"cipher less no key": mean(gain.sel(condition="cipher") - gain.sel(condition="no key")), **own,
            "cipher, by layer": curve(gain, condition="cipher")}  # fmt: skip


def beyond(ds: xr.Dataset, task: str) -> Number:
    """Return the accuracy of a task less the largest of what needs no letters."""
    found = given(ds, "accuracy", task=task)
    names = ("accuracy_guess", "accuracy_null", "accuracy_copy")
    other = float(np.nanmax([float(ds[n].sel(task=task)) for n in names]))
    return Number(found.value - other, found.low - other, found.high - other, found.why)


def spelt(r: Results) -> dict[str, Number]:
    """Return what each task is right beyond its controls, spelling first."""
    return {str(t): beyond(r["cute"], str(t)) for t in r["cute"]["task"].values}


def by_unit(r: Results) -> dict[str, Number]:
    """Return the accuracy of changing words in sentences less that of changing letters in words."""
    ds = r["cute"]
    found = {}
    for unit in ("word", "char"):
        here = np.isin(ds["item_task"].values, [f"{k}_{unit}" for k in ("ins", "del", "sub", "swap")])
        found[unit] = mean(ds["correct"].isel(prompt=np.flatnonzero(here)), share=True)
    return {"words less letters": less(found["word"], found["char"]), **found}


def scored(r: Results, task: str) -> dict[str, Number]:
    """Return the accuracy of a task, the published one, and their difference."""
    found = given(r["cute"], "accuracy", task=task)
    return {"found": found, "published": plain(CUTE[task]), "difference": plain(found.value - CUTE[task])}


def letters(r: Results, layer: int = 0) -> dict[str, Any]:
    """Return the area of probes at a layer less the best of the baselines, and all of them."""
    ds = r["spelling"].isel(layer=layer)
    name = "mean_matched_auc"
    own = given(ds, name)
    others = {k: given(ds, f"{name}_{k}") for k in ("shuffled", "random", "length")}
    best = max(others, key=lambda k: others[k].value)
    return {f"states less {best}": less(own, others[best]), "states": own, **others,
            "states, by layer": r["spelling"][name].values.tolist(),
            "first letter, by layer": r["spelling"]["first_accuracy"].values.tolist()}  # fmt: skip


def layers_apart(r: Results) -> dict[str, Number]:
    """Return the area at the first layer less that at the last."""
    ends = [given(r["spelling"].isel(layer=k), "mean_matched_auc") for k in (0, -1)]
    return {"first less last layer": less(*ends), "first": ends[0], "last": ends[1]}


CLAIMS = [
    Claim("tokens that are repeated together become more probable", YAN, "log-odds of the last target gained when "
          "repetitions double (nat), two kept less the same two moved", partial(bound, name="slope"), ("repetition",),
          above=0),
    Claim("the targets are more probable than in the first copy", YAN, "share of sequences at the last repetition "
          "(IP), two kept less the same two moved", partial(bound, name="increased"), ("repetition",), above=0),
    Claim("two tokens bind the more the nearer they stand", YAN, "log-odds gained when repetitions double (nat), "
          "nearest less farthest", near, ("distance",), above=0),
    Claim("probability of repeated tokens of OPT-125m", YAN, "TP at repetition 11, all kept", targets,
          ("repetition",), near=(TP[11], 0.05), model=OPT),
    Claim("context gives back some of what a cipher takes", HUANG, "fall of the loss along the text (nat), cipher "
          "less symbols without a key", recovered, ("ciphers", "half_life"), above=0),
    Claim("plain tokens are read from states of the cipher", HUANG, "share of places late in the text beyond that "
          "at other places, cipher less no key, mean over layers", deciphered, ("ciphers",), above=0),
    Claim("words are spelt out", EDMAN, "accuracy less the best of most common answer, answers to other items and "
          "input given back", spelt, ("cute",), above=0),
    Claim("words are handled better than letters", EDMAN, "accuracy of inserting, deleting, substituting and swapping, "
          "words less letters", by_unit, ("cute",), above=0),
    *[
        Claim(f"{task} of Llama 3 8B", EDMAN, "accuracy", partial(scored, task=task), ("cute",), model=LLAMA,
              near=(x, 0.03))
        for task, x in CUTE.items()
    ],
    Claim("embeddings know the letters of words", "our probe", "area under the curve, words of one length, less the "
          "best of its baselines", letters, ("spelling",), above=0),
    Claim("the letters are gone at the last layer", "our probe", "area under the curve, first less last layer",
          layers_apart, ("spelling",), above=0),
]  # fmt: skip
