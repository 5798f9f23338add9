"""Runs over different prompts as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..settings import checked, instance, one_of, several
from ..settings.describe import hash_json
from .dataset import check, own_attributes
from .stamp import joined

ROWS = ("prompt", "token", "span")
"""Dimensions along which runs over different prompts are put behind each other."""
SAME = ("identity", "backend", "dtype", "tokenizer", "measurement", "parameters", "edits")
"""Attributes in which runs that are joined may not differ."""


@checked(runs=several(instance("DataTree"), 2), pooled=one_of("error", "drop"), repeated=one_of("error", "keep"))
def join_runs(runs: Sequence[xr.DataTree], pooled: str = "error", repeated: str = "error") -> xr.DataTree:
    """Return runs of the same measurements over different prompts as one run; prompts and documents are renumbered.

    Values of single prompts, tokens and spans are put behind each other. What was worked out over all prompts of a run
    together (sums, fits, corpus means) cannot be had from the parts.

    Parameters
    ----------
    runs : sequence of DataTree
        Results of `measure` with one model and the same settings.
    pooled : {"error", "drop"}
        What happens to values over all prompts together: refused, or left out of the result.
    repeated : {"error", "keep"}
        What happens if a prompt of one run is in another, too, token by token: refused, or counted in each of them,
        which the history says.

    Raises
    ------
    ValueError
        If the runs have other results, another model or other settings (named), a prompt in common, or values over all
        prompts together.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, asked = ti.load_model(), {"curvature": ti.geometry.Curvature(layers=[0, 4])}
    >>> texts = (["The Nile flows north."], ["Paris is in France.", "It rains."])
    >>> whole = join_runs([ti.measure(model, t, asked, progress=False) for t in texts], pooled="drop")
    >>> whole["curvature"]["prompt"].values
    array([0, 1, 2])
    """
    names = [sorted(run.children) for run in runs]
    if differing := next((n for n in names if n != names[0]), None):
        raise ValueError(f"runs: one has the results {', '.join(names[0])}, another {', '.join(differing)}")
    prompts = [str(run.attrs.get("prompts")) for run in runs]
    if len({*prompts}) < len(prompts):
        raise ValueError(f"runs: two are of the same prompts ({prompts[0][:8]}): each prompt would count twice")
    again = _repeated(runs)
    if again and repeated == "error":
        raise ValueError(f"runs: {again}: each counts twice; measure the others alone, or say so (repeated='keep')")
    counts = [{"prompt": _after(run, "prompt"), "document": _after(run, "document")} for run in runs]
    starts = [{k: sum(c[k] for c in counts[:n]) for k in ("prompt", "document")} for n in range(len(runs))]
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=_attributes([run.attrs for run in runs], again))}
    for name in runs[0].children:
        sets = _documents([_group(run, name) for run in runs])
        if any(run.children[name].children for run in runs):
            raise ValueError(f"runs: {name} holds conditions; join the runs of one condition each")
        found = _join(name, [_renumber(ds, at) for ds, at in zip(sets, starts, strict=True)], pooled)
        if found.data_vars:
            nodes[f"/{name}"] = found.assign_attrs(_attributes([ds.attrs for ds in sets], again))
    tree = xr.DataTree.from_dict(nodes)
    check(tree)
    return tree


def _repeated(runs: Sequence[xr.DataTree]) -> str:
    """Return in words which prompts of a run are in an earlier one, too; empty if none is, as far as the runs say."""
    where: dict[int, tuple[int, int]] = {}
    found = []
    for n, run in enumerate(runs):
        table = _group(run, "prompts") if "prompts" in run.children else xr.Dataset()
        if "prompt_hash" not in table:
            continue
        marks = list(zip(table["prompt_hash"].values.tolist(), table["prompt"].values.tolist(), strict=True))
        found += [(where[mark], (n, int(p))) for mark, p in marks if mark in where]
        where |= {mark: (n, int(p)) for mark, p in marks if mark not in where}
    if not found:
        return ""
    (a, p), (b, q) = found[0]
    return f"{len(found)} prompts are in two of them (prompt {q} of run {b} is prompt {p} of run {a})"


def _attributes(attrs: Sequence[Mapping[Any, Any]], again: str) -> dict[str, Any]:
    plain = [{str(k): v for k, v in a.items() if k not in ("facts", "digests", "command")} for a in attrs]
    for key in SAME:
        if len(values := {repr(a.get(key)) for a in plain}) > 1:
            raise ValueError(f"runs: they differ in {key}: {' and '.join(sorted(values))[:200]}")
    marks = [str(a.get("fingerprint")) for a in plain]
    own = {"fingerprint": hash_json(["join_runs", *marks]), "prompts": hash_json([a.get("prompts") for a in plain])}
    history = f"joined from {len(plain)} runs: {', '.join(marks)}{again and f'; {again}'}"
    return {**joined(plain), **own_attributes(plain), **own, "history": history}


def _group(run: xr.DataTree, name: str) -> xr.Dataset:
    return run.children[name].to_dataset(inherit=False)


def _documents(sets: list[xr.Dataset]) -> list[xr.Dataset]:
    """Return results that all have documents where one has: a prompt that is no window is a document of its own."""
    for name, dim in (("document", "prompt"), ("token_document", "token"), ("span_document", "span")):
        if any(name in ds.coords for ds in sets):
            numbers = [next((c for c in (f"{dim}_prompt", "prompt") if c in ds.coords and ds[c].dims == (dim,)), None)
                       for ds in sets]  # fmt: skip
            sets = [ds if name in ds.coords or number is None else ds.assign_coords({name: ds[number].variable})
                    for ds, number in zip(sets, numbers, strict=True)]  # fmt: skip
    return sets


def _after(run: xr.DataTree, what: str) -> int:
    """Return how many prompts, or documents, there are, as far as the run says."""
    table = _group(run, "prompts") if "prompts" in run.children else xr.Dataset()
    column = what if what in table.coords else "prompt"
    if column not in table.coords:
        raise ValueError("runs: one has no table of its prompts: give results of measure()")
    return int(table[column].max()) + 1


def _renumber(ds: xr.Dataset, at: Mapping[str, int]) -> xr.Dataset:
    new = {}
    for c in ds.coords:
        what = str(c).removeprefix("token_").removeprefix("span_")
        if what in at:
            new[c] = ds[c].copy(data=ds[c].values + at[what])
    return ds.assign_coords(new)


def _join(name: str, sets: Sequence[xr.Dataset], pooled: str) -> xr.Dataset:
    """Return one result of renumbered ones."""
    first, out, whole = sets[0], {}, []
    for v in dict.fromkeys(str(v) for ds in sets for v in ds.variables):
        columns = [ds.variables.get(v) for ds in sets]
        there = [c for c in columns if c is not None]
        row = next((d for d in ROWS if d in there[0].dims), None)
        if len(there) < len(sets):
            raise ValueError(f"runs: not all have {v!r} of {name}: measure with the same settings")
        if row is not None:
            out[v] = xr.Variable.concat(there, row)
        elif v.startswith("vocab") and v not in first.data_vars:
            continue
        elif v in first.data_vars:
            whole.append(v)
        elif any(not c.equals(there[0]) for c in there):
            raise ValueError(f"runs: they differ in {v!r} of {name}: choose the same first")
        else:
            out[v] = there[0]
    if first.attrs.get("readings"):
        whole += [v for v in out if v in first.data_vars]
    if whole and pooled == "error":
        raise ValueError(
            f"runs: {', '.join(whole)} of {name} are over all prompts of a run together and cannot be joined: measure "
            "all prompts in one run (in shares, if need be), or leave them out (pooled='drop')"
        )
    found = xr.Dataset({v: x for v, x in out.items() if v in first.data_vars and v not in whole})
    used = {d for v in found.data_vars.values() for d in v.dims}
    found = found.assign_coords({v: x for v, x in out.items() if v in first.coords and {*x.dims} <= used})
    return _vocabulary(found, sets)


def _vocabulary(found: xr.Dataset, sets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Add what the token ids of any of the results stand for."""
    if "vocab_text" not in sets[0].coords:
        return found
    strings = {i: t for ds in sets for i, t in zip(ds["vocab"].values, ds["vocab_text"].values, strict=True)}
    ids = np.array(sorted(strings))
    texts = np.array([strings[i] for i in ids], dtype=object)
    vocab, text = sets[0]["vocab"], sets[0]["vocab_text"]
    return found.assign_coords(
        vocab=xr.Variable("vocab", ids, vocab.attrs), vocab_text=xr.Variable("vocab", texts, text.attrs)
    )
