"""Dimension against loss and entropy over prompts, for every condition of `experiments.token_geometry`."""

from __future__ import annotations

import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.stats.tests import false_discovery


def correlations(passes: dict[str, xr.DataTree], covariates: dict[str, xr.Dataset]) -> dict[str, dict[str, xr.Dataset]]:
    """Return the correlations over prompts that the parts allow, by name and condition."""
    out: dict[str, dict[str, xr.Dataset]] = {}
    for null, tree in passes.items():
        parts = {n: tree.children[n].to_dataset(inherit=False) for n in tree.children}
        if "lens" not in parts:
            continue
        if "dimension" in parts:
            found = ti.geometry.dimension_loss_correlation(
                without_embedding(parts["dimension"]), parts["lens"], covariates[null]
            )
            out.setdefault("correlation", {})[null] = found
            if parts["lens"].sizes["layer"] > 1:
                out.setdefault("entropy_correlation", {})[null] = entropy_correlation(tree)
        if "logits" in parts:
            for loss in ("entropy", "cross_entropy"):
                found = ti.geometry.dimension_loss_correlation(
                    parts["logits"], parts["lens"], covariates[null], loss=loss
                )
                out.setdefault(f"logit_correlation_{loss}", {})[null] = found
    return out


def without_embedding(dimension: xr.Dataset) -> xr.Dataset:
    """Return the layers after the first block: at layer 0 a cloud has one point per kind of token."""
    return dimension.sel(layer=dimension["layer"] > 0)


def entropy_correlation(tree: xr.DataTree, variant: str = "normed") -> xr.Dataset:
    """Correlate log dimension with the entropy of a lens at the *same* layer; q over layers."""
    dimension = without_embedding(tree.children["dimension"].to_dataset(inherit=False))
    lens = tree.children["lens"].to_dataset(inherit=False).sel(variant=[variant])
    one = [
        ti.geometry.dimension_loss_correlation(dimension.sel(layer=[n]), lens.sel(layer=n), loss="entropy")
        for n in dimension["layer"].values
    ]
    out = xr.concat(one, "layer", data_vars="all", coords="minimal", compat="override", combine_attrs="override")
    for kind in ("pearson", "spearman"):
        p = out[f"{kind}_p"]
        q = xr.apply_ufunc(false_discovery, p, input_core_dims=[["layer"]], output_core_dims=[["layer"]],
                           vectorize=True).transpose(*p.dims)  # fmt: skip
        text = out[f"{kind}_q"].attrs["long_name"].replace("of one test", "over layers")
        out[f"{kind}_q"] = variable([str(d) for d in p.dims], q.values, text, "1")
    return out
