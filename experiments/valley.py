"""The compression valley: whether entropy falls at mid-depth because of one massive row, and what sinks owe to it.

Queipo-de-Llano et al. 2026 (arXiv 2510.06477): where the first token's state becomes huge, it holds nearly the whole
trace of the Gram matrix of a prompt, and the matrix entropy falls whatever the other tokens do.  Sun et al. 2026
(arXiv 2603.05498): such rows are nearly the same in all texts and layers, and attention sinks go with them.

=========================================================  ============================================================
published                                                  here
=========================================================  ============================================================
entropy and norm of the first row over layers (figure 2)   ``valley``: entropy, largest_norm_ratio, trace_share
entropy without the massive row                            ``valley``: entropy_without; control: without a median row
massive rows are nearly constant                           ``valley``: constancy between prompts, persistence over
                                                           layers; control: rows of the median norm
sinks without the massive coordinates                      ``massive``: sink_change, loss_change; control: the same
                                                           channels of ordinary rows
=========================================================  ============================================================

Beside everything: shuffled tokens and the untrained network.  The layer at which one row holds most is chosen on every
other prompt, and what is said of it are means over the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti

from .runner.claims import Claim, Number, Results, curve, mean, plain
from .runner.preset import Preset
from .runner.record import stage

CONTROLS = ("shuffle:5", "untrained")


@dataclass
class Settings(Preset):
    """Sizes."""

    n_tokens: int = 256  # of each prompt, BOS counted; shorter texts are left out
    limit: int | None = 40  # prompts
    controls: tuple[str, ...] = CONTROLS  # what text is compared with, see `tokinterp.measure_nulls`


PRESETS = {
    "tiny": Settings(n_tokens=64, limit=4),
    "bundled": Settings(),
    "paper": Settings(
        model="meta-llama/Meta-Llama-3-8B", texts=("NeelNanda/pile-10k",), split="train", n_tokens=1024, limit=200,
    ),
}  # fmt: skip


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return ``valley`` with a dimension ``null`` ("none" is text), and ``massive`` of the text."""
    n = min(p.n_tokens, p.lm.info.max_tokens)
    prompts = ti.Prompts.from_texts(p.read(), p.lm, max_tokens=n, min_tokens=n, progress=False)[: p.limit]
    asked = {"valley": ti.geometry.CompressionValley()}
    nulls = ("none", *p.controls)
    tree = ti.measure_nulls(
        p.lm, prompts, asked, nulls, seed=p.seed, store=stage(kept, "valley.zarr"), progress=p.progress
    )
    effects = ti.attention.massive_effects(
        p.lm, prompts, seed=p.seed, store=stage(kept, "massive.zarr"), progress=p.progress
    )
    return {"valley": tree["valley"].to_dataset(), "massive": effects}


# -- claims ---------------------------------------------------------------------------------------------------
QUEIPO, SUN = "Queipo-de-Llano et al. 2026", "Sun et al. 2026"


def deepest(ds: xr.Dataset) -> int:
    """Return the layer between first and last at which the largest row holds most of the trace, in the even prompts."""
    held = ds["trace_share"].sel(null="none").isel(prompt=slice(0, None, 2)).mean("prompt").isel(layer=slice(1, -1))
    return int(held["layer"][int(np.argmax(held.values))])


def each(v: xr.DataArray) -> dict[str, Number]:
    """Return the mean of every condition over the prompts on which no layer was chosen."""
    v = v.isel(prompt=slice(1, None, 2))
    return {"text" if n == "none" else n: mean(v, null=n) for n in map(str, v["null"].values)}


def fall(r: Results) -> dict[str, Any]:
    """Return how far the entropy at the deepest layer lies below that of first and last layer, and the curves."""
    v = r["valley"]["entropy"]
    lost = v.isel(layer=[0, -1]).min("layer") - v.sel(layer=deepest(r["valley"]))
    curves = {f"{n} by layer": curve(v, null=n) for n in map(str, v["null"].values)}
    return {**each(lost), **curves}


def without(r: Results) -> dict[str, Any]:
    """Return what the entropy gains without its largest row beyond that without a median row, at the deepest layer."""
    ds = r["valley"]
    one = ds.sel(layer=deepest(ds))
    gain = one["entropy_without"] - one["entropy_control"]
    curves = {
        f"{said}, by layer": curve(ds[name], null="none")
        for name, said in (("entropy_without", "without it"), ("entropy_control", "without a median row"))
    }
    return {**each(gain), "layer": plain(one["layer"]), **curves}


def share(r: Results) -> dict[str, Any]:
    """Return the share of the trace in the largest row at the deepest layer, and curves of what that row is like."""
    ds = r["valley"]
    said = {
        "largest_norm_ratio": "largest norm over median", "persistence": "its cosine with the layer before",
        "constancy": "cosine of largest rows between prompts", "constancy_control": "the same of median rows",
    }  # fmt: skip
    curves = {f"{text}, by layer": curve(ds[name], null="none") for name, text in said.items()}
    return {**each(ds["trace_share"].sel(layer=deepest(ds))), **curves}


def zeroed(r: Results, name: str) -> dict[str, Any]:
    """Return the effect of zeroing the massive coordinates less that of the same ones in ordinary rows."""
    ds = r["massive"]
    v = ds[name].mean("block") if "block" in ds[name].dims else ds[name]
    names = [str(n) for n in v["intervention"].values]
    control = v.sel(intervention=f"{names[0]}, ordinary rows")
    out = {"massive less ordinary rows": mean(v.sel(intervention=names[0]) - control)}
    return {**out, **{n: mean(v, intervention=n) for n in names}, "onset, layer": plain(ds["onset"])}


CLAIMS = [
    Claim("entropy is lower in between than at both ends", QUEIPO, "matrix entropy (share of the largest), the lower "
          "one of first and last layer less that where the largest row holds most of the trace", fall, ("valley",),
          above=0),
    Claim("one row holds most of the trace there", QUEIPO, "share of the largest row", share, ("valley",), above=0.5),
    Claim("the valley is the doing of that row", QUEIPO, "entropy without it less without a median row", without,
          ("valley",), above=0),
    Claim("attention sinks need the massive coordinates", SUN, "attention to the first token, massive coordinates at "
          "zero, less the same of ordinary rows", lambda r: zeroed(r, "sink_change"), ("massive",), below=0),
    Claim("the model needs them", SUN, "change of the loss (nat), less the same of ordinary rows",
          lambda r: zeroed(r, "loss_change"), ("massive",), above=0),
]  # fmt: skip
