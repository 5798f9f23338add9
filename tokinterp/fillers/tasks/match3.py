"""Match3 (3SUM): do three of n rows of digits sum to zero modulo m in every coordinate?"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch

MODES = ("strict", "released")
ATTEMPTS = 400
"""Rounds of rejection after which a task is called degenerate."""


class Instances(NamedTuple):
    """Match3 examples.

    Attributes
    ----------
    rows : torch.Tensor
        (example, n, d) int64 digits.
    label : torch.Tensor
        (example,) bool, whether some triple sums to zero.
    planted : torch.Tensor
        (example,) bool, true where a triple was planted, false where it was corrupted afterwards.
    """

    rows: torch.Tensor
    label: torch.Tensor
    planted: torch.Tensor


def draw(
    count: int, n: int, d: int, m: int, generator: torch.Generator, *, mode: str = "strict", reject: bool | None = None,
) -> Instances:  # fmt: skip
    """Draw Match3 examples on the device of the generator.

    Parameters
    ----------
    count : int
        Examples.
    n, d, m : int
        Rows, coordinates, modulus.
    generator : torch.Generator
        Decides everything, and where it is computed.
    mode : {"strict", "released"}
        ``"released"`` as in the published code: each example is planted with probability 1/2, a corruption of K rows
        writes its digit into all of the first K rows of the triple, and a corrupted example that is True by accident
        stays.  ``"strict"``: each corruption changes one cell of a row of its own, corrupted examples that are True are
        drawn again, and half of the labels (plus or minus one) are True.
    reject : bool, optional
        Whether accidental Trues are drawn again; by default only in ``"strict"`` (the published serial path also does).

    Raises
    ------
    ValueError
        If hardly any corrupted example is False (many rows, few coordinates).
    """
    reject = mode == "strict" if reject is None else reject
    device = generator.device
    if mode == "strict":
        planted = torch.arange(count, device=device, dtype=torch.int64) < count // 2
        if count % 2:
            planted[count // 2] = torch.randint(2, (1,), generator=generator, device=device, dtype=torch.int64)[
                0
            ].bool()
        planted = planted[torch.randperm(count, generator=generator, device=device, dtype=torch.int64)]
    else:
        planted = torch.rand(count, generator=generator, device=device, dtype=torch.float32) < 0.5
    rows = _examples(planted, n, d, m, generator, mode)
    label = solve(rows, m)
    if reject:
        for _ in range(ATTEMPTS):
            bad = (label & ~planted).nonzero()[:, 0]
            if not len(bad):
                break
            # Several candidates for each, so that a low rate of success needs few rounds.
            times = max(1, min(64, count // len(bad)))
            again = _examples(planted.new_zeros(len(bad) * times), n, d, m, generator, mode)
            fine = ~solve(again, m).view(len(bad), times)
            chosen = again.view(len(bad), times, n, d)[
                torch.arange(len(bad), device=device, dtype=torch.int64), fine.int().argmax(1)
            ]
            rows[bad] = chosen
            label[bad] = ~fine.any(1)
        else:
            raise ValueError(
                f"Match3 with n={n}, d={d}, m={m}: almost every corrupted example still has a triple, so balanced "
                "labels cannot be drawn; take fewer rows, more coordinates, or mode='released' (degenerate labels)"
            )
    return Instances(rows, label, planted)


def _examples(planted: torch.Tensor, n: int, d: int, m: int, generator: torch.Generator, mode: str) -> torch.Tensor:
    count, device = len(planted), generator.device

    def digits(*shape: int, below: int = m) -> torch.Tensor:
        return torch.randint(below, shape, generator=generator, device=device, dtype=torch.int64)

    rows = digits(count, n, d)
    rows[:, 2] = (-(rows[:, 0] + rows[:, 1])) % m
    u = torch.rand(count, generator=generator, device=device, dtype=torch.float32)
    k = 1 + (u > 0.75).long() + (u > 0.9375).long()  # min(geometric(3/4), 3)
    column, value = digits(count, 3, below=d), digits(count, 3)
    every = torch.arange(count, device=device, dtype=torch.int64)
    for j in range(3):
        acts = (j < k) & ~planted
        for r in range(3) if mode == "released" else (j,):
            here = acts & (r < k)
            old = rows[every, r, column[:, j]]
            rows[every, r, column[:, j]] = torch.where(here, value[:, j], old)
    order = torch.rand(count, n, generator=generator, device=device, dtype=torch.float32).argsort(1)
    return rows.gather(1, order[..., None].expand(-1, -1, d))


def pairs(n: int, device: torch.device | None = None) -> torch.Tensor:
    """Return (2, n(n-1)/2) first and second row of every pair, in lexicographic order."""
    return torch.triu_indices(n, n, 1, device=device, dtype=torch.int64)


def codes(digits: torch.Tensor, m: int) -> torch.Tensor:
    """Return (...,) one integer for each (..., d) vector of digits."""
    out = digits[..., 0]
    for c in range(1, digits.shape[-1]):
        out = out * m + digits[..., c]
    return out


def partner(rows: torch.Tensor, m: int) -> torch.Tensor:
    """Return (example, pair) the first row k > j that completes pair (i, j) to zero, -1 where there is none."""
    n = rows.shape[1]
    i, j = pairs(n, rows.device)
    # int32 halves the memory traffic; m**d stays far below its range (Task checks).
    code = codes(rows, m).int()
    wanted = codes(-(rows[:, i] + rows[:, j]) % m, m).int()
    k = torch.full(wanted.shape, n, dtype=torch.int32, device=rows.device)
    for row in range(n - 1, 1, -1):
        found = (wanted == code[:, row, None]) & (j < row)
        k = torch.where(found, row, k)
    return torch.where(k == n, -1, k).long()


def solve(rows: torch.Tensor, m: int) -> torch.Tensor:
    """Return (example,) bool: whether any three rows sum to zero modulo m in every coordinate."""
    n = rows.shape[1]
    i, j = pairs(n, rows.device)
    by_second = j.argsort(stable=True)  # so that the pairs of earlier rows come first
    code = codes(rows, m).int()
    negative = (-rows) % m
    wanted = codes((negative[:, i[by_second]] + negative[:, j[by_second]]) % m, m).int()
    out = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for row in range(2, n):
        out |= (wanted[:, : row * (row - 1) // 2] == code[:, row, None]).any(1)
    return out


def triples(n: int, device: torch.device | None = None) -> torch.Tensor:
    """Return (3, n(n-1)(n-2)/6) rows of every triple, in lexicographic order."""
    return torch.tensor(list(combinations(range(n), 3)), device=device, dtype=torch.int64).T


def near_misses(rows: torch.Tensor, m: int) -> torch.Tensor:
    """Return (example,) int64: triples that sum to zero in all coordinates but one."""
    a, b, c = triples(rows.shape[1], rows.device)
    zeros = ((rows[:, a] + rows[:, b] + rows[:, c]) % m == 0).sum(-1)
    return (zeros == rows.shape[2] - 1).sum(1)
