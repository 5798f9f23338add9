"""The inner lexicon: words told from non-words, split and misspelt words found again, attention to the pieces.

Defaults are those of Kaplan et al. 2025 (arXiv 2410.05864).  Everything is done for the model and for an untrained copy
of it, with the same words:

====================  =================================================================================================
published             here
====================  =================================================================================================
words or not          ``probe``: words against non-words, k = 4, last and penultimate token; non-words that the
                      tokenizer would cut as they are, matched in each part of the cross-validation
split, misspelt       ``split``: words of one token cut into 2 to 5, or misspelt: reverse logit lens in 8 variants
several tokens        ``natural``: words of several tokens, repeated from the state of their last token
attention             ``pieces``: attention from the last to the earlier tokens, against one-token words
====================  =================================================================================================

and, beside it, ``canonicity`` (Busigin and Pinter 2026, arXiv 2606.08562).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import tokinterp as ti

from .runner.claims import Claim, Results, best, curve, given, mean
from .runner.preset import Preset
from .runner.record import stage

MODELS = ("trained", "untrained")


@dataclass
class Settings(Preset):
    """Words of each kind and where they stand."""

    n_words: int = 10_000  # of each kind, or as many as there are
    n_probe: int | None = None  # words and non-words of the probe; as many as words without one
    sizes: tuple[int, ...] = (2, 3, 4, 5)  # pieces of a split word, and tokens of a word of several
    min_letters: int = 4
    context: int = 64  # most tokens before a word
    n_tokens: int = 512  # of each prompt that the texts are cut into
    attention_prompts: int | None = None  # prompts for the attention to the pieces
    untrained: bool = True  # whether to measure the untrained copy too


PRESETS = {
    "tiny": Settings(
        model="bundled/narrow", read_limit=24, n_words=8, n_probe=60, context=16, n_tokens=128, attention_prompts=8
    ),
    "bundled": Settings(n_words=120, n_probe=2000, context=32, n_tokens=256),
    "paper": Settings(
        model="meta-llama/Llama-2-7b-hf", texts=("Salesforce/wikitext:wikitext-103-raw-v1",), split="train",
        read_limit=100_000,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return groups ``trained`` and ``untrained``, each with probe, split, canonicity, natural and pieces."""
    loaded, seed = p.lm, p.seed
    n_tokens = min(p.n_tokens, loaded.info.max_tokens)
    prompts = ti.Prompts.from_texts(
        p.read(), loaded, max_tokens=n_tokens, on_long="window", on_empty="drop", min_tokens=2, progress=p.progress
    )
    lexicon = ti.lexicon.Lexicon.of(prompts)
    options: dict[str, Any] = {"n_words": p.n_words, "min_letters": p.min_letters, "context": p.context, "seed": seed}
    single = ti.lexicon.split_cases(lexicon, p.sizes, **options) + ti.lexicon.typo_cases(lexicon, **options)
    natural = ti.lexicon.natural_cases(lexicon, p.sizes, **options)
    items = ti.lexicon.words_and_nonwords(
        lexicon, p.n_probe or p.n_words, sizes=p.sizes, min_letters=p.min_letters, seed=seed
    )
    found: dict[str, xr.Dataset] = {}
    for name in MODELS[: 2 if p.untrained else 1]:
        one = loaded if name == "trained" else ti.untrained(loaded, seed)
        some, store = prompts[: p.attention_prompts], stage(kept, f"pieces.{name}.zarr")
        asked = {"pieces": ti.lexicon.PieceAttention([n for n in p.sizes if n < 5])}
        found |= {
            f"{name}/probe": ti.lexicon.word_probe(one, items, seed=seed),
            f"{name}/split": ti.lexicon.retrieve_words(one, single),
            f"{name}/canonicity": ti.lexicon.canonicity(one, single),
            f"{name}/natural": ti.lexicon.repeat_words(one, natural),
            f"{name}/pieces": ti.measure(one, some, asked, store=store, progress=p.progress)["pieces"].to_dataset(),
        }
    return found


# -- claims ---------------------------------------------------------------------------------------------------
AUTHORS = "Kaplan et al. 2025"


def networks(r: Results, name: str) -> dict[str, xr.Dataset]:
    """Return a result of every network."""
    return {m: r[f"{m}/{name}"] for m in MODELS if f"{m}/{name}" in r}


