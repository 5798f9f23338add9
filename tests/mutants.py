"""Small wrong changes to the package, each of which a named test must notice; ``make mutants`` tries them all.

A mutant is a line that is wrong in a way that the work on this package easily goes wrong: a sign, one layer off, a mask
dropped, a control equal to its condition, a chance level of another formula, an interval over the wrong unit.  Each is
applied to a copy of the tree, and its tests are run there: if they pass, the mutant has survived, and the tests could
not have seen the mistake.  ``python tests/mutants.py [WORD ...]`` tries those whose file, name or test holds a word;
``--jobs N`` runs N at a time.  Not a part of the test suite.
"""

from __future__ import annotations

import argparse
import compileall
import multiprocessing
import os
import py_compile
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from queue import Queue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "pytest", "torch", "torch._dynamo", "transformers.generation.utils", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "xarray", "zarr", "scipy.stats", "sklearn", "matplotlib.pyplot",
)  # fmt: skip
COPIED = ("tokinterp", "tests", "experiments", "figures", "notebooks", "pyproject.toml", "README.md")


class Mutant(NamedTuple):
    """A wrong change: ``old`` stands once in ``file`` and becomes ``new``; ``tests`` (pytest arguments) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def read_list() -> list[Mutant]:
    """Return all mutants: the lists of the files ``tests/mutants_*.py``, in order."""
    files = sorted(Path(__file__).parent.glob("mutants_*.py"))
    return [Mutant(*m) for file in files for m in import_module(file.stem).MUTANTS]


def mistakes(mutants: list[Mutant]) -> Iterator[str]:
    """Yield what is wrong with the list itself: text that is not there once, no such test file, a name twice."""
    seen: set[str] = set()
    for m in mutants:
        if m.name in seen:
            yield f"{m.name}: the name occurs twice"
        seen.add(m.name)
        file = ROOT / m.file
        count = file.read_text(encoding="utf-8").count(m.old) if file.is_file() else -1
        if count != 1:
            yield f"{m.name}: {m.file} " + (
                "does not exist" if count < 0 else f"holds the old text {count} times, not 1"
            )
        if m.old == m.new:
            yield f"{m.name}: changes nothing"
        for argument in m.tests.split():
            file, _, test = argument.partition("::")
            there = (ROOT / file).is_file()
            named = test.partition("[")[0]
            if file.startswith("tests/") and not (
                there and f"def {named}" in (ROOT / file).read_text(encoding="utf-8")
            ):
                yield f"{m.name}: there is no {argument}"


def copy_tree(folder: Path) -> None:
    """Copy what a test run needs."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            left_out = ("__pycache__", "results") if name == "experiments" else ("__pycache__",)
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*left_out))
        elif source.is_file():
            shutil.copy(source, folder / name)
    by_content = py_compile.PycInvalidationMode.CHECKED_HASH  # a changed file of the same size and second is seen
    compileall.compile_dir(folder / "tokinterp", quiet=2, invalidation_mode=by_content)


def _pytest(folder: Path, tests: str, out: Path) -> None:
    """Run pytest in this process, which a server has forked with the libraries imported and the package not."""
    os.chdir(folder)
    with out.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.dont_write_bytecode = True
    os.environ |= {
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TOKINTERP_DATA": "/nonexistent",
    }
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "tests"))]
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)])))


def run_tests(folder: Path, tests: str, limit: float = 600) -> tuple[int, str]:
    """Run pytest in a copy of the tree; return its exit code (a run beyond the limit counts as a failed test)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    out = folder / "pytest.out"
    run = context.Process(target=_pytest, args=(folder, tests, out))
    run.start()
    run.join(limit)
    if run.is_alive():
        run.kill()
        run.join()
        return 1, "beyond the time limit"
    return run.exitcode if run.exitcode is not None else -1, out.read_text(encoding="utf-8", errors="replace")


def attempt(mutant: Mutant, folder: Path) -> str:
    """Apply a mutant in a copy, run its tests, put the file back; return "killed", "survived" or what went wrong."""
    file = folder / mutant.file
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
        code, out = run_tests(folder, mutant.tests)
    finally:
        file.write_text(before, encoding="utf-8")
    if code == 1 and " error" in out.splitlines()[-1] and " failed" not in out.splitlines()[-1]:
        return "killed"  # a fixture fails
    return {0: "SURVIVED", 1: "killed"}.get(
        code, f"NOT RUN (pytest ended with {code}): {out.strip().splitlines()[-1:]}"
    )


def main() -> int:
    """Try the mutants that were asked for and print a table; the exit code is 1 unless all of them are killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants whose name, file or tests hold one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--check", action="store_true", help="only check that the list fits the code")
    given = parser.parse_args()
    mutants = read_list()
    if wrong := list(mistakes(mutants)):
        print("\n".join(wrong))
        return 1
    if given.check:
        print(f"{len(mutants)} mutants fit the code")
        return 0
    if given.words:
        mutants = [m for m in mutants if any(w in " ".join((m.name, m.file, m.tests)) for w in given.words)]
    started, lock, outcomes = time.monotonic(), threading.Lock(), {}
    with tempfile.TemporaryDirectory() as top:
        copies: Queue[Path] = Queue()
        for k in range(max(1, given.jobs)):
            copy_tree(Path(top) / str(k))
            copies.put(Path(top) / str(k))

        def clean(tests: str) -> tuple[str, int, str]:
            folder = copies.get()
            try:
                return tests, *run_tests(folder, tests)
            finally:
                copies.put(folder)

        def one(m: Mutant) -> None:
            folder = copies.get()
            try:
                outcome = attempt(m, folder)
            finally:
                copies.put(folder)
            with lock:
                outcomes[m.name] = outcome
                print(f"{outcome:9} {m.name:45} {m.file} by {m.tests}", flush=True)

        with ThreadPoolExecutor(max(1, given.jobs)) as pool:
            unfit = set()
            for tests, code, out in pool.map(clean, dict.fromkeys(m.tests for m in mutants)):
                if code != 0:  # they would notice anything
                    print(f"without any change, pytest {tests} ends with {code}:\n{out}", flush=True)
                    unfit.add(tests)
            outcomes.update({m.name: "not run" for m in mutants if m.tests in unfit})
            list(pool.map(one, [m for m in mutants if m.tests not in unfit]))
    killed = sum(o == "killed" for o in outcomes.values())
    print(f"{killed} of {len(mutants)} killed in {time.monotonic() - started:.0f} s")
    for name, outcome in sorted(outcomes.items()):
        if outcome != "killed":
            print(f"  {outcome}: {name}")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
