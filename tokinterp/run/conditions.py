"""The same measurements under several conditions, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import xarray as xr

from ..files.owner import discard
from ..models.base import Model
from ..models.steady import steady
from ..results import dataset, stores
from ..results.contrasts import side_by_side
from ..results.stamp import joined
from ..settings import checked, count, instance, mapping, none, several, share, short, string
from ..settings.describe import digest
from ..text.prompts import Prompts
from .checkpoint import alone
from .edits import Edit
from .engine import _check_sites, check_edits, measure, run_facts, store_path
from .facts import Facts, claim, compare_facts, fingerprint, remove_partial
from .loop import Measurements
from .measurement import MEMORY, fresh
from .signals import at_once


@checked(items=several(string | count()) | none)
@dataclass(frozen=True, eq=False)
class Condition:
    """What differs between two readings of a model: the prompts, what is changed during the pass, or the network.

    Attributes
    ----------
    prompts : Prompts or sequence of str
        What the model reads.  Prompt i of one condition is compared with prompt i of another.
    edits : sequence of Edit
        What is changed during each pass.
    model : Model or None
        Another network, for example `untrained`; None for the one that is given to `measure_conditions`.
    items : sequence of str or int, or None
        What each prompt is about.  Where the prompts are not the same number in the same order under all conditions,
        those of one item make the pairs of `contrast`.

    Examples
    --------
    >>> import tokinterp as ti
    >>> without = ti.Condition(["The Nile flows north."], edits=[ti.edits.zero(ti.Site("mlp_out", 1))])
    >>> str(without.edits[0])
    'zero(mlp_out 1)'
    """

    prompts: Prompts | Sequence[str]
    edits: Sequence[Edit] = ()
    model: Model | None = None
    items: Sequence[str] | Sequence[int] | None = None


class Runs(TypedDict, total=False):
    """How a function that compares conditions runs them, see `measure_conditions`.

    Attributes
    ----------
    batch_tokens : int, optional
        Padded tokens per batch; by default what fits comfortably.
    store : path, optional
        zarr folder in which the conditions are kept: the same call after a crash goes on.
    checkpoint_every : float
        Seconds between two checkpoints.
    share : (int, int)
        Run only a part of the prompts; while other shares are missing, the result is empty.
    memory : int
        Bytes that measurements may take.
    progress : bool
        Show a bar; not by default.
    """

    batch_tokens: int | None
    store: str | Path | None
    checkpoint_every: float
    share: tuple[int, int]
    memory: int
    progress: bool


@at_once()
@checked(conditions=mapping(instance("Condition"), 1), share=share)
@steady
def measure_conditions(
    model: Model,
    conditions: Mapping[str, Condition],
    measurements: Measurements,
    *,
    store: str | Path | None = None,
    batch_tokens: int | None = None,
    checkpoint_every: float = 60.0,
    share: tuple[int, int] = (0, 1),
    memory: int = MEMORY,
    progress: bool = True,
) -> xr.DataTree:
    """Measure a model under several conditions, side by side along a dimension ``condition``.

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.
    conditions : mapping of name -> Condition
        The names become the coordinate ``condition``.
    measurements : mapping of name -> Measurement
        As for `measure`.  Those given are left as they are.
    store : path, optional
        zarr folder for the result.  Each condition is kept in a folder of its own beside it, ``STORE.conditions``,
        until all are there: the same call after a crash goes on, and runs no finished condition again.
    batch_tokens, checkpoint_every, share, memory, progress
        See `measure`; every condition is run in shares.

    Returns
    -------
    xarray.DataTree
        One group per measurement, and ``prompts``.  What has other places in one condition than in another (tokens of
        other texts, layers of a deeper network) stands in groups of their own, ``run["lens/CONDITION"]``.  A prompt
        that gives NaN or infinite activations under one condition is left out under all, so that prompts stay pairs.
        The attribute ``conditions`` says what each is.

    Raises
    ------
    ValueError
        For a name that cannot be a group, and what `measure` refuses, before anything is run; for a store of other
        conditions (names what differs).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France, they say."], model)
    >>> conditions = {
    ...     "whole": ti.Condition(prompts),
    ...     "no MLP": ti.Condition(prompts, edits=[ti.edits.zero(ti.Site("mlp_out", 1))]),
    ... }
    >>> run = ti.measure_conditions(model, conditions, {"lens": ti.lens.LogitLens(layers=[4])}, progress=False)
    >>> run["lens"]["condition"].values.tolist()
    ['whole', 'no MLP']
    """
    for name in conditions:
        if not name.strip() or "/" in name or name in (".", "..") or not name.isprintable():
            raise ValueError(f"conditions: the name {name!r} becomes a coordinate and a group: use a text without /")
    whole = {
        name: Condition(
            c.prompts if isinstance(c.prompts, Prompts) else Prompts.from_texts(c.prompts, c.model or model),
            tuple(c.edits), c.model or model, c.items,
        )
        for name, c in conditions.items()
    }  # fmt: skip
    options = {"batch_tokens": batch_tokens, "checkpoint_every": checkpoint_every, "share": share, "memory": memory,
               "progress": progress}  # fmt: skip
    return _measure([c.model for c in whole.values()], model, whole, measurements, store, options)


def compared(
    model: Model, conditions: Mapping[str, Condition], measurements: Measurements, **run: Unpack[Runs]
) -> dict[str, xr.Dataset] | None:
    """Measure conditions for a function that compares them.

    Returns
    -------
    dict of str to Dataset or None
        By measurement, with all prompts in order, NaN for those left out; None while other shares are missing.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> conditions = {"whole": Condition(["The Nile flows north."])}
    >>> compared(model, conditions, {"loss": ti.behaviour.TokenLoss()})["loss"]["loss"].dims
    ('condition', 'prompt')
    """
    tree = measure_conditions(model, conditions, measurements, **{"progress": False, **run})
    if not tree.children:
        return None
    n = max(len(c.prompts) for c in conditions.values())
    return {k: tree.children[k].to_dataset(inherit=False).reindex(prompt=np.arange(n)) for k in measurements}


@steady
def _measure(
    _networks: Sequence[Any], model: Model, conditions: Mapping[str, Condition], measurements: Measurements,
    store: str | Path | None, options: dict[str, Any],
) -> xr.DataTree:  # fmt: skip
    """Measure conditions whose prompts and models are all given; these networks stay the same meanwhile."""
    path = None if store is None else store_path(store)
    for name, c in conditions.items():
        try:
            _check(c, fresh(measurements, options["memory"]))
        except ValueError as error:
            raise ValueError(f"conditions[{name!r}]: {error}") from None
    facts = _facts(model, conditions, measurements)

    def make(home: Path | None) -> xr.DataTree | None:
        makers = {name: lambda c=c: c for name, c in conditions.items()}
        files = {name: f"{n}-{plain(name)[:60]}" for n, name in enumerate(conditions)}
        found = run_each(model, makers, measurements, home, files, options)
        return None if found is None else _tree(found, conditions, measurements, facts)

    return kept(path, "conditions", "measure_conditions", facts, make)


def kept(
    path: Path | None, kind: str, called: str, facts: Facts, make: Callable[[Path | None], xr.DataTree | None]
) -> xr.DataTree:
    """Return a finished result of several runs, or make it from them and keep it.

    Parameters
    ----------
    path : Path or None
        Where the result is kept.
    kind : str
        The runs are kept in ``STORE.KIND`` until all are there.
    called : str
        The function, for the message.
    facts : dict
        All that decides the numbers.
    make : callable
        Runs what is left to run and returns the result, or None while other shares are missing.
    """
    if path is None:
        tree = make(None)
        assert tree is not None
        return tree
    home = path.with_name(f"{path.name}.{kind}")
    if (tree := _finished(path, called, facts, home)) is not None:
        return tree
    claim(home, facts)
    tree = make(home)
    if tree is None:
        return xr.DataTree()
    with alone(home, str(path)):
        if not stores.exists(path):
            stores.write(tree, path)
    discard(home)
    return stores.read(path)


def _finished(path: Path, called: str, facts: Facts, home: Path) -> xr.DataTree | None:
    if not stores.exists(path):
        return None
    tree = stores.read(path)
    if "facts" not in tree.attrs:
        raise ValueError(f"{path} is a result, but not of {called}(): choose another store")
    compare_facts(json.loads(tree.attrs["facts"]), facts, path)
    remove_partial(path, facts, home)  # a kill between writing the result and clearing up
    return tree


def run_each(
    model: Model, conditions: Mapping[str, Callable[[], Condition]], measurements: Measurements, home: Path | None,
    files: Mapping[str, str], options: Mapping[str, Any],
) -> dict[str, xr.DataTree] | None:  # fmt: skip
    """Measure each condition, made when its turn comes, in a store of its own; None while shares are missing."""
    found = {}
    for name, made in conditions.items():
        c = made()
        part = None if home is None else home / f"{files[name]}.zarr"
        found[name] = measure(c.model or model, c.prompts, measurements, store=part, edits=c.edits, **options)
    if home is None or all(tree.children for tree in found.values()):
        return found
    if not all(stores.exists(home / f"{file}.zarr") for file in files.values()):
        return None
    return {name: stores.read(home / f"{file}.zarr") for name, file in files.items()}


def plain(name: str) -> str:
    """Return a name as it can stand in the name of a file."""
    return re.sub(r"[^\w.-]", "_", name)


def _check(condition: Condition, measurements: Measurements) -> None:
    """Refuse what does not fit the model or the prompts, before the first condition is run."""
    model, prompts = condition.model, condition.prompts
    assert model is not None
    assert isinstance(prompts, Prompts)
    if len(prompts) == 0:
        raise ValueError("no prompts to measure: the list is empty")
    if condition.items is not None and len(condition.items) != len(prompts):
        raise ValueError(
            f"items={short(condition.items)}: {len(condition.items)} for {len(prompts)} prompts: one for each"
        )
    prompts.check_tokenizer(model)
    check_edits(model, prompts, condition.edits)
    for m in measurements.values():
        m.begin(model.info, prompts)
    _check_sites(model, measurements)


def _facts(model: Model, conditions: Mapping[str, Condition], measurements: Measurements) -> Facts:
    """Return all that decides the numbers: what all conditions share, and of each what is its own."""
    first = next(iter(conditions.values()))
    assert isinstance(first.prompts, Prompts)
    facts = {**run_facts(model, first.prompts, measurements, ()), "conditions": list(conditions)}
    del facts["prompts"], facts["edits"]
    for name, c in conditions.items():
        own = run_facts(c.model or model, c.prompts, measurements, c.edits)  # pyright: ignore[reportArgumentType]
        facts[f"prompts of {name!r}"], facts[f"edits of {name!r}"] = own["prompts"], own["edits"]
        if c.items is not None:
            facts[f"items of {name!r}"] = digest(list(c.items))
        if c.model is not model:
            facts[f"model of {name!r}"] = {
                k: v for k, v in own.items() if k not in ("prompts", "edits", "measurements", "logits")
            }
    return facts


def _tree(
    found: Mapping[str, xr.DataTree], conditions: Mapping[str, Condition], measurements: Measurements, facts: Facts
) -> xr.DataTree:
    described = {
        name: {**{k: found[name].attrs[k] for k in ("model", "prompts")}, "n_prompts": len(c.prompts),
               "edits": [str(e) for e in c.edits]}
        for name, c in conditions.items()
    }  # fmt: skip
    said = {"conditions": json.dumps(described)}
    common = _common_prompts(found, conditions)
    roots = [{str(k): v for k, v in tree.attrs.items() if k not in ("facts", "digests")} for tree in found.values()]
    mark = {"fingerprint": fingerprint(facts), "facts": json.dumps(facts, sort_keys=True)}
    nodes = {"/": xr.Dataset(attrs={**joined(roots), **dataset.own_attributes(roots), **said, **mark})}
    for group in ("prompts", *measurements):
        sets = {name: _with_items(tree.children[group].to_dataset(inherit=False), conditions[name].items)
                for name, tree in found.items()}  # fmt: skip
        if group != "prompts" and common is not None:
            sets = {name: _only(ds, common) for name, ds in sets.items()}
        nodes[f"/{group}"], apart = side_by_side(sets)
        nodes[f"/{group}"].attrs.update(said)
        if common is not None and group != "prompts":
            nodes[f"/{group}"].attrs["left_out"] = (
                "a prompt that is not finite under every condition is left out of values per prompt; sums over prompts "
                "and values of tokens are of the prompts that are finite under their own condition"
            )
        nodes |= {f"/{group}/{name}": ds for name, ds in apart.items()}
    tree = xr.DataTree.from_dict(nodes)
    dataset.check(tree)
    return tree


def _common_prompts(found: Mapping[str, xr.DataTree], conditions: Mapping[str, Condition]) -> np.ndarray | None:
    """Return the prompts that are finite under all conditions; None if these are all, or if prompts make no pairs."""
    documents = [c.prompts.documents for c in conditions.values() if isinstance(c.prompts, Prompts)]
    items = [None if c.items is None else list(c.items) for c in conditions.values()]
    if any(not np.array_equal(documents[0], d) for d in documents) or any(i != items[0] for i in items):
        return None
    finite = np.all([tree["prompts"].to_dataset()["first_nonfinite_layer"] < 0 for tree in found.values()], axis=0)
    return None if finite.all() else np.flatnonzero(finite)


def _with_items(ds: xr.Dataset, items: Sequence[Any] | None) -> xr.Dataset:
    if items is None or "prompt" not in ds.dims:
        return ds
    values = np.array(items, dtype=object if isinstance(items[0], str) else None)[ds["prompt"].values]
    return ds.assign_coords(item=dataset.variable("prompt", values, "what the prompt is about", "1"))


def _only(ds: xr.Dataset, prompts: np.ndarray) -> xr.Dataset:
    return ds.isel(prompt=np.isin(ds["prompt"].values, prompts)) if "prompt" in ds.dims else ds
