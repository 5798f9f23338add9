"""Prompts on their way to other processes: the arrays in a file that all can see, of which each reads what it needs."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import overload

import numpy as np

from ..files.owner import private_name
from ..text.prompts import Prompts


class Packed(Sequence[str]):
    """Texts in one array of bytes; each is decoded when somebody looks at it.

    Examples
    --------
    >>> list(Packed.of(["Nile", "", "Fluß"]))
    ['Nile', '', 'Fluß']
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> Packed:
        """Pack texts."""
        pieces = [t.encode("utf-8", "surrogatepass") for t in texts]
        ends = np.cumsum([len(p) for p in pieces], dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        at = range(len(self))[i]
        start = int(self.ends[at - 1]) if at else 0
        return self.content[start : int(self.ends[at])].tobytes().decode("utf-8", "surrogatepass")


class Shipped:
    """What travels to a worker instead of the prompts: all that is no array, and where the arrays lie.

    Parameters
    ----------
    prompts : Prompts
        The prompts of the whole run.
    store : path
        The result; the file lies beside it, under a hidden name.
    """

    def __init__(self, prompts: Prompts, store: Path) -> None:
        self.bare = prompts[:]
        self.bare.__dict__["hash"] = prompts.hash  # worked out once, here
        self.file = store.with_name(f".{store.name}.prompts-{prompts.hash[:12]}")
        self.places: dict[tuple[str, str], tuple[int, str, tuple[int, ...]]] = {}
        self.size = 0
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = private_name(self.file, "new")
        try:
            with open(new, "wb") as f:
                for name, array in self._take_arrays():
                    self.places[name] = (f.tell(), array.dtype.str, array.shape)
                    f.write(np.ascontiguousarray(array).data)
                    f.write(bytes(-f.tell() % 64))
                self.size = f.tell()
                f.flush()
                os.fsync(f.fileno())
            os.replace(new, self.file)
        finally:
            new.unlink(missing_ok=True)

    def _take_arrays(self) -> list[tuple[tuple[str, str], np.ndarray]]:
        """Take the arrays out of what travels."""
        own = vars(self.bare)
        found = {("", name): value for name, value in own.items() if isinstance(value, np.ndarray)}
        for _, name in found:
            del own[name]
        found |= {("marks", name): flags for name, flags in own.pop("marks").items()}
        if (texts := own.pop("_texts")) is not None:
            packed = texts if isinstance(texts, Packed) else Packed.of(texts)
            found |= {("texts", "content"): packed.content, ("texts", "ends"): packed.ends}
        return [*found.items()]

    def prompts(self) -> Prompts:
        """Return the prompts, whose arrays are read from the file where somebody looks at them.

        Raises
        ------
        FileNotFoundError, RuntimeError
            If this process does not see the file as it was written.
        """
        try:
            size = self.file.stat().st_size
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.file} is not here: a worker needs the file system on which the store is"
            ) from error
        if size != self.size:
            raise RuntimeError(
                f"{self.file} has {size} bytes instead of {self.size}: was it written by two runs at once?"
            )
        out, found = copy.copy(self.bare), {"": {}, "marks": {}, "texts": {}}
        for (group, name), (start, dtype, shape) in self.places.items():
            there = np.zeros(shape, dtype) if 0 in shape else np.memmap(self.file, dtype, "r", start, shape)
            found[group][name] = np.asarray(there)
        texts = Packed(**found["texts"]) if found["texts"] else None
        vars(out).update({**found[""], "marks": found["marks"], "_texts": texts})
        return out

    def remove(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
