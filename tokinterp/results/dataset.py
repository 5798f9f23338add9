"""Conventions of results: labelled variables, provenance, and what is checked of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..run.sites import Site
from ..settings import checked

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.edits import Edit
    from ..text.prompts import Prompts

CONVENTIONS = "tokinterp-1"
DIMS = {
    "prompt": "order of the input",
    "position": "place in the sequence, BOS counted",
    "token": "a place in the concatenated stream of all prompts",
    "layer": "blocks applied, 0..n_layers",
    "block": "what happens between layer b and b+1",
    "offset": "place decoded minus place probed",
    "vocab": "token id",
    "scale": "neighbour rank n2 of the estimator",
    "k": "number of neighbours",
    "span": "a span of tokens",
    "head": "attention head",
    "filler": "kind of filler",
    "shuffle": "level of shuffling",
    "replicate": "repetition",
    "bound": "lower, upper",
    "model": "model",
    "rank": "order in a ranking, 0 first",
    "subset": "which tokens take part",
    "component": "principal component, largest first",
    "threshold": "share of variance",
    "rule": "what counts as massive",
    "variant": "how a layer is decoded",
    "order": "order alpha of a Renyi entropy",
    "channel": "coordinate of the stream",
    "entry": "massive entry of the stream, largest ratio first",
    "other_layer": "layer compared with, blocks applied",
    "label": "what tokens are compared by",
    "bin": "bin of a histogram",
    "option": "answer of a multiple-choice item",
    "condition": "under what was measured",
    "null": "what the text or the network is replaced by",
    "fact": "named fact",
    "format": "form of a task's text: none, filler, parallel, serial",
    "stratum": "kind of example",
    "seed": "seed of a training run",
    "arm": "what a network was trained on",
    "kept": "share of the filler tokens kept",
    "trunk": "network that is probed",
    "query_set": "positions that look",
    "key_set": "positions that are looked at",
    "placement": "where the fillers stand",
    "n_fillers": "filler tokens in the prompt",
    "slot": "place among the fillers",
    "cell": "one filler at one layer",
    "other_cell": "cell compared with",
    "intervention": "what is changed in the pass",
    "window": "window of blocks",
    "policy": "which keys stay visible",
    "criterion": "condition of a verdict",
    "target": "what is looked for",
    "source": "where it is read",
    "step": "tokens decoded one after the other, or optimiser steps taken",
    "pieces": "tokens of a word",
}
BLOCK = 2**26
"""Bytes of a variable that are looked at together."""
REQUIRED = (
    "Conventions", "created", "versions", "model", "revision", "weights", "backend", "dtype", "device",
    "tokenizer", "prompts", "parameters", "fingerprint",
)  # fmt: skip


def variable(
    dims: str | Sequence[str],
    values: Any,
    long_name: str,
    units: str,
    references: str | None = None,
    *,
    short: str = "",
    range: tuple[float | None, float | None] | None = None,
    chance: float | str | None = None,
    log: bool = False,
    beside: Sequence[str] = (),
    along: Sequence[str] = (),
    by: str = "",
) -> xr.Variable:
    """Return a variable that says what it is.

    Parameters
    ----------
    dims : str or sequence of str
        Names of the dimensions, in the order of the axes of ``values``.
    values : array_like or torch.Tensor
        The numbers.
    long_name, units : str
        What the numbers are, and in which unit (``nat``, ``token``, ``1``).
    references : str, optional
        Paper and equation that define the quantity.
    short, range, chance, log, beside, along
        How it is drawn; see `tokinterp.Field`.
    by : str
        Variable by whose values its lines are split, or its map is sorted.

    Examples
    --------
    >>> variable("layer", [0.5, 0.7], "loss", "nat", range=(0, None)).attrs["units"]
    'nat'
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    values = np.asarray(values)
    if values.dtype.kind in "UOT":
        values = values.astype(object)
    attrs: dict[str, Any] = {"long_name": long_name, "units": units}
    ends = "" if range is None else "..".join("" if x is None else f"{x:g}" for x in range)
    told = {"references": references, "short_name": short, "range": ends, "chance": chance, "log": int(log),
            "beside": ", ".join(beside), "along": ", ".join(along), "by": by}  # fmt: skip
    attrs.update({k: v for k, v in told.items() if v or (k == "chance" and v is not None)})
    return xr.Variable(dims, values, attrs)


