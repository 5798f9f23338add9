"""TransformerLens 4: a TransformerBridge, whose blocks are the layers of the Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from .hf import make_model, short_name
from .hooks import HookedLM
from .modules import Modules


def library() -> Any:
    """Return TransformerBridge, or raise ImportError that says what to install."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise ImportError(
            "backend 'transformer_lens' needs TransformerLens 4: pip install 'tokinterp[transformer-lens]'"
        ) from error
    return TransformerBridge


def bridge_from(lm: nn.Module, tokenizer: Any, id: str) -> Any:
    """Return a TransformerBridge around a Hugging Face model, with raw weights.

    The bridge inserts modules into the model and changes the tokenizer it is given, which is why that is copied.
    """
    weight = next(lm.parameters())
    own = copy.deepcopy(tokenizer)
    # Without these the bridge loads the tokenizer once more by its name, from the hub if need be.
    own.init_kwargs = {"name_or_path": id, **own.init_kwargs, "add_bos_token": True}
    return library().boot_transformers(id, hf_model=lm, tokenizer=own, device=str(weight.device), dtype=weight.dtype)


def wrap_bridge(
    bridge: Any,
    tokenizer: Any = None,
    *,
    id: str | None = None,
    revision: str = "local",
    modules: Modules | None = None,
    before: Mapping[str, Any] | None = None,
) -> HookedLM:
    """Return the hooked model of a TransformerBridge.

    ``before`` are hashes of the model before it was bridged: a bridge splits joint query-key-value matrices.

    Raises
    ------
    ValueError
        If the bridge is in compatibility mode: folding and centring change the residual stream.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise ValueError(
            "this TransformerBridge is in compatibility mode, which folds norms and centres weights and so changes the "
            "residual stream: boot it again and do not call enable_compatibility_mode()"
        )
    lm = bridge.original_model
    name = id or short_name(lm, getattr(bridge.cfg, "model_name", None))
    found = bridge.tokenizer if tokenizer is None else tokenizer
    return make_model(
        lm,
        found,
        id=name,
        revision=revision,
        backend="transformer_lens",
        modules=modules,
        source=bridge,
        before=before,
    )
