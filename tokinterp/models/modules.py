"""Where a Hugging Face causal LM keeps its blocks, attention, MLP, final norm and head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..kernels.state import passing
from ..settings import checked, string

BLOCKS = (
    "model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "model.language_model.layers",
    "language_model.model.layers", "transformer.blocks", "transformer.layers", "decoder.layers", "backbone.layers",
    "backbone.blocks", "rwkv.blocks", "biogpt.layers", "gpt_neox_japanese.layers",
)  # fmt: skip
NORMS = (
    "norm", "final_layernorm", "ln_f", "final_layer_norm", "norm_f", "final_norm", "embedding_norm", "layer_norm",
    "layernorm", "ln_out", "out_norm",
)  # fmt: skip
"""Names of the final norm, which lies beside the list of blocks."""
ATTENTION = ("self_attn", "attn", "attention", "self_attention", "norm_attn_norm.attn")
MIXERS = ("linear_attn", "mamba", "mixer", "conv", "temporal_block", "ssm", "short_conv")
"""What stands in the place of attention in the other blocks of a hybrid."""
MLP = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "fc2", "mlp_block", "moe")
# What is added to the stream is the last of these that exists and fits by value: a norm after the module (Gemma 2),
# the module itself, or the projection inside a module that adds the residual by itself (BLOOM).
ATTENTION_ADDS = ("{}", "post_attention_layernorm", "post_self_attn_layernorm", "{}.dense")
MLP_ADDS = ("{}", "post_feedforward_layernorm", "post_mlp_layernorm", "{}.dense_4h_to_h")


Parts = tuple[str | None, str | None]


@checked(blocks=string)
@dataclass(frozen=True)
class Modules:
    """Dotted paths of the modules that tokinterp hooks; pass one to ``load_model`` for an unknown architecture.

    Attributes
    ----------
    blocks : str
        List of blocks, from the causal LM, for example ``"model.layers"``.
    norm : str or None
        Final norm, from the causal LM; None where there is none.
    attn, mlp : str or None
        Attention and MLP, from a block; None where there is none.
    attn_adds, mlp_adds : str or None
        Module of a block whose output is what is added to the stream; found by value when left out.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ti.Modules(blocks="model.layers", norm="model.norm", attn="self_attn", mlp="mlp").attn
    'self_attn'
    """

    blocks: str
    norm: str | None
    attn: str | None = None
    mlp: str | None = None
    attn_adds: str | None = None
    mlp_adds: str | None = None


def submodule(root: nn.Module, path: str | None) -> Any:
    """Return the module at a dotted path, or None."""
    if path is None:
        return None
    for name in path.split("."):
        root = getattr(root, name, None)  # type: ignore[assignment]
        if root is None:
            return None
    return root


def find_modules(lm: nn.Module) -> Modules:
    """Return the paths of a causal LM, found by the names that known families use.

    Raises
    ------
    ValueError
        If no list of blocks is found: names what was looked for.
    """

    def first(roots: Iterable[nn.Module], paths: tuple[str, ...]) -> str | None:
        roots = list(roots)
        return next((p for p in paths if any(isinstance(submodule(r, p), nn.Module) for r in roots)), None)

    blocks = next((p for p in BLOCKS if isinstance(submodule(lm, p), nn.ModuleList) and len(submodule(lm, p))), None)
    if blocks is None:
        tops = ", ".join(n for n, _ in lm.named_children())
        raise ValueError(
            f"unknown architecture {type(lm).__name__}: no list of blocks at {', '.join(BLOCKS)} "
            f"(the model has: {tops}). Name the modules: load_model(..., modules=tokinterp.Modules(blocks=..., "
            "norm=..., attn=..., mlp=...))"
        )
    around = blocks.rpartition(".")[0]
    norm = first([submodule(lm, around)], NORMS)
    inside = submodule(lm, blocks)
    return Modules(blocks, f"{around}.{norm}" if norm else None, first(inside, ATTENTION), first(inside, MLP))


def candidates(block: nn.Module, modules: Modules) -> list[Parts]:
    """Return the ways in which attention and MLP of a block may reach the stream, to be decided by value."""

    def paths(named: str | None, given: str | None, others: tuple[str, ...], adds: tuple[str, ...]) -> list[str]:
        found = [given] if given else [p.format(n) for n in (named, *others) if n for p in adds]
        return [p for p in dict.fromkeys(found) if isinstance(submodule(block, p), nn.Module)]

    attn = paths(modules.attn, modules.attn_adds, MIXERS, ATTENTION_ADDS)
    mlp = paths(modules.mlp, modules.mlp_adds, (), MLP_ADDS)
    return [*((a, m) for a in attn for m in mlp), *((a, None) for a in attn), *((None, m) for m in mlp)]


def numbers_of(module: nn.Module) -> torch.Tensor:
    """Return a parameter that says in which dtype and on which device a module computes, whatever is wrapped in it."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        return weight
    found = list(module.parameters())
    return next((p for p in found if p.is_floating_point()), found[0])


