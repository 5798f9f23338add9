"""nnsight: a LanguageModel (or TransformersModel), whose module is the Hugging Face model itself."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from .hf import make_model, short_name
from .hooks import HookedLM
from .modules import Modules


def library() -> Any:
    """Return nnsight's class of Hugging Face models, or raise ImportError that says what to install."""
    try:
        from nnsight.modeling.transformers import TransformersModel
    except ImportError as error:
        raise ImportError("backend 'nnsight' needs nnsight >= 0.8: pip install 'tokinterp[nnsight]'") from error
    return TransformersModel


def nnsight_from(lm: nn.Module, tokenizer: Any) -> Any:
    """Return an nnsight model around a Hugging Face model; the tokenizer is copied, since nnsight pads it left."""
    return library()(lm, tokenizer=copy.deepcopy(tokenizer), task="text-generation")


def wrap_nnsight(
    model: Any, tokenizer: Any = None, *, id: str | None = None, revision: str = "local", modules: Modules | None = None
) -> HookedLM:
    """Return the hooked model of an nnsight model.

    Raises
    ------
    ValueError
        If its weights are not loaded yet.
    """
    lm = model._module
    if any(p.is_meta for p in lm.parameters()):
        raise ValueError(
            "the weights of this nnsight model are not loaded: make it with dispatch=True and device_map='cpu' or "
            "'auto'"
        )
    found = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    return make_model(
        lm, found, id=id or short_name(lm), revision=revision, backend="nnsight", modules=modules, source=model
    )
