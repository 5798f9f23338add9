"""Attention weights reduced: mass on sets of keys, with and without sink and self, chance, and attention received."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-6  # of a query's attention must be left beside the first position and itself for a share of it to count


class Masses(NamedTuple):
    """Sums over queries of the attention that falls on sets of keys; all (prompt, head, query set, key set) float64.

    Attributes
    ----------
    mass : torch.Tensor
        Sum of the weights on the set.
    net : torch.Tensor
        Sum of the share of the set in what is left beside the first position and the query itself.
    net_chance : torch.Tensor
        Sum of the share of the set in the places that are left, over the same queries.
    valued : torch.Tensor
        Sum of the share of the set when each weight is multiplied by the norm of what would be written; zeros without
        norms.
    net_queries : torch.Tensor
        (prompt, head, query set) int64, queries that have something left.
    short : torch.Tensor
        (prompt, head, query set) float64, sum of what the weights lack to one: the share of a learned sink.
    """

    mass: Tensor
    net: Tensor
    net_chance: Tensor
    valued: Tensor
    net_queries: Tensor
    short: Tensor


def chance(queries: Tensor, keys: Tensor) -> Tensor:
    """Return (prompt, query set, key set) float64: sum over queries of |S and [0..q]| / (q + 1).

    Parameters
    ----------
    queries, keys : torch.Tensor
        (prompt, query set, position) and (prompt, key set, position) bool.
    """
    place = torch.arange(keys.shape[-1], device=keys.device, dtype=torch.float64)
    visible = keys.double().cumsum(-1) / (place + 1)
    return queries.double() @ visible.transpose(1, 2)


def attention_masses(pattern: Tensor, queries: Tensor, keys: Tensor, norms: Tensor | None = None) -> Masses:
    """Reduce the attention weights of one block.

    Parameters
    ----------
    pattern : torch.Tensor
        (prompt, head, query, key), causal; rows sum to one, or to less where a learned sink takes a share.
    queries, keys : torch.Tensor
        (prompt, query set, position) and (prompt, key set, position) bool.
    norms : torch.Tensor, optional
        (prompt, head, position) norm of what each position would have written, ||v W_O||.

    Notes
    -----
    Memory: two tensors of the size of ``pattern`` beside it.

    Examples
    --------
    >>> uniform = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    >>> everything = torch.ones(1, 1, 4, dtype=torch.bool)
    >>> float(attention_masses(uniform[None, None], everything, everything).mass)
    4.0
    """
    a, n = pattern.float(), pattern.shape[-1]
    ask, on = queries[:, None].double(), keys[:, None].float().transpose(2, 3)  # (p, 1, Q, q), (p, 1, k, S)
    mass = ask @ (a @ on).double()
    valued = torch.zeros_like(mass)
    short = (ask @ (1 - a.sum(-1, keepdim=True)).double())[..., 0]
    if norms is not None:
        weighted = a * norms.float()[:, :, None, :]
        valued = ask @ ((weighted @ on) / weighted.sum(-1, keepdim=True).clamp_min(1e-30)).double()
        del weighted
    a = a.clone()
    a[..., 0] = 0
    a.diagonal(dim1=2, dim2=3).zero_()
    left = a.sum(-1, keepdim=True)  # summed from what is left, so that nothing cancels
    counts = left > LEAST
    share = torch.where(counts, (a @ on) / left.clamp_min(LEAST), 0).double()
    inner = keys.clone()
    inner[..., 0] = False
    place = torch.arange(n, device=a.device, dtype=torch.int64)
    among = (inner.double().cumsum(-1) - inner.double()).transpose(1, 2) / (place - 1).clamp_min(1)[:, None]
    net_chance = ask @ torch.where(counts, among[:, None], 0)
    net_queries = (queries[:, None] & counts[..., 0][:, :, None]).sum(-1)
    return Masses(mass, ask @ share, net_chance, valued, net_queries, short)


def row_similarity(pattern: Tensor, before: Tensor, mask: Tensor) -> Tensor:
    """Return (prompt, head, 2) float64 mean cosine of the rows of a block with those before, and with even rows.

    Position 0 and the query itself are left out, and so are queries with fewer than two other keys, or with nothing on
    them in one of the two.

    Parameters
    ----------
    pattern : torch.Tensor
        (prompt, head, query, key) attention weights.
    before : torch.Tensor
        (prompt, query, key) weights of the block before, mean over heads.
    mask : torch.Tensor
        (prompt, position) bool, true on real tokens.

    Examples
    --------
    >>> a = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    >>> row_similarity(a[None, None], a[None], torch.ones(1, 6, dtype=torch.bool)).round(decimals=4).tolist()
    [[[1.0, 1.0]]]
    """
    place = torch.arange(pattern.shape[-1], device=pattern.device, dtype=torch.int64)
    inner = (place < place[:, None]) & (place > 0)
    a, b = pattern.float() * inner, before.float() * inner
    counts = ((b.sum(-1) > LEAST) & mask & (place > 2))[:, None] & (a.sum(-1) > LEAST)
    size, number = torch.linalg.vector_norm(a, dim=-1), counts.sum(-1)
    one = torch.einsum("phqk,pqk->phq", a, b) / (size * torch.linalg.vector_norm(b, dim=-1)[:, None]).clamp_min(1e-30)
    even = a.sum(-1) / (size * (place - 1).clamp_min(1).sqrt()).clamp_min(1e-30)
    return torch.stack([torch.where(counts, x, 0).sum(-1, dtype=torch.float64) / number for x in (one, even)], -1)


def attention_received(pattern: Tensor, queries: Tensor | None = None) -> Tensor:
    """Return (prompt, head, key) float64 mean attention received over the queries that can see each key.

    alpha_k of Gu et al. 2024 (arXiv 2410.10781): (1 / (T - k)) sum over q >= k of a_qk, k counted from 0.

    Parameters
    ----------
    pattern : torch.Tensor
        (prompt, head, query, key), causal; the keys may be only the first few.
    queries : torch.Tensor, optional
        (prompt, query) bool, which queries count; all by default.

    Returns
    -------
    torch.Tensor
        NaN where no query that counts can see the key.

    Examples
    --------
    >>> uniform = torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None]
    >>> attention_received(uniform[None, None, :, :1], torch.tensor([[False, True, True]]))[0, 0].tolist()
    [0.4166666716337204]
    """
    if queries is None:
        queries = torch.ones(1, pattern.shape[2], dtype=torch.bool, device=pattern.device)
        total = pattern.sum(2, dtype=torch.float64)
    else:
        total = pattern.masked_fill(~queries[:, None, :, None], 0).sum(2, dtype=torch.float64)
    seen_by = queries.flip(1).cumsum(1).flip(1)[:, None, : pattern.shape[3]]
    return total / seen_by


def rank_correlation(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return (prompt,) Spearman correlations of (prompt, position) values over the places of a mask, ties by mean rank.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0, 2, 3, 0]]), torch.tensor([[5.0, 5, 9, 7]])
    >>> rank_correlation(x, y, x > 0).round(decimals=4).tolist()
    [0.866]
    """

    def centred(v: Tensor) -> Tensor:
        v = v.double().masked_fill(~mask, torch.inf)  # behind all others
        order = v.sort(-1).values
        rank = torch.searchsorted(order, v) + torch.searchsorted(order, v, right=True)
        rank = torch.where(mask, rank, 0).double()
        return torch.where(mask, rank - rank.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True), 0)

    a, b = centred(x), centred(y)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