def at_middle(ds: xr.Dataset) -> xr.Dataset:
    """Return what is at three quarters of the depth: a layer that was named before anything was measured."""
    return ds.sel(layer=ds["layer"][3 * (ds.sizes["layer"] - 1) // 4])


def probe(r: Results, subset: str) -> dict[str, Any]:
    """Return the accuracy of the probe by network."""
    out: dict[str, Any] = {m: given(at_middle(ds), "accuracy", subset=subset) for m, ds in networks(r, "probe").items()}
    return {**out, "trained by layer": curve(r["trained/probe"]["accuracy"], subset=subset)}


def shares(r: Results, name: str, variable: str, variant: str) -> dict[str, Any]:
    """Return a share of the cases, mean over cases, by network and for every kind of case."""
    sets = networks(r, name)
    out: dict[str, Any] = {m: mean(at_middle(ds)[variable], variant=variant) for m, ds in sets.items()}
    first = at_middle(sets["trained"])[variable].sel(variant=variant)
    for kind in sorted(set(first["detail"].values.tolist())):
        out[f"trained, {kind}"] = mean(first.isel(prompt=(first["detail"] == kind).values))
    return {**out, "trained by layer": curve(sets["trained"][variable], variant=variant)}


def retrieved(r: Results) -> dict[str, Any]:
    """Return the share of split words found at any layer in the best variant, with the interval of a best one.

    Beside it the untrained network: in that variant, and in its own best one.
    """
    found = {}
    for network, ds in networks(r, "split").items():
        any_layer = ds["retrieved"].max("layer")
        found[network] = best({str(v): any_layer.sel(variant=v) for v in ds["variant"].values})
    name, number = next(iter(found["trained"].items()))
    out = {f"best variant ({name})": number}
    if blank := found.get("untrained"):
        own = next(iter(blank))
        out |= {f"untrained, {name}": blank[name], f"untrained, its best ({own})": blank[own]}
    return out


def attention(r: Results, pieces: int) -> dict[str, Any]:
    """Return the attention to earlier pieces, early blocks less late ones beyond the control, and the curves."""
    seen = r["trained/pieces"]["attention"].sel(pieces=pieces)
    half = seen.sizes["block"] // 2
    early, late = (seen.isel(block=part).mean("block") for part in (slice(half), slice(half, None)))
    out: dict[str, Any] = {"first half less second half": mean(early - late)}
    out |= {f"{m} {k} by block": curve(d.sel(pieces=pieces)[k]) for m, d in networks(r, "pieces").items()
            for k in ("attention", "control")}  # fmt: skip
    return out


CLAIMS = [
    Claim(
        "words can be told from non-words at their last piece", AUTHORS, "accuracy of a probe at 3/4 of the depth",
        lambda r: probe(r, "last"), ("trained/probe",), above=0.5,
    ),
    Claim(
        "at the last piece but one less so", AUTHORS, "accuracy at 3/4 of the depth, last less last but one",
        lambda r: {
            "last less last but one": given(at_middle(r["trained/probe"]), "difference"), **probe(r, "penultimate"),
        }, ("trained/probe",), above=0,
    ),
    Claim(
        "the last piece of a re-split word comes to resemble the whole word", "Busigin and Pinter 2026",
        "share of cases closer to the word than to another in the same context, at 3/4 of the depth",
        lambda r: shares(r, "canonicity", "closer", "raw"), ("trained/canonicity",), above=0.5,
    ),
    Claim(
        "the whole word is read from the last piece by a reverse logit lens", AUTHORS,
        "share of words found at any layer by the best of all variants", retrieved, ("trained/split",), above=0.05,
    ),
    Claim(
        "words of several tokens are regenerated from one state", AUTHORS, "share of words repeated from any layer",
        lambda r: {m: mean(ds["success"].max("layer"), share=True) for m, ds in networks(r, "natural").items()},
        ("trained/natural",), above=0.05,
    ),
    Claim(
        "attention from the last piece to earlier ones peaks early and then drops", AUTHORS,
        "attention to one earlier piece, first half of the blocks less second half",
        lambda r: attention(r, int(r["trained/pieces"]["pieces"][0])), ("trained/pieces",), above=0,
    ),
]  # fmt: skip
