"""Draw figures from records: ``python -m figures [NAME ...] --preset P --out runs/figures``.

A figure is drawn from the store that the record ``experiments/results/NAME.PRESET.json`` names, and from nothing else:
if there is none, or the store is of another run than the record says, one line says which command makes it.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import tokinterp as ti
from experiments.__main__ import differing, label, places, preset_of
from experiments.runner import record
from tokinterp import plots
from tokinterp.results.stores import exists

NAMES = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "__main__")
DECIDING = ("experiment", "preset", "commit", "dirty", "created", "settings", "texts", "model", "fingerprints")


def redraw(
    name: str, preset: str, out: Path, runs: Path | None = None, dirty: bool = False,
    kinds: Sequence[str] = ("pdf", "png"),
) -> list[Path]:  # fmt: skip
    """Draw the figure of a record and return the files.

    Parameters
    ----------
    name, preset : str
        Which.
    out : path
        Folder for the figures.
    runs : path, optional
        Folder with record and store, where it is not the usual one.
    dirty : bool
        Draw a record of code that was no commit, too.
    kinds : sequence of str
        Endings of the files.

    Raises
    ------
    ValueError, FileNotFoundError
        If the record or its store is missing, or they are not of one run.
    """
    store, path = places(name, preset, runs)
    plain = preset.partition("+")[0]
    again = f"python -m experiments {name} --preset {plain}" + (f" --out {runs}" if runs else "")
    if not path.exists():
        raise FileNotFoundError(f"there is no record {path.name}: {again} makes it")
    kept = record.read(path)
    if not kept.get("store") or not exists(store):
        raise FileNotFoundError(f"{store} of the record {path.name} is missing: {again} makes it")
    if reason := unfit(kept, name, preset, dirty):
        raise ValueError(f"{path.name} {reason}: {again} --overwrite makes it anew")
    results = ti.read(store)
    said = record.rounded(json.loads(results.attrs.get("record", "{}")))
    if other := [k for k in DECIDING if said.get(k) != kept.get(k)]:
        raise ValueError(
            f"{store} is not that of the record {path.name} ({', '.join(other)} differ): {again} writes the record of "
            "the store, with --overwrite both anew"
        )
    print(f"{name}: {path.name}, commit {str(kept['commit'])[:9]}, {kept['created']}", flush=True)
    fig = import_module(f"figures.{name}").compose(results)
    return [plots.save(fig, out / f"{name}.{preset}.{kind}") for kind in kinds]


def unfit(kept: dict[str, Any], name: str, preset: str, dirty: bool) -> str:
    """Return why a record must not be drawn under this name, in words; empty where it may."""
    if (kept["experiment"], label(kept["preset"], kept["changed"])) != (name, preset):
        return f"is of {kept['experiment']} --preset {kept['preset']} {' '.join(kept['changed'])}".strip()
    if kept["dirty"] is not False and not dirty:
        return f"is of code that is no commit (dirty: {kept['dirty']}); --dirty draws it all the same, or it is run"
    if not kept["changed"] and (other := differing(kept["settings"], preset_of(name, preset).settings())):
        return f"is of other settings ({other})"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code: 1 if a figure could not be drawn."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(NAMES)}); all when left out")
    parser.add_argument("--preset", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder for the figures")
    parser.add_argument("--runs", type=Path, help="folder with records and stores, as python -m experiments --out")
    parser.add_argument("--dirty", action="store_true", help="draw records of changed code, too")
    a = parser.parse_args(arguments)
    if unknown := [n for n in a.names if n not in NAMES]:
        parser.error(f"unknown figure {unknown[0]!r}: choose from {', '.join(NAMES)}")
    code = 0
    for name in a.names or NAMES:
        try:
            for path in redraw(name, a.preset, a.out, a.runs, a.dirty):
                print(path)
        except (ValueError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