def rows_of(head: nn.Module, width: int) -> int:
    """Return how many logits a linear head of so many inputs gives."""
    own = getattr(head, "out_features", None)
    weight = getattr(head, "weight", None)
    if own is None and isinstance(weight, torch.Tensor) and weight.ndim == 2:
        own = weight.shape[0]
    if own is None:
        like = numbers_of(head)
        with torch.no_grad():
            own = head(torch.zeros(1, width, dtype=like.dtype, device=like.device)).shape[-1]
    return int(own)


def vectors_of(module: nn.Module, *, rows: int | None = None, width: int | None = None) -> torch.Tensor:
    """Return float32 (row, width): what an embedding gives for each id, or what a linear head reads each logit with.

    A plain module is its weight; any other (adapted, quantised) is applied, because it does more than its weight says.

    Parameters
    ----------
    module : torch.nn.Module
        An embedding of ``rows`` ids, or a linear head of ``width`` inputs.
    rows, width : int, optional
        One of them.
    """
    like = numbers_of(module)
    with torch.no_grad():
        if type(module) in (nn.Embedding, nn.Linear):
            return like.detach().float()
        if width is None:
            assert rows is not None
            return module(torch.arange(rows, dtype=torch.int64, device=like.device)).float()
        out = module(torch.eye(width + 1, width, dtype=like.dtype, device=like.device)).float()  # the last row is zero
        return (out[:-1] - out[-1]).T


class Head:
    """Final norm and LM head of a causal LM, with the logit scaling and soft cap of its family."""

    def __init__(self, lm: nn.Module, modules: Modules, config: Any) -> None:
        self.norm = submodule(lm, modules.norm)
        self.project = submodule(lm, modules.blocks.rsplit(".", 1)[0] + ".project_out")
        self.linear = lm.get_output_embeddings()  # type: ignore[operator]
        if self.linear is None:
            raise ValueError(f"{type(lm).__name__} has no output embeddings: load it as a causal language model")
        self.dtype, self.device, _ = size_of(self.linear)
        if self.dtype is None:  # a quantised head takes what the norms give
            self.dtype = next((p.dtype for p in lm.parameters() if p.is_floating_point()), torch.float32)
        caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        self.cap = next((cap for n in caps if (cap := getattr(config, n, None))), None)
        scaling = getattr(config, "logits_scaling", None)
        self.scale = (1.0 / scaling) if scaling else getattr(config, "logit_scale", None)

    @contextmanager
    def _passing(self, x: torch.Tensor) -> Iterator[None]:
        """Eval mode and nothing of the caller's autocast; gradients only where the input asks for its own."""
        wanted = torch.is_grad_enabled() and x.requires_grad
        with passing(self.norm, self.project, self.linear), torch.set_grad_enabled(wanted):
            yield

    def normed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return the final norm of points of the stream, (..., d_model), in the dtype of the weights."""
        resid = resid.to(self.dtype)
        if self.norm is None:
            return resid
        weight = next(self.norm.parameters(), None)  # norms without weights (OLMo) work anywhere
        with self._passing(resid):
            return self.norm(resid.to(self.device if weight is None else weight.device))

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of already normed points."""
        x = normed.to(self.device, self.dtype)
        with self._passing(x):
            logits = self.linear(x if self.project is None else self.project(x)).float()
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def size_of(module: nn.Module) -> tuple[torch.dtype | None, torch.device, int]:
    """Return dtype (None where packed), device and columns of the weight of a linear or embedding module."""
    weight: Any = getattr(module, "weight", None)
    weight = weight() if callable(weight) and not isinstance(weight, torch.Tensor) else weight  # torch.ao
    if not isinstance(weight, torch.Tensor):
        weight = next(
            iter([*module.parameters(), *module.buffers()]), torch.empty(0, 0, dtype=torch.float32, device="cpu")
        )
    plain = weight.is_floating_point() and not weight.is_quantized and weight.element_size() > 1
    columns = getattr(module, "in_features", None) or getattr(module, "embedding_dim", None) or weight.shape[-1]
    return weight.dtype if plain else None, weight.device, int(columns)
