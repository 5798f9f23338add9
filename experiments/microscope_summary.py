"""What `experiments.microscope` found, as a small JSON record, and in sentences that the numbers decide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from tokinterp.results.summary import summary

from .record import about

STEMS = ("linearity", "linearity_without_residual")
KINDS = ("", "_adjusted", "_held_out")


def summarise(tree: xr.DataTree) -> dict[str, Any]:
    """Return the record: provenance, sizes, and for every condition the numbers by block, layer or class."""
    parts = {n: node.to_dataset(inherit=False) for n, node in tree.children.items()}
    record: dict[str, Any] = {
        **about("microscope", tree.attrs),
        "sizes": {n: int(tree.attrs[n]) for n in ("n_prompts", "n_tokens", "n_train_tokens")},
        "settings": json.loads(tree.attrs["settings"]),
    }
    tables = {
        "linearity": _linearity, "linearity_all": _linearity, "spectrum": _spectrum, "nonlinearity": _profile,
        "recall": _profile, "recall_layers": _recall, "recall_correlation": _correlation, "memory": _profile,
        "memory_raw": _profile, "memory_length": _length, "memory_correlation": _correlation, "lens": _lens,
        "removal": _removal, "mmlu": _mmlu,
    }  # fmt: skip
    for name, table in tables.items():
        if name in parts:
            ds = parts[name]
            record[name] = {str(null): table(ds.sel(null=null)) for null in ds["null"].values}
    return record


def sentences(record: dict[str, Any]) -> Iterator[str]:
    """Yield what the record says about the published claims, control beside text."""
    for stem in STEMS:
        for name in ("linearity_all", "linearity"):
            if rows := record.get(name):
                key = stem if name == "linearity_all" else f"{stem}_held_out"
                yield f"{key.replace('_', ' ')}, mean over blocks: " + _each(rows, lambda x, key=key: _mean(x[key]))
    if rows := record.get("spectrum"):
        yield "greatest anisotropy of all layers, all rows: " + _each(rows, lambda x: np.nanmax(x["all"]))
        yield "greatest anisotropy of all layers, regular rows: " + _each(rows, lambda x: np.nanmax(x["regular"]))
    for name, said in (("nonlinearity", "nonlinearity"), ("memory", "context loss beyond the mean state")):
        for null, row in record.get(name, {}).items():
            known = {c: x for c, x in row.items() if np.isfinite(x["effect"])}
            order = sorted(known, key=lambda c: known[c]["effect"])
            yield f"{said} by class, {null}: " + ", ".join(f"{c} {known[c]['effect']:+.2f}" for c in order)
    for name in ("memory_correlation", "recall_correlation"):
        for null, row in record.get(name, {}).items():
            x = ", ".join(f"{k} {r['pearson']:+.3f} ({r['low']:+.3f}, {r['high']:+.3f})" for k, r in row.items())
            yield f"nonlinearity and {name.split('_')[0]}, {null}: {x}"
    if rows := record.get("memory_length"):
        yield "context loss, longest prefixes: " + _each(rows, lambda x: x["loss"][-1])
        yield "the same from the mean state: " + _each(rows, lambda x: x["blank"][-1])
    for null, row in record.get("lens", {}).items():
        middle = len(row["normed"]["cross_entropy"]) // 2
        said = ", ".join(f"{v} {x['cross_entropy'][middle]:.2f}" for v, x in row.items())
        yield f"cross-entropy at layer {middle}, {null}: {said}; last {row['normed']['cross_entropy'][-1]:.2f}"
    for null, row in record.get("removal", {}).items():
        for what, x in row.items():
            more = f"{x['beyond_random']:+.3f} ({x['low']:+.3f}, {x['high']:+.3f})"
            said = f"{x['condition']:+.3f}, random {x['random']:+.3f}, difference {more}"
            yield f"rise of the loss, {null}, {what} ({x['rate']:.0%}): {said}"
    for null, row in record.get("mmlu", {}).items():
        for what, x in row["conditions"].items():
            yield (f"MMLU, {null}: {row['original']:.3f}, without {what} {x['accuracy']:.3f} (p = {x['p']:.2g}), "
                   f"random {x['accuracy_control']:.3f} (p = {x['p_control']:.2g})")  # fmt: skip


def _each(rows: dict[str, Any], value: Any) -> str:
    return ", ".join(f"{null} {value(x):.3f}" for null, x in rows.items())


def _mean(values: Any) -> float:
    known = np.asarray(values, dtype=float)
    return float(known[np.isfinite(known)].mean()) if np.isfinite(known).any() else float("nan")


# -- tables: a dataset of one condition -> numbers ----------------------------------------------------------------
def _linearity(ds: xr.Dataset) -> dict[str, Any]:
    names = [s + k for s in STEMS for k in KINDS if s + k in ds]
    out: dict[str, Any] = {n: ds[n].values.tolist() for n in names}
    out["linearity_floor"], out["n"] = ds["linearity_floor"].values.tolist(), int(ds["n"].values[0])
    for n in ("relative_step", "relative_step_after"):
        out[n] = ds[n].mean("prompt").values.tolist()
    return out


def _spectrum(ds: xr.Dataset) -> dict[str, Any]:
    return {str(s): ds["anisotropy"].sel(subset=s).values.tolist() for s in ds["subset"].values}


def _profile(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    for c in ds["subset"].values:
        x = ds.sel(subset=c)
        if int(x["n_tokens"]):
            out[str(c)] = {"mean": float(x["mean"]), "effect": float(x["effect"]),
                           "effect_interval": x["effect_interval"].values.tolist(),
                           "n_tokens": int(x["n_tokens"])}  # fmt: skip
    return out


def _recall(ds: xr.Dataset) -> dict[str, Any]:
    return {"explained": ds["explained"].values.tolist(), "n_fitted": int(ds["n_fitted"])}


def _correlation(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    for v in ds["variant"].values:
        x = ds.sel(variant=v)
        low, high = x["pearson_interval"].values.tolist()
        out[str(v)] = {"pearson": float(x["pearson"]), "low": low, "high": high, "spearman": float(x["spearman"]),
                       "n_tokens": int(x["n_tokens"])}  # fmt: skip
    return out


def _length(ds: xr.Dataset) -> dict[str, Any]:
    n = ds["n_by_length"]
    mean = {k: (ds[f"context_loss{e}_by_length"].fillna(0) * n).sum("prompt") / n.sum("prompt")
            for k, e in (("loss", ""), ("blank", "_blank"))}  # fmt: skip
    return {"shortest": ds["bin"].values.tolist(), **{k: v.values.tolist() for k, v in mean.items()}}


def _lens(ds: xr.Dataset) -> dict[str, Any]:
    mean = ds[["cross_entropy", "entropy", "kl", "agreement", "confidence"]].mean("prompt")
    return {str(v): {n: mean[n].sel(variant=v).values.tolist() for n in mean.data_vars} for v in ds["variant"].values}


def _removal(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    means = beyond_random(ds)
    for what in ds["variant"].values:
        x, mean = ds.sel(variant=what), means.sel(variant=what)
        rise = {str(s): x["difference"].sel(subset=s).values for s in x["subset"].values}
        low, high = mean["more_interval"].values.tolist()
        out[str(what)] = {
            **{k: _mean(v) for k, v in rise.items()}, "beyond_random": float(mean["more"]), "low": low,
            "high": high, "rate": _mean(x["removal_rate"].sel(subset="condition")),
            "loss_original": _mean(x["loss_original"].sel(subset="condition")),
        }  # fmt: skip
    return out


def beyond_random(ds: xr.Dataset) -> xr.Dataset:
    """Return ``more``, the rise of the loss beyond that of random deletion, mean over prompts with its interval."""
    more = ds["difference"].sel(subset="condition") - ds["difference"].sel(subset="random")
    more.attrs = {"long_name": "rise of the loss beyond random deletion", "units": "nat"}
    return summary(more.rename("more").to_dataset())


def _mmlu(ds: xr.Dataset) -> dict[str, Any]:
    names = ("accuracy", "accuracy_control", "accuracy_class_control", "n_class_control", "removal_rate", "p",
             "p_control", "p_class_control")  # fmt: skip
    rows = {str(v): {n: float(ds[n].sel(variant=v)) for n in names} for v in ds["variant"].values}
    return {"original": float(ds["accuracy_original"]), "n": int(ds.sizes["prompt"]), "conditions": rows}
