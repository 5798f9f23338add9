"""The proof by value of a model's stream: where it is, what blocks add to it, and that no token sees a later one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..kernels.state import passing
from ..run.sites import INNER, Site
from ..settings.describe import numbered
from .modules import MIXERS, Modules, Parts, candidates, submodule

HookedLM = Any  # of hooks.py, which imports this module

ROUNDINGS = 4
"""How many roundings of the dtype may lie between a layer and the sum of the parts that make it."""
LEAK = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest change of a state, as a share of its norm, by what must not reach it: rounding only."""
PREFIX, WHOLE = 24, 64
"""Tokens of the prompts on which causality is proved."""


@dataclass
class Passed:
    """What one block did in one pass: how often it ran, its stream before and after, and what its parts returned."""

    calls: int = 0
    before: Any = None
    after: Any = None
    parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)


def some_ids(model: HookedLM, prompts: int, tokens: int) -> torch.Tensor:
    """Return (prompt, position) ids for a proof, always the same, hardly one of them twice."""
    n = torch.arange(prompts * tokens, device=model.device, dtype=torch.int64)
    return ((n * 7919 + 11) % model.info.d_vocab).reshape(prompts, tokens)


def tensor_of(out: Any) -> Any:
    """Return the stream of what a block or a part returned: itself, or the first of several."""
    return out[0] if isinstance(out, tuple | list) and len(out) else out


def with_tensor(out: Any, new: torch.Tensor) -> Any:
    """Return what a module returned with its tensor changed."""
    return type(out)([new, *out[1:]]) if isinstance(out, tuple | list) else new


def watched(model: HookedLM, ids: torch.Tensor) -> tuple[torch.Tensor, list[Passed]]:
    """Run ids once; return the model's own logits and what each block did."""
    seen = [Passed() for _ in model._blocks]

    def enter(at: Passed) -> Any:
        def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            h = args[0] if args else kwargs.get("hidden_states")
            at.calls += 1
            at.before = h.clone() if isinstance(h, torch.Tensor) else h

        return hook

    def leave(at: Passed) -> Any:
        def hook(_m: nn.Module, _args: Any, out: Any) -> None:
            h = tensor_of(out)
            at.after = h.clone() if isinstance(h, torch.Tensor) else h

        return hook

    def part(found: list[torch.Tensor]) -> Any:
        def hook(_m: nn.Module, _args: Any, out: Any) -> None:
            h = tensor_of(out)
            if isinstance(h, torch.Tensor):  # some blocks add to what their parts return in place
                found.append(h.clone())

        return hook

    with ExitStack() as stack:
        for block, at in zip(model._blocks, seen, strict=True):
            for path in {p for pair in candidates(block, model.modules) for p in pair if p}:
                found = at.parts.setdefault(path, [])
                stack.callback(submodule(block, path).register_forward_hook(part(found)).remove)
            stack.callback(block.register_forward_pre_hook(enter(at), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leave(at)).remove)
        own = model.forward(input_ids=ids, use_cache=False).logits.float()
    return own, seen


def check_stream(model: HookedLM, own: torch.Tensor, seen: list[Passed]) -> list[int]:
    """Return the blocks that run; raise ValueError unless one vector per token passes through them, one by one."""
    info, shape = model.info, own.shape[:2]
    if not bool(torch.isfinite(own).all()):
        raise ValueError(
            f"{info.id} gives NaN or infinite logits in {info.dtype}: load it with dtype='float32' or 'bfloat16', and "
            "check the weights"
        )
    where = f"{info.id} ({info.architecture}): "
    often = [b for b, at in enumerate(seen) if at.calls > 1]
    if often:
        raise ValueError(
            f"{where}block {numbered(often[:1])} runs {seen[often[0]].calls} times in one pass, so that a layer has "
            "no single state: such models are not measured"
        )
    runs = [b for b, at in enumerate(seen) if at.calls]
    if not runs:
        raise ValueError(
            f"{where}the blocks at {model.modules.blocks} do not run in a pass of the model, or their hooks do not "
            "(a compiled or scripted model?): wrap the model before it is compiled, or name the blocks with "
            "modules=tokinterp.Modules(...)"
        )
    for b in runs:
        for what in (seen[b].before, seen[b].after):
            if not isinstance(what, torch.Tensor):
                raise ValueError(f"{where}block {b} passes on {type(what).__name__}, not the stream as a tensor")
            if tuple(what.shape) != (*shape, info.d_model):
                raise ValueError(
                    f"{where}the residual stream at block {b} has shape {tuple(what.shape)} for {shape[0]} prompts of "
                    f"{shape[1]} tokens, not one vector of {info.d_model} for each token: a model with several "
                    "streams, or another layout, is not measured"
                )
    for b, c in pairwise(runs):
        if not torch.equal(seen[b].after.to(seen[c].before.device), seen[c].before):
            raise ValueError(
                f"{where}block {c} does not receive the stream that block {b} returned: the blocks "
                f"({model.modules.blocks}) are not one stream in this order, or something between them changes it"
                + _why_between(model)
            )
    return runs


