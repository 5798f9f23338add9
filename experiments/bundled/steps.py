"""Optimiser steps that a small model's size does not slow down: few launches, and on a GPU none but one.

All matrices of one shape are orthogonalised in one batch of products.  On a GPU the whole step (passes, clipping, both
optimisers) is captured as one CUDA graph once it has run a few times; where that or the compiler does not work, the
step is taken plainly, and ``notes`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_foreach: Any = torch  # these are not among the names that the library's types export

Loss = Callable[[Tensor], Tensor]
WARM = 3
"""Steps before one is captured."""


class BatchedMuon(torch.optim.Muon):
    """The library's Muon, matrices of one shape together; the rate may be a tensor, which a CUDA graph reads anew."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for params in alike.values():
                self._together(params, group)

    def _together(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        kept, momentum, rate = [self.state[p]["momentum_buffer"] for p in params], group["momentum"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        _foreach._foreach_lerp_(kept, grads, 1 - momentum)
        update = torch.stack(grads).lerp_(torch.stack(kept), momentum)
        update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
        rows, columns = params[0].shape
        _foreach._foreach_mul_(params, 1 - rate * group["weight_decay"])
        _foreach._foreach_add_(params, list((update * (-rate * math.sqrt(max(1.0, rows / columns)))).unbind()))


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return (matrix, row, column) with singular values near 1: Newton-Schulz of each matrix, in bfloat16."""
    a, b, c = coefficients
    tall = x.shape[1] > x.shape[2]
    y = (x.mT if tall else x).bfloat16()
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).contiguous()


def optimisers(model: Any, muon_lr: float, adam_lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embedding (no decay) and norms; rates are tensors."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    muon = BatchedMuon(matrices, lr=muon_lr, weight_decay=weight_decay, momentum=0.95)
    adam = torch.optim.AdamW(
        others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True, capturable=model.device.type == "cuda"
    )
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    both: list[torch.optim.Optimizer] = [muon, adam]
    rates_on(both, model.device)
    return both


def rates_on(opts: list[torch.optim.Optimizer], device: torch.device) -> None:
    """Make the rates tensors on the device; again after states were loaded."""
    for optimiser in opts:
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device, dtype=torch.float32)


class Step:
    """``ids (rows, length + 1), multiplier of the rates -> mean loss``: one step of the model, with all optimisers.

    Parameters
    ----------
    model, opts
        What is trained, and from `optimisers`.
    loss, plain : callable
        ``ids -> mean loss``; ``plain`` is taken where ``loss`` does not work.
    micro : int
        Tokens per backward pass.
    """

    def __init__(self, model: Any, opts: list[torch.optim.Optimizer], loss: Loss, plain: Loss, micro: int) -> None:
        self.model, self.opts, self.loss, self.plain, self.micro = model, opts, loss, plain, micro
        self.notes: list[str] = []
        self.tried = loss is plain
        self.capture = model.device.type == "cuda"
        self.graph: Any = None
        self.ids: Tensor | None = None
        self.total: Tensor | None = None
        self.seen = 0

    def __call__(self, ids: Tensor, multiplier: float) -> Tensor:
        """Take the step."""
        for optimiser in self.opts:
            for group in optimiser.param_groups:
                group["lr"].fill_(group["base_lr"] * multiplier)
        if not self.tried:
            self._try(ids)
        if not self.capture:
            return self._step(ids)
        if self.ids is None or self.ids.shape != ids.shape:
            self.ids, self.graph, self.seen = ids.clone(), None, 0
        self.ids.copy_(ids)
        if self.graph is None and self.seen == WARM:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
            assert self.total is not None
            return self.total
        self.seen += 1
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            total = self._step(self.ids)
        here.wait_stream(side)
        return total

    def _step(self, ids: Tensor) -> Tensor:
        total = torch.zeros((), device=ids.device, dtype=torch.float32)
        for part in ids.split(max(1, self.micro // (ids.shape[1] - 1))):
            value = self.loss(part) * (len(part) / len(ids))
            value.backward()
            total = total + value.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.opts:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return total

    def _try(self, ids: Tensor) -> None:
        """See once whether the compiled loss works here."""
        self.tried = True
        try:
            self.loss(ids[: max(1, self.micro // (ids.shape[1] - 1))]).backward()
        except Exception as error:
            self.notes.append(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            self.loss = self.plain
        self.model.zero_grad(set_to_none=True)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.total = self._step(self.ids)  # pyright: ignore[reportArgumentType]
            self.graph = graph
        except Exception as error:
            torch.cuda.synchronize()
            self.capture = False
            self.notes.append(f"no CUDA graph: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            self.model.zero_grad(set_to_none=True)