def layer_coords(layers: Sequence[int], info: ModelInfo) -> dict[str, Any]:
    """Return the coordinates of a ``layer`` dimension: number, relative depth and TransformerLens name."""
    return {
        "layer": variable("layer", np.asarray(layers, dtype=np.int64), "blocks applied", "1"),
        "relative_depth": variable("layer", np.asarray(layers) / info.n_layers, "layer divided by n_layers", "1"),
        "site": variable(
            "layer", np.array([Site("resid", n).lens_name for n in layers]), "TransformerLens name of the site", "1"
        ),
    }


def block_coords(blocks: Sequence[int], info: ModelInfo, site: str = "attn_out") -> dict[str, Any]:
    """Return the coordinates of a ``block`` dimension: number and TransformerLens name of the site."""
    names = np.array([Site(site, n).lens_name for n in blocks])
    return {
        "block": variable("block", np.asarray(blocks, dtype=np.int64), "block, 0 first", "1"),
        "site": variable("block", names, "TransformerLens name of the site", "1"),
    }


# -- provenance -----------------------------------------------------------------------------------------------
def bound_coord() -> xr.Variable:
    """Return the coordinate of the two ends of an interval."""
    return variable("bound", np.array(["lower", "upper"]), "bound of the interval", "1")


@cache
def versions() -> str:
    """Return the versions of the packages that decide numbers, as one JSON string; looked up once."""
    found = {}
    for name in ("tokinterp", "torch", "transformers", "transformer_lens", "nnsight", "numpy", "xarray", "zarr"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return json.dumps(found)


@cache
def git_commit() -> str:
    """Return the commit of the source tree tokinterp runs from, with ``+`` if it was changed; empty if installed.

    Looked at once: later changes of the tree are none of the code that this process has read.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        call = ["git", "-C", str(root)]
        commit = subprocess.run([*call, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*call, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def numbers_version() -> str:
    """Return the part of tokinterp's version that changes when numbers may."""
    return ".".join(json.loads(versions()).get("tokinterp", "0").split(".")[:2])


def commits(attrs: Mapping[Any, Any]) -> set[str]:
    """Return the commits of all code that had a part in a result, as far as its attributes say.

    Examples
    --------
    >>> sorted(commits({"git_commit": "b", "source_commits": '["a"]'}))
    ['a', 'b']
    """
    return {str(attrs.get("git_commit", "")), *json.loads(attrs.get("source_commits", "[]"))} - {""}


def own_attributes(of: Sequence[Mapping[Any, Any]] = ()) -> dict[str, Any]:
    """Return the attributes that every result gets anew: when, and by which packages and code it was made.

    ``of`` are the attributes of the results that it was made of.  Where other code than the present made one of them,
    ``source_commits`` (JSON) lists the commits of all; where other packages did, ``source_versions`` lists what each
    of them said.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    now = git_commit()
    sources = set().union(*map(commits, of))
    more = {"source_commits": json.dumps(sorted(sources))} if sources - {now} else {}
    packages = {
        v for attrs in of for v in (attrs.get("versions"), *json.loads(attrs.get("source_versions", "[]"))) if v
    }
    if packages - {versions()}:
        more["source_versions"] = json.dumps(sorted(packages))
    return {"Conventions": CONVENTIONS, "created": created, "versions": versions(), "git_commit": now, **more}


def provenance(
    info: ModelInfo,
    prompts: Prompts | str,
    parameters: Mapping[str, Any],
    fingerprint: str,
    seed: int = 0,
    edits: Sequence[Edit] = (),
) -> dict[str, Any]:
    """Return the attributes that say where a result comes from.

    Parameters
    ----------
    info : ModelInfo
        Of the model.
    prompts : Prompts or str
        What was run, or a hash of it.
    parameters : mapping
        Settings of the measurement, stored as one JSON string.
    fingerprint : str
        Hash of all that decides the numbers.
    seed : int
        Of whatever is drawn.
    edits : sequence of Edit
        What was changed during the passes.
    """
    facts = asdict(info)
    return {
        **own_attributes(),
        "model": facts["id"],
        **{k: facts[k] for k in ("revision", "weights", "architecture", "backend", "dtype", "device", "tokenizer")},
        "identity": info.identity,
        "n_layers": info.n_layers,
        "d_model": info.d_model,
        "prompts": prompts if isinstance(prompts, str) else prompts.hash,
        "history": "" if isinstance(prompts, str) else prompts.history,
        **({} if isinstance(prompts, str) else {"n_prompts": len(prompts)}),
        "edits": "; ".join(map(str, edits)),
        "seed": seed,
        "parameters": json.dumps(parameters, sort_keys=True),
        "fingerprint": fingerprint,
    }


def kind(attrs: Mapping[Any, Any]) -> str:
    """Return the name of the measurement whose numbers a result holds, itself or summarised, from its attributes."""
    return str(attrs.get("measured") or attrs.get("measurement", ""))


def circumstances(attrs: Mapping[Any, Any]) -> list[str]:
    """Return a line for each thing that was done to the passes or the prompts of a result, from its attributes.

    Examples
    --------
    >>> circumstances({"edits": "zero(attn_out 0)", "history": ""})
    ['measured under edits: zero(attn_out 0)']
    """
    told = (("edits", "measured under edits"), ("history", "prompts"))
    return [f"{text}: {attrs[name]}" for name, text in told if attrs.get(name)]


# -- check ----------------------------------------------------------------------------------------------------
@checked()
def check(data: xr.Dataset | xr.DataTree) -> None:
    """Raise ValueError, naming every problem, if a result does not follow the conventions.

    Every dimension must be one of :data:`DIMS`, or be named in the attribute ``dimensions`` and have a coordinate that
    says what it is; every variable must have ``long_name`` and ``units``, every dataset its provenance; layers are
    counted from 0 to n_layers; no infinite values; no strings that netCDF refuses.

    Parameters
    ----------
    data : Dataset or DataTree
        A result, or a whole run.

    Raises
    ------
    ValueError
        With every problem by name.

    Examples
    --------
    >>> import tokinterp as ti, xarray as xr
    >>> ti.check(xr.Dataset({"x": ("layers", [1.0])}))
    Traceback (most recent call last):
    ValueError: ...
    """
    if isinstance(data, xr.DataTree):
        for node in data.subtree:
            if node.data_vars or node.path == "/":
                try:
                    _check(node.to_dataset(inherit=False))
                except ValueError as error:
                    raise ValueError(f"{node.path}: {error}") from None
    else:
        _check(data)


def _check(data: xr.Dataset) -> None:
    problems = [f"attribute {a!r} is missing" for a in REQUIRED if a not in data.attrs]
    if data.attrs.get("Conventions", CONVENTIONS) != CONVENTIONS:
        problems.append(f"Conventions is {data.attrs['Conventions']!r}, not {CONVENTIONS!r}")
    own = str(data.attrs.get("dimensions", "")).split(", ")
    unknown = [d for d in data.dims if d not in DIMS and not (d in own and d in data.coords)]
    problems += [f"unknown dimension {d!r} (known: {', '.join(DIMS)})" for d in unknown]
    problems += _unfit(data.attrs)
    for name, v in data.variables.items():
        problems += [f"variable {name!r} has no {a}" for a in ("long_name", "units") if not v.attrs.get(a)]
        problems += [f"{text} of {name!r}" for text in _unfit(v.attrs)]
        if v.dtype.kind == "f" and any(np.isinf(part).any() for part in blocks(v)):
            problems.append(f"variable {name!r} has infinite values")
        if v.dtype.kind in "UOT" and any(
            _unsafe(s) for part in blocks(v) for s in set(map(str, part.ravel().tolist()))
        ):
            problems.append(f"variable {name!r} has strings with NUL or lone surrogates: escape them")
    if "layer" in data.coords:
        n = data.attrs.get("n_layers")
        bad = [int(x) for x in np.atleast_1d(data["layer"].values) if x < 0 or (n is not None and x > n)]
        if bad:
            problems.append(f"layers {bad} are not within 0..{n}")
    if problems:
        raise ValueError("not a tokinterp result: " + "; ".join(problems))


def blocks(v: xr.Variable) -> Iterator[np.ndarray]:
    """Yield the values in blocks along the first axis: the chunks of what is read lazily, else of so many bytes."""
    if not v.dims:
        yield v.values
        return
    step = max(1, len(v) * BLOCK // max(v.nbytes, 1))
    whole, rest = divmod(len(v), step)
    start = 0
    for n in v.chunks[0] if v.chunks else [step] * whole + [rest] * (rest > 0 or not whole):
        yield v.isel({v.dims[0]: slice(start, start + n)}).values
        start += n


def _unfit(attrs: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with attributes that files cannot hold."""
    bad = [k for k, v in attrs.items() if v is None or isinstance(v, bool | np.bool_ | dict)]
    unsafe = [k for k, v in attrs.items() if isinstance(v, str) and _unsafe(v)]
    return [f"files cannot hold {type(attrs[k]).__name__} attribute {k!r}" for k in bad] + [
        f"NUL or lone surrogate in attribute {k!r}" for k in unsafe
    ]


def _unsafe(text: str) -> bool:
    return "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