def _why_between(model: HookedLM) -> str:
    every = getattr(model.config, "rescale_every", 0)
    return f" (rescale_every = {every}: set it to 0 in the config before loading)" if every else ""


def check_head(model: HookedLM, ids: torch.Tensor, own: torch.Tensor) -> None:
    """Raise ValueError if the last layer does not give the model's own logits."""
    last = Site("resid", model.info.n_layers)
    got = model.unembed(model.run(ids, [last])[last])
    error = float("inf")
    if got.shape == own.shape:
        error = float((got - own.to(got.device)).abs().max() / own.abs().max().clamp_min(1e-3))
    if not error <= model.tolerance:
        raise ValueError(
            f"{model.info.id}: unembed(last layer) differs from the model's own logits by {error:.2g} of their "
            f"range (at most {model.tolerance:g} allowed). The blocks ({model.modules.blocks}), the final norm "
            f"({model.modules.norm}) or the head are not where they were looked for; name them with "
            "modules=tokinterp.Modules(...)"
        )


def offer_parts(model: HookedLM, seen: list[Passed]) -> None:
    """Offer what attention and MLP add, in the blocks in which layer b + attention + MLP = layer b + 1."""
    model.adds = find_parts(seen, model)
    runs = [b for b, at in enumerate(seen) if at.calls]
    attn = [b for b in runs if is_attention(model.adds[b][0], model._blocks[b], model.modules)]
    both = [b for b in attn if model.adds[b][1]]
    model._assume("attn_out", blocks=attn)
    model._assume("mlp_out", blocks=[b for b in runs if model.adds[b][1]])
    model._assume("resid_mid", blocks=sequential(model, both))
    lacking = [b for b in range(len(seen)) if b not in attn]
    if skipped := [b for b in lacking if b not in runs]:
        why = f"a pass on text skips block{'s' * (len(skipped) > 1)} {numbered(skipped)}"
        model.withheld |= dict.fromkeys(("attn_out", "mlp_out", "resid_mid", "pattern", *INNER), why)
    elif lacking and all(has_other_mixer(model._blocks[b], model.modules) for b in lacking):
        why = "no attention there, but another mixer of tokens"
        model.withheld |= dict.fromkeys(("attn_out", "resid_mid", "pattern", *INNER), why)
    elif lacking:
        model.withheld["resid_mid"] = "attention and MLP are not added to the stream one by one"


def reads_positions(model: HookedLM) -> bool:
    """Return whether other position_ids give other logits (false with ALiBi)."""
    places = torch.arange(8, device=model.device, dtype=torch.int64)[None]
    ids, gaps = places % model.info.d_vocab, torch.where(places < 4, places, places + 3)
    plain = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    try:
        with passing(model.lm):
            one, other = (model.forward(input_ids=ids, position_ids=p, **plain).logits for p in (places, gaps))
    except TypeError:
        return False
    return not torch.equal(one, other)


def find_parts(seen: list[Passed], model: HookedLM) -> list[Parts]:
    """Return, block by block, the modules with layer b + attention + MLP = layer b + 1 up to rounding."""
    return [_fitting(at, candidates(block, model.modules)) for at, block in zip(seen, model._blocks, strict=True)]


def _fitting(at: Passed, options: list[Parts]) -> Parts:
    if not at.calls:
        return None, None
    before, after = at.before, at.after
    for option in options:
        outs = [at.parts[p] for p in option if p]
        if any(len(o) != 1 or o[0].numel() != after.numel() for o in outs):
            continue  # did not run, or more than once
        parts = [o[0].reshape(after.shape).to(after.device) for o in outs]  # OPT flattens prompts and positions
        coarse = max(torch.finfo(t.dtype).eps for t in (before, after, *parts))
        total, size = before.double(), before.double().abs()
        for p in parts:
            total, size = total + p.double(), size + p.double().abs()
        if bool(((total - after.double()).abs() <= ROUNDINGS * coarse * size).all()):
            return option
    return None, None


def is_attention(path: str | None, block: nn.Module, modules: Modules) -> bool:
    """Whether what a block adds first comes of attention (linear attention too), not of what a hybrid has instead."""
    if path is None or path == modules.attn_adds:
        return path is not None
    has = any(isinstance(submodule(block, p), nn.Module) for p in (modules.attn, MIXERS[0]))
    return has and not path.startswith(MIXERS[1:])


