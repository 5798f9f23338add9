"""Sites of a model, batches of captured activations, and the stream of batches over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from ..kernels.massive import Sizes, by_norm, measure_sizes
from ..kernels.rounding import settle
from .sites import Site
from .tokens import Tokens

if TYPE_CHECKING:
    from ..models.base import Activations, Model


T = TypeVar("T")


class Looks(Protocol):
    """Who looks at sites as they pass by: a measurement that streams."""

    def look(self, batch: Batch, site: Site, value: torch.Tensor, /) -> torch.Tensor:
        """Return what is kept of a site."""
        ...


@dataclass(repr=False)
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
    starts : list of int
        Place of the first token of each prompt among the tokens of all prompts.
    special : torch.Tensor
        (prompt, position) bool, true on BOS and other special tokens.
    activations : dict
        Site -> tensor; (prompt, position, d_model), or (prompt, head, query, key) for ``pattern``.
    model : Model
        For ``unembed``.
    shared : dict
        What several measurements need of the batch and is worked out only once; see ``once``.
    looks : dict
        What measurements kept of sites that were let go during the pass; read with ``seen``.
    requests : sequence
        What all measurements of the run will ask for of the shared work (`Measurement.requests`).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    numbers: list[int]
    lengths: list[int]
    starts: list[int]
    special: torch.Tensor
    activations: Activations
    model: Model
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)
    looks: dict[tuple[int, Site], torch.Tensor] = field(default_factory=dict, repr=False)
    requests: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        kept = ", ".join(f"{s.name} {s.at} {tuple(x.shape)}" for s, x in self.activations.items())
        return f"Batch({len(self)} prompts of up to {self.ids.shape[1]} tokens, {kept or 'no activations'})"

    @property
    def device(self) -> torch.device:
        """Device of ids and activations."""
        return self.ids.device

    @cached_property
    def prompt_numbers(self) -> torch.Tensor:
        """(prompt,) number of each prompt in the input."""
        return torch.tensor(self.numbers, dtype=torch.int64, device=self.device)

    @cached_property
    def tokens(self) -> Tokens:
        """The real tokens as rows, without padding."""
        return Tokens(self.ids, self.special, self.numbers, self.lengths, self.starts)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Return what was made under a key before, or make it: for what several measurements need of the batch."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

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
        dtype = getattr(torch, self.model.info.dtype)
        return self.once(("points", layer), lambda: settle(self.resid(layer), self.mask, dtype))

    def kept(self, exclude: Sequence[str], *layers: int) -> torch.Tensor:
        """Return which tokens take part, without those left out.

        Parameters
        ----------
        exclude : sequence of str
            ``"special"``: BOS and other special tokens.  ``"massive"``: rows with massive activations at the layer, by
            the rule "norm" of `tokinterp.kernels.massive.massive_rows`.
        *layers : int
            The layer; of several, whatever is massive at any of them is left out, so that they have the same tokens.

        Returns
        -------
        torch.Tensor
            (prompt, position) bool, false on padding.
        """
        out = self.mask & ~self.special if "special" in exclude else self.mask
        if "massive" in exclude:
            for layer in layers:
                out = out & ~self.once(("massive", layer), lambda n=layer: by_norm(sizes(self, n)))
        return out

    def flatten(self, padded: torch.Tensor) -> torch.Tensor:
        """Drop padding: (prompt, position, ...) -> (row, ...), prompt by prompt."""
        return self.tokens.flatten(padded)

    def rows(self, layer: int) -> torch.Tensor:
        """Return the stream of all real tokens at a layer, (row, d_model), no padding."""
        return self.flatten(self.resid(layer))

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

    def select(self, keep: Sequence[int]) -> Batch:
        """Return the batch with only the prompts at these places of the batch."""
        index = torch.tensor(list(keep), dtype=torch.int64, device=self.device)
        return Batch(
            ids=self.ids[index],
            mask=self.mask[index],
            numbers=[self.numbers[i] for i in keep],
            lengths=[self.lengths[i] for i in keep],
            starts=[self.starts[i] for i in keep],
            special=self.special[index],
            activations={s: a[index] for s, a in self.activations.items()},
            model=self.model,
            looks={k: v[index] for k, v in self.looks.items()},
        )


def sizes(batch: Batch, layer: int) -> Sizes:
    """Return how large the rows of a batch are at a layer, worked out once for all measurements."""
    return batch.once(("sizes", layer), lambda: measure_sizes(batch.resid(layer), batch.mask))
