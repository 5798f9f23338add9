"""Which values of a result belong together: prompts that are windows of one document are not independent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from .dataset import variable

if TYPE_CHECKING:
    from .text.prompts import Prompts


def with_documents(ds: xr.Dataset, prompts: Prompts) -> xr.Dataset:
    """Return a result that says which document each prompt and token is of, where prompts are windows of documents.

    The coordinates are ``document`` (prompt) and ``token_document`` (token); without windows there are none, and each
    prompt is a document by itself.
    """
    if len(np.unique(prompts.documents)) == len(prompts):
        return ds
    for name, dim, numbers in (
        ("document", "prompt", "prompt"),
        ("token_document", "token", "token_prompt"), ("token_document", "token", "prompt"),
    ):  # fmt: skip
        if name not in ds.coords and numbers in ds.coords and ds[numbers].dims == (dim,):
            here = prompts.documents[ds[numbers].values]
            ds = ds.assign_coords({name: variable(dim, here, "number of the document in the input", "1")})
    return ds


def groups_of(ds: xr.Dataset | xr.DataArray, dim: str) -> tuple[np.ndarray, str]:
    """Return (dim,) the independent group of each value along a dimension, and what the groups are.

    Documents where the result says of which (`with_documents`), the prompts of tokens and spans, else each value.
    """
    for name in ("document", "token_document", "token_prompt", "span_prompt"):
        if name in ds.coords and ds[name].dims == (dim,):
            return ds[name].values, "documents" if name.endswith("document") else "prompts"
    return np.arange(ds.sizes[dim]), f"{dim}s"
