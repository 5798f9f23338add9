"""The same measurements on text without order, on random tokens, and on a network that has learned nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..models.base import Model
from ..models.steady import steady
from ..results import dataset
from ..results.contrasts import along
from ..results.documents import with_documents
from ..results.summary import concat_models
from ..settings import checked, count, several, string
from ..text.prompts import Prompts
from ..text.shuffle import random_ids, shuffle_blocks, shuffle_words
from .conditions import Condition, kept, plain, run_each
from .edits import Edit
from .engine import run_facts, store_path
from .facts import Facts, fingerprint
from .loop import Measurements
from .signals import at_once

NULLS = ("none", "shuffle:S", "shuffle_words", "random_ids", "untrained")
DEFAULT = ("none", "shuffle:5", "random_ids", "untrained")


@at_once()
@checked(nulls=several(string, 1, once=True) | string, replicates=count(1))
@steady
def measure_nulls(
    model: Model,
    prompts: Prompts | Sequence[str],
    measurements: Measurements,
    nulls: Sequence[str] = DEFAULT,
    *,
    seed: int = 0,
    replicates: int = 1,
    store: str | Path | None = None,
    **options: Any,
) -> xr.DataTree:
    """Measure prompts and what they are to be compared with, side by side along a dimension ``null``.

    Parameters
    ----------
    model, prompts, measurements
        As for `measure`.
    nulls : sequence of str
        ``"none"``: the prompts themselves; ``"shuffle:S"``: 4**S blocks of tokens in random order (S = 5 for 1,024
        tokens: every token; ``"shuffle:0"`` is the text itself); ``"shuffle_words"``; ``"random_ids"``: different
        random tokens; ``"untrained"``: the prompts, in the same network with weights as before training.
    seed : int
        Of everything that is drawn.
    replicates : int
        Draws of each null, along a dimension ``replicate`` (only if more than 1; ``"none"`` and ``"shuffle:0"`` are the
        same in all).
    store : path, optional
        zarr folder for the result.  Each null is kept in a folder of its own beside it, ``STORE.nulls``, until all are
        there: the same call after a crash goes on.
    **options
        Further arguments of `measure` (``batch_tokens``, ``progress``, ``edits``, ...).

    Returns
    -------
    xarray.DataTree
        One group per measurement.  Values per token, and lists of found things of any length, are left out: tokens
        differ between the nulls.

    Raises
    ------
    ValueError
        For an unknown null, or what `measure` refuses.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. Paris is in France, they say."], model)
    >>> asked = {"cosine": ti.geometry.CosineSimilarity(layers=[4])}
    >>> run = ti.measure_nulls(model, prompts, asked, ("none", "shuffle:5"), progress=False)
    >>> run["cosine"]["null"].values.tolist()
    ['none', 'shuffle:5']
    """
    nulls = [nulls] if isinstance(nulls, str) else list(nulls)
    for null in nulls:
        if null not in NULLS and not re.fullmatch(r"shuffle:\d{1,2}", null):
            raise ValueError(f"nulls={null!r}: the nulls are {', '.join(NULLS)}, S from 0 on")
    if "share" in options:
        raise ValueError("share: nulls are not run in shares; give each machine other nulls")
    tied = [name for name, m in measurements.items() if getattr(m, "classes", None)]
    if tied and {*nulls} - {"none", "shuffle:0", "untrained"}:
        raise ValueError(f"{tied[0]} has classes= for the tokens of the text: they do not fit tokens in another order")
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    path = None if store is None else store_path(store)
    edits = tuple(options.pop("edits", ()))
    facts = {
        **run_facts(model, prompts, measurements, edits),
        "nulls": nulls, "seed": seed, "replicates": replicates,
    }  # fmt: skip

    def make(home: Path | None) -> xr.DataTree:
        drawn: list[dict[str, xr.Dataset]] = []
        for k in range(replicates):
            here: dict[str, dict[str, xr.Dataset]] = {}
            for null in nulls:  # one at a time: of each only what can be compared stays in memory
                name = f"{null}.{k}" if k else null
                made = {name: partial(_condition, model, prompts, null, seed + k, edits)}
                found = run_each(model, made, measurements, home, {name: plain(name)}, options) or {}
                sets = {m: found[name].children[m].to_dataset(inherit=False) for m in measurements}
                # Drawn texts are no text of a document, but what is drawn of the windows of one belongs together.
                here[null] = {m: with_documents(comparable(ds), prompts) for m, ds in sets.items()}
            drawn.append({m: along_nulls({n: here[n][m] for n in nulls}) for m in measurements})
        tree = xr.DataTree.from_dict({m: _along_replicates([d[m] for d in drawn], seed) for m in measurements})
        sources = [ds.attrs for ds in tree.children.values()]
        tree.attrs = {**_root_attrs(model, prompts, facts, seed, edits), **dataset.own_attributes(sources)}
        dataset.check(tree)
        return tree

    return kept(path, "nulls", "measure_nulls", facts, make)


def _condition(model: Model, prompts: Prompts, null: str, seed: int, edits: Sequence[Edit]) -> Condition:
    network, texts = draw_null(model, prompts, null, seed)
    return Condition(texts, edits, network)


def draw_null(model: Any, prompts: Prompts, null: str, seed: int = 0) -> tuple[Any, Prompts]:
    """Return the model and the prompts of a null.

    Parameters
    ----------
    model, prompts
        What it is a null of.
    null : str
        See `measure_nulls`.
    seed : int
        Of the draw.
    """
    if null == "untrained":
        from ..models.untrained import untrained

        return untrained(model, seed), prompts
    if null == "random_ids":
        return model, random_ids(prompts, seed)
    if null == "shuffle_words":
        return model, shuffle_words(prompts, seed)
    if null.startswith("shuffle:"):
        level = int(null.partition(":")[2])
        return model, shuffle_blocks(prompts, level, seed) if level else prompts
    return model, prompts


def along_nulls(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put the results of all nulls side by side along ``null``; the attributes are those of the first."""
    out = along(results, "null", "what the text or the network is replaced by")
    first = next(iter(results.values())).attrs
    out.attrs = {**out.attrs, **{k: first[k] for k in ("model", "weights", "revision") if k in first}}
    return out


def comparable(ds: xr.Dataset) -> xr.Dataset:
    """Return a result without its values per token, whose places mean other things in another text."""
    return ds.drop_dims(["token", "span", "vocab"], errors="ignore")


def _along_replicates(sets: list[xr.Dataset], seed: int) -> xr.Dataset:
    if len(sets) == 1:
        return sets[0]
    out = concat_models({str(seed + i): ds for i, ds in enumerate(sets)}).rename(model="replicate")
    numbers = np.arange(seed, seed + len(sets))
    out = out.assign_coords(replicate=dataset.variable("replicate", numbers, "seed of the draw", "1"))
    out.attrs.update({k: sets[0].attrs[k] for k in ("model", "weights", "revision") if k in sets[0].attrs})
    return out


def _root_attrs(model: Model, prompts: Prompts, facts: Facts, seed: int, edits: Sequence[Edit]) -> dict[str, Any]:
    attrs = dataset.provenance(model.info, prompts, facts["measurements"], fingerprint(facts), seed, edits)
    return {**attrs, "facts": json.dumps(facts, sort_keys=True)}
