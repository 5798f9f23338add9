"""One command on several devices of this machine: a process for each, by the same shares as on several machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

import typer

from ..files.escape import say
from .refusals import Usage, asked


def choose_devices(text: str) -> list[str]:
    """Return the devices of ``"all"`` (every GPU), or those named: ``"cuda:0,cuda:1"``, ``"cpu,cpu"``.

    Raises
    ------
    Usage
        If there is no GPU, or one is named that does not exist, or twice.

    Examples
    --------
    >>> choose_devices("cpu,cpu")
    ['cpu', 'cpu']
    """
    import torch

    from ..models.hf import choose_device

    n = torch.cuda.device_count()
    if text == "all" and not n:
        raise Usage("--devices all: torch sees no GPU here; name devices, for example --devices cpu,cpu")
    names = [f"cuda:{i}" for i in range(n)] if text == "all" else [w.strip() for w in text.split(",")]
    for name in names:
        try:
            choose_device(name)
        except ValueError as error:
            raise Usage(f"--devices {text}: {error}") from None
        if name.startswith("cuda") and (":" not in name or names.count(name) > 1):
            raise Usage(f"--devices {text}: name each GPU once and by number, for example cuda:0,cuda:1, or write all")
    return names


def run_on(devices: Sequence[str], share: tuple[int, int], command: str = "measure") -> None:
    """Run the command that was given in a process for each device, each with its share; what is kept is kept by each.

    The process of the first device shows its bar, which stands for all: their shares are alike.  When one fails, its
    words are shown and the others end after the batch in progress; so they do after Ctrl-C and other signals.

    Raises
    ------
    typer.Exit
        With the code of the first that failed.
    OSError
        If a process cannot be started; the others have ended.
    KeyboardInterrupt
        When all have ended.
    """
    i, n = share
    many = len(devices)
    words, threads = _without(asked.words, "--devices", "--share"), str(max(1, _cores() // many))
    at = words.index(command) + 1
    children: list[subprocess.Popen[bytes]] = []
    said: list[IO[bytes] | None] = []
    try:
        for k, device in enumerate(devices):
            said.append(tempfile.TemporaryFile() if k else None)  # noqa: SIM115
            own = ["--device", device, "--share", f"{i * many + k}/{n * many}"]
            given = ["--traceback"] * asked.traceback + [*words[:at], *own, *words[at:]]
            env = {**({"OMP_NUM_THREADS": threads} if device.startswith("cpu") else {}), **os.environ}
            children.append(subprocess.Popen(
                [sys.executable, "-m", "tokinterp", *given], stdout=subprocess.DEVNULL, stderr=said[-1], env=env,
                start_new_session=True,  # Ctrl-C comes to this process only, which passes it on
            ))  # fmt: skip
        while (codes := [c.poll() for c in children]).count(None) and not any(codes):
            time.sleep(0.1)
        if failed := [k for k, code in enumerate(codes) if code]:
            _show(failed[0], devices, said)
            _stop(children, signal.SIGTERM)
            code = codes[failed[0]] or 1
            raise typer.Exit(code if code > 0 else 128 - code)
    except KeyboardInterrupt:
        _stop(children, signal.SIGINT)
        raise
    except OSError:  # one could not be started
        _stop(children, signal.SIGTERM)
        raise
    finally:
        for file in said:
            if file is not None:
                file.close()


def _stop(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Let processes finish their batch and keep it; a signal meanwhile stops them at once."""
    while running := [c for c in children if c.poll() is None]:
        try:
            for c in running:
                c.send_signal(number)
            for c in running:
                c.wait()
        except KeyboardInterrupt:
            number = signal.SIGINT


def _show(k: int, devices: Sequence[str], said: Sequence[IO[bytes] | None]) -> None:
    """Show what the process of a device has said last; that of the first was seen as it came."""
    file = said[k]
    if file is None:
        return
    file.seek(0)
    for line in file.read().decode("utf-8", "replace").splitlines()[-40:]:
        say(f"{devices[k]} ({k + 1} of {len(devices)}): {line}", err=True)


def _without(words: Sequence[str], *options: str) -> list[str]:
    """Return the words of a command without some options and their values."""
    out: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.startswith(tuple(f"{o}=" for o in options)) and word not in options:
            out.append(word)
        skip = not skip and word in options
    return out


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
