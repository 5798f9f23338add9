"""Redraw every figure: ``python -m figures [first_look ...] --out runs/figures``.

Results are read from ``runs/NAME.zarr``; where they are missing, the experiment of that name is run first, on bundled
model and texts.  A result that lies elsewhere is drawn by ``python -m figures NAME --store FILE``, as those that
experiments/RESULTS.md names.  What a figure was drawn from is printed.
"""

from __future__ import annotations

import argparse
import pkgutil
from importlib import import_module
from pathlib import Path

import tokinterp as ti
from tokinterp import plots

NAMES = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "__main__")


def redraw(
    name: str, out: Path, runs: Path = Path("runs"), small: bool = False, store: Path | None = None
) -> list[Path]:  # fmt: skip
    """Draw one figure as PDF and PNG and return the files."""
    named = store is not None
    store = store or runs / f"{name}{'_small' if small else ''}.zarr"
    if named or store.exists():
        results = ti.read(store)
    else:
        print(f"{store} is missing: running experiments/{name}.py", flush=True)
        results = import_module(f"experiments.{name}").run(out=store, small=small)
    made = {k: results.attrs.get(k) or "unknown" for k in ("model", "created", "git_commit")}
    print(f"{name}: {store}, " + ", ".join(f"{k} {v}" for k, v in made.items()), flush=True)
    fig = import_module(f"figures.{name}").draw(results)
    return [plots.save(fig, out / f"{name}.{kind}") for kind in ("pdf", "png")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ({', '.join(NAMES)}); all when left out")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder for the figures")
    parser.add_argument("--small", action="store_true", help="from tiny runs, to see that everything draws")
    parser.add_argument("--store", type=Path, help="result to draw, of the one experiment named")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in NAMES]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}: choose from {', '.join(NAMES)}")
    if args.store is not None and (len(args.names) != 1 or args.small):
        parser.error("--store is the result of one experiment: name it, and leave --small out")
    for name in args.names or NAMES:
        for path in redraw(name, args.out, small=args.small, store=args.store):
            print(path)


if __name__ == "__main__":
    main()
