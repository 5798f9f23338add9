"""Exact nearest neighbours of some points among very many, which need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .distances import error, smallest
from .state import neutral

SPARE = 8  # candidates kept beyond k, so that rounding cannot push a true neighbour out of the list
FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # compute capabilities with at least half-rate float64
Barred = Callable[[Tensor, slice], Tensor]


class Among(NamedTuple):
    """The k nearest neighbours of some points.

    Attributes
    ----------
    distances : torch.Tensor
        (row, k) float64, ascending; inf where there are fewer than k points to choose from.
    indices : torch.Tensor
        (row, k) int64 place of the neighbour among all points; -1 where there is none.
    n_redone : int
        Rows whose neighbours could not be certified from the fast products and were searched again.
    """

    distances: Tensor
    indices: Tensor
    n_redone: int


def nearest_among(
    points: Tensor,
    rows: Tensor,
    k: int,
    usable: Tensor,
    barred: Barred | None = None,
    *,
    products: torch.dtype | None = None,
    memory: int = 2**30,
    device: torch.device | str = "cpu",
) -> Among:
    """Find the k nearest neighbours (Euclidean) of some points among all usable ones, block by block.

    Points are centred in float64; candidates come from matrix products in blocks, each row carries a certificate, and
    the distances of all candidates are measured again by explicit float64 differences.  Rows that the products do not
    decide are searched again with products in float64, and then by explicit differences with all points: what is
    returned is exact, with equal distances in the order of their places.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim) of any floating dtype, on the CPU; it may be a file mapped into memory.
    rows : torch.Tensor
        (row,) int64 places of the points whose neighbours are searched.
    k : int
        Neighbours.
    usable : torch.Tensor
        (point,) bool, which points may be neighbours: finite ones, of exact copies only one.
    barred : callable, optional
        Given some of the rows (places in ``rows``) and a slice of the points, returns (row, point) bool on the device,
        true where the point may not be a neighbour.  A point is never its own neighbour.
    products : torch.dtype, optional
        float32 or float64; by default float64 on GPUs that are fast at it, else float32 (never TF32).
    memory : int
        Bound on working memory in bytes, on the device and beside it; the result, 16 k bytes a row, comes on top.
    device : torch.device or str
        Where products are taken.

    Raises
    ------
    ValueError
        If the memory does not hold a block of a few hundred rows and points.

    Examples
    --------
    >>> line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    >>> found = nearest_among(line, torch.tensor([3, 0]), 2, torch.ones(4, dtype=torch.bool))
    >>> found.distances.tolist(), found.indices.tolist()
    ([[4.0, 6.0], [1.0, 3.0]], [[2, 1], [1, 2]])
    """
    device = torch.device(device)
    with neutral():
        search = _Search(points, usable, barred, memory, device)
        distances = torch.full((len(rows), k), torch.inf, dtype=torch.float64, device="cpu")
        indices = torch.full((len(rows), k), -1, dtype=torch.int64, device="cpu")
        left, redone = torch.arange(len(rows), device="cpu", dtype=torch.int64), []
        for level in _levels(products, device):
            undecided = []
            for some in left.split(search.tall if level else search.few):
                distances[some], indices[some], sure = search.block(rows[some], some, k, level)
                undecided.append(some[~sure])
            left = torch.cat(undecided)
            redone.append(len(left))
            if not len(left):
                break
    return Among(distances, indices, redone[0])


def _levels(products: torch.dtype | None, device: torch.device) -> list[torch.dtype | None]:
    """Return the dtypes of products that are tried one after the other; None for explicit differences."""
    if products is None and device.type == "cuda" and torch.cuda.get_device_capability(device) in FAST_FLOAT64:
        products = torch.float64
    return [torch.float64, None] if products is torch.float64 else [torch.float32, torch.float64, None]


class _Search:
    """Blocks of rows against blocks of points, within a bound on memory."""

    def __init__(
        self, points: Tensor, usable: Tensor, barred: Barred | None, memory: int, device: torch.device
    ) -> None:
        self.points, self.usable, self.barred, self.device = points, usable, barred, device
        n, dim = points.shape
        self.memory, self.dim = memory, dim
        each = 24 * dim  # coordinates as given, in float64, and in the dtype of the products
        self.tall = max(1, min(n, memory // 4 // each, int((memory / 80) ** 0.5)))
        self.wide = max(1, min(n, memory // 2 // (each + 40 * self.tall)))
        self.few = max(1, min(self.tall, 64))
        if min(self.tall, self.wide) < min(n, 64):
            raise ValueError(
                f"memory={memory} holds no block of {dim} coordinates: give at least {max(512 * each, 2**20)}"
            )
        total = torch.zeros(dim, dtype=torch.float64, device=device)
        for _, x in self.blocks():
            total += x.sum(0)
        self.mean = total / max(1, int(usable.sum()))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of the points in float64 on the device, those not usable as zeros."""
        for start in range(0, len(self.points), self.wide):
            part = slice(start, min(start + self.wide, len(self.points)))
            x = self.points[part].to(self.device).to(torch.float64, copy=True)
            yield part, x.masked_fill_(~self.usable[part].to(self.device)[:, None], 0.0)

    def block(self, rows: Tensor, some: Tensor, k: int, products: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return distances and places of the k nearest of some rows, and which rows are decided."""
        own_place = rows.to(self.device)
        raw = self.points[rows].to(self.device).double()
        here, keep = raw - self.mean, k + SPARE
        best = torch.full((len(rows), keep), torch.inf, dtype=products or torch.float64, device=self.device)
        place = torch.full((len(rows), keep), -1, dtype=torch.int64, device=self.device)
        mine = here.to(products) if products else raw
        largest = here.new_zeros(())
        for part, x in self.blocks():
            if products:
                x -= self.mean
                norms = x.square().sum(1)
                largest = torch.maximum(largest, norms.max())
                squared = torch.addmm(norms.to(products), mine, x.to(products).T, alpha=-2)
            else:
                squared = torch.cdist(mine, x, compute_mode="donot_use_mm_for_euclid_dist").square_()
            if not self.usable[part].all():
                squared.masked_fill_(~self.usable[part].to(self.device), torch.inf)
            if self.barred is not None:
                squared.masked_fill_(self.barred(some, part), torch.inf)
            inside = ((own_place >= part.start) & (own_place < part.stop)).nonzero()[:, 0]
            squared[inside, own_place[inside] - part.start] = torch.inf
            values, at = _least(squared, min(keep, squared.shape[1]), exact=products is None)
            values, at = torch.cat([best, values], 1), torch.cat([place, at + part.start], 1)
            best, by = _least(values, keep, exact=products is None)
            place = at.gather(1, by)
            del squared, x  # so that the next block takes their place
        place.masked_fill_(best.isinf(), -1)
        sure = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        if products:
            norms = here.square().sum(1)
            own, part_error = error(norms, self.dim, products, torch.maximum(norms, largest))
            values = best.double() + norms[:, None]
            sure = ((place[:, -1] < 0) & own.isfinite()) | (
                values[:, -1] * (1 - part_error) > values[:, k - 1] * (1 + part_error) + 2 * own
            )
        distances, place = measured(self.points, rows, place, k, self.memory, self.device)
        return distances.cpu(), place.cpu(), sure.cpu()


def measured(
    points: Tensor, rows: Tensor, place: Tensor, k: int, memory: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return explicit float64 distances to candidates and their places, the k nearest, ties by place.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim) on the CPU, perhaps in a file.
    rows : torch.Tensor
        (row,) int64 places of the points that look.
    place : torch.Tensor
        (row, candidate) int64 places of the candidates, -1 where there is none.
    k : int
        How many to return.
    memory : int
        Bound on working memory.
    device : torch.device or str
        Where to compute.
    """
    place = place.sort(1).values
    found = torch.empty(place.shape, dtype=torch.float64, device=device)
    room = min(memory // 4, 2**24) if place.device.type == "cpu" else memory // 4  # small blocks stay in the cache
    step = max(1, room // (24 * points.shape[1] * place.shape[1]))
    for i in range(0, len(rows), step):
        to = place[i : i + step]
        own = points[rows[i : i + step].cpu()].to(device).double()
        other = points[to.clamp(min=0).cpu()].to(device).double()
        found[i : i + step] = torch.linalg.vector_norm(other - own[:, None], dim=-1)
    found, by = found.masked_fill(place < 0, torch.inf).sort(dim=1, stable=True)
    return found[:, :k], place.gather(1, by)[:, :k]


def _least(rows: Tensor, number: int, *, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the least values of each row, ascending, and their columns; if exact, of equal ones the first."""
    if not exact:
        values, at = smallest(rows[None], number)
        return values[0], at[0]
    values, by = rows.sort(dim=1, stable=True)
    return values[:, :number], by[:, :number]
