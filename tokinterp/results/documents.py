"""Which values of a result belong together: prompts that are windows of one document are not independent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..stats.resample import LEAST
from .dataset import variable

if TYPE_CHECKING:
    from ..text.prompts import Prompts


def with_documents(ds: xr.Dataset, prompts: Prompts) -> xr.Dataset:
    """Return a result that says of which document each prompt, token and span is, where prompts are windows.

    The coordinates are ``document`` (prompt), ``token_document`` (token) and ``span_document`` (span); without windows
    there are none, and each prompt is a document by itself.
    """
    if len(np.unique(prompts.documents)) == len(prompts):
        return ds
    for name, dim, numbers in (
        ("document", "prompt", "prompt"),
        ("token_document", "token", "token_prompt"), ("token_document", "token", "prompt"),
        ("span_document", "span", "span_prompt"),
    ):  # fmt: skip
        if name not in ds.coords and numbers in ds.coords and ds[numbers].dims == (dim,):
            here = prompts.documents[ds[numbers].values]
            ds = ds.assign_coords({name: variable(dim, here, "number of the document in the input", "1")})
    return ds


def groups_of(ds: xr.Dataset | xr.DataArray, dim: str) -> tuple[np.ndarray, str]:
    """Return (dim,) the independent group of each value along a dimension, and what the groups are.

    Documents where the result says of which (`with_documents`), the prompts of tokens and spans, else each value.
    """
    for name in ("document", "token_document", "span_document", "token_prompt", "span_prompt", "prompt"):
        if name != dim and name in ds.coords and ds[name].dims == (dim,):
            return ds[name].values, "documents" if name.endswith("document") else "prompts"
    return np.arange(ds.sizes[dim]), f"{dim}s"


def groups_of_prompts(prompts: Prompts, numbers: np.ndarray) -> tuple[np.ndarray, str]:
    """Return (...) the independent group of prompts given by number, and what the groups are: documents or prompts."""
    alone = len(np.unique(prompts.documents)) == len(prompts)
    return prompts.documents[numbers], "prompts" if alone else "documents"


def interval_name(what: str, level: float, kind: str, n: int | None = None) -> str:
    """Return the long name of an interval: what was drawn, and of how many.

    Examples
    --------
    >>> interval_name("mean loss", 0.95, "documents", 12)
    '95% bootstrap interval of the mean loss over 12 documents'
    >>> interval_name("mean loss", 0.95, "documents", 2)
    '95% bootstrap interval of the mean loss over documents: none of fewer than 3'
    """
    number = "" if n is None else f"{n} "
    if n is not None and n >= LEAST:
        return f"{level:.0%} bootstrap interval of the {what} over {number}{kind}"
    return f"{level:.0%} bootstrap interval of the {what} over {kind}: none of fewer than {LEAST}"


def interval_said(ds: xr.Dataset, dim: str = "prompt", level: float = 0.95) -> str:
    """Return how a caption or a heading speaks of the intervals of a result, or of its means over a dimension.

    Examples
    --------
    >>> interval_said(xr.Dataset({"x": ("prompt", [1.0, 2.0, 3.0, 4.0])}))
    '95 % interval over 4 prompts'
    >>> interval_said(xr.Dataset({"x": ("prompt", [1.0, 2.0])}))
    'no interval: fewer than 3 prompts'
    """
    if "n_groups" in ds.attrs:
        n, kind = int(ds.attrs["n_groups"]), str(ds.attrs.get("groups", f"{dim}s"))
    elif dim in ds.dims:
        groups, kind = groups_of(ds, dim)
        n = len(np.unique(groups))
    else:
        return f"{100 * level:g} % interval over {dim}s"
    return f"{100 * level:g} % interval over {n} {kind}" if n >= LEAST else f"no interval: fewer than {LEAST} {kind}"
