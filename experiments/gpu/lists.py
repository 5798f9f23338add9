"""Lists: lines of the source that only a GPU reaches, the files of tests that use one, and wheels that are missing."""

from __future__ import annotations

import ast
import re
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BARE = (
    "accelerate", "hypothesis", "matplotlib", "numpy", "pytest", "pytest-xdist", "safetensors", "scikit-learn", "scipy",
    "torch", "tqdm", "transformers", "typer", "xarray", "pyyaml", "packaging", "typing-extensions",
)  # fmt: skip
"""What a bare machine is taken to have, with all that these need."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MARKS = ("is_cuda", "OutOfMemoryError")


def cuda_paths(root: Path = ROOT) -> list[str]:
    """Return ``file:line: code`` of every line that names CUDA or runs out of GPU memory: no test on a CPU sees both
    sides of it.  Comments and docstrings do not count.
    """
    out = []
    for file in sorted(p for top in ("tokinterp", "experiments") for p in (root / top).rglob("*.py")):
        if file.is_relative_to(root / "experiments" / "gpu"):
            continue
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        found = _lines(ast.parse(text))
        out += [f"{file.relative_to(root).as_posix()}:{n}: {lines[n - 1].strip()}" for n in sorted(found)]
    return out


def _lines(tree: ast.AST) -> set[int]:
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    out = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr):
            continue
        if isinstance(node, ast.Attribute):
            hit = node.attr in MARKS or (node.attr == "cuda" and isinstance(node.value, ast.Name | ast.Attribute))
        elif isinstance(node, ast.Name):
            hit = node.id in MARKS
        else:
            hit = (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in prose
                and re.fullmatch(r"cuda(:\d+)?", node.value) is not None
            )
        if hit:
            out.add(node.lineno)
    return out


def device_tests(root: Path = ROOT) -> list[str]:
    """Return the files in which a test takes a ``device`` or is marked gpu: the only ones worth collecting."""
    said = re.compile(r"def test_\w+\([^)]*\bdevice\b|mark\.gpu")
    files = sorted((root / "tests").rglob("test_*.py"))
    return [p.relative_to(root).as_posix() for p in files if said.search(p.read_text())]


def missing(root: Path = ROOT) -> list[str]:
    """Return the modules that the tests of `device_tests` import and this machine does not have."""
    names = set()
    for file in device_tests(root):
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    local = {p.stem for p in (root / "tests").glob("*.py")} | {"tokinterp", "experiments", "figures", "notebooks"}
    return sorted(n for n in names - local if find_spec(n) is None)


def wheels(root: Path = ROOT) -> list[str]:
    """Return ``name==version`` of what the command needs and a bare machine lacks, from the constraints.

    Read where the package is installed: what a missing package needs itself is only known there.
    """
    return _pinned(_needed(root) - _closure(BARE), root)


def absent(root: Path = ROOT) -> list[str]:
    """Return what the command needs and this machine lacks."""
    return _pinned({n for n in _needed(root) if not _here(n)}, root)


def _needed(root: Path) -> set[str]:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    core = re.findall(r'"([A-Za-z0-9_.-]+)', text.split("\ndependencies = [")[1].split("]")[0])
    return _closure([*core, "pytest", "hypothesis"])


def _here(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _pinned(names: set[str], root: Path) -> list[str]:
    pins = dict(x.split("==") for x in (root / "constraints.txt").read_text().split() if "==" in x)
    pins = {_plain(k): f"{k}=={v}" for k, v in pins.items()}
    return sorted(pins.get(n, n) for n in names)


def pip_line(names: list[str], python: str = "3.12") -> str:
    """Return the command that downloads wheels for such a machine."""
    where = " ".join(f"--platform {p}" for p in PLATFORMS)
    return (
        f"python -m pip download --no-deps --only-binary=:all: --python-version {python} --implementation cp "
        f"{where} -d WHEELS {' '.join(names)}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(names: tuple[str, ...] | list[str]) -> set[str]:
    """Return names and all that they need here, without extras."""
    from packaging.requirements import Requirement

    out: set[str] = set()
    todo = [_plain(n) for n in names]
    while todo:
        if (name := todo.pop()) in out:
            continue
        out.add(name)
        try:
            wanted = [Requirement(r) for r in requires(name) or []]
        except PackageNotFoundError:
            continue
        todo += [_plain(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return out
