"""The one place where a result gets its provenance: of what model, prompts, settings and other results it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..models.info import ModelInfo
from ..settings.describe import describe, digest, hash_json, tokenizer_hash
from .dataset import kind, numbers_version, own_attributes, provenance
from .documents import with_documents
from .stores import digests

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

NOT_DECIDING = ("created", "versions", "git_commit", "source_commits", "source_versions", "digests")


def stamped(
    ds: xr.Dataset,
    name: str,
    model: Model | ModelInfo,
    prompts: Prompts | str,
    settings: Mapping[str, Any],
    seed: int = 0,
    *,
    of: Sequence[xr.Dataset] = (),
) -> xr.Dataset:
    """Return what a function measured with a model, with its provenance.

    Parameters
    ----------
    ds : xarray.Dataset
        The numbers; attributes of its own are kept.
    name : str
        Of the function: the attribute ``measurement``, by which plots know it.
    model : Model or ModelInfo
        What was run; a model is looked at as it is now.
    prompts : Prompts or str
        What was run, or a hash of it.
    settings : mapping
        All arguments that decide the numbers, as they are.
    seed : int
        Of whatever was drawn.
    of : sequence of Dataset
        Further results that the numbers are made of.

    Notes
    -----
    The values are part of the fingerprint too: two results with one fingerprint are equal.
    """
    info = model if isinstance(model, ModelInfo) else _current(model)
    ds = ds if isinstance(prompts, str) else with_documents(ds, prompts)
    described = describe(dict(settings))
    mark = prompts if isinstance(prompts, str) else prompts.hash
    attention = getattr(model, "passes", {}).get("attention", "")
    facts = [numbers_version(), name, info.identity, attention, info.dtype, info.backend,
             info.device.partition(":")[0], info.tokenizer, mark, described, seed, [_marks(d) for d in of],
             digests(xr.DataTree(ds))]  # fmt: skip
    attrs = provenance(info, prompts, described, hash_json(facts), seed)
    return ds.assign_attrs({**attrs, **own_attributes([d.attrs for d in of]), **ds.attrs, "measurement": name})


def _current(model: Model) -> ModelInfo:
    from ..models.steady import current  # loads torch

    return current(model)


def stamped_tokenizers(
    ds: xr.Dataset, name: str, tokenizers: Sequence[Any], settings: Mapping[str, Any], texts: str = "", seed: int = 0
) -> xr.Dataset:
    """Return what a function found out about tokenizers without a model, with its provenance.

    Parameters
    ----------
    ds, name, settings, seed
        See `stamped`.
    tokenizers : sequence of Hugging Face tokenizer
        Their names and hashes become the attributes ``model`` and ``tokenizer``, as JSON lists if they are several.
    texts : str
        Hash of the texts that were tokenised; empty without any.
    """
    infos = [
        ModelInfo(
            id=PurePath(getattr(t, "name_or_path", "") or type(t).__name__).name, revision="", weights="",
            architecture=type(t).__name__, backend="tokenizer", n_layers=0, n_heads=0, d_model=0, d_vocab=len(t),
            max_tokens=0, dtype="", device="", tokenizer=tokenizer_hash(t),
        )
        for t in tokenizers
    ]  # fmt: skip
    several = joined([asdict(i) for i in infos])
    info = replace(infos[0], **{k: str(several[k]) for k in ("id", "architecture", "tokenizer")})
    return stamped(ds, name, info, texts, settings, seed)


def derived(
    ds: xr.Dataset,
    name: str,
    of: Sequence[xr.Dataset | xr.DataArray],
    settings: Mapping[str, Any],
    seed: int = 0,
    *,
    same_kind: bool = False,
) -> xr.Dataset:
    """Return what a function made of other results, with their provenance and a fingerprint of its own.

    Parameters
    ----------
    ds : xarray.Dataset
        The numbers; attributes of its own are kept.
    name : str
        Of the function.
    of : sequence of Dataset or DataArray
        The results it was made of: their values and attributes decide the fingerprint.
    settings : mapping
        All arguments that decide the numbers, as they are.
    seed : int
        Of whatever was drawn.
    same_kind : bool
        Whether the variables are those of the result it was made of, so that the same plots show them.
    """
    described = describe(dict(settings))
    mark = mark_of(name, of, settings, seed)
    inherited = joined([dict(d.attrs) for d in of if isinstance(d, xr.Dataset)])
    measured = kind(inherited) if same_kind else ""
    inherited.pop("measured", None)
    own = {"parameters": json.dumps(described, sort_keys=True), "fingerprint": mark, "seed": seed}
    own |= {"measured": measured} if measured else {}
    made = own_attributes([d.attrs for d in of])
    return ds.assign_attrs({**inherited, **made, **own, **ds.attrs, "measurement": name})


def mark_of(
    name: str, of: Sequence[xr.Dataset | xr.DataArray], settings: Mapping[str, Any], seed: int = 0
) -> str:  # fmt: skip
    """Return the fingerprint of what a function made of other results."""
    return hash_json([numbers_version(), name, [_marks(d) for d in of], describe(dict(settings)), seed])


def joined(attrs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attributes of several results as one: what differs becomes a JSON list.

    Examples
    --------
    >>> joined([{"model": "a", "seed": 0}, {"model": "b", "seed": 0}])
    {'model': '["a", "b"]', 'seed': 0}
    """
    out: dict[str, Any] = {}
    for key in dict.fromkeys(k for a in attrs for k in a):
        values = list({repr(a[key]): a[key] for a in attrs if key in a}.values())
        out[key] = values[0] if len(values) == 1 else json.dumps(describe(values))
    return out


def _marks(of: xr.Dataset | xr.DataArray) -> list[Any]:
    """Return what decides the numbers of a result: its attributes and its values."""
    ds = of if isinstance(of, xr.Dataset) else of.to_dataset(name="values")
    attrs = {str(k): v for k, v in of.attrs.items() if k not in NOT_DECIDING}
    return [describe(attrs), digests(xr.DataTree(ds.drop_attrs(deep=False)))]


def finish(ds: xr.Dataset, model: Model, kind: str, settings: Mapping[str, Any], seed: int = 0) -> xr.Dataset:
    """Give a dataset its provenance; ``kind`` is the name by which plots know it."""
    return stamped(ds, kind, model, digest(settings.get("questions", "")), settings, seed)