def has_other_mixer(block: nn.Module, modules: Modules) -> bool:
    """Whether a block mixes tokens by something else than attention (state spaces, convolutions)."""
    here = [p for p in (modules.attn, *MIXERS) if isinstance(submodule(block, p), nn.Module)]
    return bool(here) and here[0] in MIXERS[1:]


def sequential(model: HookedLM, blocks: Sequence[int]) -> list[int]:
    """Return those of the blocks whose MLP reads what attention wrote; in parallel blocks it does not.

    Prompt i is the same as all others but for a kick of what attention writes in block i: one pass tells of all.
    """
    if not blocks:
        return []
    ids = some_ids(model, 1, 4).expand(len(blocks), 4)
    width = model.info.d_model
    kick = torch.randn(width, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")

    def outputs(kicked: bool) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        def on_attn(i: int) -> Any:
            def hook(_m: nn.Module, _args: Any, out: Any) -> Any:
                old = tensor_of(out)
                new = old.clone()
                new[i] += (10 * (1 + kick) * old.float().std().cpu().clamp_min(1e-3)).to(new)
                return with_tensor(out, new)

            return hook

        def on_mlp(i: int) -> Any:
            def hook(_m: nn.Module, _args: Any, out: Any) -> None:
                h = tensor_of(out)
                found.append(h.reshape(*ids.shape, h.shape[-1])[i].clone())

            return hook

        with ExitStack() as stack:
            for i, b in enumerate(blocks):
                attn, mlp = (submodule(model._blocks[b], p) for p in model.adds[b])
                if kicked:
                    stack.callback(attn.register_forward_hook(on_attn(i)).remove)
                stack.callback(mlp.register_forward_hook(on_mlp(i)).remove)
            model.forward(input_ids=ids, use_cache=False)
        return found

    pairs = zip(blocks, outputs(False), outputs(True), strict=True)
    # The kick is ten times what attention writes; less than this is rounding, in another order of the experts.
    return [b for b, plain, other in pairs if float((other - plain).float().norm() / plain.float().norm()) > 0.03]


def check_causal(model: HookedLM) -> None:
    """Raise ValueError if the states of a prompt depend on what follows it, on padding, or on its company.

    One batch holds another prompt, a prompt, and the first part of it followed by padding: the two must have equal
    states there at every layer, the same as the first part has alone.  Between rows of one batch nothing differs but
    rounding; alone another kernel may run, and in half precision a router may choose another expert for some tokens,
    so there most of the tokens decide.
    """
    info = model.info
    whole = min(WHOLE, info.max_tokens, *model.length_steps)
    n = max(1, whole * PREFIX // WHOLE)
    if whole < 2:
        return
    ids = some_ids(model, 2, whole)
    padded = ids[1].clone()
    padded[n:] = 0
    ids = torch.stack([ids[0], ids[1], padded])
    sites = [Site("resid", layer) for layer in range(info.n_layers + 1)]
    half = info.dtype in ("float16", "bfloat16")
    room = LEAK.get(getattr(torch, info.dtype), LEAK[torch.bfloat16])
    together, alone = model.run(ids, sites), model.run(ids[1:2, :n], sites)
    for s in sites:
        full, cut, own = (x.double() for x in (together[s][1, :n], together[s][2, :n], alone[s][0]))
        norm = own.norm(dim=-1).clamp_min(1e-12)
        after, company = (full - cut).norm(dim=-1) / norm, (full - own).norm(dim=-1) / norm
        found = float(after.max()), float(company.quantile(0.5) if half else company.max())
        if max(found) > room or not max(found) >= 0:
            what = "later tokens or padding" if found[0] > room else "its length or the other prompts of its batch"
            raise ValueError(
                f"{info.id} ({info.architecture}) is not causal: at layer {s.at} the states of a prompt change by "
                f"{max(found):.2g} of their norm with {what}{_why_not_causal(model)}; tokinterp measures causal "
                "language models, in which they must not"
            )


def _why_not_causal(model: HookedLM) -> str:
    names = {"is_causal": False, "use_bidirectional_attention": True, "is_decoder": False, "causal": False}
    found = [f"{n}={v}" for n, v in names.items() if n in vars(model.config) and getattr(model.config, n) == v]
    kept = getattr(model.config, "use_bidirectional_attention", None)
    found += [f"use_bidirectional_attention={kept!r}"] if isinstance(kept, str) else []
    return f" (config: {', '.join(found)})" if found else ""


def check_places(read: bool, architecture: str) -> None:
    """Refuse position_ids that a model does not read."""
    if not read:
        raise ValueError(
            f"{architecture} ignores position_ids (its attention counts places by itself, as ALiBi does): leave them "
            "out, and delete tokens from the ids instead of hiding them"
        )
