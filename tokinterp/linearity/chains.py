"""Sums over pairs of consecutive layers, which Linearity and TokenNonlinearity share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..kernels import linear
from ..run.measurement import Measurement, Tensors
from ..run.sites import resid
from .maps import TENSORS, map_of

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts


class Chains(Measurement):
    """What measurements of maps from layer to layer have in common: blocks, exclusions, and the sums of a batch."""

    blocks: Iterable[int] | None
    exclude: Sequence[str]
    parts: int = 1

    def at_layers(self, info: ModelInfo | None = None) -> list[int]:
        """Return the layers at the two ends of the blocks."""
        return sorted({layer for b in self.at_blocks(info) for layer in (b, b + 1)})

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the two ends of the blocks."""
        return resid(self.at_layers(info))

    def ends(self) -> list[tuple[int, int]]:
        """Return the places of the two layers of each block on the axis ``layer`` of the sums."""
        layers = self.at_layers()
        return [(layers.index(b), layers.index(b + 1)) for b in self.at_blocks()]

    def check_rows(self, prompts: Prompts, each: bool = False) -> None:
        """Refuse prompts (or the longest of them) with no more tokens than a map has directions."""
        n, width = max(prompts.lengths) if each else sum(prompts.lengths), self.info.d_model
        if n - 1 <= width:
            what = "the longest prompt has" if each else "the prompts have"
            raise ValueError(
                f"{what} {n} tokens, and a map of {width} channels fits any {width + 1} tokens exactly: give about "
                f"{10 * width} tokens or more, or maps= fitted on a larger corpus"
            )

    def kept(self, batch: Batch) -> torch.Tensor:
        """Return (prompt, position) bool, true on real tokens that no layer in use excludes."""
        return batch.kept(self.exclude, *self.at_layers())

    def add_batch(self, batch: Batch, keep: torch.Tensor) -> None:
        """Add the kept rows of a batch to the sums; part p holds the prompts whose number is p modulo ``parts``."""
        layers, ends = self.at_layers(), self.ends()
        flat = batch.flatten(keep)
        if "shift" not in self.sums:
            some = torch.where(flat.any(), flat, torch.ones_like(flat)).double()
            shift = torch.stack([(some @ batch.flatten(batch.points(n)).double()) / some.sum() for n in layers])
            self.sums.update(linear.empty(shift, self.parts, len(ends))._asdict())
        chain = self.chain()
        part = np.repeat(np.asarray(batch.numbers) % self.parts, batch.lengths)
        rows_of = [torch.from_numpy(np.flatnonzero(part == p)).to(flat.device) for p in range(self.parts)]
        for p, index in enumerate(rows_of):
            if not len(index):
                continue
            chosen = flat[index]
            chain.count[p] += chosen.sum()
            before: dict[int, torch.Tensor] = {}
            for i, layer in enumerate(layers):
                rows = (batch.flatten(batch.points(layer))[index].double() - chain.shift[i]) * chosen[:, None]
                before[i] = rows
                linear.accumulate(chain.first[i, p], chain.second[i, p], rows)
                for pair, (a, b) in enumerate(ends):
                    if b == i:
                        chain.cross[pair, p].addmm_(before.pop(a).T, rows)

    def chain(self) -> linear.Chain:
        """Return the sums as they lie."""
        return linear.Chain(*(self.sums[f] for f in linear.Chain._fields))

    def merge_sums(self, other: Tensors) -> None:
        """Add the sums of another part of the corpus, whatever its shift."""
        if not self.sums or not other:
            self.sums = self.sums or {k: v.clone() for k, v in other.items()}
            return
        theirs = linear.Chain(*(other[f].to(self.sums[f].device) for f in linear.Chain._fields))
        self.sums.update(linear.merge(self.chain(), theirs, self.ends())._asdict())
        super().merge_sums({k: v for k, v in other.items() if k not in linear.Chain._fields})

    def pair(self, place: int, parts: list[int] | None = None) -> linear.Pair:
        """Return the pair of layers of the block at a place, over some parts of the corpus (all by default)."""
        ends, chain = self.ends()[place], self.chain()
        device = torch.device(
            self.info.device
        )  # a run with a store ends with its sums on the CPU, slow at what follows
        device = torch.device("cpu") if device.type == "cuda" and not torch.cuda.is_available() else device
        one = linear.Chain(
            chain.shift[list(ends)].to(device), chain.count.to(device), chain.first[list(ends)].to(device),
            chain.second[list(ends)].to(device), chain.cross[place : place + 1].to(device),
        )  # fmt: skip
        return linear.pair_of(one, 0, (0, 1), parts or list(range(self.parts)))

    def maps_of_sums(self, cutoff: float) -> Tensors:
        """Return the tensors of the maps that the sums give, and their rows ``n``."""
        maps = [map_of(self.pair(i), cutoff) for i in range(len(self.at_blocks()))]
        return {name: torch.stack([m[name] for m in maps]) for name in TENSORS} | {"n": self.sums["count"].sum()}
