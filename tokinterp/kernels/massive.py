"""Massive activations: rows of the stream that dwarf the others of their prompt, and the channels that do it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("norm", "sun2024")
ABSOLUTE, RATIO = 100.0, 1000.0  # Sun et al. 2024, section 2
FACTOR = 10.0
"""Of the rule "norm"; see `massive_rows`."""
CHANNELS = 16  # at most so many entries are listed of one row
GOLDEN = 0.6180339887498949


class Sizes(NamedTuple):
    """How large the rows of each prompt are, at one layer.

    Attributes
    ----------
    norm : torch.Tensor
        (prompt, position) float32 Euclidean norm; NaN on padding.
    peak : torch.Tensor
        (prompt, position) float32 largest magnitude of a channel; NaN on padding.
    median_norm : torch.Tensor
        (prompt,) median norm of the prompt's rows (the lower of the two middle ones).
    median : torch.Tensor
        (prompt,) median magnitude of all entries of the prompt.
    """

    norm: Tensor
    peak: Tensor
    median_norm: Tensor
    median: Tensor


def measure_sizes(resid: Tensor, mask: Tensor, sample: int | None = 4096) -> Sizes:
    """Measure the rows of right-padded prompts.

    Parameters
    ----------
    resid : torch.Tensor
        (prompt, position, d) stream.
    mask : torch.Tensor
        (prompt, position) bool, true on real tokens, which come first.
    sample : int, optional
        Entries per prompt from which the median magnitude is taken, spread evenly over positions and channels (a
        golden-ratio sequence, so the same ones in any batch): the standard error of the median is then about 2 %.  None
        takes every entry.
    """
    resid = resid.detach()
    dtype = torch.promote_types(resid.dtype, torch.float32)
    norm, peak = (
        torch.linalg.vector_norm(resid, ord=p, dim=-1, dtype=dtype).float().masked_fill(~mask, torch.nan)
        for p in (2, torch.inf)
    )
    d = resid.shape[-1]
    if sample is None:
        entries = resid.float().abs().masked_fill(~mask[..., None], torch.nan).flatten(1)
    else:
        places = torch.arange(sample, dtype=torch.float64, device=resid.device) * GOLDEN % 1.0
        index = (places * (mask.sum(1, keepdim=True) * d)).long()
        entries = resid.flatten(1).gather(1, index).float().abs()
    return Sizes(norm, peak, norm.nanmedian(1).values, entries.nanmedian(1).values)


def by_norm(sizes: Sizes, factor: float = FACTOR) -> Tensor:
    """Return (prompt, position) bool: norm above ``factor`` times the median norm of the prompt."""
    return sizes.norm > factor * sizes.median_norm[:, None]


def by_magnitude(sizes: Sizes) -> Tensor:
    """Return (prompt, position) bool: some entry is above 100 and at least 1,000 times the median (Sun et al. 2024)."""
    return (sizes.peak > ABSOLUTE) & (sizes.peak >= RATIO * sizes.median[:, None])


def massive_rows(
    resid: Tensor, mask: Tensor, rule: str = "norm", factor: float = FACTOR, sample: int | None = 4096
) -> Tensor:
    """Find the rows with massive activations.

    Parameters
    ----------
    resid : torch.Tensor
        (prompt, position, d) stream at one layer, padding included.
    mask : torch.Tensor
        (prompt, position) bool, true on real tokens.
    rule : str
        ``"norm"``: the norm of the row exceeds ``factor`` times the median norm of the rows of its prompt; scale-free.
        ``"sun2024"``: some entry exceeds 100 and is at least 1,000 times the median magnitude of the entries of the
        prompt (Sun et al. 2024, arXiv 2402.17762); tied to the scale of the models it was made for.
    factor : float
        Of the rule ``"norm"``.  10 is the published rule without its unit: at the width it was made for (d = 4096) a
        single entry 1,000 times the median magnitude 0.67 s of ordinary entries has 1000 * 0.67 / sqrt(4096) = 10.5
        times the norm s sqrt(d) of an ordinary row.
    sample : int, optional
        See `measure_sizes`.

    Returns
    -------
    torch.Tensor
        (prompt, position) bool, false on padding.  The median needs at least three rows to mean anything: a prompt of
        one or two tokens has no massive row under ``"norm"`` unless its rows differ by the factor.

    Raises
    ------
    ValueError
        If the rule is unknown.

    Examples
    --------
    >>> x = torch.ones(1, 5, 8); x[0, 0, 3] = 500.0
    >>> massive_rows(x, torch.ones(1, 5, dtype=torch.bool)).tolist()
    [[True, False, False, False, False]]
    """
    check_rule(rule)
    sizes = measure_sizes(resid, mask, sample)
    return by_norm(sizes, factor) if rule == "norm" else by_magnitude(sizes)


def check_rule(rule: str) -> None:
    """Raise ValueError if there is no such rule."""
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r} for massive activations: the rules are {', '.join(RULES)}")


class Entries(NamedTuple):
    """A table of massive entries; all columns have the same shape (..., entry), ratio -inf where there is none.

    Attributes
    ----------
    ratio, norm_ratio, value : torch.Tensor
        float64: magnitude over the median magnitude of the prompt, norm of the row over the median norm, and the entry
        itself.
    prompt, position, token_id, channel : torch.Tensor
        int64: where it is; -1 where there is none.
    """

    ratio: Tensor
    norm_ratio: Tensor
    value: Tensor
    prompt: Tensor
    position: Tensor
    token_id: Tensor
    channel: Tensor


def no_entries(*shape: int, device: torch.device | str = "cpu") -> Entries:
    """Return a table without entries."""
    empty = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
    none = torch.full(shape, -1, dtype=torch.int64, device=device)
    return Entries(*(empty.clone() for _ in range(3)), *(none.clone() for _ in range(4)))


def largest(entries: Entries, keep: int) -> Entries:
    """Return the ``keep`` entries of largest ratio, ties by prompt, position and channel: one answer in any order."""
    order = entries.channel.argsort(dim=-1, stable=True)
    for column in (entries.position, entries.prompt):
        order = order.gather(-1, column.gather(-1, order).argsort(dim=-1, stable=True))
    order = order.gather(-1, entries.ratio.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    order = order[..., :keep]
    return Entries(*(c.gather(-1, order) for c in entries))


def massive_entries(
    resid: Tensor, ids: Tensor, numbers: Tensor, sizes: Sizes, rows: Tensor, rule: str, keep: int
) -> Entries:
    """List the entries that make rows massive, largest ratio first.

    Parameters
    ----------
    resid, ids : torch.Tensor
        (prompt, position, d) stream and (prompt, position) token ids.
    numbers : torch.Tensor
        (prompt,) number of each prompt.
    sizes : Sizes
        Of these rows.
    rows : torch.Tensor
        (prompt, position) bool, which rows are massive.
    rule : str
        Which entries of a massive row count: under ``"norm"`` its largest one and those that carry at least a tenth of
        its squared norm, under ``"sun2024"`` those that the rule names; at most 16 of a row.
    keep : int
        Length of the table.

    Returns
    -------
    Entries
        (entry,) with exactly ``keep`` entries, the last ones empty if there are fewer.
    """
    width = ids.shape[1]
    by_number = numbers.argsort()
    rank = torch.where(rows, sizes.peak / sizes.median[:, None], -torch.inf)[by_number].flatten()
    chosen = rank.argsort(descending=True, stable=True)[:keep]
    prompt = by_number[chosen // width]
    position = chosen % width
    x = resid[prompt, position].double()
    peak, channel = x.abs().topk(min(CHANNELS, x.shape[-1]), dim=-1)
    ratio, norm = peak / sizes.median[prompt].double()[:, None], sizes.norm[prompt, position].double()[:, None]
    if rule == "norm":
        listed = peak**2 >= 0.1 * norm**2
        listed[:, 0] = True
    else:
        listed = (peak > ABSOLUTE) & (ratio >= RATIO)
    listed &= rows[prompt, position][:, None]

    def spread(column: Tensor) -> Tensor:
        return torch.where(listed, column, -1).flatten()

    table = Entries(
        torch.where(listed, ratio, -torch.inf).flatten(),
        torch.where(listed, norm / sizes.median_norm[prompt].double()[:, None], -torch.inf).flatten(),
        torch.where(listed, x.gather(1, channel), -torch.inf).flatten(),
        spread(numbers[prompt][:, None].expand_as(channel)),
        spread(position[:, None].expand_as(channel)),
        spread(ids[prompt, position][:, None].expand_as(channel)),
        spread(channel),
    )
    padding = no_entries(keep, device=resid.device)
    return largest(Entries(*(torch.cat(pair) for pair in zip(table, padding, strict=True))), keep)
