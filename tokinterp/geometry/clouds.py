"""The cloud of tokens of each prompt and layer, and one table of its neighbours for all measurements of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..kernels.neighbours import Neighbours, nearest
from ..run.measurement import MEMORY, Measurement

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts


class Neighbourhood(NamedTuple):
    """What a measurement asks of the neighbours of the points of every cloud.

    Attributes
    ----------
    layers : tuple of int
        Layers of the clouds.
    ranks : frozenset of int
        Ranks (1 is the nearest) whose neighbour and distance are needed exactly; the largest is how many are searched.
        If k is among them, the set of the k nearest is exact.
    exclude : tuple of str
        Tokens left out, see `tokinterp.run.batch.Batch.kept`.
    together : bool
        Whether all layers have the same points: without those that are massive at any of them.
    """

    layers: tuple[int, ...]
    ranks: frozenset[int]
    exclude: tuple[str, ...] = ("special",)
    together: bool = False

    @property
    def apart(self) -> tuple[int, ...]:
        """The layers, where what is left out of each depends on all of them."""
        return self.layers if self.together and "massive" in self.exclude else ()

    def mask(self, batch: Batch, layer: int) -> torch.Tensor:
        """Return (prompt, position) bool, the points of the clouds of a layer."""
        return batch.kept(self.exclude, *(self.apart or (layer,)))


class OfLayers(Measurement):
    """What looks at one layer after the other: ``of_layer`` finds the fields of a layer, and they are put together."""

    exclude: Sequence[str] = ()

    def of_layer(self, batch: Batch, layer: int, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return fields of one layer, without their axis ``layer``; those not of prompts or tokens are summed.

        Parameters
        ----------
        batch : Batch
            With the stream at the layer.
        layer : int
            Which one.
        mask : torch.Tensor
            (prompt, position) bool, true on the tokens that ``exclude`` does not leave out.
        """
        raise NotImplementedError(f"{type(self).__name__} has no of_layer()")

    def update(self, batch: Batch) -> None:
        """Take the fields of the layers of a batch."""
        self.keep(batch, **self.each_layer(batch))

    def each_layer(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the fields of prompts and tokens with their axis ``layer``; add the others to the sums."""
        parts: dict[str, list[torch.Tensor]] = {}
        for layer in self.at_layers():
            for name, value in self.of_layer(batch, layer, batch.kept(self.exclude, layer)).items():
                parts.setdefault(name, []).append(value)
        out = {}
        for name, values in parts.items():
            field = self.fields[name]
            if field.table:
                out[name] = torch.stack(values, field.dims.index("layer") + (field.table == "token"))
            else:
                self.add(name, torch.stack(values))
        return out


class OfClouds(Measurement):
    """What is read off the neighbours in the cloud of each prompt and layer.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to look at; all by default.
    tokens : int, optional
        Fields of single tokens are kept for the prompts numbered below this; None keeps all, 0 none.
    exclude : sequence of str
        Tokens left out: ``"special"``, ``"massive"`` (rows found at that layer).
    small : str
        What happens to a prompt with too few tokens: ``"error"`` before the run, or ``"nan"``.
    """

    def __init__(self, layers: Iterable[int] | None, tokens: int | None, exclude: Sequence[str], small: str) -> None:
        super().__init__()
        self.layers, self.tokens, self.exclude = layers, tokens, tuple(exclude)
        self.small = small

    def ranks(self) -> Collection[int]:
        """Return the neighbour ranks that are needed exactly."""
        raise NotImplementedError(f"{type(self).__name__} does not say which ranks() it needs")

    def of_clouds(self, near: Neighbours) -> dict[str, torch.Tensor]:
        """Return fields of clouds: (cloud, ...), or (cloud, position, ...) of fields of tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no of_clouds()")

    def requests(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the ranks."""
        return [Neighbourhood(tuple(self.at_layers(info)), frozenset(self.ranks()), tuple(self.exclude))]

    def update(self, batch: Batch) -> None:
        """Search the neighbours in the clouds of a batch, some layers at a time, and read off the fields."""
        parts: dict[str, list[torch.Tensor]] = {}
        for _, near in neighbours(batch, self.requests(self.info)[0], self.memory):
            for name, value in self.of_clouds(near).items():
                if self.fields[name].table == "token":
                    value = value[:, : batch.ids.shape[1]]
                parts.setdefault(name, []).append(value.unflatten(0, (-1, len(batch))))
        out = {}
        for name, values in parts.items():
            after = 2 if self.fields[name].table == "token" else 1
            out[name] = torch.cat(values).movedim(0, after)
        self.keep(batch, **out)


def cloud_sizes(prompts: Prompts, exclude: Sequence[str]) -> np.ndarray:
    """Return (prompt,) the number of tokens in each cloud, as far as it is known before the run."""
    lengths = np.asarray(prompts.lengths)
    if "special" in exclude:
        before = np.concatenate([[0], np.cumsum(prompts.special_mask)])
        lengths = lengths - np.diff(before[prompts.starts])
    return lengths


def check_sizes(prompts: Prompts, exclude: Sequence[str], needed: int, small: str, why: str) -> None:
    """Refuse clouds that are too small, before the run.

    Parameters
    ----------
    prompts : Prompts
        Of the run.
    exclude : sequence of str
        What the clouds are without.
    needed : int
        Least number of points.
    small : str
        ``"error"``: every cloud must have as many; ``"nan"``: at least one must.
    why : str
        What needs them, and what to do instead.

    Raises
    ------
    ValueError
        If clouds are too small.
    """
    sizes = cloud_sizes(prompts, exclude)
    short = sizes < needed
    if short.all() if small == "nan" else short.any():
        way = "" if small == "nan" else ", or small='nan'"
        raise ValueError(
            f"{int(short.sum())} of {len(sizes)} prompts have fewer than {needed} tokens (the shortest has "
            f"{int(sizes.min())}, the longest {int(sizes.max())}), which {why}: make them with "
            f"min_tokens={needed + int((np.asarray(prompts.lengths) - sizes).max())}{way}"
        )


def neighbours(batch: Batch, mine: Neighbourhood, memory: int = MEMORY) -> Iterator[tuple[list[int], Neighbours]]:
    """Search the neighbours in the clouds of a batch, some layers at a time, once for all measurements of the run.

    Measurements that leave out the same tokens share one search with the ranks that any of them needs.  A table is kept
    until the last of them has had it.

    Parameters
    ----------
    batch : Batch
        Of a run; what the other measurements ask for stands in ``batch.shared``.
    mine : Neighbourhood
        What is asked for.
    memory : int
        Of the run; a search takes an eighth of it.

    Yields
    ------
    layers : list of int
        Some of the layers.
    table : Neighbours
        Of their clouds, layer by layer and within each prompt by prompt.  It may have more ranks, and more points
        (which take no part), than were asked for.
    """
    points = (mine.exclude, mine.apart)
    same = [w for w in batch.requests if isinstance(w, Neighbourhood) and (w.exclude, w.apart) == points]
    if mine not in same:
        same = [*same, mine]
    ranks = frozenset().union(*(w.ranks for w in same))
    room = memory // 8
    for group in _groups(batch, sorted({n for w in same for n in w.layers}), room):
        chosen = [n for n in group if n in mine.layers]
        if not chosen:
            continue
        key = ("neighbours", *points, group, ranks)
        users = sum(bool({*group} & {*w.layers}) for w in same)
        table, left = batch.shared.pop(key, None) or (_search(batch, group, ranks, mine, room), users)
        if left > 1:
            batch.shared[key] = (table, left - 1)
        yield chosen, table if len(chosen) == len(group) else _part(table, [group.index(n) for n in chosen], len(group))


def _groups(batch: Batch, layers: list[int], room: int) -> list[tuple[int, ...]]:
    one = batch.resid(layers[0])
    fit = room // (one.numel() * one.element_size())
    step = 1 if batch.device.type == "cpu" else max(1, min(len(layers), fit))
    return [tuple(layers[i : i + step]) for i in range(0, len(layers), step)]


def _search(batch: Batch, group: Sequence[int], ranks: frozenset[int], mine: Neighbourhood, room: int) -> Neighbours:
    streams = [batch.points(layer) for layer in group]
    points = streams[0] if len(streams) == 1 else torch.cat(streams)
    mask = torch.cat([mine.mask(batch, layer) for layer in group])
    lacking = max(0, max(ranks) + 1 - batch.ids.shape[1])  # no search asks for more neighbours than points
    if lacking:
        points = torch.nn.functional.pad(points, (0, 0, 0, lacking))
        mask = torch.nn.functional.pad(mask, (0, lacking))
    return nearest(points, max(ranks), mask, ranks=ranks, memory=room)


def _part(table: Neighbours, places: list[int], layers: int) -> Neighbours:
    """Return the table of some of its layers."""
    return Neighbours(*(getattr(table, f.name).unflatten(0, (layers, -1))[places].flatten(0, 1) for f in fields(table)))


class Tables(NamedTuple):
    """The neighbours in clouds that have the same points at every layer.

    Attributes
    ----------
    indices : torch.Tensor
        (prompt, layer, position, k) int64, see `Neighbours`.
    first : torch.Tensor
        (prompt, layer, position) int64.
    finite : torch.Tensor
        (prompt, layer) bool.
    mask : torch.Tensor
        (prompt, position) bool, true on the tokens that take part.
    """

    indices: torch.Tensor
    first: torch.Tensor
    finite: torch.Tensor
    mask: torch.Tensor


def tables(batch: Batch, mine: Neighbourhood, memory: int = MEMORY) -> Tables:
    """Return the neighbours at all layers side by side, of what looks at them ``together``."""
    width, k = batch.ids.shape[1], max(mine.ranks)
    indices, first, finite = [], [], []
    for _, near in neighbours(batch, mine, memory):
        indices.append(near.indices[:, :width, :k].unflatten(0, (-1, len(batch))))
        first.append(near.first[:, :width].unflatten(0, (-1, len(batch))))
        finite.append(near.finite.unflatten(0, (-1, len(batch))))
    mask = mine.mask(batch, mine.layers[0])
    by_prompt = [torch.cat(parts).transpose(0, 1) for parts in (indices, first, finite)]
    return Tables(by_prompt[0], by_prompt[1], by_prompt[2], mask)
