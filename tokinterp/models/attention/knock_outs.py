"""Where attention edges can be removed: found by value, when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...run.edits import KnockOut
from ...settings.describe import numbered
from .watch import Look

Attention = Any  # of attention.py, which imports this module


class KnockOuts:
    """The blocks and heads of a model in which keys can be hidden from queries."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in which a key can be hidden: what stands there does not reach later positions through attention.

        Every block is given the same stream twice, but for position 1, and must write the same at later positions when
        position 1 is hidden.
        """
        model = self.attention.model
        if self.attention.way is None:
            return ()
        ids = self.attention.some_ids()
        ids[1] = ids[0]
        ids[1, 1] = (ids[0, 1] + 1) % model.info.d_vocab
        plain = self.attention.stream(ids, [])
        cut = torch.zeros(1, 1, 8, 8, dtype=torch.bool, device=model.device)
        cut[..., 2:, 1] = True
        outs: dict[int, torch.Tensor] = {}

        def feed(b: int) -> Callable[..., Any]:
            def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                new = plain[b - 1][:1].repeat(2, 1, 1)
                new[1, 1] = plain[b - 1][1, 1]
                return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

            return hook

        with ExitStack() as stack:
            for b, attn in self.attention.of.items():
                if b > 0:
                    block = model._blocks[b]
                    stack.callback(block.register_forward_pre_hook(feed(b), with_kwargs=True).remove)
                keep = lambda _m, _a, out, b=b: outs.update({b: first_tensor(out).detach()})  # noqa: E731
                stack.callback(attn.register_forward_hook(keep).remove)
            try:
                self.attention.stream(ids, [Look(b, cut=cut) for b in self.attention.of])
            except (ValueError, TypeError, RuntimeError):
                return ()
        return tuple(b for b, o in outs.items() if apart([o[0, 2:]], [o[1, 2:]]) <= self.attention.tolerance)

    @cached_property
    def by_heads(self) -> bool:
        """Whether single heads can be knocked out."""
        n = self.attention.model.info.n_heads
        ids = self.attention.some_ids()[:1]
        cut = torch.zeros(1, n, 8, 8, dtype=torch.bool, device=ids.device)
        cut[:, 0, 2:, 1] = True
        seen: dict[int, torch.Tensor] = {}
        looks = [Look(b, cut=cut, show=lambda w, _v, _m, b=b: seen.update({b: w})) for b in self.blocks]
        try:
            self.attention.stream(ids, looks)
        except (ValueError, TypeError, RuntimeError):
            return False
        hidden = torch.stack([w[0, :, 2:, 1].abs().sum(-1) for w in seen.values()])
        return bool((hidden[:, 0] <= 1e-6).all() & (hidden[:, 1:] > 0).any(0).all())

    def check(self, edit: KnockOut) -> None:
        """Raise ValueError if a knock-out cannot be done in one of its blocks or heads."""
        info = self.attention.model.info
        blocks = range(info.n_layers) if edit.blocks is None else edit.blocks
        if bad := [b for b in blocks if not 0 <= b < info.n_layers]:
            raise ValueError(f"knock_out in block {numbered(bad)}: {info.id} has blocks 0 to {info.n_layers - 1}")
        if lacking := [b for b in blocks if b not in self.blocks]:
            why = self.attention.model.withheld.get("pattern", "a hidden key still reaches later positions there")
            way = f"take blocks=[{', '.join(map(str, self.blocks))}]" if self.blocks else "no block of it can hide keys"
            raise ValueError(
                f"attention of {info.architecture} cannot be knocked out in blocks {numbered(lacking)} ({why}): {way}"
            )
        if edit.heads is not None:
            edit.check(min((self.attention.heads(b) for b in blocks), default=info.n_heads))
            if self.attention.way == "eager" and not self.by_heads:
                raise ValueError(
                    f"heads={list(edit.heads)}: attention of {info.architecture} has one mask for all heads; leave "
                    "heads out of knock_out"
                )


def first_tensor(out: Any) -> torch.Tensor:
    """Return the first tensor of what a module returned."""
    return out if isinstance(out, torch.Tensor) else out[0]


def apart(got: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> float:
    """Return the largest difference, as a share of the largest value; infinite if it is none."""
    parts = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-6))
        for a, b in zip(got, true, strict=True)
    ]
    return max((p if p == p else float("inf") for p in parts), default=0.0)
