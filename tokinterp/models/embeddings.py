"""The rows of a model's embedding and of its head, whichever library loaded it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .modules import size_of, vectors_of

if TYPE_CHECKING:
    from .base import Model


def embeddings(model: Model, names: Collection[str] = ("input", "output")) -> dict[str, torch.Tensor]:
    """Return the matrices asked for as float32 (vocab, width).

    Parameters
    ----------
    model : Model
        From `load_model` or `wrap`.
    names : collection of str
        ``"input"``: what the embedding gives for each id; ``"output"``: what the head reads each logit with.

    Raises
    ------
    ValueError
        If the model does not say where its embeddings are.

    Examples
    --------
    >>> import tokinterp as ti
    >>> tuple(embeddings(ti.load_model())["input"].shape)
    (4096, 192)
    """
    lm = _lm(model)
    width = getattr(getattr(lm, "config", None), "word_embed_proj_dim", None) or model.info.d_model
    out = {}
    if "input" in names:
        out["input"] = vectors_of(lm.get_input_embeddings(), rows=model.info.d_vocab)
    if "output" in names:
        out["output"] = vectors_of(lm.get_output_embeddings(), width=width)
    return out


def head_bias(model: Model) -> torch.Tensor | None:
    """Return float32 (vocab,), what the head adds to each logit; None where it adds nothing."""
    bias = getattr(_lm(model).get_output_embeddings(), "bias", None)
    return bias.detach().float() if isinstance(bias, torch.Tensor) else None


def head_in(model: Model, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ``model.head`` with its product in another dtype; itself where its weights are no float32 or float64.

    The weight is copied once, in that dtype.
    """
    head = getattr(model, "_head", None)
    if head is None:
        raise ValueError(f"{model.info.id} does not say where its head is: use load_model or wrap")
    if size_of(head.linear)[0] not in (torch.float32, torch.float64):  # half precision, or packed
        return model.head
    own = copy.copy(head)
    own.linear, own.project = (None if m is None else copy.deepcopy(m).to(dtype) for m in (head.linear, head.project))
    own.dtype = dtype
    return lambda normed: own.logits(normed).to(model.device)


def tied(model: Model) -> bool:
    """Whether the head is the embedding itself: one weight, however the embedding scales its rows, or equal rows."""
    lm = _lm(model)
    table, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    if isinstance(table, nn.Embedding) and isinstance(head, nn.Linear) and table.weight is head.weight:
        return True
    both = embeddings(model)
    one, two = both["input"], both["output"]
    return one.shape == two.shape and (one.data_ptr() == two.data_ptr() or bool(torch.equal(one, two)))


def _lm(model: Model) -> Any:
    lm = getattr(model, "lm", None)
    if lm is None:
        raise ValueError(f"{model.info.id} does not say where its embeddings are: use load_model or wrap")
    return lm
