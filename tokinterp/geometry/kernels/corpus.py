"""Clouds of a whole corpus: which neighbours are barred, who is among the k nearest, and ranks, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.neighbours import Neighbours, nearest
from .gride import twonn

NONE = -1


class Labels(NamedTuple):
    """What is known of the tokens of a cloud, each (point,) int64.

    Attributes
    ----------
    token_id, position : torch.Tensor
        Of the token.
    prompt, document : torch.Tensor
        In which it stands.
    """

    token_id: Tensor
    position: Tensor
    prompt: Tensor
    document: Tensor


class Apart(NamedTuple):
    """Which tokens are no neighbours of each other.

    Attributes
    ----------
    token, prompt, document : bool
        Those with the same token id, of the same prompt, of the same document.
    window : int
        Those so many places or fewer apart in one prompt.
    """

    token: bool = False
    prompt: bool = False
    document: bool = False
    window: int = 0

    def tokens(self, labels: Labels, rows: Tensor, part: slice) -> Tensor:
        """Return (row, point) bool, true where a token may not be a neighbour."""
        own = Labels(*(v[rows, None] for v in labels))
        other = Labels(*(v[part] for v in labels))
        out = torch.zeros(len(rows), len(other.prompt), dtype=torch.bool, device=own.prompt.device)
        if self.token:
            out |= own.token_id == other.token_id
        if self.document:
            out |= own.document == other.document
        if self.prompt:
            out |= own.prompt == other.prompt
        if self.window:
            out |= (own.prompt == other.prompt) & ((own.position - other.position).abs() <= self.window)
        return out

    def groups(self, labels: Labels, only: Labels, reach: tuple[Tensor, Tensor], rows: Tensor, part: slice) -> Tensor:
        """Return (row, point) bool, true where no token that has a state may be a neighbour.

        Parameters
        ----------
        labels : Labels
            Of the tokens.
        only : Labels
            (point,) of all tokens that have the state of a point: their one label, -1 where they have several.
        reach : (torch.Tensor, torch.Tensor)
            Their first and last position.
        rows : torch.Tensor
            (row,) places of the tokens that look.
        part : slice
            Of the points.
        """
        one = self._replace(window=0).tokens(
            Labels(*(torch.cat([v[rows], o[part]]) for v, o in zip(labels, only, strict=True))),
            torch.arange(len(rows), device=rows.device, dtype=torch.int64), slice(len(rows), None),
        )  # fmt: skip
        if self.window:
            at, low, high = labels.position[rows, None], reach[0][part], reach[1][part]
            near = ((at - low).abs() <= self.window) & ((at - high).abs() <= self.window)
            one |= near & (labels.prompt[rows, None] == only.prompt[part])
        return one


def one_label(values: Tensor, first: Tensor) -> Tensor:
    """Return (point,) the label that all members of the group of a first member share, -1 where they differ.

    Examples
    --------
    >>> one_label(torch.tensor([4, 5, 4, 6]), torch.tensor([0, 1, 0, 1])).tolist()
    [4, -1, 4, 6]
    """
    low, high = extent(values, first)
    return torch.where(low == high, low, NONE)


def extent(values: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return (point,) the least and the largest value in the group of a first member; its own elsewhere."""
    return (
        values.clone().scatter_reduce_(0, first, values, "amin"),
        values.clone().scatter_reduce_(0, first, values, "amax"),
    )


class Layer(NamedTuple):
    """The neighbours of some tokens at one layer.

    Attributes
    ----------
    first : torch.Tensor
        (point,) int64 first token with the same state.
    neighbours : torch.Tensor
        (row, k) int64 nearest distinct states, each named by its first token; -1 where there is none.
    """

    first: Tensor
    neighbours: Tensor


def members(layers: list[Layer], rows: Tensor, allowed: Tensor, ks: list[int]) -> Tensor:
    """Return (layer, k, row, point) float32: the probability that a token is among the k nearest of a row's token.

    As `tokinterp.geometry.kernels.membership.membership`, for some rows of a large cloud: tokens that have one state
    share the k-th places evenly.  NaN in rows that have fewer than k neighbours.

    Parameters
    ----------
    layers : list of Layer
        With the neighbours of these rows.
    rows : torch.Tensor
        (row,) int64 places of their tokens.
    allowed : torch.Tensor
        (row, point) bool, which tokens may be neighbours; the token itself may not.
    ks : list of int
        Numbers of neighbours.
    """
    n = allowed.shape[1]
    out = torch.zeros(len(layers), len(ks), len(rows), n, dtype=torch.float32, device=allowed.device)
    for i, layer in enumerate(layers):
        first = layer.first.expand(len(rows), -1)
        number = torch.zeros(len(rows), n + 1, dtype=torch.float32, device=allowed.device)
        number.scatter_add_(1, first, allowed.float())
        groups = torch.cat([layer.first[rows, None], layer.neighbours], 1)
        groups = torch.where(groups < 0, n, groups)
        counts = number.gather(1, groups)
        before = counts.cumsum(1) - counts
        for j, k in enumerate(ks):
            share = torch.minimum((k - before).clamp(min=0), counts) / counts.clamp(min=1)
            table = torch.zeros(len(rows), n + 1, dtype=torch.float32, device=allowed.device)
            table.scatter_(1, groups, share)
            table = table.gather(1, first) * allowed
            table[counts.sum(1) < k] = torch.nan
            out[i, j] = table
    return out


