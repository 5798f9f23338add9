"""A fit under way: one owner, what is finished kept in ``STORE.partial``, stopped and taken up to the same bits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

from ..files import whole as files
from ..files.owner import Owner, discard, sweep
from ..files.paths import new_path
from ..fitted import Fitted, Tensors, load_tensors, save_tensors
from ..models.steady import ModelChangedError, check_steady, current
from ..results import dataset
from .checkpoint import Facts, compare_facts, fingerprint, partial_folder
from .signals import stopped, stopping

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

FittedT = TypeVar("FittedT", bound=Fitted)
State = tuple[dict[str, Any], Mapping[str, torch.Tensor]]
KIND = "tokinterp state of a fit 1"
STATE = "state.safetensors"


def fit_facts(model: Model, prompts: Prompts) -> Facts:
    """Return what decides the numbers of every fit: model as it is at the start, and prompts."""
    prompts.check_tokenizer(model)
    info = current(model)
    return {
        "tokinterp": dataset.numbers_version(),
        "model": info.id, "weights": info.identity, "tokenizer": info.tokenizer, "dtype": info.dtype,
        "backend": info.backend, "device": info.device.split(":")[0], "prompts": prompts.hash,
    }  # fmt: skip


def new_place(path: str | Path, overwrite: bool, name: str = "--output") -> Path:
    """Return where the result of a command goes, if it may go there, before the command does anything else.

    Raises
    ------
    FileExistsError
        If something is there and may not be overwritten.
    ValueError, OSError
        As `new_path`.
    """
    found = new_path(path, name)
    if found.is_dir() and not (found / "zarr.json").is_file():
        raise FileExistsError(f"{name} {found}: there is a folder that is no result: give another name")
    if found.exists() and not overwrite:
        raise FileExistsError(f"{name} {found} is there already: give another name, or --overwrite to replace it")
    return found


class Fit:
    """Keeps a fit that may be stopped at any moment; a context manager.

    In ``STORE.partial`` lie ``run.json`` (the facts), ``state.safetensors`` (the last whole step) and what the fit
    itself has finished.  Every file names the facts it belongs to, so that no other fit takes it up.  Without a store
    nothing is kept, and Ctrl-C still ends with a whole step.

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

    Attributes
    ----------
    finished : bool
        Whether the result is there.
    partial : pathlib.Path
        Folder of what is kept meanwhile.
    mark : str
        Hash of the facts.

    Raises
    ------
    ValueError
        If the folder belongs to another fit (names what differs), or does not say to which.
    RuntimeError
        If another process is writing it, or a model of the `steady` function that fits changed meanwhile: nothing of
        the fit is kept then.
    """

    def __init__(self, store: str | Path | None, facts: Facts, every: float = 60.0, name: str = "store") -> None:
        if not every >= 0:
            raise ValueError(f"checkpoint_every={every}: give seconds, 0 or more")
        self.facts, self.every, self.name = facts, every, name
        self.mark = fingerprint(facts)
        self.path = None if store is None else new_path(store, name)
        self.partial = Path() if self.path is None else partial_folder(self.path)
        self._owner: Owner | None = None
        self._saved, self._pause = time.monotonic(), 0.0
        self._kept = False
        self._open = ExitStack()
        self.finished = self.path is not None and self.path.exists()

    def __enter__(self) -> Self:
        if self.path is not None and not self.finished:
            try:
                self._take(self.path)
            except BaseException as error:
                if self._owner is not None and not (self.partial / "run.json").exists():
                    self._discard_empty()
                self._let_go()
                if not isinstance(error, OSError):
                    raise
                reason = error.strerror or error
                raise OSError(error.errno, f"cannot write the {self.name} {self.path}: {reason}") from error
        self._stop = self._open.enter_context(stopping())
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        if self.path is not None and not self.finished:
            self._kept = self._kept and not isinstance(error[1], ModelChangedError)
            self._discard_empty()
        self._let_go()

    def _take(self, path: Path) -> None:
        run = self.partial / "run.json"
        self.partial.mkdir(parents=True, exist_ok=True)
        self._owner = Owner(self.partial, str(path))
        if path.exists():  # another process finished it while this one waited
            self.finished = True
            self._clear()
            return
        sweep(path)
        if run.is_file():
            compare_facts(_read_facts(run), self.facts, self.partial)
            self._kept = any(self.partial.glob("*.safetensors"))
        elif found := [p.name for p in self.partial.iterdir() if not is_bookkeeping(p)]:
            self._kept = True
            raise ValueError(
                f"{self.partial} has {', '.join(sorted(found)[:3])} but no run.json, so nothing says which fit it "
                "belongs to: delete that folder, or choose another place"
            )
        else:
            files.write_text(run, json.dumps(self.facts, sort_keys=True, indent=1))

    # -- while it goes on -------------------------------------------------------------------------------------
    def state(self) -> State | None:
        """Return notes and tensors of the last whole step that was kept, or None."""
        file = self.partial / STATE
        if self.path is None or not file.is_file():
            return None
        facts, tensors = self.load_part(STATE)
        return facts["notes"], tensors

    def step(self, said: str, state: Callable[[], State] | None = None) -> None:
        """Note that a step is whole: save the state when it is time, and stop if a signal has asked for it.

        Parameters
        ----------
        said : str
            How far the fit has come: ``"after 3 of 60 steps"``.
        state : callable, optional
            Returns notes (JSON types) and tensors from which the fit goes on; nothing is saved without.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2, with everything kept.
        """
        stop = self._stop()
        due = self.path is not None and time.monotonic() - self._saved >= max(self.every, self._pause)
        if state is not None and self.path is not None and (due or stop):
            self.save(state)
        if stop:
            how = f"give {self.name}= to be able to go on" if self.path is None else "the same call goes on from there"
            raise stopped(stop, f"stopped {said}; {how}")

    def save(self, state: Callable[[], State]) -> None:
        """Keep a whole step now."""
        began = time.monotonic()
        check_steady()
        notes, tensors = state()
        self.save_part(STATE, tensors, {"notes": notes}, finite=False)
        self._saved = time.monotonic()
        self._pause = 10 * (self._saved - began) if self.every else 0.0  # large states: at most a tenth of the time

    def save_part(
        self, name: str, tensors: Mapping[str, torch.Tensor], facts: Facts, kind: str = KIND, *, finite: bool = True
    ) -> str:
        """Keep tensors in a file of the folder, which names this fit; return their digest.

        Raises
        ------
        ModelChangedError
            If the tensors may be of several models.
        """
        check_steady()
        digest = save_tensors(self.partial / name, tensors, kind, {**facts, "fit": self.mark}, finite=finite)
        self._kept = True
        return digest

    def load_part(self, name: str, kind: str = KIND) -> tuple[Facts, Tensors]:
        """Return what `save_part` kept.

        Raises
        ------
        ValueError
            If it is damaged or of another fit.
        """
        file = self.partial / name
        facts, tensors = load_tensors(file, kind, "part of a fit", finite=False)
        if facts.get("fit") != self.mark:
            raise ValueError(f"{file} belongs to another fit: delete {self.partial}, or choose another place")
        return facts, tensors

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
        sweep(self.path)
        with suppress(OSError, ValueError):
            compare_facts(_read_facts(self.partial / "run.json"), self.facts, self.partial)
            self._clear()

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

    def _clear(self) -> None:
        self._let_go()
        discard(self.partial)
        assert self.path is not None
        sweep(self.path)

    def _discard_empty(self) -> None:
        """Delete the folder if nothing has been kept in it, so that a failed start leaves no trace."""
        if self._owner is not None and not self._kept:
            self._clear()

    def _let_go(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None


def is_bookkeeping(file: Path) -> bool:
    """Whether a file only says who is writing, or is half written."""
    return file.name == "lock" or file.name.startswith((".", "owner-"))


def _read_facts(file: Path) -> Facts:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {file.parent}, and fit again") from error
