"""Inside attention: keys and values, seen and changed where transformers hands them to its attention function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..capture import INNER, Site
from .modules import submodule

if TYPE_CHECKING:
    from .hooks import HookedLM

NAME = "tokinterp"
OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
Change = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_changes: dict[int, Change] = {}


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Eager attention of the model's own family, with keys and values shown to whoever asked."""
    change = _changes.get(id(module))
    if change is not None:
        key, value = change(key, value)
    return _eager_forward(module)(module, query, key, value, mask, *args, **kwargs)


def _eager_forward(module: nn.Module) -> Callable[..., Any]:
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(f"{type(module).__name__} has no eager attention function of its own")


def register() -> str:
    """Make the attention function known to transformers (once) and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


@contextmanager
def changing(module: nn.Module, change: Change) -> Iterator[None]:
    """Let ``change`` see, and put others in the place of, the keys and values of one attention module."""
    _changes[id(module)] = change
    try:
        yield
    finally:
        _changes.pop(id(module), None)


@contextmanager
def implementation(lm: nn.Module, kind: str) -> Iterator[None]:
    """Run with another attention implementation (eager: weights are computed, masks additive), then put it back."""
    configs: dict[int, Any] = {
        id(c): c for m in lm.modules() if hasattr(c := getattr(m, "config", None), "_attn_implementation")
    }
    before = [(c, c._attn_implementation) for c in configs.values()]
    try:
        for c, _ in before:
            c._attn_implementation = kind
        yield
    finally:
        for c, own in before:
            c._attn_implementation = own


def flat(heads: torch.Tensor) -> torch.Tensor:
    """(prompt, head, position, d_head) -> (prompt, position, head * d_head)."""
    return heads.transpose(1, 2).flatten(2)


def by_head(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(prompt, position, head * d_head) -> (prompt, head, position, d_head), as many heads as ``like`` has."""
    return flat.unflatten(2, (like.shape[1], like.shape[3])).transpose(1, 2)


class AttentionParts:
    """Which of the inner sites of attention a model gives, proved by value, and the matrix its heads write through.

    Attributes
    ----------
    offers : frozenset of str
        Those of ``key`` and ``value`` that were verified.
    output : str or None
        Path of the output projection from an attention module, if one was found that fits by value.
    """

    def __init__(self, model: HookedLM) -> None:
        self.model = model
        self.output: str | None = None
        self.offers: frozenset[str] = frozenset()

    def prove(self) -> None:
        """Find out by value what there is."""
        if "pattern" not in self.model.offers or self.model.modules.attn is None:
            return
        self.offers = frozenset(INNER)  # so that the run below is allowed
        try:
            with torch.no_grad():
                self.output = self._verify()
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            self.offers = frozenset()

    def _verify(self) -> str | None:
        """Check that pattern times value, written through a projection, is what the attention module returns."""
        model = self.model
        ids = ((torch.arange(16, device=model.device, dtype=torch.int64) * 7919 + 11) % model.info.d_vocab).reshape(
            2, 8
        )
        attn = submodule(model._blocks[0], model.modules.attn)
        given: list[torch.Tensor] = []
        handle = attn.register_forward_hook(lambda _m, _a, out: given.append(out[0]))
        try:
            sites = [Site("key", 0), Site("value", 0), Site("pattern", 0)]
            got = model.run(ids, sites)
        finally:
            handle.remove()
        if set(got) != set(sites):
            raise ValueError("keys and values did not pass through the attention function")
        value, pattern = self.heads(got[sites[1]]), got[sites[2]].float()
        mixed = (pattern @ value.float()).transpose(1, 2).flatten(2)
        tolerance = 1e-3 if model.info.dtype in ("float32", "float64") else 6e-2
        for name in OUTPUTS:
            out = submodule(attn, name)
            if out is None or getattr(out, "weight", None) is None:
                continue
            wrote = out(mixed.to(out.weight)).float()
            if float((wrote - given[0].float()).abs().max() / wrote.abs().max().clamp_min(1e-6)) <= tolerance:
                return name
        return None

    def heads(self, value: torch.Tensor) -> torch.Tensor:
        """(prompt, position, kv heads * d_head) -> (prompt, head, position, d_head), shared ones repeated."""
        n_heads = self.model.info.n_heads
        config = self.model.config
        d_head = getattr(config, "head_dim", None) or self.model.info.d_model // n_heads
        by = value.unflatten(2, (value.shape[-1] // d_head, d_head)).transpose(1, 2)
        return by.repeat_interleave(n_heads // by.shape[1], dim=1)

    def written_norm(self, block: int, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, position) the norm of what each head would write of each position: ||v W_O||.

        Kobayashi et al. 2020 (arXiv 2004.10102): attention weighs vectors, and sinks have small ones.

        Raises
        ------
        ValueError
            If no output projection of the model fits by value.
        """
        if self.output is None:
            raise ValueError(
                f"{self.model.info.architecture} ({self.model.info.backend}): no output projection of attention was "
                "found that fits by value, so the norms of written values are not known; leave value_weighted out"
            )
        module = submodule(submodule(self.model._blocks[block], self.model.modules.attn), self.output)
        by = self.heads(value).float()
        weight = module.weight.float()
        weight = weight.T if isinstance(module, nn.Linear) else weight  # Conv1D of GPT-2 is (in, out)
        parts = weight.unflatten(0, (by.shape[1], by.shape[3]))  # (head, d_head, d_model)
        gram = parts @ parts.transpose(1, 2)
        return ((by @ gram.to(by.device)) * by).sum(-1).clamp_min(0).sqrt()
