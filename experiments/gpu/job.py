"""What the process of a step sees: where it runs, what time it has, and a JSON file written after every row.

The process is started as ``python -m experiments.gpu.job '{"name": ...}'`` with the fields of `Job`.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokinterp.files.whole import write_text

PACKAGES = ("torch", "triton", "transformers", "numpy", "scipy", "xarray", "zarr", "pytest")


@dataclass
class Job:
    """One step: where and how it runs, and what it has found.

    Attributes
    ----------
    name, module : str
        Of the step.
    device : str
        ``"cuda"`` or ``"cpu"``.
    tiny : bool
        Smallest sizes, to see that everything runs.
    seconds : float
        It is stopped after so many.
    out, work, data : path
        For the small JSON; for networks, states and logs; of the tokenised text.
    command, commit, code : str
        What was run, from which commit, and the hash of the source.
    again : bool
        Forget the rows that an unfinished run has left.
    until : float
        The time (of the clock) at which it is stopped, if the process has been starting for a while.
    """

    name: str
    module: str
    device: str
    tiny: bool
    seconds: float
    out: Path
    work: Path
    data: Path
    command: str
    commit: str
    code: str
    again: bool = False
    until: float = 0.0
    sizes: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out, self.work, self.data = Path(self.out), Path(self.work), Path(self.data)
        self.began = time.monotonic()
        self.until = self.until or time.time() + self.seconds
        self.place = torch.device(self.device)
        self.ceilings: dict[str, float] = {}
        found = read(self.out / "ceilings.json")
        if same(found, self.facts()):
            self.ceilings = {k: r["rate"] for k, r in found["rows"].items() if "rate" in r}
        before = read(self.out / f"{self.name}.json")
        if not self.again and same(before, self.facts()) and before["status"] != "done":
            self.rows = before["rows"]

    def facts(self) -> dict[str, Any]:
        """Return what decides whether an earlier result stands."""
        return {"code": self.code, "card": card(self.place), "tiny": self.tiny}

    def left(self) -> float:
        """Return the seconds until the step is stopped."""
        return self.until - time.time()

    def wants(self, name: str, needs: float = 0.0) -> bool:
        """Return whether a row is still to be measured and the seconds that it needs are there."""
        if name in self.rows:
            return False
        if needs > self.left():
            self.notes.append(f"{name}: left for a later call (needs about {needs:.0f} s)")
            return False
        return True

    def time(
        self, name: str, call: Callable[[], Any], /, *, flops: Mapping[str, float] | None = None, moved: float = 0.0,
        rounds: int = 5, **values: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Time a call and keep it as a row, with its floor; ``flops`` per kind of product, ``moved`` in bytes."""
        rounds = min(rounds, 2) if self.tiny else rounds
        found = timed(call, self.place, rounds, most=max(1.0, self.left() / 4))
        return self.row(name, **found, **self.against(found["seconds"], flops, moved), **values)

    def against(self, seconds: float, flops: Mapping[str, float] | None = None, moved: float = 0.0) -> dict[str, float]:
        """Return floor and ratio: operations at the measured rates or bytes at the measured bandwidth, the larger."""
        flops = flops or {}
        if not {*flops, "copy"} <= set(self.ceilings):
            return {}
        floor = max(sum(n / self.ceilings[k] for k, n in flops.items()), moved / self.ceilings["copy"])
        return {"floor": floor, "ratio": seconds / floor} if floor else {}

    def row(self, name: str, /, **values: Any) -> dict[str, Any]:
        """Keep a row and write the file at once."""
        self.rows[name] = values
        print(f"{self.name}: {name}: {', '.join(f'{k} {shown(v)}' for k, v in values.items())}", flush=True)
        self.write("running")
        return values

    def write(self, status: str, error: str = "") -> None:
        """Write ``out/NAME.json`` in one step."""
        record = {
            "step": self.name, "status": status, **({"error": error} if error else {}), "command": self.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "commit": self.commit.rstrip("+"),
            "dirty": self.commit.endswith("+"), **self.facts(), "took": round(time.monotonic() - self.began, 1),
            "versions": versions(), "sizes": self.sizes, "rows": self.rows, "notes": self.notes,
        }  # fmt: skip
        text = json.dumps(record, indent=1)
        for name, folder in (("WORK", self.work), ("DATA", self.data), ("OUT", self.out)):
            text = text.replace(json.dumps(str(folder.absolute()))[1:-1], name)  # no paths of a machine in a record
        write_text(self.out / f"{self.name}.json", text + "\n")


def timed(call: Callable[[], Any], place: torch.device, rounds: int = 5, most: float = 20.0) -> dict[str, Any]:
    """Return the median seconds of a call after one that is not counted, up to ``rounds`` in ``most`` seconds.

    A call that takes all of the time at first is not repeated (``rounds`` 0: that one, warm-up included).
    """
    seconds: list[float] = []
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    for _ in range(1 + rounds):
        wait(place)
        start = time.perf_counter()
        call()
        wait(place)
        seconds.append(time.perf_counter() - start)
        if time.monotonic() - begin + seconds[-1] > most:
            break
    counted = seconds[1:] or seconds
    out = {"seconds": statistics.median(counted), "low": min(counted), "high": max(counted), "rounds": len(seconds) - 1}
    if place.type == "cuda":
        out["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return out


def wait(place: torch.device) -> None:
    """Wait until the GPU has done all that it was given."""
    if place.type == "cuda":
        torch.cuda.synchronize()


def card(place: torch.device) -> str:
    """Return the name of the GPU, or the CPU's threads."""
    return torch.cuda.get_device_name() if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Return versions of Python, CUDA and the packages that decide numbers."""
    out = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def read(path: Path) -> dict[str, Any]:
    """Return what a step has left, or nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def same(record: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Return whether a record was made by the same code on the same card at the same sizes."""
    return all(record.get(k) == v for k, v in facts.items())


def shown(value: Any) -> str:
    """Return a number with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    job.write("running")
    try:
        status = importlib.import_module(job.module).run(job) or "done"
    except Exception as error:
        job.write("failed", f"{type(error).__name__}: {error}"[:1000])
        raise
    job.write(status)


if __name__ == "__main__":
    main()
