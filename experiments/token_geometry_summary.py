"""What `experiments.token_geometry` found, as a small JSON record, and in sentences that the numbers decide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from tokinterp.stats.tests import pearson

from .record import about


def summarise(tree: xr.DataTree) -> dict[str, Any]:
    """Return the record: provenance, sizes, and for every condition means over prompts by layer.

    Lists run over layers 1, 2, ... (overlap: blocks 0, 1, ...), keys over conditions, scales or numbers of neighbours.
    """
    parts = {n: node.to_dataset(inherit=False) for n, node in tree.children.items()}
    attrs = tree.attrs
    record: dict[str, Any] = {
        **about("token_geometry", attrs),
        "sizes": {n: int(attrs[n]) for n in ("n_prompts", "n_common", "n_tokens")},
    }
    tables = {
        "lens": ("loss", _loss), "dimension": ("dimension", _dimension), "overlap": ("overlap", _overlap),
        "cosine": ("cosine", _cosine), "graph": ("graph", _graph), "logits": ("logits", _logits),
        "correlation": ("correlation", _correlation), "correlation_text": ("correlation_text", _correlation),
        "entropy_correlation": ("entropy_correlation", _correlation),
        "tuned_correlation": ("tuned_correlation", _correlation),
        "logit_correlation_entropy": ("logit_dimension_with_entropy", _logit_correlation),
        "logit_correlation_cross_entropy": ("logit_dimension_with_loss", _logit_correlation),
    }  # fmt: skip
    for name, (key, table) in tables.items():
        if name in parts:
            record[key] = table(parts[name])
    if {"dimension", "logits"} <= parts.keys():
        record["logits"]["with_last_layer"] = _last_against_logits(parts["dimension"], parts["logits"])
    return record


def sentences(record: dict[str, Any]) -> Iterator[str]:
    """Yield what the record says about the published claims, control beside text."""
    if "loss" in record:
        yield "loss (nat): " + ", ".join(f"{null} {x['mean']:.2f}" for null, x in record["loss"].items())
    for scale in ("2", "4"):
        rows = {null: x["peak"].get(scale) for null, x in record.get("dimension", {}).items()}
        if all(rows.values()) and rows:
            said = ", ".join(f"{null} {x['value']:.2f} (layer {x['layer']})" for null, x in rows.items() if x)
            yield f"peak of the mean dimension at n2 = {scale} (largest of all layers, same prompts): {said}"
    five = record.get("dimension", {}).get("shuffle:5")
    if five and "4" in five["ratio_to_text"]:
        ratio = five["ratio_to_text"]["4"]
        yield f"dimension of S = 5 over that of text, n2 = 4, by layer: {', '.join(f'{x:.2f}' for x in ratio)}"
        yield f"prompts whose peak is higher under S = 5, n2 = 4: {100 * five['higher_peak']['4']:.0f} %"
    for null, x in record.get("correlation", {}).items():
        scale = "4" if "4" in x["pearson"] else next(iter(x["pearson"]))
        r, q = x["pearson"][scale], x["pearson_q"][scale]
        if np.isfinite(r).any():
            said = (
                f"{np.nanmin(r):.2f} to {np.nanmax(r):.2f} over layers, {int((np.array(q) < 0.05).sum())} of {len(q)}"
            )
            yield f"log dimension and loss over {x['n']} prompts, n2 = {scale}, {null}: {said} with q < 0.05"
    for null, x in record.get("logit_dimension_with_entropy", {}).items():
        said = ", ".join(f"n2 = {n}: {r:.2f}" for n, r in x["pearson"].items())
        yield f"log dimension of logits and entropy, {null}: {said}"


# -- tables ---------------------------------------------------------------------------------------------------
def _by_null(ds: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    if "null" not in ds.dims:
        yield "none", ds
        return
    for null in ds["null"].values:
        yield str(null), ds.sel(null=null)


def _only(v: xr.DataArray) -> xr.DataArray:
    """Return the first value along what is neither prompt nor layer: one lens has only one variant."""
    return v.isel({d: 0 for d in v.dims if d not in ("prompt", "layer")})


def _keyed(v: xr.DataArray, dim: str) -> dict[str, Any]:
    return {str(n): v.sel({dim: n}).values.tolist() for n in v[dim].values}


def _loss(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    for null, one in _by_null(ds):
        last = one.isel(layer=-1)
        loss, entropy = _only(last["cross_entropy"]), _only(last["entropy"])
        both = pearson(loss.values, entropy.values)
        out[null] = {"mean": float(loss.mean()), "std": float(loss.std()), "entropy": float(entropy.mean()),
                     "pearson_entropy_loss": both}  # fmt: skip
    return out


def _dimension(ds: xr.Dataset) -> dict[str, Any]:
    layers = ds["layer"].values[ds["layer"].values > 0]
    after = ds["dimension"].sel(layer=layers)
    text = after.sel(null="none")
    out = {}
    for null, one in _by_null(ds):
        value = one["dimension"].sel(layer=layers)
        mean = value.mean("prompt")
        found: dict[str, Any] = {"mean": _keyed(mean, "scale"), "std": _keyed(value.std("prompt"), "scale"), "peak": {}}
        for scale in value["scale"].values:
            curve = mean.sel(scale=scale).values
            if np.isfinite(curve).all():
                at = int(curve.argmax())
                found["peak"][str(scale)] = {"layer": int(layers[at]), "value": float(curve[at])}
        if null != "none":
            found["ratio_to_text"] = _keyed(mean / text.mean("prompt"), "scale")
            higher = (value.max("layer") > text.max("layer")).mean("prompt")
            found["higher_peak"] = {str(n): float(higher.sel(scale=n)) for n in value["scale"].values}
        found["prompts_with_value"] = _keyed(value.notnull().mean("prompt").mean("layer"), "scale")
        out[null] = found
    return out


def _overlap(ds: xr.Dataset) -> dict[str, Any]:
    out: dict[str, Any] = {null: _keyed(one["overlap"].mean("prompt"), "k") for null, one in _by_null(ds)}
    chance = ds["chance"].mean([d for d in ds["chance"].dims if d != "k"])
    return {**out, "chance": {str(k): float(chance.sel(k=k)) for k in ds["k"].values}}


def _cosine(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    for null, one in _by_null(ds.sel(layer=ds["layer"] > 0)):
        names = ("cosine_diagonal", "cosine_centred", "angle")
        out[null] = {n: one[n].mean("prompt").values.tolist() for n in names}
        out[null]["smoothness"] = one["smoothness"].isel(offset=0).mean("prompt").values.tolist()
    return out


def _graph(ds: xr.Dataset) -> dict[str, Any]:
    after = ds.sel(layer=ds["layer"] > 0)
    names = ("reciprocity", "transitivity")
    return {null: {n: _keyed(one[n].mean("prompt"), "k") for n in names} for null, one in _by_null(after)}


def _logits(ds: xr.Dataset) -> dict[str, Any]:
    mean = ds["dimension"].mean("prompt")
    return {"mean": {str(null): dict(zip(map(str, ds["scale"].values), mean.sel(null=null).values.tolist(),
                                         strict=True)) for null in ds["null"].values}}  # fmt: skip


def _last_against_logits(dimension: xr.Dataset, logits: xr.Dataset) -> dict[str, Any]:
    """Return Pearson over prompts of the log dimension at the last layer with that of the logits, by scale."""
    out: dict[str, Any] = {}
    for null, one in _by_null(dimension):
        row = {}
        for scale in one["scale"].values:
            x = np.log(one["dimension"].isel(layer=-1).sel(scale=scale).values)
            y = np.log(logits["dimension"].sel(null=null, scale=scale).values)
            row[str(scale)] = pearson(x, y, 8)
        out[null] = row
    return out


def _correlation(ds: xr.Dataset) -> dict[str, Any]:
    out = {}
    for null, one in _by_null(ds):
        found: dict[str, Any] = {"n": int(one["n"].max())}
        for kind in ("pearson", "spearman", "partial"):
            if kind not in one:
                continue
            found[kind] = _keyed(one[kind], "scale")
            found[f"{kind}_q"] = _keyed(one[f"{kind}_q"], "scale")
        four = one.sel(scale=4) if 4 in one["scale"].values else one.isel(scale=0)
        found["pearson_interval"] = four["pearson_interval"].transpose("layer", "bound").values.tolist()
        out[null] = found
    return out


def _logit_correlation(ds: xr.Dataset) -> dict[str, Any]:
    scales = [str(n) for n in ds["scale"].values]
    names = ("pearson", "spearman", "partial", "pearson_interval")
    return {
        null: {n: dict(zip(scales, one[n].values.tolist(), strict=True)) for n in names if n in one}
        for null, one in _by_null(ds)
    }
