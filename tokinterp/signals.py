"""Stopping a run between batches: Ctrl-C, a scheduler's SIGTERM or SIGUSR1, a terminal that is closed."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
WARNINGS = tuple(getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n))
"""What schedulers send some time before they kill (``sbatch --signal=USR1@300``)."""
TWICE = 2.0
"""Seconds in which another signal than Ctrl-C that comes again is the same one: ``timeout`` sends two."""


class Terminated(KeyboardInterrupt, SystemExit):
    """A run stopped by a signal other than Ctrl-C: caught like it; uncaught, the process ends with 128 + its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Turn the first of ``SIGNALS`` and ``WARNINGS`` into a number that is read between batches; a second acts at once.

    Only in the main thread, and only signals that end a process: one that is ignored (``nohup``) stays ignored, and a
    warning that the program itself handles stays its own.  The handlers from before are put back.
    """
    asked, since = 0, 0.0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in SIGNALS + WARNINGS}
    before = {
        number: h
        for number, h in before.items()
        if h == signal.SIG_DFL or (number in SIGNALS and h not in (None, signal.SIG_IGN))
    }

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked, since
        if asked and number != signal.SIGINT and time.monotonic() - since < TWICE:
            return
        if asked:
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        asked, since = number, time.monotonic()
        again = "press again" if number == signal.SIGINT else "a second signal"
        tqdm.write(f"finishing this batch, then stopping ({again} to stop at once)", file=sys.stderr)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(number: int, message: str) -> KeyboardInterrupt:
    """Return what to raise once the work is saved: KeyboardInterrupt, or `Terminated`, whose message is printed."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    tqdm.write(message, file=sys.stderr)
    return Terminated(message, number)
