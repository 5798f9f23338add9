"""Whose a folder is: one writer at a time, dead ones known as dead, and what they left behind cleared up."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

HEARTBEAT = 10.0
"""Seconds between two signs of life of a writer."""
SILENCE = 120.0
"""Seconds without a sign of life after which a writer on another machine counts as dead."""
A_DAY = 86400.0
_KINDS = "new|litter|writing|old"
_here: set[str] = set()


class Owner:
    """The one writer of a folder: a lock of the system, and a file that says who, where locks do not reach.

    Some network file systems have no locks, or keep them within one machine.  So a writer also makes
    ``owner-N.json`` (which only one process can: the next number), and touches it every ``HEARTBEAT`` seconds.
    A writer is dead if its process is gone on this machine, or if it shows no sign of life for ``SILENCE`` seconds.

    Parameters
    ----------
    folder : path
        An existing folder.
    what : str
        What is written, for the message.
    wait : bool
        Wait until the folder is free instead of raising.

    Raises
    ------
    RuntimeError
        If another process, or another thread of this one, is writing.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, what: str, wait: bool = False) -> None:
        self.folder, self.what, self.pid = folder, what, os.getpid()
        self.token = secrets.token_hex(8)
        self._lock = _flock(folder / "lock", what, wait)
        self._ended = threading.Event()
        try:
            self.number = self._take(wait)
            threading.Thread(target=self._live, name="tokinterp-owner", daemon=True).start()
        except BaseException:
            _here.discard(self.token)
            self._unlock()
            raise

    def mine(self) -> bool:
        """Whether nobody has taken over, as happens to a process that was held for longer than ``SILENCE``."""
        number, record = last_owner(self.folder)
        return number == self.number and record.get("token") == self.token

    def close(self) -> None:
        """Let go of the folder."""
        _here.discard(self.token)
        if self.pid != os.getpid():  # a fork
            return
        self._ended.set()
        with suppress(OSError):  # the folder may be gone
            handle = os.open(self._file(self.number), os.O_WRONLY | os.O_TRUNC)
            os.write(handle, json.dumps({"free": True}).encode())
            os.close(handle)
        self._unlock()

    def _file(self, number: int) -> Path:
        return self.folder / f"owner-{number:06d}.json"

    def _take(self, wait: bool) -> int:
        record = {"token": self.token, "host": socket.gethostname(), "machine": machine(), "pid": self.pid}
        text = json.dumps({**record, "started": _started(self.pid)})
        seen: tuple[int, float] | None = None
        while True:
            number, last = last_owner(self.folder)
            dead = is_dead(last) if number else True
            if dead is None:  # on another machine: has it been silent for long, or does it stir?
                age, stamp = self._silence(number)
                dead = age > SILENCE
                if not dead and seen is None:
                    seen = (number, stamp)
                    tqdm.write(
                        f"{self.what}: process {last.get('pid')} on {last.get('host')} was writing it {age:.0f} s ago; "
                        f"waiting up to {SILENCE - age:.0f} s for a sign of life",
                        file=sys.stderr,
                    )
                if not dead and seen == (number, stamp):
                    time.sleep(min(1.0, SILENCE / 20))
                    continue
            if not dead and wait:
                time.sleep(0.2)
                continue
            if not dead:
                raise RuntimeError(
                    f"another process is writing {self.what} (process {last.get('pid')} on {last.get('host')}): wait "
                    "for it, or choose another store"
                )
            try:
                handle = os.open(self._file(number + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                continue  # somebody else was faster
            os.write(handle, text.encode())
            os.close(handle)
            _here.add(self.token)
            for old in self.folder.glob("owner-*.json"):
                if old < self._file(number + 1):
                    old.unlink(missing_ok=True)
            return number + 1

    def _silence(self, number: int) -> tuple[float, float]:
        """Return the age of the last sign of life by the clock of the file system, and its time."""
        probe = self.folder / f".clock-{self.token}"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            with open(self._file(number), "rb") as f:  # opening brings a network file system up to date
                stamp = os.fstat(f.fileno()).st_mtime
        finally:
            probe.unlink(missing_ok=True)
        return now - stamp, stamp

    def _live(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self._file(self.number))
            except FileNotFoundError:
                return
            except OSError:
                continue

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def last_owner(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return number and record of the last owner of a folder; 0 if it never had one."""
    numbers = [int(m[1]) for p in folder.glob("owner-*.json") if (m := re.fullmatch(r"owner-(\d+)\.json", p.name))]
    if not numbers:
        return 0, {}
    try:
        record = json.loads((folder / f"owner-{max(numbers):06d}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}  # being written
    return max(numbers), record if isinstance(record, dict) else {}


def is_dead(record: dict[str, Any]) -> bool | None:
    """Whether the owner is surely gone (True) or there (False); None if this machine cannot tell."""
    if record.get("free"):
        return True
    if record.get("machine") != machine():
        return None
    if record.get("pid") == os.getpid():
        return record.get("token") not in _here
    return _is_gone(int(record.get("pid", 0)), str(record.get("started", "")))


def is_owned(folder: Path) -> bool:
    """Whether a folder has an owner that is not surely dead."""
    number, record = last_owner(folder)
    return bool(number) and not is_dead(record)


@cache
def machine() -> str:
    """Return what a process number is unique in: host, boot and process namespace, as a short hash."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def _is_gone(pid: int, started: str = "") -> bool | None:
    if os.name == "nt":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # of another user
    now = _started(pid)
    return bool(now and started and now != started) or now == "dead"


def _started(pid: int) -> str:
    """Return when a process began, in ticks since boot; "dead" for one that only waits to be counted, "" if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]


def open_lock(path: Path) -> int:
    """Open a lock file, made if need be and no link; one of another user that may only be read can be locked too."""
    no_link = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | no_link)


def _flock(path: Path, what: str, wait: bool) -> int | None:
    """Hold a lock that the system releases when the process ends, however it ends; None where there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise RuntimeError(f"another process is writing {what}: wait for it, or choose another store") from None
    except OSError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


# -- leftovers ------------------------------------------------------------------------------------------------
def private_name(path: Path, kind: str) -> Path:
    """Return a hidden name beside a path that says what it is (new, writing, old, litter) and whose."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.{kind}-{machine()}-{pid}-{_started(pid) or 0}-{secrets.token_hex(4)}")


def discard(path: Path) -> None:
    """Delete a file or folder under a name that nobody takes up: a kill halfway leaves only litter."""
    if not re.fullmatch(rf"\..*\.(?:{_KINDS})-\w{{8}}-\d+-\d+-[0-9a-f]+", path.name):
        away = private_name(path, "litter")
        try:
            os.rename(path, away)
        except FileNotFoundError:
            return
        path = away
    _delete(path)


def leftovers(path: Path, kinds: str = _KINDS, ending: str = "") -> list[Path]:
    """Return what dead processes left beside a path under private names, newest last."""
    form = re.compile(
        rf"\.{re.escape(path.name)}(?:{ending})\.(?:{kinds})-(?:(\w{{8}})-(\d+)-(\d+)-)?[0-9a-f]+", re.ASCII
    )
    found = []
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if not (entry.name.startswith(f".{path.name}.") and (m := form.fullmatch(entry.name))):
                continue
            with suppress(OSError):
                stamp = entry.stat(follow_symlinks=False).st_mtime
                here = m[1] == machine()
                gone = _is_gone(int(m[2]), m[3] if m[3] != "0" else "") if here else ".old-" in entry.name
                if gone or ".litter-" in entry.name or time.time() - stamp > A_DAY:
                    found.append((stamp, Path(entry.path)))
    return [p for _, p in sorted(found)]


def sweep(path: Path) -> None:
    """Delete what dead processes left beside a store: what they were writing, or deleting."""
    for p in leftovers(path, _KINDS if os.path.lexists(path) else "new|litter|writing", r"|\.partial|\.nulls"):
        _delete(p)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
