"""Look into wheel and source archive: ``python tests/check_dist.py dist`` ends with 1 if something is wrong."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = ("tokinterp/__init__.py", "tokinterp/py.typed", "tokinterp/data/reader/model.safetensors",
         "tokinterp/results/report.html")  # fmt: skip
SOURCE = ("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", "Makefile", "docs/conf.py",
          "docs/start.md", "tests/conftest.py", "tokinterp/py.typed")  # fmt: skip
NEVER = ("runs/", "dist/", ".venv", ".hypothesis", "__pycache__", ".zarr/", ".git/")
LARGEST = {".whl": 40, ".gz": 60}
"""Megabytes."""


def faults(path):
    """What is wrong with an archive, in words."""
    wheel = path.suffix == ".whl"
    if wheel:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        with tarfile.open(path) as archive:
            names = [n.partition("/")[2] for n in archive.getnames()]
    out = [f"{n} is missing" for n in (WHEEL if wheel else SOURCE) if n not in names]
    out += [f"{n} does not belong there" for n in names if any(never in f"{n}/" for never in NEVER)]
    if wheel:
        out += [f"{n} is outside of the package" for n in names if not n.startswith(("tokinterp/", "tokinterp-"))]
    size = path.stat().st_size / 1e6
    return [*out, *([f"{size:.0f} MB is too large"] if size > LARGEST[path.suffix] else [])]


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import tokinterp as ti
assert ti.__file__.startswith(sys.argv[1]), ti.__file__
ti.Prompts.from_texts([ti.bundled_texts("article")[0].text], ti.load_model(device="cpu"), max_tokens=64)
"""


def imported(wheel):
    """What happens where only the wheel is: its package, and what it reads."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        ran = subprocess.run([sys.executable, "-I", "-c", ALONE, folder], cwd=folder, capture_output=True, text=True)
    return [f"cannot be imported alone: {ran.stderr.strip().splitlines()[-1]}"] if ran.returncode else []


def main(folder):
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in LARGEST)
    found = [f"{p.name}: {fault}" for p in files for fault in faults(p)]
    if not found:
        found = [f"{p.name}: {fault}" for p in files if p.suffix == ".whl" for fault in imported(p)]
    if {p.suffix for p in files} != set(LARGEST):
        found.append(f"{folder}: a wheel and a source archive should be there, not {[p.name for p in files]}")
    print("\n".join(found or [f"{p.name}: {p.stat().st_size / 1e6:.1f} MB, whole" for p in files]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
