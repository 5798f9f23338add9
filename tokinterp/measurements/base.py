"""What every measurement is: settings, running sums, finished rows, and four verbs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..describe import describe, own_code
from ..settings import choose

if TYPE_CHECKING:
    from ..capture import Batch, Site
    from ..models.base import ModelInfo
    from ..text.prompts import Prompts
    from .clouds import Neighbourhood

Tensors = dict[str, torch.Tensor]


class Measurement:
    """One question asked of every batch of a run.

    A subclass keeps its settings as attributes named like its constructor's arguments, and everything it has
    seen so far in two dictionaries:

    ``sums``
        tensors of fixed size (float64 sums, int64 counts), on the device of the model;
    ``rows``
        lists of tensors that are concatenated along axis 0: one entry per finished prompt or token.  Tables of
        different length (per prompt, per token) live side by side; each carries its own keys (prompt number,
        position), so that the order in which batches arrive never matters.

    From these follow the four verbs: ``update(batch)``, ``merge(other)``, ``state()``/``load(state)`` and
    ``result()``.  A subclass writes ``sites``, ``update`` and ``result``, and overrides ``start`` to check its
    input before the model runs and ``merge_sums`` where adding the sums is not right.

    A measurement that has to read the prompts more than once sets ``passes`` and looks at ``self.reading``
    (0, 1, ...) in ``update``; ``end_reading()`` is called after each reading.
    """

    passes: int = 1
    streams: bool = False
    """Whether its sites are shown to ``look`` one by one during the pass and let go, instead of kept for ``update``."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep what the class body says: what is set on the class later (a counter) is no part of its code."""
        super().__init_subclass__(**options)
        cls._as_defined = dict(vars(cls))

    _as_defined: dict[str, Any]

    def __init__(self) -> None:
        self.sums: Tensors = {}
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.reading = 0

    # -- what a subclass writes -------------------------------------------------------------------------------
    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the sites whose activations ``update`` needs."""
        raise NotImplementedError(f"{type(self).__name__} does not say which sites it needs")

    def neighbourhoods(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return what ``update`` will ask of the neighbours in token clouds, so that one search serves all."""
        return []

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check settings against model and prompts before anything expensive, and forget earlier data."""
        self.info = info
        self.sums, self.rows, self.reading = {}, {}, 0

    def update(self, batch: Batch) -> None:
        """Take what is needed from one batch of activations."""
        raise NotImplementedError(f"{type(self).__name__} has no update()")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return the little, (prompt, ...), that ``update`` needs of a site too large to keep (``streams``).

        ``update`` finds it with ``batch.seen(self, site)``; it must be finite where the value is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no look()")

    def end_reading(self) -> None:
        """Called after each complete reading of the prompts, before the next one or ``result``."""

    def result(self) -> xr.Dataset:
        """Return the labelled result of everything seen so far."""
        raise NotImplementedError(f"{type(self).__name__} has no result()")

    # -- what they all share ----------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments with their present values, as plain JSON types."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        return {n: describe(getattr(self, n)) for n in names}

    def __describe__(self) -> dict[str, Any]:
        """Return class and settings: what a measurement is as a setting of another."""
        return {"class": type(self).__qualname__, "code": own_code(type(self), self), **self.settings()}

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
        """Append rows to tables; axis 0 of each tensor counts the new rows."""
        for name, value in columns.items():
            self.rows.setdefault(name, []).append(value.detach())

    def merge(self, other: Measurement) -> None:
        """Add the sums and append the rows of another measurement with the same settings."""
        if self.settings() != other.settings() or type(self) is not type(other):
            raise ValueError(
                f"cannot merge {type(other).__name__} {other.settings()} into {type(self).__name__} "
                f"{self.settings()}: the settings must be equal"
            )
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

    def table(self, *names: str) -> list[np.ndarray]:
        """Return columns as arrays, sorted by the first column given, then the second, and so on.

        All named columns must have the same number of rows; the sort is what makes a result independent of the
        order of the batches.  Only one-dimensional integer columns take part in the sort.
        """
        missing = [n for n in names if n not in self.rows]
        if missing:
            raise ValueError(f"{type(self).__name__} has seen no batch yet: no rows named {missing}")
        columns = [torch.cat([p.cpu() for p in self.rows[n]]).numpy() for n in names]
        keys = [c for c in columns if c.ndim == 1 and np.issubdtype(c.dtype, np.integer)]
        order = np.lexsort(keys[::-1])
        return [c[order] for c in columns]

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings().items())
        return f"{type(self).__name__}({inner})"


def choose_layers(layers: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the layers asked for, or all of ``0..n_layers``; ValueError for others."""
    return choose("layers", layers, info.n_layers, info.id)


def choose_blocks(blocks: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the blocks asked for, or all of ``0..n_layers-1``; ValueError for others."""
    return choose("blocks", blocks, info.n_layers - 1, info.id)
