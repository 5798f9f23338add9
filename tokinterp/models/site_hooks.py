"""The hooks of one pass: sites shown and changed as it reaches them, and its end at the deepest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..run.edits import Edit, SiteEdit
from ..run.sites import INNER, Site
from . import attention, proof
from .attention.watch import Change, Look, Show
from .modules import submodule

HookedLM = Any  # of hooks.py, which imports this module


class StopPassError(Exception):
    """Raised inside the pass when the deepest site has been reached."""


def hook_sites(
    model: HookedLM, stack: ExitStack, wanted: list[Site], edits: Sequence[Edit], cuts: dict[int, torch.Tensor],
    ids: torch.Tensor, mask: torch.Tensor, give: Callable[[Site, torch.Tensor], None],
) -> list[Look]:  # fmt: skip
    """Register the hooks of one pass, which the stack removes; return what is wanted inside attention."""
    want = set(wanted)
    at_site: dict[Site, list[SiteEdit]] = {}
    for e in edits:
        if isinstance(e, SiteEdit):
            at_site.setdefault(e.site, []).append(e)
    used = want | set(at_site)
    deepest = max(s.depth for s in wanted)
    entering: dict[int, torch.Tensor] = {}

    def reach(site: Site, value: torch.Tensor) -> torch.Tensor:
        for e in at_site.get(site, ()):
            value = e.apply(value, ids, mask)
        if site in want:  # some blocks add to what their parts return in place: keep a copy of the parts
            give(site, value if site.name == "resid" else value.clone())
        return value

    def add(handle: Any) -> None:
        stack.callback(handle.remove)

    def stop_at(depth: tuple[int, int]) -> None:
        if depth == deepest:
            raise StopPassError

    def on_entry(b: int) -> Callable[..., Any]:
        def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            h = args[0] if args else kwargs["hidden_states"]
            new = h
            for layer in range(b + 1) if b == model._runs[0] else ():  # blocks that are skipped change nothing
                new = reach(Site("resid", layer), new)
                stop_at((layer - 1, 9))
            entering[b] = new
            if new is h:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        return hook

    def on_attn(b: int) -> Callable[..., Any]:
        def hook(_m: nn.Module, _args: Any, out: Any) -> Any:
            old = proof.tensor_of(out)
            new = reach(Site("attn_out", b), old)
            mid = Site("resid_mid", b)
            if mid in used:
                h = entering.pop(b).to(new.device)
                before = h + new
                after = reach(mid, before)
                if after is not before:
                    new = torch.where(after == before, new, after - h)
            stop_at((b, 1))
            return None if new is old else proof.with_tensor(out, new)

        return hook

    def on_pattern(b: int) -> Show:
        def show(weights: torch.Tensor, _value: Any, _mixed: Any) -> None:
            give(Site("pattern", b), weights)
            stop_at((b, 0))

        return show

    def on_heads(b: int) -> Change:
        left = {name for name in INNER if Site(name, b) in used}

        def change(name: str, old: torch.Tensor) -> torch.Tensor:
            if name not in left:
                return old
            left.remove(name)
            side = attention.flat(old)
            new = reach(Site(name, b), side)
            if not left:
                stop_at((b, -1))
            return old if new is side else attention.by_head(new, old)

        return change

    def on_mlp(b: int) -> Callable[..., Any]:
        def hook(_m: nn.Module, _args: Any, out: Any) -> Any:
            old = proof.tensor_of(out)
            shaped = old.reshape(*ids.shape, old.shape[-1])  # OPT flattens prompts and positions
            new = reach(Site("mlp_out", b), shaped)
            stop_at((b, 2))
            return None if new is shaped else proof.with_tensor(out, new.reshape(old.shape))

        return hook

    def on_exit(b: int) -> Callable[..., Any]:
        def hook(_m: nn.Module, _args: Any, out: Any) -> Any:
            old = new = proof.tensor_of(out)
            for layer in range(b + 1, until[b] + 1):
                new = reach(Site("resid", layer), new)
                stop_at((layer - 1, 9))
            return None if new is old else proof.with_tensor(out, new)

        return hook

    names = {(s.name, s.at) for s in used}
    looks: list[Look] = []
    until = dict(zip(model._runs, [*model._runs[1:], model.info.n_layers], strict=True))  # last layer with its output
    for b in model._runs:
        block, (attn_adds, mlp_adds) = model._blocks[b], model.adds[b]
        begins = b == model._runs[0] and any(("resid", n) in names for n in range(b + 1))
        if begins or ("resid_mid", b) in names:
            add(block.register_forward_pre_hook(on_entry(b), with_kwargs=True))
        look = Look(b, cut=cuts.get(b))
        if any((name, b) in names for name in INNER):
            look.change = on_heads(b)
        if ("pattern", b) in names:
            look.show = on_pattern(b)
        if look.change or look.show or look.cut is not None:
            looks.append(look)
        if ("attn_out", b) in names or ("resid_mid", b) in names:
            add(submodule(block, attn_adds).register_forward_hook(on_attn(b)))
        if ("mlp_out", b) in names:
            add(submodule(block, mlp_adds).register_forward_hook(on_mlp(b)))
        if any(("resid", n) in names for n in range(b + 1, until[b] + 1)):
            add(block.register_forward_hook(on_exit(b)))
        if b > deepest[0]:
            break
    return looks
