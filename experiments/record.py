"""What every result of an experiment is written with: the command that was run, the code, the texts; and stages kept.

A record is a small JSON file under ``results/``: `about` says where it comes from, `write` writes it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.files.whole import write_text
from tokinterp.results.dataset import git_commit, own_attributes, versions
from tokinterp.results.stores import exists
from tokinterp.run.checkpoint import compare_facts

PROVENANCE = (
    "model", "revision", "weights", "tokenizer", "prompts", "dtype", "device", "seed", "fingerprint", "git_commit",
    "created",
)  # fmt: skip


def about(name: str, attrs: Mapping[Any, Any] | None = None) -> dict[str, Any]:
    """Return what a record begins with.

    Parameters
    ----------
    name : str
        Of the experiment.
    attrs : mapping, optional
        Attributes of the result: model, hash of the texts and so on are taken from them, under ``provenance``.  Its
        commit is that under which the numbers came out, which is older where a stage was kept.

    Returns
    -------
    dict
        ``experiment``, ``command`` (see `command`), ``commit`` of the code that runs, ``dirty`` (whether that code was
        changed since; None where there is no repository), ``created``, ``versions``, ``provenance``.
    """
    commit = git_commit()
    return {
        "experiment": name, "command": command(), "commit": commit.rstrip("+") or None,
        "dirty": commit.endswith("+") if commit else None, "created": own_attributes()["created"],
        "versions": json.loads(versions()),
        "provenance": {n: attrs[n] for n in PROVENANCE if n in attrs} if attrs else {},
    }  # fmt: skip


def command(words: Sequence[str] | None = None, data: str | None = None) -> str:
    """Return the command that this process runs, as it was given, but without folders of this machine.

    Parameters
    ----------
    words : sequence of str, optional
        The command; that of this process by default.
    data : str, optional
        Folder that is written ``$TOKINTERP_DATA``; by default the one that this variable names.  Of other paths that
        do not lie in the current folder, only the name is kept.

    Examples
    --------
    >>> command(["/usr/bin/python3", "-m", "experiments.erasure", "--test", "/data/a b.csv"], data="/data")
    "python -m experiments.erasure --test $TOKINTERP_DATA/'a b.csv'"
    """
    first, *rest = sys.orig_argv if words is None else words
    folder = (os.environ.get("TOKINTERP_DATA") or None) if data is None else data
    program = "python" if PurePath(first).name.startswith("python") else PurePath(first).name
    return " ".join([program, *(_portable(w, folder) for w in rest)])


def _portable(word: str, data: str | None) -> str:
    """Return a word of a command as the shell wants it, without folders of this machine."""
    option, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path, here = PurePath(value), Path.cwd()
    if not path.is_absolute():
        return shlex.quote(word)
    if data and path.is_relative_to(data):
        inner = path.relative_to(data).as_posix()
        return option + sign + "$TOKINTERP_DATA" + ("" if inner == "." else f"/{shlex.quote(inner)}")
    kept = path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    return option + sign + shlex.quote(kept)


def write(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write a record with four significant digits, everything that fits on one line as one; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_json(rounded(record)) + "\n")
    return path


def as_json(value: Any, indent: int = 0) -> str:
    """Return JSON with mappings and nested lists spread over lines, and everything that fits on one line as one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(flat) + indent <= 118:
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + as_json(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
    rows = (f"{pad}{json.dumps(k, ensure_ascii=False)}: {as_json(v, indent + 1)}" for k, v in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def rounded(value: Any) -> Any:
    """Return JSON types with four significant digits, None for NaN.

    Examples
    --------
    >>> rounded({"a": np.array([0.123456, np.nan]), 2: (np.int64(3), True)})
    {'a': [0.1235, None], '2': [3, True]}
    """
    if isinstance(value, Mapping):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, float | np.floating):
        return None if not np.isfinite(value) else float(f"{value:.4g}")
    return int(value) if isinstance(value, np.integer) else value


# -- stages ---------------------------------------------------------------------------------------------------
def beside(out: str | Path | None, what: str) -> Path | None:
    """Return the path of something kept beside a result; two results never share it.

    Examples
    --------
    >>> beside("runs/a.zarr", "none.zarr").name, beside("runs/a.v1", "none.zarr").name
    ('a.none.zarr', 'a.v1.none.zarr')
    """
    if out is None:
        return None
    path = Path(out)
    return path.with_name(f"{path.name.removesuffix('.zarr')}.{what.replace(':', '_')}")


def kept(store: Path | None, facts: Mapping[str, Any], make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """Return what is kept of a stage that is no call of `tokinterp.measure`; if nothing is, make it and keep it.

    Parameters
    ----------
    store : path or None
        Where it is kept; None to keep nothing.
    facts : mapping
        All that decides its numbers, as JSON types.
    make : callable
        Makes it.

    Raises
    ------
    ValueError
        If what is there was made of something else (names what).
    """
    if store is None:
        return make()
    if exists(store):
        (node,) = ti.read(store).children.values()
        ds = node.to_dataset(inherit=False)
        compare_facts(json.loads(ds.attrs.pop("facts", "{}")), dict(facts), store)
        return ds
    ds = make()
    tree = xr.DataTree.from_dict({"stage": ds.assign_attrs(facts=json.dumps(dict(facts), sort_keys=True))})
    tree.attrs = dict(ds.attrs)
    ti.write(tree, store)
    return ds
