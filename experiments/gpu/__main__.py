"""All that needs a GPU, in the time there is.

    python -m experiments.gpu --minutes 9 --out experiments/results/gpu --data DATA
    python -m experiments.gpu --minutes 9 --steps c,d                # later: goes on where it was stopped
    python -m experiments.gpu --minutes 5 --device cpu --tiny        # see that everything runs
    python -m experiments.gpu --list                                 # CUDA paths, wheels; starts nothing

Each step runs in a process of its own, so that one that fails or hangs costs no other; its JSON is written row by row.
A step that is done is skipped while code and card are the same (``--again``: not).  Steps: a the tests marked gpu;
b (``ceilings llama clouds probes match3``) speed against the card's own limits; c (``narrow full``) the bundled models;
d (``dots``) dot by dot.  c and d take the time that is left, and take it up again when they are asked again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .children import run_child
from .lists import ROOT, cuda_paths, pip_line, wheels
from .steps import LEAST, STEPS, Step, chosen, share

RESULTS = Path("experiments/results/gpu")
MACHINE = Step("experiments.gpu.machine", "", limit=120)


def main(argv: Sequence[str] | None = None, steps: Mapping[str, Step] = STEPS) -> int:
    """Run the steps; return 0 if none failed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--out", type=Path, default=RESULTS, help="small JSON, one a step")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="networks, states and logs")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install (without network) into --work first")
    parser.add_argument("--data", type=Path, default=Path("runs/bundled"), help="tokenised text: narrow/ and full/")
    parser.add_argument("--steps", default="a,b,c", help="letters or names, with commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that everything runs")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--pack", type=Path, help="after each step, also write all that is small to few files there")
    parser.add_argument("--commit", default="", help="to record, where there is no git")
    parser.add_argument("--list", action="store_true", help="print CUDA paths and missing wheels; start nothing")
    a = parser.parse_args(argv)
    if a.list:
        print(lists())
        return 0
    try:
        names = chosen(a.steps, steps)
    except ValueError as error:
        parser.error(str(error))
    deadline = began + 60 * a.minutes
    env = install(a.wheels, a.work / "site") if a.wheels else {}
    if a.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    facts = {
        "device": a.device, "tiny": a.tiny, "out": str(a.out), "work": str(a.work), "data": str(a.data),
        "command": command_line(argv), "commit": a.commit or commit(), "code": code(), "again": a.again,
    }  # fmt: skip
    said = start("machine", MACHINE, MACHINE.limit, facts, env)
    if said:
        print(f"machine: {said}\nnothing was started; without a GPU, --device cpu --tiny tries the command")
        return 2
    card = record(a.out, "machine")["card"]
    if absent := record(a.out, "machine")["rows"]["packages"]["absent"]:
        print(f"missing here: {', '.join(absent)}; {pip_line(absent)}")
    print(f"{card}; {a.minutes:g} minutes for {', '.join(names)}", flush=True)
    outcome: dict[str, str] = {}
    for i, name in enumerate(names):
        before, step = record(a.out, name), steps[name]
        stands = all(before.get(k) == v for k, v in {"code": facts["code"], "card": card, "tiny": a.tiny}.items())
        if stands and before.get("status") == "done" and not a.again:
            outcome[name] = "done before"
        else:
            seconds = share(name, names[i:], steps, deadline - time.monotonic() - 5)
            if seconds < (LEAST if step.weight and not a.tiny else 5):
                outcome[name] = "not started: no time left for it in this call"
            else:
                outcome[name] = start(name, step, seconds, facts, env) or record(a.out, name)["status"]
        print(f"{name}: {outcome[name]} ({time.monotonic() - began:.0f} s)", flush=True)
        packed(a)
    summarise(a.out, outcome, facts, card)
    for name in packed(a):
        print(f"too large to be packed, only here: {name}")
    return int(any(not x.startswith(("done", "unfinished", "not started")) for x in outcome.values()))


def packed(a: argparse.Namespace) -> list[str]:
    """Pack what there is, if that was asked for; return what was left behind."""
    if a.pack is None:
        return []
    from .pack import pack

    try:
        return pack(a.out, a.work, a.pack)
    except OSError as error:
        print(f"--pack {a.pack}: {error}")
        return []


