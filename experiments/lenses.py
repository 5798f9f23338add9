"""What a layer already says of later words: logit lens, tuned lens, Jacobian lens, and the space of the last.

Gurnee et al. 2026 (Verbalizable Representations Form a Global Workspace in Language Models): the mean Jacobian from a
layer to the last says what a state makes the model say later; states are sums of few of its directions.

===========================================================  ==========================================================
published                                                    here
===========================================================  ==========================================================
read-out by layer, Jacobian lens against logit lens          ``lens``: cross_entropy, kl, agreement by variant
                                                             (normed is the logit lens; tuned: Belrose et al. 2023)
states as sums of at most 25 directions, not negative        ``space``: share by n_chosen; control: directions that are
                                                             rotated at random
===========================================================  ==========================================================

Lenses are fitted to the last third of the texts, and read on the others.  Jacobians are of prompts of 128 tokens, BOS
counted, without the first 16 positions; about 100 prompts are enough, 1,000 are published.  The paper's own numbers are
of models that are not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti

from .runner.claims import Claim, Results, curve, mean
from .runner.preset import Preset
from .runner.record import kept as keep
from .runner.record import stage

VARIANTS = ("normed", "tuned", "jacobian")


@dataclass
class Settings(Preset):
    """Sizes."""

    n_tokens: int = 128  # of each prompt, BOS counted; shorter texts are left out
    limit: int | None = 40  # prompts that are read
    n_fit: int | None = 16  # prompts of the Jacobian lens
    skip: int = 16  # positions at the beginning that take no part in it
    layers: tuple[int, ...] = ()  # of the Jacobians; from 1 to the last but one without any
    steps: int = 60  # of the tuned lens
    k: int = 25  # most directions of a state
    n_states: int = 8  # states of a prompt, the last ones, that are taken apart


PRESETS = {
    "tiny": Settings(model="bundled/narrow", n_tokens=40, limit=4, n_fit=2, layers=(2, 4), steps=1, k=3, n_states=2),
    "bundled": Settings(),
    "paper": Settings(
        model="meta-llama/Llama-3.2-1B", texts=("NeelNanda/pile-10k",), split="train", limit=200, n_fit=100, steps=250,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return ``lens`` of all three variants, and ``space`` of the last states of each prompt."""
    model, n = p.lm, min(p.n_tokens, p.lm.info.max_tokens)
    texts = p.read()
    cut = max(1, len(texts) * 2 // 3)
    options: dict[str, Any] = {"max_tokens": n, "min_tokens": n, "progress": False}
    prompts = ti.Prompts.from_texts(texts[:cut], model, **options)[: p.limit]
    train = ti.Prompts.from_texts(texts[cut:], model, **options)
    layers = list(p.layers) or list(range(1, model.info.n_layers))
    jacobian = ti.lens.fit_jacobian_lens(
        model, train[: p.n_fit], layers=layers, skip=p.skip, store=stage(kept, "jacobian.safetensors"),
        progress=p.progress,
    )  # fmt: skip
    tuned = ti.lens.fit_tuned_lens(
        model, train, layers=layers, steps=p.steps, step_tokens=min(2048, train.n_tokens),
        store=stage(kept, "tuned.safetensors"), progress=p.progress,
    )  # fmt: skip
    lens = ti.lens.LogitLens([*layers, model.info.n_layers], 0, VARIANTS, 0, tuned=tuned, jacobian=jacobian)
    tree = ti.measure(model, prompts, {"lens": lens}, store=stage(kept, "lens.zarr"), progress=p.progress)
    ends = np.concatenate([np.arange(k) >= k - p.n_states for k in prompts.lengths])
    facts = {"lens": jacobian.digest, "prompts": prompts.hash, "k": p.k, "n_states": p.n_states, "seed": p.seed}
    space = keep(
        stage(kept, "space.zarr"), facts,
        lambda: ti.lens.jacobian_space(model, prompts, jacobian, where=ends, k=p.k, seed=p.seed),
    )  # fmt: skip
    return {"lens": tree["lens"].to_dataset(), "space": space}


# -- claims ---------------------------------------------------------------------------------------------------
GURNEE = "Gurnee et al. 2026"


def gained(r: Results, name: str, variant: str, other: str, depth: float) -> dict[str, Any]:
    """Return how much lower a variant lies than another at a relative depth, all three there, and the curves."""
    v = r["lens"][name]
    layers = v["layer"].values
    at = layers[np.abs(layers - depth * layers[-1]).argmin()]  # the last is that of the output
    here = v.sel(layer=at)
    return {
        f"{other} less {variant}": mean(here.sel(variant=other) - here.sel(variant=variant)),
        **{f"{k}, layer {at}": mean(here, variant=k) for k in VARIANTS},
        **{f"{k} by layer": curve(v, variant=k) for k in VARIANTS},
    }


def few(r: Results) -> dict[str, Any]:
    """Return the share of all directions beyond that of the rotated ones, at mid-depth, and both."""
    ds = r["space"].isel(n_chosen=-1)[["share", "control", "n_active"]].groupby("prompt").mean()
    one = ds.isel(layer=ds.sizes["layer"] // 2, drop=True)
    return {
        "own less rotated": mean(one["share"] - one["control"]),
        "own": mean(one["share"]), "rotated": mean(one["control"]),
        **{f"{said} by layer": curve(ds[k]) for k, said in (("share", "own"), ("control", "rotated"))},
        "directions with a weight": mean(one["n_active"]),
    }  # fmt: skip


CLAIMS = [
    Claim("early layers say more through the Jacobian lens than through the logit lens", GURNEE,
          "loss at a quarter of the depth (nat), logit lens less Jacobian lens",
          lambda r: gained(r, "cross_entropy", "jacobian", "normed", 0.25), ("lens",), above=0),
    Claim("a lens fitted to the output is nearer to it than the Jacobian lens", "Belrose et al. 2023",
          "KL to the output at mid-depth (nat), Jacobian less tuned",
          lambda r: gained(r, "kl", "tuned", "jacobian", 0.5), ("lens",), above=0),
    Claim("states are sums of few directions of later words", GURNEE, "share of their squared norm, own directions "
          "less rotated ones", few, ("space",), above=0),
]  # fmt: skip
