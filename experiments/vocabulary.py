"""The vocabulary by its weights: tokens that were never trained, words as frames, and what the states of a token hold.

=============================================================  ========================================================
published                                                      here
=============================================================  ========================================================
under-trained tokens (Land and Bartolo 2024, 2405.05417)       ``tokens``: indicators of all ids, and the candidates
                                                               that the model does not repeat; control: other tokens
words of several tokens are frames of full rank (Frame         ``frames``: relative_rank of words of the texts; cosine
Representation Hypothesis)                                     of words with the concept of the others; controls:
                                                               another word, random columns of the same norms
concepts in the states of a token (Parekh et al. 2024,         ``concepts``: share explained in other texts, words;
2406.08074)                                                    controls: random directions, shuffled channels
=============================================================  ========================================================

``paper`` is GPT-2, of which the authors of the first say mean, spread and threshold of the indicator to three digits,
and how many candidates are not repeated; their texts that ask for a token are worded otherwise than ours.  ``pythia``
has an embedding and a head of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.contrasts import along

from .runner.claims import Claim, Number, Results, given, less, mean, plain
from .runner.preset import Preset, place
from .runner.record import kept as keep
from .runner.record import stage

CONCEPTS: dict[str, Sequence[str]] = {
    "animal": ("horse", "dog", "cat", "bird", "fish", "wolf", "sheep", "eagle", "insect", "elephant"),
    "country": ("France", "Germany", "Spain", "Italy", "Japan", "China", "Canada", "Poland", "Brazil", "Norway"),
    "colour": ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "grey"),
    "month": ("January", "March", "April", "June", "July", "August", "September", "October", "November", "December"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    "body": ("hand", "head", "arm", "leg", "foot", "heart", "eye", "finger", "shoulder", "knee"),
    "family": ("father", "mother", "brother", "sister", "son", "daughter", "uncle", "wife", "husband", "cousin"),
    "science": ("physics", "chemistry", "biology", "geology", "astronomy", "mathematics", "botany", "medicine"),
}
REST = "words of the texts"
MODELS = {"gpt2": "openai-community/gpt2", "pythia": "EleutherAI/pythia-6.9b"}
PUBLISHED = {
    MODELS["gpt2"]: {"mean": 0.536, "sd": 0.070, "threshold": 0.424, "share": 33 / 999},
    MODELS["pythia"]: {"mean": 1.169, "sd": 0.063, "threshold": 1.116, "share": 13 / 933},
}
"""Default indicator over all rows, threshold of the candidates, and the share of these that are not repeated."""


@dataclass
class Settings(Preset):
    """Sizes."""

    percentile: float = 2.0  # of the indicator, up to which tokens are candidates
    trials: int = 20  # in the texts that ask for a token
    copies: int = 50
    n_decoded: int = 3
    lists: str | None = None  # JSON file with words by concept, as those of WordNet; CONCEPTS without one
    n_words: int = 1000  # of several tokens, of the texts, whose rank is taken
    n_tokens: int = 128  # of each prompt that the texts are cut into
    n_prompts: int | None = 1000
    n_looked_at: int = 6  # tokens whose states are taken apart: those of letters that stand in most texts
    n_concepts: int = 10

    def words(self) -> dict[str, Sequence[str]]:
        """Return the words of each concept, with the space before them."""
        given = CONCEPTS if self.lists is None else json.loads(Path(place(self.lists)).read_text(encoding="utf-8"))
        return {name: [f" {w}" for w in own] for name, own in given.items()}


PRESETS = {
    "tiny": Settings(
        model="bundled/narrow",
        percentile=0.2, trials=2, copies=5, n_decoded=1, read_limit=24, n_words=20, n_tokens=64, n_looked_at=3,
        n_concepts=2,
    ),
    "bundled": Settings(),
    "paper": Settings(model=MODELS["gpt2"], texts=("NeelNanda/pile-10k",), split="train", read_limit=2000),
    "pythia": Settings(model=MODELS["pythia"], texts=("NeelNanda/pile-10k",), split="train", read_limit=2000),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return ``tokens`` of the whole vocabulary, ``frames`` by word, and ``concepts`` by token and dictionary."""
    model = p.lm
    found = ti.embeddings.embedding_indicators(model, percentile=p.percentile)
    tokens = ti.embeddings.repeat_tokens(
        model, found, templates=ti.embeddings.repeat_templates(p.trials, p.copies), n_tokens=p.n_decoded, seed=p.seed,
        store=stage(kept, "tokens.zarr"), progress=p.progress,
    )  # fmt: skip
    prompts = ti.Prompts.from_texts(
        p.read(), model, max_tokens=p.n_tokens, on_long="window", min_tokens=p.n_tokens // 2, progress=False
    )[: p.n_prompts]
    lexicon = ti.lexicon.Lexicon.of(prompts)
    some = lexicon.distinct(p.n_words, n_tokens=range(2, 17), min_letters=3, seed=p.seed)
    words = {**p.words(), REST: [f" {lexicon.text[i]}" for i in some]}
    frames = ti.embeddings.word_frames(model, words, trained=tokens["trained"].values, seed=p.seed)
    facts = {
        "model": model.info.identity, "prompts": prompts.hash, "n": p.n_looked_at, "n_concepts": p.n_concepts,
        "seed": p.seed,
    }  # fmt: skip
    concepts = keep(stage(kept, "concepts.zarr"), facts, partial(states_apart, model, prompts, p))
    return {"tokens": tokens, "frames": frames, "concepts": concepts}