def start(name: str, step: Step, seconds: float, facts: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Run a step in a process of its own; return "" or how it failed, which its JSON then says too."""
    job = {"name": name, "module": step.module, "seconds": seconds, "until": time.time() + seconds, **facts}
    log = Path(facts["work"]) / f"{name}.log"
    said = run_child([sys.executable, "-m", "experiments.gpu.job", json.dumps(job)], log, seconds, env)
    if said:
        found = record(Path(facts["out"]), name)
        if found.get("code") != facts["code"]:  # it fell before it could write
            found = {"step": name, **{k: facts[k] for k in ("command", "commit", "code", "tiny")}, "rows": {}}
        _write(Path(facts["out"]) / f"{name}.json", {**found, "status": "failed", "error": found.get("error") or said})
        print(f"{name}: its output is in {log}")
        said = f"FAILED: {found.get('error') or said}"
    return said


def summarise(out: Path, outcome: Mapping[str, str], facts: Mapping[str, Any], card: str) -> None:
    """Print what was measured with floor and ratio, the lists, and what failed; write ``summary.json``."""
    print(f"\n{'':42}{'seconds':>11}{'floor':>11}{'ratio':>8}")
    for name in outcome:
        for row, values in record(out, name).get("rows", {}).items():
            cells = "".join(
                f"{values[k]:>{w}.4g}" if k in values else " " * w
                for k, w in (("seconds", 11), ("floor", 11), ("ratio", 8))
            )
            rest = {k: v for k, v in values.items() if k in SHOWN}
            print(f"{name + ': ' + row:42.42}{cells}  {', '.join(f'{k} {v:.4g}' for k, v in rest.items())}")
        for note in record(out, name).get("notes", []):
            print(f"  {name}: {note}")
    print("\n" + lists() + "\n")
    for name, said in outcome.items():
        print(f"{name}: {said}")
    found = {
        "command": facts["command"], "commit": facts["commit"], "code": facts["code"], "card": card,
        "steps": dict(outcome), "cuda_paths": cuda_paths(), "wheels": wheels(),
    }  # fmt: skip
    _write(out / "summary.json", found)


SHOWN = (
    "rate", "forwards", "steps_per_s", "clouds_per_second", "times_paper", "utilisation", "hours", "peak_gb",
    "times_faster_than_published", "tests", "failures", "errors", "tokens_per_s", "tokens_seen", "bits_per_byte",
    "val_bits_per_byte", "step", "of",
)  # fmt: skip
"""Numbers of a row that the table shows beside its times."""


def lists() -> str:
    """Return the CUDA paths and the wheels as text."""
    paths, names = cuda_paths(), wheels()
    lines = [f"{len(paths)} lines of the source that no test on a CPU reaches on both sides:", *paths]
    lines += ["", f"wheels that a bare machine lacks: {' '.join(names) or 'none'}"]
    return "\n".join([*lines, *([pip_line(names)] if names else [])])


def install(wheels_in: Path, site: Path) -> dict[str, str]:
    """Install wheels beside what is there and return the environment in which they are found."""
    files = sorted(map(str, wheels_in.glob("*.whl")))
    if not files:
        raise SystemExit(f"--wheels {wheels_in}: no *.whl there; {pip_line(wheels())}")
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target"]
    subprocess.run([sys.executable, *pip, str(site), *files], check=True)
    sys.path.insert(0, str(site))
    rest = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": str(site.resolve()) + (os.pathsep + rest if rest else "")}


def code() -> str:
    """Return a hash of the source: a result stands while it is the same."""
    digest = hashlib.sha256()
    for top in ("tokinterp", "experiments", "tests"):
        for file in sorted((ROOT / top).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit() -> str:
    """Return the commit, with ``+`` if the tree was changed; empty where there is no git."""
    from tokinterp.results.dataset import git_commit

    return git_commit()


def command_line(argv: Sequence[str] | None) -> str:
    """Return the command as it was given, places outside the checkout by their last name only."""
    words = [Path(w).name if w.startswith("/") else w for w in (sys.argv[1:] if argv is None else argv)]
    return shlex.join(["python", "-m", "experiments.gpu", *words])


def record(out: Path, name: str) -> dict[str, Any]:
    """Return what a step has written, or nothing."""
    try:
        return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(path: Path, found: Mapping[str, Any]) -> None:
    from tokinterp.files.whole import write_text

    write_text(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step with it
    sys.exit(main())
