"""Sites of a model, batches of captured activations, and the stream of batches over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ..kernels.rounding import settle
from .sites import Site

if TYPE_CHECKING:
    from ..models.base import Activations, Model


class Looks(Protocol):
    """Who looks at sites as they pass by: a measurement that streams."""

    def look(self, batch: Batch, site: Site, value: torch.Tensor, /) -> torch.Tensor:
        """Return what is kept of a site."""
        ...


@dataclass
class Batch:
    """Right-padded prompts with their captured activations, all on the model's device.

    Attributes
    ----------
    ids : torch.Tensor
        (prompt, position) int64 token ids, padded.
    mask : torch.Tensor
        (prompt, position) bool, true on real tokens.
    numbers : list of int
        Place of each prompt in the input.
    lengths : list of int
        Real tokens of each prompt.
    special : torch.Tensor
        (prompt, position) bool, true on BOS and other special tokens.
    activations : dict
        Site -> tensor; (prompt, position, d_model), or (prompt, head, query, key) for ``pattern``.
    model : Model
        For ``unembed``.
    shared : dict
        What several measurements need of the batch and compute only once (neighbours, see geometry/clouds.py).
    looks : dict
        What measurements kept of sites that were let go during the pass; read with ``seen``.
    requests : sequence
        What all measurements of the run will ask for of the shared work (`Measurement.requests`).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    numbers: list[int]
    lengths: list[int]
    special: torch.Tensor
    activations: Activations
    model: Model
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)
    looks: dict[tuple[int, Site], torch.Tensor] = field(default_factory=dict, repr=False)
    requests: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def n_tokens(self) -> int:
        """Real tokens in the batch."""
        return sum(self.lengths)

    @property
    def device(self) -> torch.device:
        """Device of ids and activations."""
        return self.ids.device

    def get(self, name: str, at: int) -> torch.Tensor:
        """Return the activations of a site, padding included."""
        return self.activations[Site(name, at)]

    def seen(self, measurement: Looks, site: Site) -> torch.Tensor:
        """Return what a measurement kept of a site when it passed by, or let it look now if the site was kept."""
        key = (id(measurement), site)
        if key not in self.looks:
            self.looks[key] = measurement.look(self, site, self.activations[site])
        return self.looks[key]

    def resid(self, layer: int) -> torch.Tensor:
        """Return the stream at a layer, (prompt, position, d_model), padding included."""
        return self.activations[Site("resid", layer)]

    def points(self, layer: int) -> torch.Tensor:
        """Return the stream at a layer as the points of one cloud a prompt, (prompt, position, d_model).

        Points of a prompt that are equal up to rounding are equal (`tokinterp.kernels.rounding.settle`): for whatever
        looks at distances, directions, steps or maps.  Worked out once for all measurements.
        """
        key = ("points", layer)
        if key not in self.shared:
            self.shared[key] = settle(self.resid(layer), self.mask, getattr(torch, self.model.info.dtype))
        return self.shared[key]

    @cached_property
    def _flat(self) -> torch.Tensor:
        """Flat indices of the real tokens, prompt by prompt (made from lengths: no wait for the device)."""
        width = self.ids.shape[1]
        parts = [np.arange(n, dtype=np.int64) + b * width for b, n in enumerate(self.lengths)]
        return torch.from_numpy(np.concatenate(parts)).to(self.device, non_blocking=True)

    def flatten(self, padded: torch.Tensor) -> torch.Tensor:
        """Drop padding: (prompt, position, ...) -> (row, ...), prompt by prompt."""
        return padded.reshape(-1, *padded.shape[2:]).index_select(0, self._flat)

    def rows(self, layer: int) -> torch.Tensor:
        """Return the stream of all real tokens at a layer, (row, d_model), no padding."""
        return self.flatten(self.resid(layer))

    @cached_property
    def row_ids(self) -> torch.Tensor:
        """(row,) token id."""
        return self.flatten(self.ids)

    @cached_property
    def row_prompt(self) -> torch.Tensor:
        """(row,) number of the prompt in the input."""
        return torch.from_numpy(np.repeat(np.asarray(self.numbers, np.int64), self.lengths)).to(self.device)

    @cached_property
    def row_position(self) -> torch.Tensor:
        """(row,) position in the prompt, BOS counted."""
        return torch.from_numpy(np.concatenate([np.arange(n) for n in self.lengths])).to(self.device)

    @cached_property
    def row_special(self) -> torch.Tensor:
        """(row,) bool, true on special tokens."""
        return self.flatten(self.special)

    @cached_property
    def prompt_numbers(self) -> torch.Tensor:
        """(prompt,) number of each prompt in the input."""
        return torch.tensor(self.numbers, dtype=torch.int64, device=self.device)

    def rows_below(self, tokens: int | None) -> torch.Tensor:
        """Return the places among the rows of the prompts numbered below ``tokens``; None for all."""
        few = self.numbers if tokens is None else [n for n in self.numbers if n < tokens]
        if len(few) == len(self):
            return torch.arange(self.n_tokens, dtype=torch.int64, device=self.device)
        return (self.row_prompt < (tokens or 0)).nonzero()[:, 0]

    def labels(self, offset: int) -> torch.Tensor:
        """Return (prompt, position) the token id at position + offset, -1 where there is none."""
        out = torch.full_like(self.ids, -1)
        width = self.ids.shape[1]
        ids = self.ids.masked_fill(~self.mask, -1)
        if abs(offset) < width:
            if offset >= 0:
                out[:, : width - offset] = ids[:, offset:]
            else:
                out[:, -offset:] = ids[:, : width + offset]
        return out.masked_fill(~self.mask, -1)

    def unembed(self, stream: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of points of the stream (..., d_model)."""
        return self.model.unembed(stream)

    def select(self, keep: Sequence[int]) -> Batch:
        """Return the batch with only the prompts at these places of the batch."""
        index = torch.tensor(list(keep), dtype=torch.int64, device=self.device)
        return Batch(
            ids=self.ids[index],
            mask=self.mask[index],
            numbers=[self.numbers[i] for i in keep],
            lengths=[self.lengths[i] for i in keep],
            special=self.special[index],
            activations={s: a[index] for s, a in self.activations.items()},
            model=self.model,
            looks={k: v[index] for k, v in self.looks.items()},
        )
