"""Keeping what a run has finished, so that a crash loses nothing and the next call goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..files.owner import Owner, discard, is_owned, private_name, sweep
from ..files.received import plain_name
from ..files.whole import naming, write_tensors
from ..files.whole import write_text as replace_text
from ..models.fingerprint import logits_agree
from ..results import dataset
from ..settings.describe import hash_json
from .measurement import Measurement

Facts = dict[str, Any]
FORMAT = 2
"""Of the folder; one of another format is refused."""


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
    checksums : dict of str to str
        SHA-256 of every file named above.
    run : str
        Hash of all that decides the numbers, and of the share.
    commits : list of str
        Of the code that had a part in it.
    """

    reading: int = 0
    done: int = 0
    batch_tokens: int = 0
    rows: list[str] = field(default_factory=list)
    sums: str = ""
    finished: bool = False
    checksums: dict[str, str] = field(default_factory=dict)
    run: str = ""
    commits: list[str] = field(default_factory=list)


class OtherRunError(ValueError):
    """What is stored belongs to another run."""


class Checkpoint:
    """A folder ``NAME.partial`` beside the final store, written in whole steps.

    The folder has its ``run.json``, which says which run it is of, from its first moment, and is renamed away before
    it is deleted.  Each save adds one file with the rows finished since the last, writes the running sums anew, and
    then replaces ``progress.json``, which names the files that count and their checksums; a kill at any moment leaves
    the last complete step.  Every writer names its files differently, so that no two can mix theirs.
    """

    def __init__(self, store: Path, facts: Facts, share: tuple[int, int] = (0, 1)) -> None:
        self.store, self.share = store, share
        self.root = partial_folder(store)
        self.folder = self.root / f"share-{share[0]}-of-{share[1]}"
        facts = {**facts, "format": FORMAT, "shares": share[1]}
        self.run = fingerprint({**facts, "share": share[0]})
        self._owner: Owner | None = None
        try:
            sweep(store)
            self._open(facts)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise OSError(
                    error.errno, f"cannot write the store {store}: {error.strerror or error}; choose another place"
                ) from error
            raise

    def _open(self, facts: Facts) -> None:
        for attempt in range(100):
            claim(self.root, facts)
            try:
                self.folder.mkdir(exist_ok=True)
                self._owner = Owner(self.folder, str(self.store))
                break
            except FileNotFoundError:  # another process finished the run, and has cleared up
                if attempt == 99:
                    raise
        known = {"lock", "progress.json", *(p.name for p in self.folder.glob("owner-*.json"))}
        with suppress(ValueError):  # a damaged record is named when it is read
            at = self.progress()
            for p in self.folder.iterdir():  # what was written after the last whole step
                if p.name not in {*known, *at.rows, at.sums} and p.is_file():
                    p.unlink(missing_ok=True)

    @classmethod
    def load_share(cls, root: Path, share: tuple[int, int], measurements: Mapping[str, Measurement]) -> None:
        """Give measurements the sums and rows of a finished share."""
        self = cls.__new__(cls)
        self.root, self.folder = root, root / f"share-{share[0]}-of-{share[1]}"
        facts = _read_json(root / "run.json", root)
        self.run, self._owner = fingerprint({**facts, "share": share[0]}), None
        self.load(self.progress(), measurements, "cpu", with_rows=True)

    def progress(self) -> Progress:
        """Return how far the run has come.

        Raises
        ------
        ValueError
            If the record is damaged or of another run.
        """
        at = read_progress(self.folder)
        if at.run not in ("", self.run):
            raise ValueError(f"{self.folder} holds another run's checkpoints: delete {self.root}")
        return at

    def verify(self, at: Progress) -> None:
        """Raise ValueError, naming the file, if anything that a step counts on is damaged or missing."""
        for name in (*at.rows, *([at.sums] if at.sums else [])):
            self._check(name, at)

    def save(
        self, progress: Progress, measurements: Mapping[str, Measurement], rows: Mapping[str, dict[str, torch.Tensor]]
    ) -> Progress:
        """Write one step and return the progress that names its files.

        Raises
        ------
        RuntimeError
            If another process has taken over, because this one was silent for too long.
        OSError
            If the disk is full, or the folder was deleted.
        """
        if self._owner is None or not self._owner.mine():
            raise RuntimeError(
                f"{self.root} was deleted or taken over by another process while this one stood still: call measure() "
                "again to go on with what is finished"
            )
        n, who = len(progress.rows) + 1, self._owner.number
        named = {f"{m}/{k}": v.contiguous() for m, table in rows.items() for k, v in table.items()}
        new = replace(progress, rows=list(progress.rows), checksums=dict(progress.checksums), run=self.run)
        new.commits = sorted({*progress.commits, dataset.git_commit()} - {""})
        if named:
            new.rows.append(f"rows-{progress.reading}-{n:06d}-{who}.safetensors")
            new.checksums[new.rows[-1]] = self._save_tensors(named, new.rows[-1])
        sums = {f"{name}/{k}": v.cpu().contiguous() for name, m in measurements.items() for k, v in m.sums.items()}
        ending = "-end" if progress.finished else ""
        new.sums = f"sums-{progress.reading}-{progress.done:09d}-{who}{ending}.safetensors"
        new.checksums[new.sums] = self._save_tensors(sums, new.sums)
        if progress.sums and progress.sums != new.sums:
            new.checksums.pop(progress.sums, None)
        replace_text(self.folder / "progress.json", json.dumps({**asdict(new), "checksum": _checksum(asdict(new))}))
        if progress.sums and progress.sums != new.sums:
            (self.folder / progress.sums).unlink(missing_ok=True)
        return new

    def load(self, progress: Progress, measurements: Mapping[str, Measurement], device: Any, with_rows: bool) -> None:
        """Give the measurements their sums back, and their finished rows if asked."""
        states: dict[str, dict[str, dict[str, Any]]] = {m: {"sums": {}, "rows": {}} for m in measurements}
        for key, value in self._load_tensors(progress.sums, progress).items() if progress.sums else ():
            name, _, k = key.partition("/")
            states[name]["sums"][k] = value
        parts: dict[str, dict[str, list[torch.Tensor]]] = {m: {} for m in measurements}
        for file in progress.rows if with_rows else ():
            for key, value in self._load_tensors(file, progress).items():
                name, _, k = key.partition("/")
                parts[name].setdefault(k, []).append(value)
        for name, m in measurements.items():
            m.load(states[name], device)
            m.rows = parts[name]

    def close(self) -> None:
        """Let go of the share."""
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other share of this run is merging."""
        place = self.root / "merging"
        try:
            place.mkdir(exist_ok=True)
            owner = Owner(place, str(self.store), wait=True)
        except FileNotFoundError:  # merged and removed
            yield
            return
        try:
            yield
        finally:
            owner.close()

    def discard_empty(self) -> None:
        """Delete what was made for this share if nothing has been finished, so that a failed start leaves no trace."""
        if self._owner is None or (self.folder / "progress.json").exists():
            return
        self.close()
        discard(self.root if self.share[1] == 1 else self.folder)

    def remove(self) -> None:
        """Delete the folder: the final store is there."""
        self.close()
        discard(self.root)

    def _save_tensors(self, tensors: dict[str, torch.Tensor], name: str) -> str:
        try:
            with open(write_tensors(self.folder / name, tensors), "rb") as f:
                return hashlib.file_digest(f, "sha256").hexdigest()
        except Exception as error:
            raise OSError(
                f"cannot write {self.folder / name}: {error}; free some space and call measure() again: "
                "what was finished before is kept"
            ) from error

    def _check(self, name: str, at: Progress) -> None:
        try:
            with open(self.folder / name, "rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            problem = "" if found == at.checksums.get(name) else "its checksum is another"
        except OSError as error:
            problem = str(error.strerror or error)
        if problem:
            raise ValueError(
                f"{self.folder / name} is damaged or missing ({problem}): delete {self.root} and start the run anew"
            )

    def _load_tensors(self, name: str, at: Progress) -> dict[str, torch.Tensor]:
        self._check(name, at)
        return load_file(self.folder / name)


def claim(root: Path, facts: Facts) -> None:
    """Make the folder of a run, with its ``run.json`` from the first moment, or check that the one there is the run's.

    A folder of another run in which nothing was finished, and which nobody is writing, makes room.

    Raises
    ------
    ValueError
        If the folder belongs to another run (names what differs), or does not say which.
    OSError
        If it cannot be made.
    """
    if not os.path.lexists(root):
        new = private_name(root, "new")
        with naming(root):
            new.mkdir(parents=True)
        try:
            replace_text(new / "run.json", json.dumps(facts, sort_keys=True, indent=1))
            os.rename(new, root)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not (root / "run.json").exists():  # else another process was faster
                raise
    then = _read_json(root / "run.json", root)
    try:
        compare_facts(then, facts, root)
    except ValueError:
        finished = [*root.glob("*/progress.json"), *root.glob("*.zarr*")]
        if "format" not in then or finished or in_use(root):
            raise
        discard(root)
        claim(root, facts)


def in_use(root: Path) -> bool:
    """Whether somebody may be writing any of the folders in a folder."""
    return any(is_owned(p) for p in root.iterdir() if p.is_dir())


def read_progress(folder: Path) -> Progress:
    """Return how far a share has come; the beginning if it has finished nothing.

    Raises
    ------
    ValueError
        If the record is damaged, or of another version.
    """
    file = folder / "progress.json"
    if not file.exists():
        return Progress()
    record = _read_json(file, folder.parent)
    checksum = record.pop("checksum", None)
    known = record.keys() | {"commits"}  # which earlier versions did not say
    if {f.name for f in fields(Progress)} != known or checksum != _checksum(record):
        raise ValueError(
            f"{file} is damaged, or of another version of tokinterp: delete {folder.parent} and start the run anew"
        )
    at = Progress(**record)
    for name in (*at.rows, *([at.sums] if at.sums else [])):
        plain_name(name, folder)
    return at


def _checksum(record: Facts) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_json(file: Path, root: Path) -> Facts:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        problem = "no record"
    except FileNotFoundError:
        problem = "missing, so that nothing says which run this is of"
    except (NotADirectoryError, ValueError) as error:
        problem = f"damaged: {error}"
    raise ValueError(f"{file} is {problem}; delete {root} and start the run anew, or choose another store")


def partial_folder(store: Path) -> Path:
    """Return the folder in which an unfinished run is kept."""
    return store.with_name(store.name + ".partial")


def remove_partial(store: Path, facts: Facts, root: Path | None = None) -> None:
    """Delete what is left of an unfinished run, in its folder, whose finished result is there."""
    sweep(store)
    root = root or partial_folder(store)
    with suppress(OSError, ValueError):
        if in_use(root):
            return
        then = _read_json(root / "run.json", root)
        compare_facts(then, {**facts, "format": FORMAT, "shares": then.get("shares")}, root)
        discard(root)


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
        raise OtherRunError(
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
