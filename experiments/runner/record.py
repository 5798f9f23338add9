"""What every result is written with: the command that was run, code, model, texts, claims; and stages kept.

A record is a small JSON file, ``results/NAME.PRESET.json``; its store has the same beginning in its attributes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.files.whole import write_text
from tokinterp.results.dataset import commits, git_commit, own_attributes, versions
from tokinterp.results.stores import exists
from tokinterp.run.facts import compare_facts

from .claims import Claim, Results, evaluate
from .preset import Preset

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "experiments" / "results"
MADE = ("RESULTS.md", "results/")
"""What is made from results, below experiments/: a change of it is none of the code."""


def about(name: str) -> dict[str, Any]:
    """Return what every record begins with.

    Returns
    -------
    dict
        ``experiment``, ``command`` (see `command`), ``commit`` of the code that runs, ``dirty`` (whether that code was
        changed since; None where there is no repository), ``created``, ``versions``.
    """
    commit = git_commit().rstrip("+")
    return {
        "experiment": name, "command": command(), "commit": commit or None, "dirty": changed() if commit else None,
        "created": own_attributes()["created"], "versions": json.loads(versions()),
    }  # fmt: skip


def changed() -> bool:
    """Whether a file of the code differs from the commit (results and the page that is made of them are no code)."""
    call = ["git", "-C", str(ROOT), "status", "--porcelain", "-uno", "--", "."]
    call += [f":(exclude)experiments/{name}" for name in MADE]
    return bool(subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip())


# -- records of experiments -----------------------------------------------------------------------------------
def begin(name: str, preset: str, p: Preset, changes: Sequence[str]) -> dict[str, Any]:
    """Return the beginning of a record, before the run: what is asked, and of which code."""
    return {**about(name), "preset": preset, "changed": list(changes), "settings": p.settings()}


def end(said: Mapping[str, Any], p: Preset, results: Results, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the store of a run is written with: how it began, and the model, texts and results it came to.

    Seconds are those of all starts; a run is of changed code if one of its starts was.  Commits of stages end with
    ``+`` where the tree was changed.
    """
    info = vars(p).get("lm") and p.lm.info
    first = next(iter(results.values())).attrs
    stages = {c for ds in results.values() for c in commits(ds.attrs)}
    names = ("id", "revision", "identity", "weights", "tokenizer", "dtype", "backend")
    return {
        **said, "dirty": None if said["dirty"] is None else any(s["dirty"] for s in starts),
        "seconds": round(sum(s["seconds"] for s in starts), 1), "starts": len(starts), "texts": p.hashes(),
        "model": {n: getattr(info, n) for n in names} if info else None,
        "device": info.device if info else first.get("device"), "seeds": seeds(p),
        "stages_of_other_commits": sorted(
            c for c in stages if re.fullmatch("[0-9a-f]{40}[+]?", c) and c not in (said["commit"], git_commit())
        ),
        "fingerprints": {n: ds.attrs["fingerprint"] for n, ds in results.items()},
    }  # fmt: skip


def seeds(p: Preset) -> list[int]:
    """Return the seeds of everything that a preset draws."""
    several = getattr(p, "seeds", None)
    return list(several) if isinstance(several, tuple) else [p.seed]


def finished(said: Mapping[str, Any], claims: Sequence[Claim], results: Results, store: Path) -> dict[str, Any]:
    """Return the record: what the store was written with, and every claim with numbers and verdict.

    Where the claims are computed by other code than the results, its commit is said too.
    """
    now = about(said["experiment"])
    other = {"commit": now["commit"], "dirty": now["dirty"]}
    by = {} if other == {k: said[k] for k in other} else {"claims_computed_by": other}
    model = (said.get("model") or {}).get("id", "")
    lacking = [] if said["texts"] else ["texts: none were read, all examples are drawn"]
    return {**said, **by, "store": shown(store), "lacking": lacking, "claims": evaluate(claims, results, model)}


def shown(path: Path) -> str:
    """Return a path as it is written in a record: within the current folder, else its name."""
    path = path.absolute()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def read(path: Path) -> dict[str, Any]:
    """Return a record."""
    return json.loads(path.read_text(encoding="utf-8"))


def datasets(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the results of a store by name."""
    nodes = {n.path.strip("/"): n.to_dataset(inherit=False) for n in tree.subtree}
    return {name: ds for name, ds in nodes.items() if name and ds.variables}


# -- commands -------------------------------------------------------------------------------------------------
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
    >>> command(["/usr/bin/python3", "-m", "experiments", "erasure", "--out", "/data/a b"], data="/data")
    "python -m experiments erasure --out $TOKINTERP_DATA/'a b'"
    """
    first, *rest = sys.orig_argv if words is None else words
    folder = (os.environ.get("TOKINTERP_DATA") or None) if data is None else data
    program = "python" if PurePath(first).name.startswith("python") else PurePath(first).name
    return " ".join([program, *(_portable(w, folder) for w in rest)])


def _portable(word: str, data: str | None) -> str:
    """Return a word of a command as the shell wants it, without folders of this machine."""
    option, sign, value = word.partition("=") if re.match(r"[\w-]+=", word) else ("", "", word)
    return option + sign + ",".join(_short(path, data) for path in value.split(","))


def _short(word: str, data: str | None) -> str:
    path, here = PurePath(word), Path.cwd()
    if not path.is_absolute():
        return shlex.quote(word) if word else ""
    if data and path.is_relative_to(data):
        inner = path.relative_to(data).as_posix()
        return "$TOKINTERP_DATA" + ("" if inner == "." else f"/{shlex.quote(inner)}")
    return shlex.quote(path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name)


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


# -- starts ---------------------------------------------------------------------------------------------------
@contextmanager
def started(stages: Path, said: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Keep in the folder of a run when each of its starts began, how long it took, and of which code it was.

    Yields the starts before and this one, which has its seconds after the block.  One that was killed lasted until the
    last file of the folder was written.
    """
    file = stages / "starts.json"
    before: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for s in before:
        if s["seconds"] is None:
            times = [f.stat().st_mtime for f in stages.rglob("*") if f.is_file()]
            s["seconds"] = max(0.0, max(times) - s["began"])
    now = {"began": time.time(), "seconds": None, "commit": said["commit"], "dirty": said["dirty"]}
    starts = [*before, now]
    stages.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(starts))
    try:
        yield starts
    finally:
        now["seconds"] = time.time() - now["began"]
        write_text(file, json.dumps(starts))


# -- stages ---------------------------------------------------------------------------------------------------
def stage(folder: Path | None, name: str) -> Path | None:
    """Return the path of a stage in the folder of a run, None where nothing is kept."""
    return None if folder is None else folder / name.replace(":", "_")


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
