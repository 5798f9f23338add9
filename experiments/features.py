"""What states hold beyond their token: sparse features and labels, concepts of texts, tokens to come, the topic.

===========================================================  ==========================================================
published                                                    here
===========================================================  ==========================================================
sparse features and the labels they say (DILA, Wu et al.     ``features``: accuracy of the kind of text, directions
2024, 2409.10504)                                            found again; controls: random decoder, shuffled channels,
                                                             permuted labels
concepts of texts and decoding along them (Frame             ``concepts``: projection of texts that have words of it;
Representation Hypothesis)                                   ``guided``: controls: another concept, a random frame
tokens to come (Pal et al. 2023, 2311.04897)                 ``future``: offsets 1 to 8; controls: the embedding alone,
                                                             tokens in random order, bigrams
the topic in one state (Walker 2024, 2410.18160)             ``topic``: by layer and place; control: permuted labels
===========================================================  ==========================================================

Labels are the kinds of the bundled texts, or of ``labels``, a JSON file with one for each text.  None of the papers has
a number that a public model could be compared with: that of the first is of restricted texts, that of the last of
models trained for it; Pal et al. probe GPT-J, which is ``paper``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable

from .runner.claims import Claim, Number, Results, given, less, mean, plain
from .runner.preset import Preset, place
from .runner.record import kept as keep
from .runner.record import stage
from .vocabulary import CONCEPTS


@dataclass
class Settings(Preset):
    """Sizes."""

    labels: str = ""  # JSON file with a label for each text; the kinds of the bundled texts without one
    n_tokens: int = 128  # of each text, BOS counted; shorter ones are left out
    n_features: int = 64
    steps: int = 200  # of the fit of features
    offsets: tuple[int, ...] = (1, 2, 4, 8)  # how far ahead
    method: str = "factored"  # of the probes of tokens to come, see `tokinterp.erasure.fit_probes`
    positions: tuple[int, ...] = (1, 4, 16, 64)  # places whose topic is read
    folds: int = 5
    guide: str = "family"  # concept that decoding follows
    n_guided: int = 24  # texts that are continued
    n_start: int = 12  # tokens that they begin with
    n_decoded: int = 12

    def classes(self) -> list[str]:
        """Return the label of each text."""
        if self.labels:
            return list(json.loads(Path(place(self.labels)).read_text(encoding="utf-8")))
        if self.texts:
            return []
        return [t.kind for t in ti.bundled_texts()][: self.read_limit]


PRESETS = {
    "tiny": Settings(
        n_tokens=16, n_features=8, steps=5, offsets=(1, 2), method="lda", positions=(4,), folds=2, n_guided=5,
        n_start=6, n_decoded=2,
    ),
    "bundled": Settings(),
    "paper": Settings(
        model="EleutherAI/gpt-j-6b", texts=("NeelNanda/pile-10k",), split="train", read_limit=4000, n_tokens=256,
        n_features=4096, steps=5000, offsets=(1, 2, 3, 4), method="softmax", n_guided=200, n_decoded=32,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return the results named above; ``features`` and ``topic`` where the texts have labels."""
    model, texts, labels = p.lm, p.read(), p.classes()
    if labels and len(labels) != len(texts):
        raise ValueError(f"labels={p.labels!r}: {len(labels)} of them: give one for each of {len(texts)} texts")
    n = min(p.n_tokens, model.info.max_tokens)

    def read(some: Sequence[str]) -> ti.Prompts:
        return ti.Prompts.from_texts(some, model, max_tokens=n, progress=False)

    long = [i for i, k in enumerate(read(texts).lengths) if k == n]
    texts, labels = [texts[i] for i in long], [labels[i] for i in long] if labels else []
    prompts = read(texts)
    layers = sorted({0, model.info.n_layers // 2, model.info.n_layers})
    facts = {"model": model.info.identity, "prompts": prompts.hash, "settings": p.settings()}

    def made(name: str, make: Any) -> dict[str, xr.Dataset]:
        return {name: keep(stage(kept, f"{name}.zarr"), facts, make)}

    out: dict[str, xr.Dataset] = {}
    if labels:
        out |= made(
            "features",
            lambda: ti.embeddings.token_features(
                model, prompts, labels, layers[1], n_features=p.n_features, steps=p.steps, seed=p.seed
            ),
        )
        out |= made(
            "topic",
            lambda: ti.memory.topic_probe(
                model, prompts, labels, positions=p.positions, folds=p.folds, layers=layers, seed=p.seed
            ),
        )
    parts = [read([t for i, t in enumerate(texts) if (i % 4 == 3) == tested]) for tested in (False, True)]
    out |= made(
        "future",
        lambda: ti.erasure.future_tokens(
            model, *parts, layers=layers, offsets=p.offsets, method=p.method, seed=p.seed, progress=p.progress
        ),
    )
    words = {name: [f" {w}" for w in own] for name, own in CONCEPTS.items()}
    out |= made("concepts", lambda: along_concepts(model, prompts, words, p))
    starts = ti.Prompts.from_ids([prompts.ids(i)[: p.n_start] for i in range(min(p.n_guided, len(prompts)))], model)
    out["guided"] = ti.embeddings.guided_decoding(
        model, starts, words, p.guide, n_tokens=p.n_decoded, seed=p.seed, store=stage(kept, "guided.zarr"),
        progress=p.progress,
    )  # fmt: skip
    return out


def along_concepts(
    model: ti.Model, prompts: ti.Prompts, words: Mapping[str, Sequence[str]], p: Settings
) -> xr.Dataset:  # fmt: skip
    """Return the projection of texts on concepts at the last layer, text and shuffled text, and whose words they have.

    Of which concepts a text has words in its beginning that is read.
    """
    asked = {"c": ti.embeddings.ConceptScores(words, layers=[model.info.n_layers], tokens=0)}
    tree = ti.measure_nulls(model, prompts, asked, ("none", "untrained"), seed=p.seed, progress=p.progress)
    ds = tree["c"].to_dataset().isel(layer=0, drop=True)
    ds = ds.drop_vars([n for n, v in ds.variables.items() if "token" in v.dims])
    read = [prompts.text(i) for i in range(len(prompts))]
    has = [[bool(re.search(rf"\b({'|'.join(w.strip() for w in own)})\b", t)) for own in words.values()] for t in read]
    return ds.assign(contains=variable(("prompt", "concept"), np.array(has), "whether the text has a word of it", "1"))


# -- claims ---------------------------------------------------------------------------------------------------
WU, FRAMES, PAL, FTP = "Wu et al. 2024", "Frame Representation Hypothesis", "Pal et al. 2023", "Walker 2024"


def beyond(ds: xr.Dataset) -> Number:
    """Return the accuracy of labels less the better of permuted labels and the most frequent one."""
    x, other = given(ds, "accuracy"), max(float(ds["accuracy_shuffled"]), float(ds["accuracy_frequent"]))
    return Number(x.value - other, x.low - other, x.high - other, x.why)


def labelled(r: Results) -> dict[str, Number]:
    """Return the accuracy of labels from the codes beyond its controls, by dictionary, and from states."""
    ds = r["features"]
    each = {str(n): ds.sel(dictionary=n) for n in ds["dictionary"].values}
    return {
        **{f"{n} beyond controls": beyond(one) for n, one in each.items()},
        **{n: given(one, "accuracy") for n, one in each.items()},
        **{f"{n}, permuted labels": plain(one["accuracy_shuffled"]) for n, one in each.items()},
        "most frequent label": plain(ds["accuracy_frequent"]), "from states": plain(ds["accuracy_states"]),
    }  # fmt: skip


def found_again(r: Results) -> dict[str, Number]:
    """Return the cosine of features with those of another fit less that of random directions, by dictionary."""
    ds = r["features"]
    gain = ds["identifiability"] - ds["identifiability_null"]
    names = list(map(str, ds["dictionary"].values))
    shown = {k: mean(ds[k], "feature", dictionary="learned") for k in ("identifiability", "purity")}
    own = {f"{n} less random directions": mean(gain, "feature", dictionary=n) for n in names}
    return {**own, **shown, "explained": plain(ds["explained"].sel(dictionary="learned")),
            "active features": plain(ds["n_active"].sel(dictionary="learned"))}  # fmt: skip


def ahead(r: Results, offset: int | None = None) -> dict[str, Any]:
    """Return the accuracy of the token so far ahead (the second offset), best inner layer less the embedding."""
    ds = r["future"]
    k = int(ds["offset"][1]) if offset is None else offset
    layer = int(ds["layer"][len(ds["layer"]) // 2])
    at = {"offset": k, "condition": "text"}
    inner, outer = (given(ds, "accuracy", layer=n, **at) for n in (layer, 0))
    shuffled = [given(ds, "accuracy", layer=n, offset=k, condition="shuffled") for n in (layer, 0)]
    return {
        f"layer {layer} less embedding, offset {k}": less(inner, outer), f"layer {layer}": inner, "embedding": outer,
        "shuffled, the same difference": less(*shuffled), "bigram": plain(ds["bigram_accuracy"].sel(at)),
        f"layer {layer}, by offset": ds["accuracy"].sel(layer=layer, condition="text").values.tolist(),
        "embedding, by offset": ds["accuracy"].sel(layer=0, condition="text").values.tolist(),
    }  # fmt: skip


def topic(r: Results) -> dict[str, Any]:
    """Return the accuracy of the label at the last place less permuted labels, middle layer, and by layer and place."""
    ds = r["topic"].isel(layer=r["topic"].sizes["layer"] // 2)
    last = ds.isel(position=-1)
    return {
        "beyond controls": beyond(last), "accuracy": given(last, "accuracy"),
        "permuted labels": plain(last["accuracy_shuffled"]), "most frequent label": plain(last["accuracy_frequent"]),
        "by place": ds["accuracy"].values.tolist(),
    }  # fmt: skip


def later(r: Results) -> dict[str, Number]:
    """Return the accuracy of the label at the last place less that at the first, middle layer."""
    ds = r["topic"].isel(layer=r["topic"].sizes["layer"] // 2)
    ends = [given(ds.isel(position=k), "accuracy") for k in (-1, 0)]
    return {"last less first place": less(*ends), "last": ends[0], "first": ends[1]}


def own_concepts(r: Results) -> dict[str, Number]:
    """Return how far texts lie along concepts whose words they have, less others, of each concept about its mean."""
    ds = r["concepts"]
    middle = ds["score"] - ds["score"].mean("prompt")
    has = ds["contains"]
    gain = middle.where(has).mean("concept") - middle.where(~has).mean("concept")
    nulls = list(map(str, ds["null"].values))
    return {("trained" if n == "none" else n): mean(gain, null=n) for n in nulls} | {
        "trained less untrained": mean(gain.sel(null="none") - gain.sel(null="untrained"))
    }


def guided(r: Results, what: str) -> dict[str, Number]:
    """Return what decoding along a concept gains (or costs) over greedy decoding, less another concept, paired."""
    v = r["guided"][what]
    out = {f"concept less {other}": mean(v.sel(guide="concept") - v.sel(guide=other))
           for other in ("other concept", "random frame", "greedy")}  # fmt: skip
    return out | {str(g): mean(v, guide=g) for g in v["guide"].values}


CLAIMS = [
    Claim("features say the kind of a text", WU, "accuracy of held-out texts less the better of permuted labels and "
          "the most frequent one, learned features", labelled, ("features",), above=0),
    Claim("features are found again by another fit", "Sharkey et al. 2022", "largest cosine less that of random "
          "directions, learned features", found_again, ("features",), above=0),
    Claim("a text lies along the concepts whose words it has", FRAMES, "projection, concepts with a word in the text "
          "less others, each less its mean", own_concepts, ("concepts",), above=0),
    Claim("decoding along a concept leads to it", FRAMES, "projection on the concept, guided by it less by another",
          lambda r: guided(r, "score"), ("guided",), above=0),
    Claim("what is decoded along a concept is less probable than what is decoded along another", "control",
          "cross-entropy (nat), guided by it less by another", lambda r: guided(r, "cross_entropy"), ("guided",),
          above=0),
    Claim("states hold tokens further ahead than the next", PAL, "accuracy at the second offset, middle layer less "
          "embedding", ahead, ("future",), above=0),
    Claim("one state holds the topic", FTP, "accuracy at the last place, middle layer, less the better of permuted "
          "labels and the most frequent one", topic, ("topic",), above=0),
    Claim("later tokens know the topic better", FTP, "accuracy at the last place less the first, middle layer", later,
          ("topic",), above=0),
]  # fmt: skip
