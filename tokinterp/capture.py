"""Sites of a model, batches of captured activations, and the stream of batches over prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .kernels.rounding import settle
from .settings import checked, count, instance, integer, one_of, refuse, several

if TYPE_CHECKING:
    from .edits import Edit
    from .measurements.base import Measurement
    from .models.base import Activations, Model, ModelInfo
    from .text.prompts import Prompts

SITES = {
    "resid": "residual stream after that many blocks, before any norm",
    "resid_mid": "residual stream inside a block, after attention is added and before the MLP",
    "attn_out": "what attention adds to the stream",
    "mlp_out": "what the MLP adds to the stream",
    "pattern": "attention weights (head, query, key) after the softmax",
    "query": "queries of all heads side by side, as attention uses them (rotated, before scaling)",
    "key": "keys of all heads side by side, as attention uses them (rotated); fewer heads with grouped queries",
    "value": "values of all heads side by side, as many heads as keys",
}
INNER = ("query", "key", "value")
"""Sites inside attention, offered where transformers' attention functions are used."""
_LENS_NAMES = {
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "pattern": "attn.hook_pattern",
    "query": "attn.hook_rot_q",
    "key": "attn.hook_rot_k",
    "value": "attn.hook_v",
}


@checked(name=one_of(*SITES), at=integer)
@dataclass(frozen=True, order=True)
class Site:
    """A place whose activations can be captured or edited.

    Attributes
    ----------
    name : str
        ``resid`` at a layer; ``resid_mid``, ``attn_out``, ``mlp_out``, ``pattern``, ``query``, ``key`` or ``value`` at
        a block.
    at : int
        The layer (blocks applied, 0..n_layers) for ``resid``, else the block (0..n_layers-1): what happens
        between layer ``at`` and layer ``at + 1``.

    Examples
    --------
    >>> Site("resid", 4).lens_name
    'blocks.3.hook_resid_post'
    >>> Site.parse("blocks.2.hook_mlp_out")
    Site(name='mlp_out', at=2)
    """

    name: str
    at: int

    def __post_init__(self) -> None:
        if self.at < 0:
            what = "layer" if self.name == "resid" else "block"
            refuse(
                "at", self.at, f"site {self.name} at {what} {self.at}: numbers start at 0 and never count from the end"
            )

    @property
    def lens_name(self) -> str:
        """The TransformerLens name of the same place."""
        if self.name == "resid":
            return f"blocks.{self.at - 1}.hook_resid_post" if self.at else "blocks.0.hook_resid_pre"
        return f"blocks.{self.at}.{_LENS_NAMES[self.name]}"

    @classmethod
    @checked()
    def parse(cls, text: str) -> Site:
        """Read ``"resid.4"``, ``"mlp_out.2"`` or a TransformerLens name.

        Raises
        ------
        ValueError
            If the text names no site.
        """
        if m := re.fullmatch(r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_post)", text):
            return cls("resid", int(m[1]) + (m[2] == "hook_resid_post"))
        if m := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
            for name, lens in _LENS_NAMES.items():
                if lens == m[2]:
                    return cls(name, int(m[1]))
        if m := re.fullmatch(r"(\w+)\.(\d+)", text):
            return cls(m[1], int(m[2]))
        raise ValueError(
            f"text={text!r} names no site: write for example 'resid.4', 'mlp_out.2' or 'blocks.3.hook_resid_post'"
        )

    @property
    def depth(self) -> tuple[int, int]:
        """How far the pass must go: block needed, then place inside it (block -1: the input of block 0)."""
        if self.name == "resid":
            return (self.at - 1, 9)
        inside = {**dict.fromkeys(INNER, -1), "pattern": 0, "attn_out": 1, "resid_mid": 1, "mlp_out": 2}
        return (self.at, inside[self.name])

    def check(self, info: ModelInfo) -> None:
        """Raise ValueError if the model has no such layer or block."""
        last = info.n_layers if self.name == "resid" else info.n_layers - 1
        if self.at > last:
            what = "layer" if self.name == "resid" else "block"
            raise ValueError(f"site {self.name} at {what} {self.at}: {info.id} has {what}s 0 to {last}")


@checked()
def resid(layers: Sequence[int]) -> list[Site]:
    """Return the residual-stream sites of some layers."""
    return [Site("resid", layer) for layer in layers]


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
        What several measurements need of the batch and compute only once (neighbours, see measurements/clouds.py).
    looks : dict
        What measurements kept of sites that were let go during the pass; read with ``seen``.
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

    def seen(self, measurement: Measurement, site: Site) -> torch.Tensor:
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


@checked(numbers=several(count(), 1), sites=several(instance("Site")), streaming=several(instance("Measurement")))
def capture(
    model: Model, prompts: Prompts, numbers: Sequence[int], sites: Sequence[Site], edits: Sequence[Edit] = (), *,
    streaming: Sequence[Measurement] = (), names: Sequence[int] | None = None,
) -> Batch:  # fmt: skip
    """Run some prompts as one batch and return it with the activations of the sites.

    Parameters
    ----------
    model, prompts
        What to run, and on what.
    numbers : sequence of int
        Which prompts, by their place in the input.
    sites : sequence of Site
        What to keep.
    edits : sequence of Edit
        What to change during the pass; numbered positions that only longer prompts have are passed over.
    streaming : sequence of Measurement
        Each looks at its sites as the pass reaches them; what only they need is not kept.
    names : sequence of int, optional
        Numbers of the prompts in a larger whole, where ``prompts`` is a part of it.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> batch = ti.capture(model, prompts, [0, 1], ti.resid([0, 3]))
    >>> tuple(batch.rows(3).shape) == (sum(prompts.lengths), model.info.d_model)
    True
    """
    with torch.no_grad():
        ids, mask, special = (torch.from_numpy(a).to(model.device) for a in prompts.padded(numbers))
        longest = max(prompts.lengths) if edits else 0
        fitting = [e.fit(ids.shape[1], longest) for e in edits]
        lengths = [prompts.lengths[n] for n in numbers]
        batch = Batch(ids, mask, [int(n) for n in names or numbers], lengths, special, {}, model)
        if not streaming:
            batch.activations = model.run(ids, sites, mask=mask, edits=fitting)
            return batch
        watched = {id(m): (m, set(m.sites(model.info))) for m in streaming}
        kept = set(sites)

        def take(site: Site, value: torch.Tensor) -> None:
            if site in kept:
                batch.activations[site] = value
            for key, (m, own) in watched.items():
                if site in own:
                    batch.looks[key, site] = m.look(batch, site, value)

        wanted = kept.union(*(own for _, own in watched.values()))
        model.run(ids, sorted(wanted), mask=mask, edits=fitting, consume=take)
        return batch


@checked(sites=several(instance("Site")))
def stream(
    model: Model, prompts: Prompts, sites: Sequence[Site], *, batch_tokens: int = 8192, edits: Sequence[Edit] = (),
    start: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Yield batches over all prompts, longest first, each of at most ``batch_tokens`` padded tokens.

    The first ``start`` prompts in this order are passed over: those of the batches that were read before.
    """
    for numbers in prompts.batches(batch_tokens, start=start, model=model):
        yield capture(model, prompts, numbers, sites, edits)
