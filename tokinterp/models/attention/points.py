"""Queries, keys and values in modules of an attention that is computed without a function of transformers, proved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..modules import submodule

QUERIES_KEYS = (("hook_rot_q", "hook_rot_k"), ("q.hook_out", "k.hook_out"))
"""TransformerLens's names, of an attention module: rotated, and plain."""
FUSED = "query_key_value"
"""One projection to the queries, the key and the value of each group of heads, in this order (BLOOM, Falcon)."""
VALUES = ("v.hook_out", "v_proj", FUSED)
OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""Output projections, which read what is mixed of the values."""
MIXED = ("o.hook_in", *OUTPUTS)


@dataclass(frozen=True)
class Point:
    """A module that returns the queries, keys or values of a block, and how they lie in what it returns.

    Attributes
    ----------
    module : nn.Module
        Whose output it is.
    layout : str
        ``"heads"`` (prompt, head, position, d_head), ``"split"`` (prompt, position, head, d_head), ``"flat"``
        (prompt, position, head * d_head) or ``"last"`` (prompt, position, head * parts * d_head), of which the last
        part of each head is meant.
    n_heads : int
        Of queries, or the fewer of keys and values.
    parts : int
        Of each head, with ``"last"``.
    """

    module: nn.Module
    layout: str
    n_heads: int
    parts: int = 1

    def unfold(self, out: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, position, d_head) of what the module returned."""
        if self.layout == "heads":
            return out
        if self.layout == "last":
            return out.unflatten(2, (self.n_heads, self.parts, -1))[..., -1, :].transpose(1, 2)
        return (out if self.layout == "split" else out.unflatten(2, (self.n_heads, -1))).transpose(1, 2)

    def fold(self, heads: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Return what the module has to return for (prompt, head, position, d_head) in the place of what it did."""
        if self.layout == "heads":
            return heads
        split = heads.transpose(1, 2)
        if self.layout == "last":
            whole = out.unflatten(2, (self.n_heads, self.parts, -1))
            return torch.cat([whole[..., :-1, :], split[..., None, :]], -2).flatten(2)
        return split if self.layout == "split" else split.flatten(2)

    def listen(self, stack: ExitStack, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Let a function see, and put others in the place of, (prompt, head, position, d_head)."""

        def hook(_m: nn.Module, _args: Any, out: torch.Tensor) -> torch.Tensor | None:
            heads = self.unfold(out)
            new = change(heads)
            return None if new is heads else self.fold(new, out)

        stack.callback(self.module.register_forward_hook(hook).remove)


def candidates(attn: nn.Module) -> dict[str, nn.Module]:
    """Return path -> module of the points that an attention module has."""
    paths = (*(p for pair in QUERIES_KEYS for p in pair), *VALUES, *MIXED)
    return {p: m for p in paths if isinstance(m := submodule(attn, p), nn.Module)}


def keep_outs(stack: ExitStack, modules: dict[str, nn.Module]) -> dict[str, list[torch.Tensor]]:
    """Return what each of `candidates` returns during a pass, of output projections what they are given."""
    outs: dict[str, list[torch.Tensor]] = {path: [] for path in modules}
    for path, module in modules.items():

        def keep(_m: nn.Module, given: Any, out: Any, path: str = path) -> None:
            value = given[0] if path in OUTPUTS and given else out
            if isinstance(value, torch.Tensor):
                outs[path].append(value.detach().clone())

        stack.callback(module.register_forward_hook(keep).remove)
    return outs


def find_points(
    modules: dict[str, nn.Module], outs: dict[str, list[torch.Tensor]], weights: torch.Tensor, tolerance: float
) -> dict[str, Point]:
    """Return where a block shows its queries, keys and values, as far as it can be proved.

    Its weights must be the softmax of the products of queries and keys, up to a scale, and what it mixes must be the
    values so weighed.

    Parameters
    ----------
    modules, outs : dict
        Of `candidates` and `keep_outs`, of one pass.
    weights : torch.Tensor
        (prompt, head, query, key) of that pass.
    tolerance : float
        How far equal numbers may be apart, as a share of their range.
    """
    n_heads, n = weights.shape[1], weights.shape[2]
    once = {p: o[0] for p, o in outs.items() if len(o) == 1}
    counts = [h for h in range(n_heads, 0, -1) if not n_heads % h]

    def points(path: str, heads: int) -> list[Point]:
        x = once.get(path)
        if x is None or x.ndim not in (3, 4):
            return []
        if path == FUSED:
            parts = n_heads // heads + 2
            fits = x.ndim == 3 and x.shape[1] == n and not x.shape[2] % (heads * parts)
            return [Point(modules[path], "last", heads, parts)] if fits else []
        if x.ndim == 3:
            return [Point(modules[path], "flat", heads)] if x.shape[1] == n and not x.shape[2] % heads else []
        found = [Point(modules[path], "heads", x.shape[1])] if x.shape[2] == n else []
        return found + ([Point(modules[path], "split", x.shape[2])] if x.shape[1] == n else [])

    found: dict[str, Point] = {}
    values = [(v, v.unfold(once[path])) for path in VALUES for h in counts for v in points(path, h)]
    for v, heads in values:
        if any(_is_mixed(weights, heads, once[p], tolerance) for p in MIXED if p in once):
            found["value"] = v
            break
    for q_path, k_path in QUERIES_KEYS:
        for q in points(q_path, n_heads):
            for k in [k for h in counts for k in points(k_path, h)]:
                if _is_softmax(weights, q.unfold(once[q_path]), k.unfold(once[k_path]), tolerance):
                    return {"query": q, "key": k, **found}
    return found


def _is_softmax(weights: torch.Tensor, asked: torch.Tensor, held: torch.Tensor, tolerance: float) -> bool:
    """Whether weights are the softmax of a multiple of the products of queries and keys, where they are not zero."""
    if asked.shape[1] != weights.shape[1] or asked.shape[3] != held.shape[3] or weights.shape[1] % held.shape[1]:
        return False
    scores = asked.double() @ held.double().repeat_interleave(weights.shape[1] // held.shape[1], 1).mT
    if scores.shape != weights.shape:
        return False
    seen = weights > 0
    logs = weights.double().clamp_min(1e-300).log()
    # against the position itself, which every query sees
    above, true = (torch.where(seen, x - x.diagonal(dim1=2, dim2=3)[..., None], 0.0) for x in (scores, logs))
    spread, size = float(true.abs().max()), float((above * above).sum())
    if not spread > 1e-3 or not size > 0:
        return False
    scale = float((above * true).sum()) / size
    return scale > 0 and float((scale * above - true).abs().max()) <= tolerance * spread


def _is_mixed(weights: torch.Tensor, values: torch.Tensor, mixed: torch.Tensor, tolerance: float) -> bool:
    """Whether what was mixed is the values as weighed."""
    if values.ndim != 4 or weights.shape[1] % values.shape[1]:
        return False
    each = values.double().repeat_interleave(weights.shape[1] // values.shape[1], 1)
    got = (weights.double() @ each).transpose(1, 2).flatten(2)
    mixed = mixed.double().reshape(*mixed.shape[:2], -1)
    return got.shape == mixed.shape and float((got - mixed).abs().max()) <= tolerance * float(mixed.abs().max())
