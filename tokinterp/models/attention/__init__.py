"""Inside attention: what each block lets be seen and changed, proved by value."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels.state import passing
from ...run.sites import INNER, Site
from ...settings.describe import numbered
from ..modules import ATTENTION, submodule
from .knock_outs import KnockOuts, apart, first_tensor
from .points import OUTPUTS, Point, candidates, find_points, keep_outs
from .watch import Heads, Look, SdpaCalls, Watch, configured, cut_hook, implementation, show_hook, watching

HookedLM = Any  # of hooks.py, which imports this module

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "local_attention_window")


def flat(heads: torch.Tensor) -> torch.Tensor:
    """(prompt, head, position, d_head) -> (prompt, position, head * d_head)."""
    return heads.transpose(1, 2).flatten(2)


def by_head(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(prompt, position, head * d_head) -> (prompt, head, position, d_head), as many heads as ``like`` has."""
    return flat.unflatten(2, (like.shape[1], like.shape[3])).transpose(1, 2)


@dataclass(frozen=True)
class Shape:
    """Heads of one block: how many ask, how many keys and values there are, and the widths of a key and a value."""

    n_heads: int
    n_values: int
    d_key: int
    d_value: int


class Writes(NamedTuple):
    """What a block makes of the values that its heads mix, found by applying its modules.

    Attributes
    ----------
    weight : torch.Tensor
        (head, d_value, d_model) of the output projection.
    bias : torch.Tensor or None
        (d_model,) of the output projection; None where it is zero.
    gain : torch.Tensor or None
        (d_model,) of a norm without a bias between the projection and the stream, which also divides by a number of
        its own at each position; None where there is no norm.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None


class Attention:
    """What the attention of each block lets be seen and changed, proved by value.

    Attributes
    ----------
    way : str or None
        ``"function"`` where transformers' attention functions are used, which show everything; ``"eager"`` where only
        the weights that a module returns can be seen; ``"sdpa"`` where modules call torch's attention function by
        themselves, and return no weights or other ones; None where the model's own numbers do not survive looking.
    shapes : dict of int to Shape
        Heads of the blocks whose queries, keys and values can be seen.
    points : dict of int to dict
        Block -> site -> where it is seen with ``"eager"``: at hook points of TransformerLens.
    sinks : tuple of int
        Blocks whose weights do not sum to one, because a learned sink takes a share.
    output : str or None
        Path of the output projection from an attention module, if one was found that fits by value in every block.
    """

    def __init__(self, model: HookedLM, tolerance: float) -> None:
        self.model, self.tolerance = model, tolerance
        self.way: str | None = None
        self.shapes: dict[int, Shape] = {}
        self.points: dict[int, dict[str, Point]] = {}
        self.sinks: tuple[int, ...] = ()
        self.output: str | None = None
        self.of: dict[int, nn.Module] = {b: m for b, k in enumerate(model._blocks) if (m := self._find(k)) is not None}

    def _find(self, block: nn.Module) -> nn.Module | None:
        own = submodule(block, self.model.modules.attn)
        return own if own is not None else next((m for p in ATTENTION if (m := submodule(block, p)) is not None), None)

    def listen(
        self, stack: ExitStack, looks: Sequence[Look], ids: torch.Tensor, mask: torch.Tensor, places: Any = None
    ) -> None:
        """Prepare one pass: register what is wanted of each block; the stack undoes it."""
        if self.way == "function":
            watch = Watch(implementation(self.model.config), mask, places)
            for look in looks:
                watch.looks |= {id(m): look for m in self.of[look.block].modules()}
            stack.enter_context(watching(self.model.lm, watch))
            return
        if self.way == "sdpa":
            calls = stack.enter_context(SdpaCalls(mask))
            for look in looks:
                calls.listen(stack, self.of[look.block], look)
            return
        stack.enter_context(configured(self.model.lm, "eager"))
        for look in looks:
            attn = self.of[look.block]
            if look.cut is not None:
                hook = cut_hook(look, ids.shape[1], mask, self.model.info.architecture)
                stack.callback(attn.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if look.show is not None:
                stack.callback(attn.register_forward_hook(show_hook(look.show)).remove)
            if look.change is not None:
                for name, point in self.points[look.block].items():
                    point.listen(stack, partial(look.change, name))

    def check_places(self, places: torch.Tensor) -> None:
        """Refuse places with an attention whose window counts tokens by itself, where that would matter.

        Where transformers' attention functions are used the window is moved instead.
        """
        if self.way == "function":
            return
        config = self.model.config
        local = "local" in getattr(config, "attention_layers", ["local"])
        widths = [w for n in WINDOWS if local and isinstance(w := getattr(config, n, None), int) and w > 0]
        if widths and max(int(places.max()), places.shape[1] - 1) >= min(widths):
            raise ValueError(
                f"{self.model.info.architecture} has a window of {min(widths)} tokens, which counts places by itself: "
                "leave position_ids out for prompts that reach over it, and delete tokens instead of hiding them"
            )

    # -- proof by value -----------------------------------------------------------------------------------------
    def prove(self, ids: torch.Tensor) -> None:
        """Find out by value what there is, in every block, and tell the model what it offers and why not the rest."""
        model = self.model
        if not self.of:
            return
        plain = self.stream(ids, [])
        why = "its attention module returns no weights"
        for way in ("function", "eager", "sdpa"):
            self.way = way
            seen: dict[int, tuple[torch.Tensor, Heads | None, torch.Tensor]] = {}
            looks = [Look(b, show=lambda *got, b=b, seen=seen: seen.update({b: got})) for b in self.of]
            try:
                stream = self.stream(ids, looks)
            except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError):
                continue
            if not seen:
                continue
            away = apart(stream, plain)
            if away > self.tolerance:
                why = f"the stream differs by {away:.2g} of its range when attention weights are computed"
                continue
            self._judge(seen, ids)
            return
        self.way = None
        model._withhold("pattern", *INNER, why=why)

    def _judge(self, seen: dict[int, Any], ids: torch.Tensor) -> None:
        """Say what the blocks offer whose weights were seen."""
        model, n = self.model, ids.shape[1]
        weights_of, inner, sinks, reasons = [], [], [], {}
        for b in range(model.info.n_layers):
            if b not in seen:
                reasons[b] = "no attention weights (linear attention, a state space or none)"
                continue
            weights, heads, mixed = seen[b]
            shape = tuple(weights.shape) if isinstance(weights, torch.Tensor) else ()
            if len(shape) != 4 or (shape[0], *shape[2:]) != (len(ids), n, n):
                reasons[b] = "no attention weights (prompt, head, query, key)"
                continue
            w = weights.float()
            sums = w.sum(-1)
            if heads is not None:
                key, value = heads[1:]
                each = value.float().repeat_interleave(shape[1] // value.shape[1], 1)
                if apart([(w @ each).transpose(1, 2)], [mixed.float().reshape(len(ids), n, shape[1], -1)]) > max(
                    self.tolerance, 1e-3
                ):
                    reasons[b] = "values are mixed by other weights than those shown"
                    continue
                inner.append(b)
                self.shapes[b] = Shape(shape[1], value.shape[1], key.shape[3], value.shape[3])
            short = bool((sums < 1 - 2e-2).any())
            if bool((w < 0).any() | (sums > 1 + 2e-2).any() | (w.triu(1) > 1e-6).any()) or (
                short and self.way != "function"
            ):
                reasons[b] = "weights that are no shares of earlier positions"
            elif shape[1] != model.info.n_heads:
                reasons[b] = f"{shape[1]} heads, not {model.info.n_heads}"
            else:
                weights_of.append(b)
                sinks += [b] * short
        self.sinks = tuple(sinks)
        model._assume("pattern", blocks=weights_of)
        model._assume(*INNER, blocks=inner)
        if reasons:
            groups: dict[str, list[int]] = {}
            for b, why in reasons.items():
                groups.setdefault(why, []).append(b)
            told = "; ".join(
                f"block{'s' * (len(blocks) > 1)} {numbered(blocks)}: {why}" for why, blocks in groups.items()
            )
            model.withheld |= {"pattern": told} | dict.fromkeys(INNER, told)
        if self.way == "eager":
            self._find_points(seen, ids)
        elif inner:
            self.output = self._find_output({b: seen[b][2] for b in self.shapes}, ids)

    def _find_points(self, seen: dict[int, Any], ids: torch.Tensor) -> None:
        """Offer queries, keys and values of the blocks that show them at hook points."""
        model = self.model
        modules = {b: found for b in seen if (found := candidates(self.of[b]))}
        outs: dict[int, dict[str, list[torch.Tensor]]] = {}
        weights: dict[int, torch.Tensor] = {}
        looks = [Look(b, show=lambda w, _v, _m, b=b: weights.update({b: w})) for b in modules]
        with ExitStack() as stack:
            for b, found in modules.items():
                outs[b] = keep_outs(stack, found)
            self.stream(ids, looks)
        mixed: dict[int, torch.Tensor] = {}
        for b, found in modules.items():
            if b in model.offered.get("pattern", ()):
                self.points[b] = points = find_points(found, outs[b], weights[b], max(self.tolerance, 1e-3))
                of, n_heads, none = {m: path for path, m in found.items()}, weights[b].shape[1], (0, 0, 0, 0)
                shown = {n: p.unfold(outs[b][of[p.module]][0]) for n, p in points.items()}
                if shown:
                    held, value = (tuple(shown[n].shape) if n in shown else none for n in ("key", "value"))
                    self.shapes[b] = Shape(n_heads, held[1] or value[1], held[3], value[3])
                if "value" in shown:
                    each = shown["value"].repeat_interleave(n_heads // shown["value"].shape[1], 1)
                    mixed[b] = (weights[b].to(each) @ each).transpose(1, 2)
        for name in INNER:
            model._assume(name, blocks=[b for b, points in self.points.items() if name in points])
            if len(model.offered.get(name, ())) < model.info.n_layers:
                model.withheld[name] = _NO_FUNCTION
        if mixed:
            self.output = self._find_output(mixed, ids)

    def _find_output(self, mixed: dict[int, torch.Tensor], ids: torch.Tensor) -> str | None:
        """Return the path of the projection that attention writes what it mixed through, the same in every block."""
        outs: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for b in mixed:
                keep = lambda _m, _a, out, b=b: outs.update({b: first_tensor(out).detach()})  # noqa: E731
                stack.callback(self._returns(b).register_forward_hook(keep).remove)
            self.stream(ids, [])
        for name in OUTPUTS:
            if all(self._writes(name, b, of, outs[b]) for b, of in mixed.items()):
                return name
        return None

    def _returns(self, b: int) -> nn.Module:
        """Return the module of a block that returns what its heads write: the attention, or what it adds inside."""
        adds: Any = submodule(self.model._blocks[b], self.model.adds[b][0])
        return adds if any(m is adds for m in self.of[b].modules()) else self.of[b]

    def _writes(self, name: str, b: int, mixed: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether a projection is linear, and gives what attention returned of what it mixed."""
        module = submodule(self.of[b], name)
        if not isinstance(module, nn.Module):
            return False
        flat_mixed = mixed.reshape(*out.shape[:2], -1)
        parts, bias = self._linear(module, b, mixed)
        mapped = flat_mixed.float() @ parts.flatten(0, 1) + bias
        return max(apart([mapped], [out]), apart([module(flat_mixed)], [out])) <= max(5 * self.tolerance, 1e-3)

    def _linear(
        self, module: nn.Module, b: int, like: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a projection does, found by applying it: (head, d_value, d_model) and bias."""
        shape = self.shapes[b]
        width = shape.n_heads * shape.d_value
        where = next((p.device for p in module.parameters()), like.device)
        rows = torch.eye(width + 1, width, dtype=like.dtype, device=where)  # the last row is zero
        with torch.no_grad():
            wrote = module(rows).to(like.device, torch.promote_types(dtype, torch.float32))
        return (wrote[:-1] - wrote[-1]).unflatten(0, (shape.n_heads, shape.d_value)), wrote[-1]

    def some_ids(self) -> torch.Tensor:
        """Return (prompt, position) ids for a proof."""
        count = torch.arange(16, dtype=torch.int64, device=self.model.device)
        return ((count * 7919 + 11) % self.model.info.d_vocab).reshape(2, 8)

    def stream(self, ids: torch.Tensor, looks: Sequence[Look], **inputs: Any) -> list[torch.Tensor]:
        """Run and return what every block returned; one that is skipped, what the one before it did."""
        kept: dict[int, torch.Tensor] = {}
        model = self.model
        with ExitStack() as stack:
            stack.enter_context(passing(model.lm))
            if looks:
                self.listen(stack, looks, ids, torch.ones_like(ids, dtype=torch.bool))
            for b, block in enumerate(model._blocks):
                keep = lambda _m, _a, out, b=b: kept.update({b: first_tensor(out).detach().clone()})  # noqa: E731
                stack.callback(block.register_forward_hook(keep).remove)
            model.forward(input_ids=ids, use_cache=False, **inputs)
        return [kept[max((r for r in kept if r <= b), default=min(kept))] for b in range(model.info.n_layers)]

    @cached_property
    def knock_outs(self) -> KnockOuts:
        """Where keys can be hidden."""
        return KnockOuts(self)

    def width(self, site: Site) -> int | None:
        """Return the width of a site inside attention, all heads side by side; None for other sites."""
        if site.name not in INNER or site.at not in self.shapes:
            return None
        shape = self.shapes[site.at]
        return {
            "query": shape.n_heads * shape.d_key, "key": shape.n_values * shape.d_key,
            "value": shape.n_values * shape.d_value,
        }[site.name]  # fmt: skip

    def heads(self, b: int) -> int:
        """Return the number of heads of a block."""
        return self.shapes[b].n_heads if b in self.shapes else self.model.info.n_heads

    def _output(self, block: int, so: str) -> nn.Module:
        """Return the output projection of a block; ValueError, with what follows, where none fits by value."""
        if self.output is None:
            raise ValueError(
                f"{self.model.info.architecture} ({self.model.info.backend}): no output projection of attention was "
                f"found that fits by value, so {so}"
            )
        return submodule(self.of[block], self.output)

    def writes(self, block: int, like: torch.Tensor) -> Writes:
        """Return what a block makes of values such as ``like``.

        Raises
        ------
        ValueError
            If no output projection of the model fits by value.
        """
        projection = self._output(block, "what its heads write is not known; take a model of another family")
        weight, bias = self._linear(projection, block, like, like.dtype)
        adds: Any = submodule(self.model._blocks[block], self.model.adds[block][0])
        gain = None
        if adds is not None and not any(m is adds for m in self.of[block].modules()):
            with torch.no_grad():
                gain = adds(torch.ones_like(weight[:1, :1]).to(like)).to(weight)[0, 0]
        return Writes(weight, bias if bool(bias.any()) else None, gain)

    def wrote(self, block: int, mixed: torch.Tensor) -> torch.Tensor:
        """Return (..., d_model) what a block adds to the stream of what its heads mixed, (..., head * d_value).

        Raises
        ------
        ValueError
            If no output projection of the model fits by value.
        """
        projection = self._output(block, "what its heads write is not known; take a model of another family")
        like = next((p for p in projection.parameters() if p.is_floating_point()), mixed)
        adds: Any = submodule(self.model._blocks[block], self.model.adds[block][0])
        with passing(self.model.lm), torch.no_grad():
            out = projection(mixed.to(like.device, like.dtype))
            return out if adds is None or any(m is adds for m in self.of[block].modules()) else adds(out)

    def written_norm(self, block: int, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, position) the norm of what each head would write of each position: ||v W_O||.

        W_O is what the output projection does (adapters and quantisation included), not its stored weight.  Kobayashi
        et al. 2020 (arXiv 2004.10102): attention weighs vectors, and sinks have small ones.

        Raises
        ------
        ValueError
            If no output projection of the model fits by value.
        """
        projection = self._output(block, "the norms of written values are not known; leave value_weighted out")
        shape = self.shapes[block]
        by = value.unflatten(2, (shape.n_values, shape.d_value)).transpose(1, 2)
        by = by.repeat_interleave(shape.n_heads // shape.n_values, dim=1)
        parts, _ = self._linear(projection, block, by)
        gram = parts @ parts.transpose(1, 2)
        by = by.float()
        return ((by @ gram) * by).sum(-1).clamp_min(0).sqrt()


_NO_FUNCTION = (
    "its queries, keys and values do not pass through the attention function of transformers; backend 'hf' may"
)