def states_apart(model: ti.Model, prompts: ti.Prompts, p: Settings) -> xr.Dataset:
    """Return how well concepts explain the states of some tokens at three quarters of the depth, by word."""
    n_texts = np.zeros(model.info.d_vocab, dtype=int)
    for i in range(len(prompts)):
        n_texts[np.unique(prompts.ids(i)[2:])] += 1
    strings = prompts.vocabulary.strings(np.arange(model.info.d_vocab))
    letters = [i for i, s in enumerate(strings) if len(s) > 4 and s[0] == " " and s[1:].isalpha()]
    chosen = sorted(letters, key=lambda i: -n_texts[i])[: p.n_looked_at]
    layer = 3 * model.info.n_layers // 4
    sets = {
        strings[i].strip(): ti.embeddings.token_concepts(
            model, prompts, i, layer, n_concepts=p.n_concepts, seed=p.seed
        )
        for i in chosen
    }  # fmt: skip
    names = ["explained", "explained_held_out", "overlap", "precision", "precision_null"]
    out = along({name: ds[names] for name, ds in sets.items()}, "word", "token whose states are taken apart")
    first = next(iter(sets.values())).attrs
    return out.assign_attrs(
        {k: first[k] for k in ("model", "weights", "revision", "first") if k in first}, dimensions="word, dictionary"
    )


# -- claims ---------------------------------------------------------------------------------------------------
LAND, FRAMES, COX = "Land and Bartolo 2024", "Frame Representation Hypothesis", "Parekh et al. 2024"


def indicator(r: Results, name: str) -> Number:
    """Return mean, spread or threshold of the default indicator; or the share of candidates not repeated."""
    ds = r["tokens"]
    if name == "share":
        return given(ds, "verified_share", kind="candidate")
    return plain(ds[name].sel(indicator=ds.attrs["default_indicator"]))


def beside(r: Results, name: str) -> dict[str, Number]:
    """Return a number, the published one, and their difference."""
    found, wanted = indicator(r, name), PUBLISHED[str(r["tokens"].attrs["model"])][name]
    return {"found": found, "published": plain(wanted), "difference": plain(found.value - wanted)}


def repeated(r: Results) -> dict[str, Number]:
    """Return the share of candidates that are not repeated less that of controls, with Newcombe's interval."""
    one, other = (given(r["tokens"], "verified_share", kind=k) for k in ("candidate", "control"))
    n = {k: plain(r["tokens"]["n_asked"].sel(kind=k)) for k in ("candidate", "control")}
    medians = {f"median probability, {k}": plain(r["tokens"]["median_p"].sel(kind=k)) for k in n}
    return {
        "candidates less others": less(one, other), "candidates": one, "others": other,
        **{f"asked, {k}": x for k, x in n.items()}, **medians,
    }  # fmt: skip


