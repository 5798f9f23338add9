"""Run an experiment, keep its results and write its record.

    python -m experiments --list                                     # experiments, presets and their settings
    python -m experiments first_look --preset bundled                # seconds to minutes, on the bundled model
    python -m experiments erasure --preset paper --set train=train.csv --set test=test.csv

The results are written to ``runs/NAME.PRESET.zarr``, the record to ``experiments/results/NAME.PRESET.json``; with
``--out DIR`` both to that folder.  What was measured on the way is kept in ``runs/NAME.PRESET.stages``: the same
command goes on after a crash, and after the end only computes the claims again.  A preset with changed settings is a
run of its own, ``NAME.PRESET+HASH``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import xarray as xr

import tokinterp as ti
from tokinterp.results.stores import exists

from .runner import record
from .runner.preset import Preset, change

NAMES = sorted(f.stem for f in Path(__file__).parent.glob("*.py") if "\nPRESETS = {" in f.read_text(encoding="utf-8"))
RUNS = Path("runs")


def experiment(name: str) -> Any:
    """Return the module of an experiment."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is no experiment: there are {', '.join(NAMES)}")
    return import_module(f"experiments.{name}")


def preset_of(name: str, preset: str) -> Preset:
    """Return a preset of an experiment."""
    known = experiment(name).PRESETS
    if preset not in known:
        raise ValueError(f"--preset {preset!r}: {name} has {', '.join(known)}")
    return known[preset]


def places(name: str, preset: str, out: Path | None) -> tuple[Path, Path]:
    """Return where the store and the record of a run are."""
    return (out or RUNS) / f"{name}.{preset}.zarr", (out or record.RECORDS) / f"{name}.{preset}.json"


def label(preset: str, changes: Sequence[str]) -> str:
    """Return the name of a preset with changed settings, by which its files are called."""
    return preset + (f"+{hashlib.sha256(json.dumps(sorted(changes)).encode()).hexdigest()[:6]}" if changes else "")


def run(
    name: str, preset: str, changes: Sequence[str] = (), out: Path | None = None, *, overwrite: bool = False,
    given: Preset | None = None,
) -> Path:  # fmt: skip
    """Run an experiment, or read its finished run, and write the record.

    Parameters
    ----------
    name, preset : str
        Which.
    changes : sequence of str
        ``"key=value"``, settings that differ from the preset's.
    out : path, optional
        Folder for store and record; ``runs`` and ``experiments/results`` by default.
    overwrite : bool
        Make a finished run again.
    given : Preset, optional
        Settings instead of those of that name, perhaps with a model and texts in memory.

    Returns
    -------
    Path
        Of the record.

    Raises
    ------
    ValueError
        For an unknown experiment, preset or setting, or if the finished run is of other settings.
    """
    module = experiment(name)
    p = change(preset_of(name, preset), changes) if given is None else given
    store, path = places(name, label(preset, changes), out)
    stages = store.with_suffix(".stages")
    if exists(store) and overwrite:
        for folder in (stages, store):
            shutil.rmtree(folder, ignore_errors=True)
    if exists(store):
        said = json.loads(ti.read(store).attrs["record"])
        other = differing(said["settings"], p.settings())
        if other:
            raise ValueError(f"{store} is of other settings ({other}): move it away, or replace it with --overwrite")
        print(f"{store} is finished: read; --overwrite makes it again", flush=True)
    else:
        said = record.begin(name, preset, p, changes)
        with record.started(stages, said) as starts:
            results = module.run(p, stages)
        said = record.end(said, p, results, starts)
        write(results, said, store)
    results = record.datasets(ti.read(store))
    return record.write(record.finished(said, module.CLAIMS, results, store), path)


def write(results: dict[str, xr.Dataset], said: dict[str, Any], store: Path) -> None:
    """Write the results of a run, with how it began in their attributes."""
    tree = xr.DataTree.from_dict(results)
    tree.attrs = {k: v for k, v in next(iter(results.values())).attrs.items() if k != "measurement"}
    tree.attrs["record"] = json.dumps(said)
    ti.check(tree)
    ti.write(tree, store, overwrite=True)


def differing(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Return which settings differ, in words; empty where none does.

    Examples
    --------
    >>> differing({"limit": 4, "seed": 0}, {"limit": 24, "seed": 0})
    'limit: 4, now 24'
    """
    then, now = record.rounded(then), record.rounded(now)
    return ", ".join(
        f"{k}: {then.get(k)}, now {now.get(k)}" for k in then.keys() | now.keys() if then.get(k) != now.get(k)
    )


def listed(names: Sequence[str]) -> str:
    """Return experiments with their settings, and of each preset in one line what differs from the first."""
    lines = []
    for name in names:
        module = experiment(name)
        first, *others = module.PRESETS
        settings = [f.name for f in fields(module.PRESETS[first])]
        lines.append(f"{name}: {(module.__doc__ or '').split(chr(10))[0]}")
        lines += textwrap.wrap(f"settings: {', '.join(settings)}", 118, initial_indent="  ", subsequent_indent="    ")
        lines.append(f"  --preset {first}")
        for preset in others:
            usual, own = module.PRESETS[first], module.PRESETS[preset]
            pairs = [(k, getattr(own, k)) for k in settings if getattr(own, k) != getattr(usual, k)]
            said = f"--preset {preset}: " + ", ".join(f"{k}={v}" for k, v in pairs)
            lines.append("  " + textwrap.shorten(said, 116, placeholder=" ..."))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all when left out")
    parser.add_argument("--preset", default="bundled")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--out", type=Path, help="folder for stores and records")
    parser.add_argument("--overwrite", action="store_true", help="make a finished run again")
    parser.add_argument("--list", action="store_true", help="say what there is and what can be set")
    a = parser.parse_args(arguments)
    try:
        if a.list:
            print(listed(a.names or NAMES))
            return 0
        if a.set and len(a.names) != 1:
            raise ValueError("--set changes the settings of one experiment: name it")
        Preset.progress = sys.stderr.isatty()
        for name in a.names or NAMES:
            path = run(name, a.preset, a.set, a.out, overwrite=a.overwrite)
            for row in record.read(path)["claims"]:
                print(f"  {row['verdict']}: {row['claim']}")
            print(path, flush=True)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
