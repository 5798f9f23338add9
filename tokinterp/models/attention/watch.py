"""One pass with attention in sight: what every head asks, holds and weighs, seen and changed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .masks import additive, check_sight, close, follow_places, open_edges

OWN = ("eager", "sdpa")  # implementations that are run as they are; the others give way to eager
_WATCH = "_tokinterp_watch"
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Change = Callable[[str, torch.Tensor], torch.Tensor]
Show = Callable[[torch.Tensor, Heads | None, torch.Tensor], None]


@dataclass
class Look:
    """What one pass wants of the attention of one block.

    Attributes
    ----------
    block : int
        Its number.
    change : callable, optional
        Sees ``"query"``, ``"key"`` and ``"value"`` (prompt, head, position, d_head) one by one, and returns what is
        put in their place.
    show : callable, optional
        Sees (weights, (queries, keys, values), what attention mixed of the values).
    cut : torch.Tensor, optional
        (prompt, 1 or head, query, key) bool, edges to remove.
    """

    block: int
    change: Change | None = None
    show: Show | None = None
    cut: torch.Tensor | None = None

    def changed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Heads:
        """Return what is put in the place of queries, keys and values."""
        if self.change is None:
            return query, key, value
        return self.change("query", query), self.change("key", key), self.change("value", value)


@dataclass
class Watch:
    """One pass with attention in sight.

    Attributes
    ----------
    own : str
        Implementation that the model runs with.
    mask : torch.Tensor
        (prompt, position) bool, true on real tokens.
    places : torch.Tensor or None
        (prompt, position) place of each token where that is not 0, 1, 2, ...: windows count by it.
    looks : dict
        id of an attention module -> what is wanted of it.
    """

    own: str
    mask: torch.Tensor
    places: torch.Tensor | None = None
    looks: dict[int, Look] = field(default_factory=dict)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Attention as the model computes it; weights that it does not give are computed beside it.

    What other measurements see of the pass so does not depend on whether one of them looks at attention.
    """
    watch: Watch = getattr(module.config, _WATCH)
    mask = attention_mask
    look = watch.looks.get(id(module))
    own = _forward(module, watch.own)
    if look is not None:
        query, key, value = look.changed(query, key, value)
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = watch.own != "eager" and mask is None and causal and query.shape[2] > 1
    if watch.places is not None:
        mask = follow_places(mask, query, key, causal, watch.places, watch.mask, kwargs.get("sliding_window"), module)
    if look is not None and look.cut is not None:
        mask = close(mask, look.cut, query, key, causal, watch.mask, look.block)
    if watch.own == "eager":
        mask = additive(mask, query.dtype)
    out = own(module, query, key, value, mask, *args, **kwargs)
    if look is not None and look.show is not None:
        weights = out[1]
        if weights is None:
            open_to = open_edges(mask, query, key, causal) if causal else mask
            weights = _eager(module)(module, query, key, value, additive(open_to, query.dtype), *args, **kwargs)[1]
        look.show(weights, (query, key, value), out[0])
    return out


def _forward(module: nn.Module, own: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return _eager(module) if own == "eager" else ALL_ATTENTION_FUNCTIONS[own]


def _eager(module: nn.Module) -> Callable[..., Any]:
    """Return the eager attention of the module's own family."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(f"{type(module).__name__} has no eager attention function of its own")


@contextmanager
def watching(lm: nn.Module, watch: Watch) -> Iterator[None]:
    """Run with attention in sight of ``watch``.

    Each module reads a copy of its config for the time of the pass, so that another model of the same config, or one
    that runs inside this pass, sees nothing of it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = f"tokinterp_{watch.own}"
    AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[watch.own])
    with configured(lm, name, watch):
        yield


