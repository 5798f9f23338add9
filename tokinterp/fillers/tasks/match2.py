"""Match2 (2SUM-Transform): how many rows have an inverse among the rows, once a key given at the end decodes them?"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .match3 import ATTEMPTS, codes

N_KEYS = 10


class Instances(NamedTuple):
    """Match2 examples.

    Attributes
    ----------
    shown, decoded : torch.Tensor
        (example, n, d) int64 digits before and after the key is added.
    key : torch.Tensor
        (example,) int64 number of the key.
    label : torch.Tensor
        (example,) int64 decoded rows that have an inverse.
    planted : torch.Tensor
        (example,) bool, true where every row was given an inverse and none was corrupted.
    """

    shown: torch.Tensor
    decoded: torch.Tensor
    key: torch.Tensor
    label: torch.Tensor
    planted: torch.Tensor


def key_table(seed: int, m: int, width: int) -> torch.Tensor:
    """Return (key, row * coordinate) digits added by each key; the same for training and test."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(min(10, m), (N_KEYS, width), generator=draw, dtype=torch.int64, device="cpu")


def draw(
    count: int, n: int, d: int, m: int, table: torch.Tensor, generator: torch.Generator, *, mode: str = "strict",
    true_rate: float = 0.1,
) -> Instances:  # fmt: skip
    """Draw Match2 examples on the device of the generator.

    Parameters
    ----------
    count, n, d, m : int
        Examples, rows, coordinates, modulus.
    table : torch.Tensor
        (key, n * d) digits, from `key_table`.
    generator : torch.Generator
        Decides everything else.
    mode : {"strict", "released"}
        ``"released"``: K corruptions, each of which writes its digit into all of the first K rows, and corrupted
        examples in which all rows still match stay.  ``"strict"``: each corruption changes one cell of a row of its
        own, and such examples are drawn again.
    true_rate : float
        Share of examples that are not corrupted.
    """
    device = generator.device
    planted = torch.rand(count, generator=generator, device=device, dtype=torch.float32) < true_rate
    decoded = _examples(planted, n, d, m, generator, mode)
    label = matches(decoded, m).sum(1)
    if mode == "strict":
        for _ in range(ATTEMPTS):
            bad = ((label == n) & ~planted).nonzero()[:, 0]
            if not len(bad):
                break
            decoded[bad] = _examples(planted[bad], n, d, m, generator, mode)
            label[bad] = matches(decoded[bad], m).sum(1)
        else:
            raise ValueError(
                f"Match2 with n={n}, d={d}, m={m}: corrupted rows nearly always match; take more coordinates"
            )
    key = torch.randint(len(table), (count,), generator=generator, device=device, dtype=torch.int64)
    offset = table.to(device)[key][:, : n * d].view(count, n, d)
    return Instances((decoded - offset) % m, decoded, key, label, planted)


def matches(decoded: torch.Tensor, m: int) -> torch.Tensor:
    """Return (example, row) bool: whether the inverse of a row is among the rows (a self-inverse row counts)."""
    return (codes(decoded, m)[:, :, None] == codes(-decoded % m, m)[:, None]).any(2)


def _examples(planted: torch.Tensor, n: int, d: int, m: int, generator: torch.Generator, mode: str) -> torch.Tensor:
    count, device = len(planted), generator.device
    half = torch.randint(m, (count, n // 2, d), generator=generator, device=device, dtype=torch.int64)
    rows = _shuffled(torch.cat([half, -half % m, half[:, : n % 2]], 1), generator)  # before corruption, as released
    u = torch.rand(count, generator=generator, device=device, dtype=torch.float32)
    # Geometric with success 3/4: P(K > k) = 4**-k.
    k = (
        1
        + torch.floor(-torch.log(u.clamp_min(1e-30)) / torch.log(torch.tensor(4.0, device=device, dtype=torch.float32)))
    ).clamp_max(n)
    column = torch.randint(d, (count, n), generator=generator, device=device, dtype=torch.int64)
    value = torch.randint(m, (count, n), generator=generator, device=device, dtype=torch.int64)
    every = torch.arange(count, device=device, dtype=torch.int64)
    for j in range(n):
        acts = (j < k) & ~planted
        for r in range(n) if mode == "released" else (j,):
            old = rows[every, r, column[:, j]]
            rows[every, r, column[:, j]] = torch.where(acts & (r < k), value[:, j], old)
    return _shuffled(rows, generator)


def _shuffled(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    order = torch.rand(rows.shape[:2], generator=generator, device=rows.device, dtype=torch.float32).argsort(1)
    return rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
