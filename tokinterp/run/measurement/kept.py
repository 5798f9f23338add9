"""What has been seen so far: running sums and finished rows, added to, merged, put away and taken up again."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path

import numpy as np
import torch

from ...files.whole import reserve

Tensors = dict[str, torch.Tensor]
IN_MEMORY = 2**26
"""Bytes of a column that is sorted in memory in any case: 64 MiB."""


class Kept:
    """Two dictionaries that hold everything seen so far.

    Attributes
    ----------
    sums : dict of str to torch.Tensor
        Tensors of fixed size (float64 sums, int64 counts), on the device of the model: ``add``.
    rows : dict of str to list of torch.Tensor
        Concatenated along axis 0, one entry per finished prompt or token: ``append``.  Tables of different length (per
        prompt, per token) live side by side; each carries its own keys (prompt number, position), so that the order in
        which batches arrive never matters.
    sorted_in : pathlib.Path or None
        Folder where columns of more than ``IN_MEMORY`` are sorted, in files without a name; in memory without.
    """

    sums: Tensors
    rows: dict[str, list[torch.Tensor]]
    sorted_in: Path | None = None

    def __init__(self) -> None:
        self.sums, self.rows = {}, {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add to a running sum, float64 or int64 whatever the dtype of the values (created at its first use)."""
        value = value.detach().to(torch.float64 if value.is_floating_point() else torch.int64)
        if name not in self.sums:
            self.sums[name] = value.clone(memory_format=torch.contiguous_format)
        elif self.sums[name].dtype == value.dtype:
            self.sums[name] += value.to(self.sums[name].device)
        else:  # counts to which shares are added, or the other way round
            self.sums[name] = self.sums[name].double() + value.double().to(self.sums[name].device)

    def append(self, **columns: torch.Tensor) -> None:
        """Append rows to tables; axis 0 of each tensor counts the new rows.

        A view of something larger, which it would keep in memory until the end, is copied.
        """
        for name, value in columns.items():
            whole = value.untyped_storage().nbytes() <= value.nbytes
            self.rows.setdefault(name, []).append(value.detach() if whole else value.detach().clone())

    def merge_kept(self, other: Kept) -> None:
        """Add the sums and append the rows of another."""
        self.merge_sums(other.sums)
        for name, parts in other.rows.items():
            self.rows.setdefault(name, []).extend(parts)

    def merge_sums(self, other: Tensors) -> None:
        """Add the sums of another measurement; override where adding is not right."""
        for name, value in other.items():
            self.add(name, value)

    def take_rows(self) -> Tensors:
        """Return the rows finished since the last call, on the CPU, and let go of them."""
        out = {name: torch.cat([p.cpu() for p in parts]) for name, parts in self.rows.items() if parts}
        self.rows = {}
        return out

    def state(self) -> dict[str, Tensors]:
        """Return everything seen so far as two dictionaries of CPU tensors, ``sums`` and ``rows``."""
        rows = {name: torch.cat([p.cpu() for p in parts]) for name, parts in self.rows.items() if parts}
        return {"sums": {k: v.cpu().clone() for k, v in self.sums.items()}, "rows": rows}

    def load(self, state: dict[str, Tensors], device: torch.device | str = "cpu") -> None:
        """Take up a state that ``state()`` returned.

        The sums get memory of their own, in which they lie as new ones do: products are added to them in an order that
        depends on where they begin, and what a file was read into may begin anywhere.
        """
        own = torch.contiguous_format
        self.sums = {k: v.to(device, copy=True, memory_format=own) for k, v in state["sums"].items()}
        self.rows = {k: [v] for k, v in state["rows"].items()}

    def table(self, *names: str, by: int | None = None) -> list[np.ndarray]:
        """Return columns as arrays, sorted by the first column given, then the second, and so on.

        All named columns must have the same number of rows; the sort is what makes a result independent of the
        order of the batches.  Only one-dimensional integer columns take part in the sort, or the first ``by``.
        """
        missing = [n for n in names if n not in self.rows]
        if missing:
            raise ValueError(f"{type(self).__name__} has seen no batch yet: no rows named {missing}")
        columns = [[p.cpu().numpy() for p in self.rows[n]] for n in names]
        keys = columns[:by] if by else [c for c in columns if c[0].ndim == 1 and np.issubdtype(c[0].dtype, np.integer)]
        order = np.lexsort([np.concatenate(k) for k in keys[::-1]])
        return [self._sorted(parts, order) for parts in columns]

    def _sorted(self, parts: list[np.ndarray], order: np.ndarray) -> np.ndarray:
        """Return a column in order: in memory, or, where that is asked for, in a file that goes with the array."""
        if self.sorted_in is None or sum(p.nbytes for p in parts) <= IN_MEMORY:
            return np.concatenate(parts)[order]
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        shape, dtype = (len(order), *parts[0].shape[1:]), np.result_type(*{p.dtype for p in parts})
        with tempfile.TemporaryFile(dir=self.sorted_in) as file:
            reserve(file.fileno(), prod(shape) * dtype.itemsize)
            out = np.memmap(file, dtype, "w+", shape=shape)
        start = 0
        for p in parts:
            out[place[start : start + len(p)]] = p
            start += len(p)
        return np.asarray(out)
