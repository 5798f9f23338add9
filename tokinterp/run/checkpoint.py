"""What a run, a walk, a fit or a training has finished, kept so that the same call goes on to the same bits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

from ..files import whole as files
from ..files.owner import Owner, discard, sweep
from ..files.paths import new_path
from ..files.received import plain_name
from ..fitted import Fitted, Tensors, load_tensors, read_note, save_tensors
from ..models.steady import ModelChangedError, check_steady
from ..results import dataset, stores
from .facts import Facts, claim, compare_facts, fingerprint, partial_folder, remove_partial
from .signals import stopped, stopping

if TYPE_CHECKING:
    from ..models.base import Model

FittedT = TypeVar("FittedT", bound=Fitted)
State = tuple[dict[str, Any], Mapping[str, torch.Tensor]]
KIND = "tokinterp state of a run 2"
EVERY = 60.0
"""Seconds between two saved states."""
STATE = "state.safetensors"


class Checkpoint:
    """Keeps what may be stopped at any moment; a context manager.

    In ``STORE.partial`` lie ``run.json`` (the facts, from its first moment), ``state.safetensors`` (the last whole
    step) and the files of what is finished; a share of a run has a folder of its own in it.  Every file is written
    whole, and names the facts it belongs to, so that nothing else takes it up.  Without a store nothing is kept, and
    Ctrl-C still ends with a whole step.

    Parameters
    ----------
    store : path or None
        Where the finished result will be.
    facts : dict
        All that decides its numbers.
    every : float
        Seconds between two saved states, at least ten times as long as saving takes; 0 saves every step.
    name : str
        What the argument is called, for messages.
    share : (int, int)
        (i, n) for the i-th of n shares.

    Attributes
    ----------
    finished : bool
        Whether the result is there.
    partial, folder : pathlib.Path
        Folder of what is kept meanwhile, and that of this share.
    mark : str
        Hash of the facts, and of the share.
    commits : set of str
        Of the code that had a part in what was kept.
    writer : int
        Number of this writer of the folder, for names of files that no other writer gives; 0 where nothing is written.

    Raises
    ------
    ValueError
        If the folder belongs to something else (names what differs), or does not say to what.
    RuntimeError
        If another process is writing it, or a model of the `steady` function that fits changed meanwhile: nothing is
        kept then.
    """

    def __init__(
        self, store: str | Path | None, facts: Facts, every: float = EVERY, name: str = "store",
        share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        self.facts, self.every, self.name, self.share = facts, every, name, share
        self.mark = fingerprint(facts if share[1] == 1 else {**facts, "share": list(share)})
        self.path = None if store is None else new_path(store, name)
        self.partial = Path() if self.path is None else partial_folder(self.path)
        self.folder = share_folder(self.partial, share)
        self.commits = {dataset.git_commit()} - {""}
        self.writer = 0
        self._owner: Owner | None = None
        self._saved, self._pause = time.monotonic(), 0.0
        self._kept = False
        self._open = ExitStack()
        self.finished = self.path is not None and stores.exists(self.path)

    def __enter__(self) -> Self:
        if self.path is not None and not self.finished:
            try:
                self._take(self.path)
            except OSError as error:
                self._let_go()
                reason = error.strerror or error
                said = f"cannot write the {self.name} {self.path}: {reason}; choose another place"
                raise OSError(error.errno, said) from error
            except BaseException:
                self._let_go()
                raise
        self._stop = self._open.enter_context(stopping())
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:  # at the end, since it may raise a signal that came too late for a step
            if self.path is not None and not self.finished:
                self._kept = self._kept and not isinstance(error[1], ModelChangedError)
                self._discard_empty()
            self._let_go()

    def _take(self, path: Path) -> None:
        sweep(path)
        for attempt in range(100):
            claim(self.partial, self.facts, self.share[1])
            try:
                self.folder.mkdir(exist_ok=True)
                self._owner = owner = Owner(self.folder, str(path))
                break
            except FileNotFoundError:  # another process finished it, and has cleared up
                if attempt == 99:
                    raise
        if stores.exists(path):  # another process finished it while this one waited
            self.finished = True
            self._clear()
            return
        self.writer, self._kept = owner.number, any(self.folder.glob("*.safetensors"))

    # -- while it goes on -------------------------------------------------------------------------------------
    def state(self) -> State | None:
        """Return notes and tensors of the last whole step that was kept, or None."""
        if self.path is None or not (self.folder / STATE).is_file():
            return None
        facts, tensors = self.load_part(STATE)
        return facts["notes"], tensors

    def step(self, said: str, state: Callable[[], State] | None = None, *, last: bool = False) -> None:
        """Note that a step is whole: save the state when it is time, and stop if a signal has asked for it.

        Parameters
        ----------
        said : str
            How far the fit has come: ``"after 3 of 60 steps"``.
        state : callable, optional
            Returns notes (JSON types) and tensors from which the fit goes on; nothing is saved without.
        last : bool
            Nothing is left but the result: the state is saved, and from here on a signal stops at once.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2, with everything kept.
        """
        stop = self._stop()
        due = self.path is not None and time.monotonic() - self._saved >= max(self.every, self._pause)
        if state is not None and self.path is not None and (due or stop or last):
            self.save(state, said)
        if stop:
            how = f"give {self.name}= to be able to go on" if self.path is None else "the same call goes on from there"
            raise stopped(stop, f"stopped {said}; {how}")
        if last:
            self._open.close()

    def save(self, state: Callable[[], State], said: str = "") -> None:
        """Keep a whole step now, and how far it has come."""
        began = time.monotonic()
        check_steady()
        notes, tensors = state()
        self.save_part(STATE, tensors, {"notes": notes, "said": said}, finite=False)
        self._saved = time.monotonic()
        self._pause = 10 * (self._saved - began) if self.every else 0.0  # large states: at most a tenth of the time

    def save_part(
        self, name: str, tensors: Mapping[str, torch.Tensor], facts: Facts, kind: str = KIND, *, finite: bool = True
    ) -> str:
        """Keep tensors in a file of the folder, which names what they are part of; return their digest.

        Raises
        ------
        ModelChangedError
            If the tensors may be of several models.
        RuntimeError
            If another process has taken over, because this one was silent for too long.
        OSError
            If the disk is full, or the folder was deleted.
        """
        check_steady()
        if self._owner is None or not self._owner.mine():
            raise RuntimeError(
                f"{self.partial} was deleted or taken over by another process while this one stood still: the same "
                "call goes on with what is finished"
            )
        file, facts = self.folder / name, {**facts, "fit": self.mark}
        try:
            digest = save_tensors(file, tensors, kind, facts, finite=finite, commits=self.commits)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; the same call goes on with what is finished") from error
        self._kept = True
        return digest

    def load_part(
        self, name: str, kind: str = KIND, digest: str | None = None, *, mapped: bool = False
    ) -> tuple[Facts, Tensors]:
        """Return what `save_part` kept, of a digest; ``mapped`` leaves the tensors in the file.

        Raises
        ------
        ValueError
            If it is damaged, missing or of something else.
        """
        file = self.folder / plain_name(name, self.folder)
        way_out = f"delete {self.partial} and start anew, or choose another place"
        try:
            facts, tensors = load_tensors(file, kind, "part of a run", finite=False, digest=digest, mapped=mapped)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged or missing ({error}): {way_out}") from error
        if facts.get("fit") != self.mark:
            raise ValueError(f"{file} belongs to another run: {way_out}")
        self.commits |= {*read_note(file, kind, "part of a run").get("commits", ())}
        return facts, tensors

    def made(self) -> dict[str, Any]:
        """Return the attributes that say when, and by which code, what was kept was made."""
        return dataset.own_attributes([{"source_commits": json.dumps(sorted(self.commits))}])

    # -- at the end -------------------------------------------------------------------------------------------
    def read(self, kind: type[FittedT], model: Model | None = None) -> FittedT:
        """Return the finished result, of these facts, and clear up what its own fit may have left behind.

        Raises
        ------
        ValueError
            If it is damaged, or of another fit (names what differs).
        """
        assert self.path is not None
        found = kind.load(self.path, model)
        self.belongs({k: v for k, v in found.facts.items() if k not in found.FOUND})
        return found

    def belongs(self, facts: Facts) -> None:
        """Refuse a finished result of other facts, and clear up what its own fit may have left behind."""
        assert self.path is not None
        compare_facts(facts, self.facts, self.path)
        self._tidy()
        remove_partial(self.path, self.facts)

    def write(self, fitted: Fitted) -> None:
        """Write what was fitted to its place, with the commits of all code that had a part in it."""
        fitted.commits = tuple(sorted(self.commits))
        self.finish(fitted.save)

    def finish(self, write: Callable[[Path], Any]) -> None:
        """Write the result to its place, which a function is given, if there is one, and clear up."""
        check_steady()
        if self.path is not None:
            write(self.path)
            self.finished = True
            self._clear()

    def rename(self) -> None:
        """Let the folder itself become the result."""
        assert self.path is not None
        check_steady()
        (self.partial / STATE).unlink(missing_ok=True)
        os.replace(self.partial, self.path)
        self._let_go()
        files.sync_folder(self.path.parent)
        self.finished = True
        self._tidy()

    def _tidy(self) -> None:
        """Delete what a folder that became the result needs no longer."""
        if self.path is not None and self.path.is_dir():
            for file in [p for p in self.path.iterdir() if p.name == "run.json" or is_bookkeeping(p)]:
                file.unlink(missing_ok=True)

    def _clear(self, folder: Path | None = None) -> None:
        self._let_go()
        discard(folder or self.partial)
        assert self.path is not None
        sweep(self.path)

    def _discard_empty(self) -> None:
        """Delete the folder if nothing has been kept in it, so that a failed start leaves no trace."""
        if self._owner is not None and not self._kept:
            self._clear(self.folder)

    def discard(self) -> None:
        """Delete all that was kept: no result can come of it."""
        self._clear()
        self.finished = True

    def _let_go(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None


def is_bookkeeping(file: Path) -> bool:
    """Whether a file only says who is writing, or is half written."""
    return file.name == "lock" or file.name.startswith((".", "owner-"))


def share_folder(root: Path, share: tuple[int, int]) -> Path:
    """Return where what a share has finished is kept, in the folder of the run."""
    return root if share[1] == 1 else root / f"share-{share[0]}-of-{share[1]}"


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the notes of the last whole step in a folder, without its tensors; none if nothing was finished."""
    file = folder / STATE
    return read_note(file, KIND, "step of a run")["facts"]["notes"] if file.is_file() else {}


def how_far(folder: Path) -> str:
    """Return how far what is kept in a folder has come, in words."""
    file = folder / STATE
    said = read_note(file, KIND, "step of a run")["facts"].get("said", "") if file.is_file() else ""
    parts = len([p for p in folder.glob("*.safetensors") if p.name != STATE])
    return "; ".join([*([said] if said else []), *([f"{parts} parts finished"] if parts else [])]) or "nothing yet"


@contextmanager
def alone(root: Path, what: str) -> Iterator[None]:
    """Wait until nobody else is merging what is kept in a folder."""
    place = root / "merging"
    try:
        place.mkdir(exist_ok=True)
        owner = Owner(place, what, wait=True)
    except FileNotFoundError:  # merged and removed
        yield
        return
    try:
        yield
    finally:
        owner.close()
