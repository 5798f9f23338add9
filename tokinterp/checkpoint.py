"""Keeping what a run has finished, so that a crash loses nothing and the next call goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .describe import hash_json
from .files import write_tensors
from .files import write_text as replace_text
from .measurements.base import Measurement
from .models.fingerprint import logits_agree
from .received import plain_name

Facts = dict[str, Any]


@dataclass
class Progress:
    """How far a share of a run has come.

    Attributes
    ----------
    reading : int
        Readings of the prompts that are complete (more than one only where a measurement asks for it).
    done : int
        Prompts finished in this reading, in the order in which they are run.
    batch_tokens : int
        Padded tokens per batch.
    rows : list of str
        Files with finished rows.
    sums : str
        File with the running sums.
    finished : bool
        Whether nothing is left to run.
    """

    reading: int = 0
    done: int = 0
    batch_tokens: int = 0
    rows: list[str] = field(default_factory=list)
    sums: str = ""
    finished: bool = False


class Checkpoint:
    """A folder ``NAME.partial`` beside the final store, written in whole steps.

    Each save adds one file with the rows finished since the last, writes the running sums anew, and then replaces
    ``progress.json``, which names the files that count; a kill at any moment leaves the last complete step.
    """

    def __init__(self, store: Path, facts: Facts, share: tuple[int, int] = (0, 1)) -> None:
        self.root = partial_folder(store)
        self.folder = self.root / f"share-{share[0]}-of-{share[1]}"
        self._lock: int | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / "run.json").exists():
                replace_text(self.root / "run.json", json.dumps(facts, sort_keys=True, indent=1))
            compare_facts(json.loads((self.root / "run.json").read_text(encoding="utf-8")), facts, self.root)
            self.folder.mkdir(exist_ok=True)
            self._lock = _lock(self.folder / "lock", store)
        except OSError as error:
            self.discard_empty()
            raise OSError(
                error.errno, f"cannot write the store {store}: {error.strerror or error}; choose another place"
            ) from error

    @classmethod
    def load_share(cls, root: Path, share: tuple[int, int], measurements: Mapping[str, Measurement]) -> None:
        """Give measurements the sums and rows of a finished share."""
        self = cls.__new__(cls)
        self.root, self.folder, self._lock = root, root / f"share-{share[0]}-of-{share[1]}", None
        self.load(self.progress(), measurements, "cpu", with_rows=True)

    def progress(self) -> Progress:
        """Return how far the run has come."""
        return read_progress(self.folder)

    def save(
        self, progress: Progress, measurements: Mapping[str, Measurement], rows: Mapping[str, dict[str, torch.Tensor]]
    ) -> Progress:
        """Write one step and return the progress that names its files."""
        n = len(progress.rows) + 1
        named = {f"{m}/{k}": v.contiguous() for m, table in rows.items() for k, v in table.items()}
        old_sums = progress.sums
        new = Progress(**{**asdict(progress), "rows": list(progress.rows)})
        if named:
            new.rows.append(f"rows-{progress.reading}-{n:06d}.safetensors")
            self._save_tensors(named, new.rows[-1])
        sums = {f"{name}/{k}": v.cpu().contiguous() for name, m in measurements.items() for k, v in m.sums.items()}
        new.sums = f"sums-{progress.reading}-{progress.done:09d}{'-end' if progress.finished else ''}.safetensors"
        self._save_tensors(sums, new.sums)
        replace_text(self.folder / "progress.json", json.dumps(asdict(new)))
        if old_sums and old_sums != new.sums:
            (self.folder / old_sums).unlink(missing_ok=True)
        return new

    def load(self, progress: Progress, measurements: Mapping[str, Measurement], device: Any, with_rows: bool) -> None:
        """Give the measurements their sums back, and their finished rows if asked."""
        states: dict[str, dict[str, dict[str, Any]]] = {m: {"sums": {}, "rows": {}} for m in measurements}
        for key, value in self._load_tensors(progress.sums).items() if progress.sums else ():
            name, _, k = key.partition("/")
            states[name]["sums"][k] = value
        parts: dict[str, dict[str, list[torch.Tensor]]] = {m: {} for m in measurements}
        for file in progress.rows if with_rows else ():
            for key, value in self._load_tensors(file).items():
                name, _, k = key.partition("/")
                parts[name].setdefault(k, []).append(value)
        for name, m in measurements.items():
            m.load(states[name], device)
            m.rows = parts[name]

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other share of this run is merging."""
        try:
            handle = open_lock(self.root / "merging")
        except FileNotFoundError:  # merged and removed
            yield
            return
        try:
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def discard_empty(self) -> None:
        """Delete what was made for this share if nothing has been finished, so that a failed start leaves no trace."""
        if (self.folder / "progress.json").exists():
            return
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if not any(self.root.glob("share-*")):
            shutil.rmtree(self.root, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder: the final store is there."""
        self.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _save_tensors(self, tensors: dict[str, torch.Tensor], name: str) -> None:
        try:
            write_tensors(self.folder / name, tensors)
        except Exception as error:
            raise OSError(
                f"cannot write {self.folder / name}: {error}; free some space and call measure() again: "
                "what was finished before is kept"
            ) from error

    def _load_tensors(self, name: str) -> dict[str, torch.Tensor]:
        try:
            return load_file(self.folder / name)
        except Exception as error:
            raise ValueError(
                f"{self.folder / name} is damaged or missing ({error}): delete {self.root} and start the run anew"
            ) from error


def read_progress(folder: Path) -> Progress:
    """Return how far the share in a folder has come; the files that it names lie in the folder itself."""
    file = folder / "progress.json"
    if not file.exists():
        return Progress()
    try:
        found = Progress(**json.loads(file.read_text(encoding="utf-8")))
        for name in [*found.rows, *([found.sums] if found.sums else [])]:
            plain_name(name, folder)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete {folder.parent} and start the run anew") from error
    return found


def partial_folder(store: Path) -> Path:
    """Return the folder in which an unfinished run is kept."""
    return store.with_name(store.name + ".partial")


def remove_partial(store: Path, facts: Facts) -> None:
    """Delete what is left of an unfinished run whose finished result is there."""
    root = partial_folder(store)
    with suppress(OSError, ValueError):
        compare_facts(json.loads((root / "run.json").read_text(encoding="utf-8")), facts, root)
        shutil.rmtree(root)


def fingerprint(facts: Facts) -> str:
    """Return the hash of all that decides the numbers.

    Logits take no part: they are compared with a tolerance, since a rounded number could flip.
    """
    return hash_json({k: v for k, v in facts.items() if k != "logits"})


def compare_facts(then: Facts, now: Facts, where: Path) -> None:
    """Raise ValueError, naming what differs, if a store belongs to another run."""
    differing = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), json.loads(json.dumps(now.get(key)))
        if _text(a) == _text(b):
            continue
        if key == "logits" and a and b and logits_agree(a, b, str(now.get("dtype"))):
            continue
        name = _WORDS.get(key, key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = [k for k in sorted(a.keys() | b.keys()) if _text(a.get(k)) != _text(b.get(k))]
            told = [f"{k} {_short(a.get(k))} there, {_short(b.get(k))} now" for k in inner]
            differing.append(f"{name} ({'; '.join(told)})" if key == "config" else f"{name} ({', '.join(inner)})")
        elif key == "logits":
            differing.append(name)
        else:
            differing.append(f"{name} ({_short(a)} there, {_short(b)} now)")
    if differing:
        raise ValueError(
            f"{where} belongs to another run; it differs in: {'; '.join(differing)}. Choose another store, or delete "
            "that one"
        )


_WORDS = {
    "state": "state of the modules: buffers, adapters, replaced methods",
    "hooks": "hooks on the model",
    "logits": "logits of fixed ids, beyond rounding",
    "attention": "attention implementation",
}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def open_lock(path: Path) -> int:
    """Open a lock file, made if need be and no link; one of another user that may only be read can be locked too."""
    no_link = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | no_link)


def _lock(path: Path, store: Path) -> int | None:
    """Hold a lock that the system releases when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RuntimeError(f"another process is writing {store}: wait for it, or choose another store") from None
    except OSError:
        with suppress(OSError):
            os.close(handle)
        return None
    return handle
