"""From what was kept to labelled data: fields, their columns, and the coordinates of the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ...results.dataset import DIMS, block_coords, layer_coords, variable
from ...settings import choose, like
from .fields import KEYS, Field
from .kept import Kept, Tensors

if TYPE_CHECKING:
    from ...models.info import ModelInfo
    from ..batch import Batch


class Labelled(Kept):
    """What is kept under the names of fields, and the Dataset that they make."""

    fields: Mapping[str, Field] = {}
    """The variables of the result, in order; a name that begins with ``_`` is kept or summed, and not a part of it."""
    first: tuple[str, ...] = ()
    """The variables that tables and pictures show, the main one first; all by default."""
    tokens: Any = 0
    """Fields of single tokens are kept for the prompts numbered below this; None keeps all, 0 none."""
    block_site: str = "attn_out"
    """The site by which blocks are named."""
    info: ModelInfo

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

    def attributes(self) -> Mapping[str, Any]:
        """Return attributes of the result that follow from the settings, or from what `derive` has found."""
        return {}

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
            near = like(name, self.fields)
            raise TypeError(f"{who}: it is not in fields, which has {', '.join(self.fields) or 'nothing'}{near}")
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
            own = [n for n, f in self.fields.items() if f.table == dim and n in self.rows]
            if lacking := [k for k in keys if k not in self.rows]:
                if own:
                    raise TypeError(
                        f"{type(self).__name__}.append({own[0]}=) without {' and '.join(lacking)}, which say whose it "
                        f"is: write keep(batch, {own[0]}=...), or append these too"
                    )
                continue
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
                data[name] = field.variable(found[name])
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
        return out.assign_attrs(self.attributes())

    def _coordinates(self, data: Mapping[str, xr.Variable], found: Mapping[str, Any]) -> dict[str, Any]:
        dims = {d for v in data.values() for d in v.dims}
        out: dict[str, Any] = {}
        if "prompt" in dims:
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


def choose_layers(layers: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the layers asked for, or all of ``0..n_layers``; ValueError for others."""
    return choose("layers", layers, info.n_layers, info.id)


def choose_blocks(blocks: Iterable[int] | None, info: ModelInfo) -> list[int]:
    """Return the blocks asked for, or all of ``0..n_layers-1``; ValueError for others."""
    return choose("blocks", blocks, info.n_layers - 1, info.id)
