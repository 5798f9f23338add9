"""What every measurement is: settings, fields, running sums, finished rows, and four verbs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr

from ..results.dataset import DIMS, block_coords, layer_coords, variable
from ..settings import choose
from ..settings.describe import describe, own_code
from .fields import KEYS, Field
from .sites import resid

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..text.prompts import Prompts
    from .batch import Batch
    from .sites import Site

Tensors = dict[str, torch.Tensor]
MEMORY = 2**33
"""Bytes that measurements take by default at most: 8 GiB."""


class Measurement:
    """One question asked of every batch of a run.

    A subclass says in ``fields`` what its result contains, keeps its settings as attributes named like its
    constructor's arguments, and everything it has seen so far in two dictionaries:

    ``sums``
        tensors of fixed size (float64 sums, int64 counts), on the device of the model: ``add``;
    ``rows``
        lists of tensors that are concatenated along axis 0: one entry per finished prompt or token: ``keep``.  Tables
        of different length (per prompt, per token) live side by side; each carries its own keys (prompt number,
        position), so that the order in which batches arrive never matters.

    From these follow the four verbs: ``update(batch)``, ``merge(other)``, ``state()``/``load(state)`` and
    ``result()``.  A subclass writes ``update``; ``sites`` if it looks at more than the stream at its ``layers``;
    ``derive`` for what follows from sums or from other columns; ``coords`` for the dimensions that are its own. It
    overrides ``begin`` to check its input before the model runs, and ``merge_sums`` where adding the sums is not right.

    A measurement that has to read the prompts more than once sets ``passes`` and looks at ``self.reading``
    (0, 1, ...) in ``update``; ``end_reading()`` is called after each reading.

    Examples
    --------
    >>> import tokinterp as ti
    >>> class Lengths(ti.Measurement):
    ...     fields = {"length": ti.Field(("prompt", "layer"), "mean norm of the rows of the stream")}
    ...     layers = None
    ...     def update(self, batch):
    ...         x = [batch.resid(n).norm(dim=-1) * batch.mask for n in self.at_layers()]
    ...         self.keep(batch, length=torch.stack([n.sum(1) for n in x], 1) / batch.mask.sum(1, keepdim=True))
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"norms": Lengths()}, progress=False)
    >>> run["norms"]["length"].dims, run["norms"]["length"].attrs["long_name"]
    (('prompt', 'layer'), 'mean norm of the rows of the stream')
    """

    fields: Mapping[str, Field] = {}
    """The variables of the result, in order; a name that begins with ``_`` is kept or summed, and not a part of it."""
    first: tuple[str, ...] = ()
    """The variables that a table shows, the main one first; all that have layers or blocks by default."""
    tokens: Any = 0
    """Fields of single tokens are kept for the prompts numbered below this; None keeps all, 0 none."""
    block_site: str = "attn_out"
    """The site by which blocks are named."""
    memory: int = MEMORY
    """Bytes that it may take; set by the run (``measure(..., memory=)``), and no setting: it decides no number."""
    passes: int = 1
    tried: bool = True
    """Whether one that is not of this package is tried on a prompt before the run (see `tokinterp.run.trial`)."""
    streams: bool = False
    """Whether its sites are shown to ``look`` one by one during the pass and let go, instead of kept for ``update``."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep what the class body says: what is set on the class later (a counter) is no part of its code."""
        super().__init_subclass__(**options)
        if inspect.isfunction(vars(cls).get("start")):
            raise TypeError(f"{cls.__name__}.start() is never called: what prepares a run is begin(info, prompts)")
        cls._as_defined = dict(vars(cls))

    _as_defined: dict[str, Any]
    info: ModelInfo

    def __init__(self) -> None:
        self.sums: Tensors = {}
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.reading = 0

    def fresh(self) -> Self:
        """Return a copy that has seen nothing, for a run to fill: what is given to `measure` stays as it is.

        The settings (probes, maps, a decoder) are shared with it, as are networks and what cannot be copied; whatever
        else stands in an attribute is its own.
        """
        out = copy.copy(self)
        shared, own = {*inspect.signature(type(self).__init__).parameters}, {id(self): out}
        for name, value in vars(self).items():
            if name in shared or name in ("sums", "rows") or isinstance(value, torch.nn.Module):
                continue
            with suppress(TypeError, RuntimeError, copy.Error):  # a lock, an open file, a tensor of a graph
                setattr(out, name, copy.deepcopy(value, own))
        out.sums, out.rows, out.reading = {}, {}, 0
        return out

    # -- what a subclass writes -------------------------------------------------------------------------------
    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the sites whose activations ``update`` needs: by default the stream at the layers."""
        if not hasattr(self, "layers"):
            raise NotImplementedError(f"{type(self).__name__} does not say which sites it needs")
        return resid(self.at_layers(info))

    def requests(self, info: ModelInfo) -> list[Any]:
        """Return what ``update`` will ask for that other measurements may ask for too, so that it is worked out once.

        The run does not look into them: they stand in ``batch.requests`` for whoever does the work (see
        `tokinterp.geometry.clouds.neighbours`).
        """
        return []

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check settings against model and prompts before anything expensive, and forget earlier data."""
        self.info = info
        self.sums, self.rows, self.reading = {}, {}, 0
        if hasattr(self, "layers"):
            self.at_layers()
        if hasattr(self, "blocks"):
            self.at_blocks()

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

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the fields that follow from the columns and sums found, also in place of those."""
        return {}

    def coords(self) -> Mapping[str, Any]:
        """Return values, long name and units of the dimensions that are this measurement's own.

        What stands beside a dimension under another name has the dimension before the values.
        """
        return {}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return attributes of variables that depend on the settings."""
        return {}

    # -- the result -------------------------------------------------------------------------------------------
    def at_layers(self, info: ModelInfo | None = None) -> list[int]:
        """Return the layers of this run: those asked for, or all."""
        return choose_layers(getattr(self, "layers", None), info or self.info)

    def at_blocks(self, info: ModelInfo | None = None) -> list[int]:
        """Return the blocks of this run: those asked for, or those whose two ends are among the layers."""
        if hasattr(self, "blocks"):
            return choose_blocks(getattr(self, "blocks", None), info or self.info)
        layers = self.at_layers(info)
        return [n for n in layers if n + 1 in layers]

    def keep(self, batch: Batch, **columns: torch.Tensor) -> None:
        """Keep fields of a batch; called once for each batch, with all of them.

        Parameters
        ----------
        batch : Batch
            Where they come from.
        **columns : torch.Tensor
            (prompt, ...) of a field per prompt; (prompt, position, ...) of one per token, of which the rows of the
            first ``tokens`` prompts are kept.

        Raises
        ------
        TypeError
            For a name that ``fields`` does not have, or a value of another shape.
        """
        tables: dict[str, Tensors] = {"prompt": {}, "token": {}}
        for name, value in columns.items():
            self._check_column(name, value, batch)
            tables[self.fields[name].table][name] = value
        if tables["prompt"]:
            self.append(prompt=batch.prompt_numbers, **tables["prompt"])
        if tables["token"]:
            rows = batch.tokens.below(self.tokens)
            self.keep_rows(
                batch, rows,
                **{n: batch.flatten(v)[rows] if len(rows) else v[:0, 0] for n, v in tables["token"].items()},
            )  # fmt: skip

    def keep_rows(self, batch: Batch, rows: torch.Tensor, **columns: torch.Tensor) -> None:
        """Keep fields of the tokens at some places among the rows of a batch; axis 0 of each column counts them."""
        at = batch.tokens
        keys = {"token_prompt": at.prompt, "token_position": at.position, "token_id": at.ids}
        self.append(**{name: key[rows] for name, key in keys.items()}, **columns)

    def _check_column(self, name: str, value: torch.Tensor, batch: Batch) -> None:
        who = f"{type(self).__name__}.keep({name}=)"
        field = self.fields.get(name)
        if field is None:
            raise TypeError(f"{who}: it is not in fields, which has {', '.join(self.fields) or 'nothing'}")
        if field.table not in ("prompt", "token"):
            raise TypeError(f"{who}: its dimensions are {field.dims}; add() is for sums, append() for spans")
        start = (len(batch),) if field.table == "prompt" else tuple(batch.ids.shape)
        if tuple(value.shape[: len(start)]) != start or value.ndim != len(start) + len(field.dims) - 1:
            axes = ("prompt", "position", *field.dims[1:]) if field.table == "token" else field.dims
            raise TypeError(f"{who} has the shape {tuple(value.shape)}; ({', '.join(axes)}) begins with {start}")

    def _columns(self) -> dict[str, np.ndarray]:
        """Return the columns of all tables, each sorted by its keys, and the sums that are fields."""
        out: dict[str, np.ndarray] = {}
        if not self.rows and not self.sums:
            raise ValueError(f"{type(self).__name__} has seen no batch yet")
        for dim, keys in KEYS.items():
            if keys[0] not in self.rows:
                continue
            own = [n for n, f in self.fields.items() if f.table == dim and n in self.rows]
            names = [*keys, *(["token_id"] if dim == "token" else []), *own]
            out.update(zip(names, self.table(*names, by=len(keys)), strict=True))
        out.update({n: self.sums[n].cpu().numpy() for n in self.fields if n in self.sums})
        return out

    def result(self) -> xr.Dataset:
        """Return the labelled result of everything seen so far: the variables of ``fields``."""
        if not self.fields:
            raise NotImplementedError(f"{type(self).__name__} has no result(), and no fields to make one of")
        found: dict[str, Any] = self._columns()
        found.update(self.derive(found))
        data: dict[str, xr.Variable] = {}
        for name, field in self.fields.items():
            if name in found and not name.startswith("_"):
                data[name] = variable(field.dims, found[name], field.long_name, field.units, field.references)
        known = {*self.fields, *KEYS, *(k for keys in KEYS.values() for k in keys), "token_id"}
        if unknown := sorted({*found} - known):
            raise TypeError(f"{type(self).__name__}.derive() gives {', '.join(unknown)}, which fields does not have")
        out = xr.Dataset(data, self._coordinates(data, found))
        if self.first:
            out.attrs["first"] = ", ".join(self.first)
        if own := [str(d) for d in out.dims if d not in DIMS and d in out.coords]:
            out.attrs["dimensions"] = ", ".join(own)
        for name, attrs in self.notes().items():
            if name in out.variables:
                out[name].attrs.update(attrs)
        return out

    def _coordinates(self, data: Mapping[str, xr.Variable], found: Mapping[str, Any]) -> dict[str, Any]:
        dims = {d for v in data.values() for d in v.dims}
        out: dict[str, Any] = {}
        if "prompt" in found:
            out["prompt"] = variable("prompt", found["prompt"], "number of the prompt in the input", "1")
        if "token" in dims:
            out["token_prompt"] = variable("token", found["token_prompt"], "number of the prompt in the input", "1")
            out["position"] = variable("token", found["token_position"], "place in the sequence, BOS counted", "1")
            out["token_id"] = variable("token", found["token_id"], "token id", "1")
        if "span" in dims:
            out["span_prompt"] = variable("span", found["span_prompt"], "number of the prompt in the input", "1")
            out["start"] = variable("span", found["start"], "first token of the span, BOS counted", "token")
            out["stop"] = variable("span", found["stop"], "token after the span", "token")
        if "block" in dims:
            out.update(block_coords(self.at_blocks(), self.info, self.block_site))
            if "layer" in dims:  # which has the others under the same names
                out = {k: v for k, v in out.items() if "block" not in v.dims or k == "block"}
        if "layer" in dims:
            out.update(layer_coords(self.at_layers(), self.info))
        if "other_layer" in dims:
            out["other_layer"] = variable("other_layer", np.array(self.at_layers()), "blocks applied", "1")
        if "head" in dims:
            size = next(v.sizes["head"] for v in data.values() if "head" in v.dims)
            out["head"] = variable("head", np.arange(size), "attention head, 0 first", "1")
        for name, given in self.coords().items():
            if name in dims:
                out[name] = variable(name, *given)
            elif len(given) == 4 and given[0] in dims:
                out[name] = variable(*given)
        return out

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

    def table(self, *names: str, by: int | None = None) -> list[np.ndarray]:
        """Return columns as arrays, sorted by the first column given, then the second, and so on.

        All named columns must have the same number of rows; the sort is what makes a result independent of the
        order of the batches.  Only one-dimensional integer columns take part in the sort, or the first ``by``.
        """
        missing = [n for n in names if n not in self.rows]
        if missing:
            raise ValueError(f"{type(self).__name__} has seen no batch yet: no rows named {missing}")
        columns = [torch.cat([p.cpu() for p in self.rows[n]]).numpy() for n in names]
        keys = columns[:by] if by else [c for c in columns if c.ndim == 1 and np.issubdtype(c.dtype, np.integer)]
        order = np.lexsort(keys[::-1])
        return [c[order] for c in columns]

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings().items())
        return f"{type(self).__name__}({inner})"


def fresh(measurements: Mapping[str, Measurement], memory: int = MEMORY) -> dict[str, Measurement]:
    """Return copies that have seen nothing, for a run to fill; each may take so much memory."""
    out = {name: m.fresh() for name, m in measurements.items()}
    for m in out.values():
        m.memory = memory
    return out


def choose_layers(layers: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the layers asked for, or all of ``0..n_layers``; ValueError for others."""
    return choose("layers", layers, info.n_layers, info.id)


def choose_blocks(blocks: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the blocks asked for, or all of ``0..n_layers-1``; ValueError for others."""
    return choose("blocks", blocks, info.n_layers - 1, info.id)
