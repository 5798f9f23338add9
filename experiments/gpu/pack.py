"""What is to leave the machine, in few files of limited size: ``cat packed.* | tar x`` puts it back."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tokinterp.files.whole import write_bytes

PART, TOTAL = 15 * 2**20, 60 * 2**20
"""Bytes of a file, and of all."""
WANTED = (
    "*.log", "*/model/*", "*/plan.json", "*/log.jsonl", "narrow/resume.pt", "full/resume.pt", "narrow/step_*.pt",
    "dot_by_dot.*/**/*",
)  # fmt: skip
"""Of the folder of networks and states, the most wanted first."""


def pack(out: Path, work: Path, folder: Path, total: int = TOTAL, part: int = PART) -> list[str]:
    """Write ``folder/packed.NN``: the JSON as ``out/``, then of ``work/`` what fits; return what was left behind."""
    files = [(p, f"out/{p.name}") for p in sorted(out.glob("*.json"))]
    for pattern in WANTED:
        found = [p for p in sorted(work.glob(pattern)) if p.is_file()]
        files += [(p, f"work/{p.relative_to(work).as_posix()}") for p in found]
    kept, left, size = io.BytesIO(), [], 2 * tarfile.RECORDSIZE
    with tarfile.open(fileobj=kept, mode="w") as tar:
        for path, name in files:
            needs = path.stat().st_size + 3 * tarfile.BLOCKSIZE
            if size + needs > total:
                left.append(name)
                continue
            tar.add(path, name)
            size += needs
    data = kept.getvalue()
    for old in folder.glob("packed.*"):
        old.unlink()
    for i in range(0, len(data), part):
        write_bytes(folder / f"packed.{i // part:02d}", data[i : i + part])
    return left
