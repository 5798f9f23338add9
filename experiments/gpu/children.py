"""A process of its own for each step: what it prints is kept, and it is ended, with all that it started, in time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 5.0
"""Seconds between the request to end and the kill."""


def run_child(command: Sequence[str], log: Path, seconds: float, env: Mapping[str, str] | None = None) -> str:
    """Run a command; return "" or one line that says how it failed.

    Its output goes to ``log``.  After ``seconds`` it is asked to end (SIGTERM), then killed, with its children.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, process_group=0,
            env=None if env is None else {**os.environ, **env},
        )  # fmt: skip
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(child)
            return f"hung: stopped after {seconds:.0f} s"
        except BaseException:
            _end(child)
            raise
        finally:
            _signal(child.pid, signal.SIGKILL)  # what it left running
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "" if code == 0 else f"exit code {code}: {last_line(log)}"


def last_line(log: Path) -> str:
    """Return the last line that says something."""
    lines = [x.strip() for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
    return lines[-1][:300] if lines else "no output"


def _end(child: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        _signal(child.pid, sign)
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            if child.poll() is not None:
                return
            time.sleep(0.05)


def _signal(group: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, sign)
