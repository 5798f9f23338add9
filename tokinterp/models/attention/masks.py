"""Masks of attention, whatever their kind: edges closed in them, and windows that follow the places of the tokens."""

from __future__ import annotations

import torch
from torch import nn


def open_edges(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool) -> torch.Tensor:
    """Return a bool mask (prompt, 1 or head, query, key), true where attention may look."""
    if mask is None:
        whole = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        return whole.tril() if causal else whole
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the mask as eager attention adds it."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def close(
    mask: torch.Tensor | None, cut: torch.Tensor, query: torch.Tensor, key: torch.Tensor, causal: bool,
    real: torch.Tensor, block: int,
) -> torch.Tensor:  # fmt: skip
    """Return the mask without the edges of ``cut``."""
    old = open_edges(None, query, key, causal) if mask is None else mask
    cut = cut.to(old.device)
    if old.dtype == torch.bool:
        new = old & ~cut
    else:
        new = old.expand(torch.broadcast_shapes(old.shape, cut.shape)).masked_fill(cut, torch.finfo(old.dtype).min)
    check_sight(open_edges(new, query, key, causal), real, block)
    return new


def check_sight(open_to: torch.Tensor, real: torch.Tensor, block: int) -> None:
    """Refuse a mask (prompt, head, query, key) that leaves a real position nothing to attend to."""
    blind = ~open_to.any(-1) & real.to(open_to.device)[:, None, :]
    if bool(blind.any()):
        prompt, _, query = (int(v) for v in blind.nonzero()[0])
        raise ValueError(
            f"knock_out leaves position {query} of prompt {prompt} of the batch nothing to attend to in block {block}; "
            "leave it at least itself or BOS"
        )


def follow_places(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool, places: torch.Tensor,
    real: torch.Tensor, width: int | None, module: nn.Module,
) -> torch.Tensor | None:  # fmt: skip
    """Return the mask with its sliding window counted by ``position_ids``, so that hidden tokens do not fill it."""
    places, real = places.to(query.device), real.to(query.device)
    n = torch.arange(query.shape[2], dtype=torch.int64, device=query.device)
    before = (n[:, None] >= n) & real[:, None, :] & real[:, :, None]
    back = n[:, None] - n
    here = open_edges(mask, query, key, causal)
    shut = before[:, None] & ~here
    if bool(shut.any()):
        seen = int(torch.where(before[:, None] & here, back, 0).max()) + 1
        if not torch.equal(before[:, None] & here, (before & (back < seen))[:, None].expand_as(here)):
            raise ValueError(
                f"attention of {type(module).__name__} looks at chunks, or otherwise closes earlier positions of these "
                "prompts: position_ids cannot be given; use shorter prompts, or delete tokens instead of hiding them"
            )
        width = seen
    chunk = getattr(module.config, "attention_chunk_size", None)
    if chunk and (int(places.max()) >= chunk or len(n) > chunk):
        raise ValueError(
            f"attention of {type(module).__name__} looks at chunks of {chunk} tokens: position_ids cannot be given for "
            "prompts that reach over one; use shorter prompts, or delete tokens instead of hiding them"
        )
    if width is None:
        return mask
    far = places[:, :, None] - places[:, None, :]
    return ((n[:, None] >= n) & (far < width))[:, None]
