"""Activations in a file of a folder, mapped into memory, for clouds that do not fit."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.owner import private_name, sweep
from ..files.paths import new_path
from ..files.whole import reserve, write_text
from ..models.steady import current
from ..results.dataset import numbers_version
from ..settings.describe import describe
from .facts import Facts, compare_facts

if TYPE_CHECKING:
    import xarray as xr

    from ..models.base import Model
    from ..text.prompts import Prompts

ARRAY, FACTS = "states.npy", "facts.json"
DTYPES = ("float32", "float16")


class KeptStates:
    """An array of states (token, layer, channel): in memory, or in ``FOLDER/states.npy``, whole or not there.

    In the file the layers lie one after the other, so that a layer is read without the others.  The same call finds
    what is finished there; what a stopped call left is begun anew.  Until then the array has a name of its own, so that
    two processes do not write into each other's.

    Parameters
    ----------
    folder : path or None
        Where to; in memory without.
    shape : (int, int, int)
        Tokens, layers, channels.
    dtype : str
        ``"float32"``, or ``"float16"``: half the bytes, each value to 11 bits.
    facts : dict
        What decides the values.

    Raises
    ------
    ValueError
        If the folder holds states of something else (names what differs).
    FileExistsError
        If it holds other things.
    """

    def __init__(self, folder: str | Path | None, shape: tuple[int, int, int], dtype: str, facts: Facts) -> None:
        self.folder, self.dtype, self.facts, self.shape = None, np.dtype(dtype), facts, shape
        self.known: str | None = None
        if folder is None:
            self.values = np.full(shape, np.nan, self.dtype)
            return
        self.folder = place = new_path(folder, "folder")
        if (place / FACTS).is_file():
            self.known = self._compare()
            self.values = self._open(place / ARRAY)
            return
        sweep(place / ARRAY)
        names = [p.name for p in place.iterdir()] if place.is_dir() else [""] * place.exists()
        if not all(n == ARRAY or n.startswith(f".{ARRAY}.") for n in names):
            raise FileExistsError(
                f"folder={str(folder)!r} is there and holds other things: choose the name of a new one"
            )
        place.mkdir(parents=True, exist_ok=True)
        tokens, layers, channels = shape
        self._partial = private_name(place / ARRAY, "writing")
        weakref.finalize(self, self._partial.unlink, missing_ok=True)
        self._file = np.lib.format.open_memmap(self._partial, "w+", self.dtype, (layers, tokens, channels))
        with open(self._partial, "r+b") as file:
            reserve(file.fileno(), self._partial.stat().st_size)
        self.values = self._file.transpose(1, 0, 2)
        self.seen = np.zeros(tokens, bool)

    @property
    def finished(self) -> bool:
        """Whether the states were found in the folder."""
        return self.known is not None

    def put(self, rows: np.ndarray, at: int, values: np.ndarray) -> None:
        """Keep the states of some tokens at a layer."""
        with np.errstate(over="ignore"):
            kept = values.astype(self.dtype)
        if self.dtype == np.float16 and (np.isinf(kept) & np.isfinite(values)).any():
            raise ValueError(
                f"dtype='float16' holds numbers up to 65504, and a state has {np.abs(values).max():.6g}: take 'float32'"
            )
        self.values[rows, at] = kept
        if self.folder is not None:
            self.seen[rows] = True

    def finish(self) -> np.ndarray:
        """Return the array; in a folder it gets its name now, and tokens that were left out are NaN.

        Raises
        ------
        ValueError
            If another process has finished states of something else there meanwhile.
        """
        if self.folder is None or self.finished:
            return self.values
        self.values[~self.seen] = np.nan
        self._file.flush()
        if (self.folder / FACTS).is_file():
            self._compare()
        self.values = self._open(self._partial)
        os.replace(self._partial, self.folder / ARRAY)
        return self.values

    def stamp(self, ds: xr.Dataset) -> xr.Dataset:
        """Return the labelled states; note their fingerprint beside the file, or compare it with the one noted.

        Raises
        ------
        ValueError
            If the file has changed since.
        """
        if self.folder is None:
            return ds
        if self.known is None:
            write_text(self.folder / FACTS, json.dumps({**self.facts, "fingerprint": ds.attrs["fingerprint"]}))
        elif self.known != ds.attrs["fingerprint"]:
            raise ValueError(f"{self.folder / ARRAY} is damaged: delete {self.folder} and call again")
        return ds

    def _compare(self) -> str:
        """Refuse a folder of other facts; return the fingerprint that it names."""
        assert self.folder is not None
        then = json.loads((self.folder / FACTS).read_text())
        known = then.pop("fingerprint")
        compare_facts(then, self.facts, self.folder)
        return known

    def _open(self, file: Path) -> np.ndarray:
        assert self.folder is not None
        try:
            found = np.load(file, mmap_mode="c", allow_pickle=False).transpose(1, 0, 2)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / ARRAY} is damaged or missing ({error}): delete {self.folder}") from error
        if found.shape != self.shape or found.dtype != self.dtype:
            raise ValueError(f"{self.folder / ARRAY} is damaged: delete {self.folder} and call again")
        return found


def states_facts(model: Model, prompts: Prompts, settings: dict[str, Any]) -> Facts:
    """Return what decides states, as JSON types: all that the fingerprint of a result is made of."""
    info = current(model)
    attention = getattr(model, "passes", {}).get("attention", "")
    return {
        "tokinterp": numbers_version(), "model": info.identity, "attention": attention, "dtype": info.dtype,
        "backend": info.backend, "device": info.device.partition(":")[0], "tokenizer": info.tokenizer,
        "prompts": prompts.hash, "settings": describe(settings),
    }  # fmt: skip
