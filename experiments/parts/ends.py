"""Several end layers of psi side by side, as in table 3 of Feucht et al. 2024, for `experiments.erasure`."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable


def ends_row(
    ds: xr.Dataset, prompts: ti.Prompts, units: ti.Spans, min_count: int, level: float = 0.95
) -> dict[str, Any]:
    """Return what the published table 3 has of one end layer, and the AUROC at some level."""
    compared = ti.erasure.psi_of_spans(ds, prompts, units.align(prompts), n_boot=100, level=level)
    out: dict[str, Any] = {
        "auroc": compared["auroc"].sel(subset="word").item(),
        "auroc_interval": compared["auroc_interval"].sel(subset="word").values, "attrs": ds.attrs,
        "n_entries": 0, "precision": np.nan, "recall": np.nan, "attainable_recall": np.nan,
    }  # fmt: skip
    try:
        vocabulary = ti.erasure.read_out(ds, prompts, min_count=min_count, min_psi=None, n_boot=1)
    except ValueError:
        return out
    score = ti.erasure.evaluate(vocabulary, units.align(prompts), prompts).sel(subset="word").isel(rank=-1)
    out |= {n: score[n].item() for n in ("precision", "recall", "attainable_recall")}
    return out | {"n_entries": vocabulary.sizes["rank"]}


def side_by_side(rows: dict[int, dict[str, Any]]) -> xr.Dataset:
    """Return the rows of several end layers along ``layer``."""
    what = {
        "auroc": "probability that a word of several tokens scores above a random span of its length and prompt",
        "n_entries": "entries of the vocabulary", "precision": "share of the entries that are words",
        "recall": "share of the words of several tokens in the prompts that are entries",
        "attainable_recall": "the same of words that occur often enough",
    }  # fmt: skip
    v = variable
    data = {n: v("layer", [r[n] for r in rows.values()], text, "1") for n, text in what.items()}
    bounds = np.stack([r["auroc_interval"] for r in rows.values()], 1)
    said = "bootstrap interval over prompts, 95% for all end layers at once"
    data["auroc_interval"] = v(("bound", "layer"), bounds, said, "1")
    coords = {
        "layer": v("layer", list(rows), "end layer of psi, blocks applied", "1"),
        "bound": v("bound", ["lower", "upper"], "bound of the interval", "1"),
    }
    attrs = {k: x for k, x in next(iter(rows.values()))["attrs"].items() if k not in ("end_layer", "parameters")}
    return xr.Dataset(data, coords, {**attrs, "parameters": "{}", "measurement": "choice of the end layer"})