def several(r: Results) -> xr.Dataset:
    """Return the words of the texts that have more than one token, and a frame (none if all were never trained)."""
    ds = r["frames"]
    there = (ds["concept"] == REST) & (ds["n_tokens"] > 1) & ds["relative_rank"].notnull()
    return ds.isel(word=np.flatnonzero(there.values))


def full_rank(r: Results) -> dict[str, Number]:
    """Return the share of words of several tokens whose frame has full rank, and who the exceptions are."""
    ds = several(r)
    full = ds["relative_rank"] == 1
    again = (ds["n_distinct"] < ds["n_tokens"]) & ~full
    return {
        "full rank": mean(full, "word", share=True),
        "words": plain(ds.sizes["word"]),
        "exceptions": plain((~full).sum()),
        "of these with a token twice": plain(again.sum()),
    }


def near_concept(r: Results) -> dict[str, Number]:
    """Return the cosine of words with the concept of the others, less that of other words, and all of them.

    Means over concepts: the words of one are compared with nearly the same frame.
    """
    ds = r["frames"]
    said = {"cosine": "own concept", "cosine_other": "another word", "cosine_random": "random columns"}
    ds = ds[[*said]].isel(word=np.flatnonzero((ds["concept"] != REST).values)).groupby("concept").mean()
    rest = several(r)
    return {
        "own less another word": mean(ds["cosine"] - ds["cosine_other"], "concept"),
        **{text: mean(ds[name], "concept") for name, text in said.items()},
        "words of the texts with each other": mean(rest["cosine"], "word"),
    }


def explained(r: Results, name: str, other: str) -> dict[str, Number]:
    """Return the share explained of other texts by one dictionary less another, over tokens, and by all."""
    v = r["concepts"]["explained_held_out"]
    out = {f"{name} less {other}": mean(v.sel(dictionary=name) - v.sel(dictionary=other), "word")}
    return out | {str(d): mean(v, "word", dictionary=d) for d in v["dictionary"].values}


def named(r: Results) -> dict[str, Number]:
    """Return the precision of the words of a concept near its samples less that of another concept's words."""
    ds = r["concepts"]
    gain = ds["precision"] - ds["precision_null"]
    out = {"semi-nmf": mean(gain, "word", dictionary="semi-nmf")}
    return out | {str(d): mean(gain, "word", dictionary=d) for d in ds["dictionary"].values if d != "semi-nmf"}


SAYS: Mapping[str, tuple[str, float]] = {
    "mean": ("mean of the indicator over all rows", 0.001),
    "sd": ("spread of the indicator over all rows", 0.001),
    "threshold": ("threshold of the candidates", 0.001),
    "share": ("share of candidates not repeated", 0.02),
}
CLAIMS = [
    Claim("what looks untrained is repeated more rarely than other tokens", LAND, "share of tokens with a probability "
          "below 0.01, candidates less others", repeated, ("tokens",), above=0),
    *[
        Claim(f"{said} of {model}", LAND, said, partial(beside, name=name), ("tokens",), model=model,
              near=(round(PUBLISHED[model][name], 4), within))
        for model in PUBLISHED for name, (said, within) in SAYS.items()
    ],
    Claim("words of several tokens are frames of full rank", FRAMES, "share of words of the texts", full_rank,
          ("frames",), above=0.99),
    Claim("a word is nearer to its concept than another word", FRAMES, "cosine with the frame of the other words of "
          "the concept, own less another word", near_concept, ("frames",), above=0),
    Claim("the states of a token are made of concepts", COX, "share of variance explained in other texts, semi-nmf "
          "less shuffled channels", lambda r: explained(r, "semi-nmf", "shuffled"), ("concepts",), above=0),
    Claim("a concept is named by words that stand near it", COX, "precision of its words, less that of another's",
          named, ("concepts",), above=0),
]  # fmt: skip
