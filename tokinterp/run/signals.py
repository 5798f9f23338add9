"""Stopping a run between batches: Ctrl-C, a scheduler's SIGTERM or SIGUSR1, a terminal that is closed."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
WARNINGS = tuple(getattr(signal, n) for n in ("SIGUSR1", "SIGUSR2") if hasattr(signal, n))
"""What schedulers send some time before they kill (``sbatch --signal=USR1@300``)."""
TWICE = 2.0
"""Seconds in which another signal than Ctrl-C that comes again is the same one: ``timeout`` sends two."""
ON = "the same call goes on with what is kept"


class Terminated(KeyboardInterrupt, SystemExit):
    """A run stopped by a signal other than Ctrl-C: caught like it; uncaught, the process ends with 128 + its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class _Last:
    """The last signal that was acted upon, by whichever of the handlers that lie in each other, and when."""

    number, since, depth = 0, 0.0, 0

    @classmethod
    def again(cls, number: int) -> bool:
        """Whether a signal is the one before, sent twice; remembers it."""
        now = time.monotonic()
        if number != signal.SIGINT and cls.number == number and now - cls.since < TWICE:
            return True
        cls.number, cls.since = number, now
        return False


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Give ``SIGNALS`` and ``WARNINGS`` a handler; yield those from before, which are put back.

    Only signals that end a process: one that is ignored (``nohup``) stays ignored, and a warning that the program
    itself handles stays its own.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS + WARNINGS}
    before = {
        number: h
        for number, h in before.items()
        if h == signal.SIG_DFL or hasattr(h, "of_tokinterp") or (number in SIGNALS and h not in (None, signal.SIG_IGN))
    }
    handler.of_tokinterp = True  # type: ignore[attr-defined]
    _Last.depth += 1
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        _Last.depth -= 1
        if not _Last.depth:
            _Last.number = 0
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def stopping() -> Iterator[Callable[[], int]]:
    """Turn the first of ``SIGNALS`` and ``WARNINGS`` into a number that is read between batches; a second acts at once.

    One that nobody has read by the end, since no batch was left, is raised again for what comes after.  Only in the
    main thread.
    """
    asked, read = 0, False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number != signal.SIGINT and time.monotonic() - _Last.since < TWICE:
            return
        if asked:
            signal.signal(number, before[number])
            _Last.number = 0
            signal.raise_signal(number)
            return
        asked, _Last.number, _Last.since = number, number, time.monotonic()
        again = "press again" if number == signal.SIGINT else "a second signal"
        tqdm.write(f"finishing this batch, then stopping ({again} to stop at once)", file=sys.stderr)

    def read_it() -> int:
        nonlocal read
        read = bool(asked)
        return asked

    with _handled(on_signal) as before:
        yield read_it
    if asked and not read:
        _Last.number = 0
        signal.raise_signal(asked)


@contextmanager
def at_once(way: str = ON) -> Iterator[None]:
    """Stop at once on a signal, wherever no batch is being finished: while a model is loaded, or a result is made.

    A library that the signal interrupts may make another error of it, or swallow it: it is raised all the same when
    this ends.  Only in the main thread.  Also a decorator.

    Parameters
    ----------
    way : str
        How to go on, for the message.

    Raises
    ------
    KeyboardInterrupt
        Or `Terminated`, once whatever was open has been closed.

    Examples
    --------
    >>> try:
    ...     with at_once():
    ...         signal.raise_signal(signal.SIGINT)
    ... except KeyboardInterrupt as stop:
    ...     print(stop)
    stopped; the same call goes on with what is kept
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop: KeyboardInterrupt | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        if _Last.again(number):
            return
        stop = stopped(number, f"stopped; {way}")
        raise stop

    with _handled(on_signal):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            if stop is not None:
                raise stop from None
            raise
        if stop is not None:
            raise stop


def stopped(number: int, message: str) -> KeyboardInterrupt:
    """Return what to raise once the work is saved: KeyboardInterrupt, or `Terminated`, whose message is printed."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(message)
    tqdm.write(message, file=sys.stderr)
    return Terminated(message, number)
