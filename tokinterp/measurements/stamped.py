"""Provenance for what is not measured through ``measure``: functions that run a model by themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..dataset import check, provenance
from .base import plain

if TYPE_CHECKING:
    from ..models.base import ModelInfo


def stamped(
    ds: xr.Dataset, name: str, info: ModelInfo, prompts: str, settings: Mapping[str, Any], seed: int = 0
) -> xr.Dataset:
    """Return a result with its provenance, checked.

    Parameters
    ----------
    ds : xarray.Dataset
        The numbers; attributes of its own are kept.
    name : str
        Of the function.
    info : ModelInfo
        Of the model.
    prompts : str
        Hash of what was run.
    settings : mapping
        Arguments that decide the numbers.
    seed : int
        Of whatever was drawn.
    """
    settings = plain(settings)
    facts = [name, info.weights, info.dtype, info.tokenizer, prompts, settings, seed]
    mark = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    out = ds.assign_attrs({**provenance(info, prompts, settings, mark, seed), "measurement": name, **ds.attrs})
    check(out)
    return out