@contextmanager
def configured(lm: nn.Module, name: str, watch: Watch | None = None) -> Iterator[None]:
    """Let the modules of a model read copies of their configs that name another attention implementation."""
    copies: dict[int, Any] = {}
    before = [(m, c) for m in lm.modules() if hasattr(c := m.__dict__.get("config"), "_attn_implementation")]
    try:
        for m, c in before:
            if id(c) not in copies:
                copies[id(c)] = copy.copy(c)
                copies[id(c)]._attn_implementation_internal = name
                setattr(copies[id(c)], _WATCH, watch)
            m.config = copies[id(c)]
        yield
    finally:
        for m, c in before:
            m.config = c  # type: ignore[assignment]


def implementation(config: Any) -> str:
    """Return the attention implementation whose numbers a model gives: its own, or eager in the place of others."""
    own = getattr(config, "_attn_implementation", None)
    return own if own in OWN else "eager"


class SdpaCalls(TorchFunctionMode):
    """A pass that shows, and changes, what modules give torch's own attention function, where they call it themselves.

    The module's own call is made, so that its numbers are the model's; weights are computed beside it from the queries,
    keys and masks (or biases, as of ALiBi) that it was given.
    """

    def __init__(self, real: torch.Tensor) -> None:
        super().__init__()
        self.real, self.look = real, None

    def listen(self, stack: ExitStack, attn: nn.Module, look: Look) -> None:
        """Say what is wanted of the calls inside an attention module."""
        stack.callback(attn.register_forward_pre_hook(lambda *_: setattr(self, "look", look)).remove)
        stack.callback(attn.register_forward_hook(lambda *_: setattr(self, "look", None), always_call=True).remove)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass on every call but those of attention."""
        if func is torch.nn.functional.scaled_dot_product_attention and self.look is not None:
            return self._attend(self.look, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, look: Look, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        query, key, value = heads = look.changed(query, key, value)
        if look.cut is not None:
            attn_mask = close(attn_mask, look.cut, query, key, is_causal, self.real, look.block)
            is_causal = False
        own = torch.nn.functional.scaled_dot_product_attention
        out = own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)
        if look.show is not None:
            open_to = attn_mask if attn_mask is not None else open_edges(None, query, key, is_causal)
            mask = additive(open_to, torch.float32)
            assert mask is not None
            held = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            scores = query.float() @ held.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
            weights = (scores + mask).softmax(-1).to(query.dtype)
            look.show(weights, heads, out.transpose(1, 2))
        return out


def show_hook(show: Show) -> Callable[..., None]:
    """Return a hook that shows the weights that an attention module returns beside its output."""

    def hook(_m: nn.Module, _args: Any, out: Any) -> None:
        parts = list(out) if isinstance(out, tuple | list) else [out]
        if len(parts) > 1 and isinstance(parts[1], torch.Tensor):
            show(parts[1], None, parts[0])

    return hook


def cut_hook(look: Look, width: int, real: torch.Tensor, architecture: str) -> Callable[..., Any]:
    """Return a pre-hook of an attention module that closes edges in the mask it is given, by name or by place."""

    def is_mask(x: Any) -> bool:
        return isinstance(x, torch.Tensor) and x.ndim == 4 and tuple(x.shape[-2:]) == (width, width)

    def close(mask: torch.Tensor) -> torch.Tensor:
        assert look.cut is not None
        cut = look.cut.to(mask.device)
        if mask.dtype == torch.bool:
            # The first query may not see the last key: that says whether true means hidden (MPT) or seen.
            hides = bool(mask[0, 0, 0, -1]) == (width > 1)
            new = mask | cut if hides else mask & ~cut
            check_sight(~new if hides else new, real, look.block)
            return new
        shut = torch.finfo(mask.dtype).min
        new = mask.expand(torch.broadcast_shapes(mask.shape, cut.shape)).masked_fill(cut, shut)
        check_sight(new > shut / 2, real, look.block)
        return new

    def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for name in ("attention_mask", *kwargs):
            if is_mask(kwargs.get(name)) and "mask" in name:
                return args, {**kwargs, name: close(kwargs[name])}
        for i, x in enumerate(args):
            if is_mask(x):
                return (*args[:i], close(x), *args[i + 1 :]), kwargs
        raise ValueError(f"attention of {architecture} takes no 4-D mask: knock_out cannot be used")

    return hook
