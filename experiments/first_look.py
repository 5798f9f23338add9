"""Text against shuffled text over depth: intrinsic dimension, spectrum and logit lens (Viswanathan et al. 2025).

Each text is cut into 4**S blocks of tokens whose order is drawn anew, S = 0 (the text) to 5 (single tokens): the first
1,024 tokens of texts that are at least so long, one cloud per prompt and layer, GRIDE at n2 = 2 to 64.  The model and
the texts are the bundled ones, where the paper (arXiv 2501.10573) has models of 7B and 2,244 prompts of the Pile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

import tokinterp as ti

from .runner.claims import Claim, Results, curve, mean
from .runner.preset import Preset
from .runner.record import stage


@dataclass
class Settings(Preset):
    """Sizes."""

    levels: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # S of the shuffles
    n_tokens: int = 1024  # of each prompt, BOS counted; texts that are shorter are left out
    limit: int | None = 24  # prompts
    scales: tuple[int, ...] = (2, 4, 8, 16, 32, 64)  # n2 of GRIDE


PRESETS = {
    "tiny": Settings(levels=(0, 5), n_tokens=160, limit=4, scales=(2, 4, 8)),
    "bundled": Settings(),
    "paper": Settings(model="meta-llama/Meta-Llama-3-8B", texts=("NeelNanda/pile-10k",), split="train", limit=50),
}


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return dimension, spectrum and lens, each with a dimension ``null``: "none" is text, "shuffle:S" level S."""
    n_tokens = min(p.n_tokens, p.lm.info.max_tokens)
    options = {"max_tokens": n_tokens, "min_tokens": n_tokens, "progress": p.progress}
    prompts = ti.Prompts.from_texts(p.read(), p.lm, **options)[: p.limit]
    asked = {
        "dimension": ti.geometry.IntrinsicDimension(scales=p.scales, tokens=0, small="nan"),
        "spectrum": ti.geometry.Spectrum(),
        "lens": ti.lens.LogitLens(top=0, tokens=0),
    }
    nulls = ["none" if level == 0 else f"shuffle:{level}" for level in p.levels]
    tree = ti.measure_nulls(
        p.lm, prompts, asked, nulls, seed=p.seed, store=stage(kept, "levels.zarr"), progress=p.progress
    )
    return {name: tree[name].to_dataset() for name in asked}


def loss(r: Results) -> xr.DataArray:
    """Return the next-token loss of every prompt and condition."""
    return r["lens"]["cross_entropy"].isel(layer=-1, variant=0)


def highest(r: Results) -> xr.DataArray:
    """Return the largest dimension (n2 = 4) of all layers after the first block, of every prompt and condition."""
    return r["dimension"]["dimension"].sel(scale=4, layer=slice(1, None)).max("layer")


CLAIMS = [
    Claim(
        "shuffling single tokens raises the loss", "Viswanathan et al. 2025", "loss of S = 5 less that of text (nat)",
        lambda r: {
            "S = 5 less text": mean(loss(r).sel(null="shuffle:5") - loss(r).sel(null="none")),
            **{n: mean(loss(r), null=n) for n in map(str, r["lens"]["null"].values)},
        }, above=0,
    ),
    Claim(
        "the dimension of shuffled text rises above that of text", "Viswanathan et al. 2025",
        "largest dimension of all layers, n2 = 4, S = 5 less text",
        lambda r: {
            "S = 5 less text": mean(highest(r).sel(null="shuffle:5") - highest(r).sel(null="none")),
            **{n: mean(highest(r), null=n) for n in map(str, r["dimension"]["null"].values)},
            "text by layer": curve(r["dimension"]["dimension"], null="none", scale=4),
        }, above=0,
    ),
]  # fmt: skip
