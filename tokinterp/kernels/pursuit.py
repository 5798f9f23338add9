"""Points as sums of few atoms with weights that are not negative, all points at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

ROWS = 256  # points at once
LEAST = 3e-4  # cosine with the point below which nothing is left to find, the noise of float32


class Pursuit(NamedTuple):
    """What a pursuit found.

    Attributes
    ----------
    atom : torch.Tensor
        (point, k) int64, in the order in which they were chosen; -1 where none is left.
    weight : torch.Tensor
        (point, k) float64, of all atoms together, 0 where there is none.
    share : torch.Tensor
        (point, k) float64, share of the squared norm that the first atoms make up; NaN for a point of zeros.
    """

    atom: torch.Tensor
    weight: torch.Tensor
    share: torch.Tensor


def nonnegative_pursuit(x: torch.Tensor, atoms: torch.Tensor, k: int) -> Pursuit:
    """Choose atoms one by one, by their cosine with what is left, and fit all weights anew after each.

    Parameters
    ----------
    x : torch.Tensor
        (point, d), finite.
    atoms : torch.Tensor
        (atom, d); those of length 0 are never chosen.
    k : int
        Most atoms of a point.

    Examples
    --------
    >>> found = nonnegative_pursuit(torch.tensor([[3.0, 0.0, 1.0]]), torch.eye(3), 2)
    >>> found.atom.tolist(), found.weight.tolist()
    ([[0, 2]], [[3.0, 1.0]])
    """
    size = atoms.float().norm(dim=1)
    units = atoms.float() / size.clamp(min=1e-30)[:, None]
    parts = [_of_rows(rows.float(), units, size, k) for rows in x.split(ROWS)]
    if not parts:
        empty = torch.zeros(0, k, dtype=torch.float64, device=x.device)
        return Pursuit(empty.long(), empty, empty)
    return Pursuit(*(torch.cat(found) for found in zip(*parts, strict=True)))


def _of_rows(
    x: torch.Tensor, units: torch.Tensor, size: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, point, total = len(x), x.double(), x.double().square().sum(1)
    atom = torch.full((n, k), -1, dtype=torch.int64, device=x.device)
    weight, share = (torch.zeros(n, k, dtype=torch.float64, device=x.device) for _ in range(2))
    chosen = torch.zeros(n, k, x.shape[1], dtype=torch.float64, device=x.device)
    rest = point.clone()
    taken = (size == 0).expand(n, -1).clone()
    for step in range(k):
        cosine = (rest.float() @ units.T).masked_fill_(taken, -torch.inf)
        best, at = cosine.max(1)
        new = best > LEAST * total.sqrt()
        atom[:, step] = torch.where(new, at, -1)
        taken.scatter_(1, at[:, None], taken.gather(1, at[:, None]) | new[:, None])
        chosen[:, step] = units[at].double() * new[:, None]
        own = chosen[:, : step + 1]
        weight[:, : step + 1] = nonnegative_weights(own @ own.mT, (own @ point[..., None])[..., 0])
        rest = point - (weight[:, None, : step + 1] @ own)[:, 0]
        share[:, step] = 1 - rest.square().sum(1) / total
    scale = size[atom.clamp(min=0)].double().masked_fill(atom < 0, 1)
    return atom, weight / scale, share


def nonnegative_weights(gram: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """Return (point, m) the weights >= 0 of the least squared error, of all points at once (Lawson and Hanson 1974).

    Parameters
    ----------
    gram : torch.Tensor
        (point, m, m) float64 products of the atoms; an atom of zeros gets no weight.
    product : torch.Tensor
        (point, m) products of atoms and point.

    Examples
    --------
    >>> nonnegative_weights(torch.eye(2, dtype=torch.float64)[None], torch.tensor([[2.0, -1.0]]).double()).tolist()
    [[2.0, 0.0]]
    """
    m = product.shape[1]
    weight, free = torch.zeros_like(product), torch.zeros_like(product, dtype=torch.bool)
    least = 1e-10 * product.abs().amax(1, keepdim=True)
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    for _ in range(3 * m):
        slope = (product - (gram @ weight[..., None])[..., 0]).masked_fill(free, -torch.inf)
        best, at = slope.max(1, keepdim=True)
        more = best > least
        if not bool(more.any()):
            break
        free.scatter_(1, at, free.gather(1, at) | more)
        for _ in range(m):
            both = free[:, :, None] & free[:, None]
            goal = torch.linalg.lstsq(torch.where(both, gram, eye), (product * free)[..., None]).solution[..., 0]
            bad = free & (goal <= 0)
            step = torch.where(bad, weight / (weight - goal).clamp(min=1e-300), torch.inf).amin(1, keepdim=True)
            weight = weight + step.clamp(max=1) * (goal - weight) * free
            if not bool(bad.any()):
                break
            free &= ~(bad & (weight <= 1e-12 * weight.amax(1, keepdim=True)))
            weight = weight * free
    return weight