def ranks(squared: Tensor, allowed: Tensor) -> Tensor:
    """Return (row, point) float64 ranks by distance among the allowed points, 1 the nearest; 0 elsewhere.

    Points at the same distance share the mean of their ranks.

    Examples
    --------
    >>> ranks(torch.tensor([[0.0, 2.0, 2.0, 5.0]]).double(), torch.tensor([[False, True, True, True]])).tolist()
    [[0.0, 1.5, 1.5, 3.0]]
    """
    value, order = squared.masked_fill(~allowed, torch.inf).sort(1)
    n = value.shape[1]
    place = torch.arange(n, device=value.device, dtype=torch.int64).expand_as(value)
    fresh = torch.ones_like(value, dtype=torch.bool)
    fresh[:, 1:] = value[:, 1:] != value[:, :-1]
    low = torch.where(fresh, place, 0).cummax(1).values
    final = torch.ones_like(fresh)
    final[:, :-1] = fresh[:, 1:]
    high = torch.where(final, place, n).flip(1).cummin(1).values.flip(1)
    rank = torch.empty_like(value).scatter_(1, order, (low + high).double() / 2 + 1)
    return rank.masked_fill(~allowed, 0.0)


def squared_distances(points: Tensor, rows: Tensor, first: Tensor, usable: Tensor, block: int) -> Tensor:
    """Return (row, point) float64 squared distances, bit for bit the same for points with one state.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim) on the CPU, perhaps in a file.
    rows : torch.Tensor
        (row,) int64 places, on the device of the result.
    first : torch.Tensor
        (point,) int64 first point with the same state.
    usable : torch.Tensor
        (point,) bool, finite ones; others are taken for the middle of the rows.
    block : int
        Points at a time.
    """
    own = points[rows.cpu()].to(rows.device).double()
    middle = own.mean(0)
    own = own - middle
    out = torch.empty(len(rows), len(points), dtype=torch.float64, device=rows.device)
    for start in range(0, len(points), block):
        x = points[start : start + block].to(rows.device).double() - middle
        x = x.masked_fill(~usable[start : start + block, None], 0.0)
        out[:, start : start + block] = own.square().sum(1)[:, None] + x.square().sum(1) - 2 * own @ x.T
    out = out.gather(1, first.expand(len(rows), -1)).clamp(min=0)
    return out.masked_fill(first[rows, None] == first, 0.0)


def local_twonn(points: Tensor, neighbours: Tensor, memory: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (row,) float64 dimension by TwoNN of the cloud of the neighbours of each row, themselves only.

    Parameters
    ----------
    points : torch.Tensor
        (point, dim) on the CPU, perhaps in a file.
    neighbours : torch.Tensor
        (row, k) int64 places of distinct points; rows with a -1 are NaN.
    memory : int
        Bound on working memory.
    device : torch.device or str
        Where to compute.

    References
    ----------
    Ruppik et al. 2025, arXiv 2506.01034: TwoNN by the line of Facco et al. without the largest tenth of the ratios, on
    the 128 nearest neighbours of a token.

    Examples
    --------
    >>> plane = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 9).triu()
    >>> near = nearest(plane, 100)
    >>> bool(abs(local_twonn(plane, near.indices[0], 2**24).mean() - 2) < 0.3)
    True
    """
    rows, k = neighbours.shape
    out = torch.full((rows,), torch.nan, dtype=torch.float64, device="cpu")
    each = 32 * k * (points.shape[1] + k)
    whole = (neighbours >= 0).all(1).nonzero()[:, 0].cpu()
    for some in whole.split(max(1, memory // 2 // each)):
        cloud = points[neighbours[some].cpu()].to(device)
        near: Neighbours = nearest(cloud, 2, memory=memory // 2)
        out[some] = twonn(near.distances, near.valid, "facco").cpu()
    return out


def row_blocks(n_rows: int, n_points: int, bytes_each: int, memory: int) -> Iterator[slice]:
    """Yield slices of rows such that (row, point) tables of so many bytes an entry stay within the memory."""
    step = max(1, memory // (n_points * bytes_each))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
