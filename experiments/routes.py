"""Which heads bring about a prediction, and how many dimensions the attention of a head has.

Ferrando and Voita 2024 (arXiv 2403.00824): shares of heads, keys and MLPs in the stream of every token, and the routes
of predictions through them.  Bhojanapalli et al. 2020 (arXiv 2002.07028): a head narrower than its text is long cannot
have every pattern of attention.

===========================================================  ==========================================================
published                                                    here
===========================================================  ==========================================================
importance and activation of heads (Llama 2)                 ``routes``: importance, activation, by block and head
heads that read the token before                             ``routes``: previous; control: another earlier token
heads that merge the pieces of a word                        ``routes``: merge; control: one-token words before another
MLPs act most in the lowest layers and the last              ``routes``: mlp_share
rank of attention logits, head size against length           ``rank``: eff_rank, rank_logits; null: independent tokens
===========================================================  ==========================================================

Beside everything: the untrained network.  The best of all heads, and that of each block, is chosen on every other
prompt and judged on the others.  The papers' own numbers are figures without tables, so that none can be compared to
the digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti

from .runner.claims import Claim, Number, Results, curve, mean
from .runner.preset import Preset
from .runner.record import stage

NETWORKS = ("none", "untrained")


@dataclass
class Settings(Preset):
    """Sizes."""

    n_tokens: int = 128  # of each prompt, BOS counted; shorter texts are left out
    limit: int | None = 40  # prompts
    lengths: tuple[int, ...] = (16, 32, 64, 128)  # tokens of which the rank is taken
    threshold: float = 0.04  # of a share that is an edge


PRESETS = {
    "tiny": Settings(n_tokens=40, limit=6, lengths=(16, 40)),
    "bundled": Settings(),
    "paper": Settings(
        model="meta-llama/Llama-2-7b-hf", texts=("NeelNanda/pile-10k",), split="train", limit=200,
        lengths=(32, 64, 128, 256), n_tokens=256,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return ``routes`` and ``rank``, each with a dimension ``null``: "none" is the text in the trained network."""
    n = min(p.n_tokens, p.lm.info.max_tokens)
    prompts = ti.Prompts.from_texts(p.read(), p.lm, max_tokens=n, min_tokens=n, progress=False)[: p.limit]
    asked = {
        "routes": ti.attention.InformationRoutes(threshold=p.threshold),
        "rank": ti.attention.AttentionRank([k for k in p.lengths if k <= n]),
    }
    store = stage(kept, "routes.zarr")
    tree = ti.measure_nulls(p.lm, prompts, asked, NETWORKS, seed=p.seed, store=store, progress=p.progress)
    return {name: tree[name].to_dataset() for name in asked}


# -- claims ---------------------------------------------------------------------------------------------------
FERRANDO, BHOJANAPALLI = "Ferrando and Voita 2024", "Bhojanapalli et al. 2020"
SAID = {"none": "trained", "untrained": "untrained"}


def best_head(v: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return (prompt,) values of the head with the largest mean over every other prompt, of the others, and its name.

    Examples
    --------
    >>> v = xr.DataArray(np.array([[[0.0, 9.0]], [[0.0, 1.0]]]), dims=("prompt", "block", "head"))
    >>> value, name = best_head(v.assign_coords(block=[3], head=[0, 1]))
    >>> value.values.tolist(), name
    ([1.0], '3.1')
    """
    v = v.transpose("prompt", "block", "head")
    first = v.isel(prompt=slice(0, None, 2)).mean("prompt").values
    block, head = np.unravel_index(np.argmax(np.nan_to_num(first, nan=-np.inf)), first.shape)
    one = v.isel(prompt=slice(1, None, 2), block=block, head=head)
    return one.drop_vars(["block", "head"], errors="ignore"), f"{int(one['block'])}.{int(one['head'])}"


def strongest(ds: xr.Dataset, name: str) -> xr.Dataset:
    """Return what the head of each block takes that takes most in every other prompt, in the others, and its control.

    Examples
    --------
    >>> x = np.array([[[0.0, 9.0]], [[0.0, 1.0]]])
    >>> ds = xr.Dataset({n: (("prompt", "block", "head"), x) for n in ("merge", "merge_control")})
    >>> strongest(ds, "merge")["merge"].values.tolist()
    [[1.0]]
    """
    first, rest = (ds[[name, f"{name}_control"]].isel(prompt=slice(k, None, 2)) for k in (0, 1))
    return rest.isel(head=first[name].mean("prompt").fillna(-1).argmax("head")).drop_vars("head", errors="ignore")


def takes(r: Results, name: str, **at: Any) -> dict[str, Any]:
    """Return what the best head takes beyond its control, trained less untrained, and both with their heads."""
    ds = r["routes"].sel(at)
    gain = ds[name] - ds[f"{name}_control"]
    found = {n: best_head(gain.sel(null=n, drop=True)) for n in NETWORKS}
    out: dict[str, Any] = {"trained less untrained": mean(found["none"][0] - found["untrained"][0])}
    out |= {f"{SAID[n]}, block.head {head}": mean(v) for n, (v, head) in found.items()}
    for n in NETWORKS:
        out[f"{SAID[n]}, head of each block"] = curve(strongest(ds.sel(null=n, drop=True), name)[name])
    return out


def mlps(r: Results) -> dict[str, Any]:
    """Return the share of the MLP of first or last block, the lower one, less that of the others, and the curves."""
    v = r["routes"]["mlp_share"]
    gain = v.isel(block=[0, -1]).min("block") - v.isel(block=slice(1, -1)).mean("block")
    curves = {f"{SAID[n]} by block": curve(v, null=n) for n in NETWORKS}
    return {**{SAID[n]: mean(gain, null=n) for n in NETWORKS}, **curves}


def longest(r: Results, name: str, other: str) -> dict[str, Number]:
    """Return the mean difference of two ranks over heads, at the longest length, and both."""
    ds = r["rank"].isel(length=-1).mean(("block", "head"))
    out = {f"{SAID[n]}, difference": mean(ds[name] - ds[other], null=n) for n in NETWORKS}
    said = {k: str(r["rank"][k].attrs["long_name"]) for k in (name, other)}
    return out | {f"{SAID[n]}, {said[k]}": mean(ds[k], null=n) for n in NETWORKS for k in (name, other)}


CLAIMS = [
    Claim("a head reads the token before", FERRANDO, "share of the best head beyond that from another earlier token, "
          "trained less untrained", lambda r: takes(r, "previous"), ("routes",), above=0),
    Claim("a head merges the pieces of words", FERRANDO, "share of the best head from the first of two pieces beyond "
          "that of one-token words, trained less untrained", lambda r: takes(r, "merge", pieces=2), ("routes",),
          above=0),
    Claim("MLPs act most in the first and the last block", FERRANDO, "share of the MLP there, the lower one of both, "
          "less that of the others", mlps, ("routes",), above=0),
    Claim("heads use fewer dimensions than independent tokens would", "control", "effective rank of the logits, own "
          "less that of independent queries and keys", lambda r: longest(r, "eff_rank", "null_eff_rank"), ("rank",),
          below=0),
    Claim("the softmax has more dimensions than its logits", BHOJANAPALLI, "effective rank of the weights less that of "
          "the logits", lambda r: longest(r, "eff_rank_pattern", "eff_rank"), ("rank",), above=0),
]  # fmt: skip
