"""ContextDecoder: writes the text before a token from that token's states alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ..fitted import Fitted, Tensors, check_shapes
from ..kernels.state import evaluating, seeded
from ..models.hooks import HookedLM
from ..models.modules import numbers_of

if TYPE_CHECKING:
    from ..models.base import Model


class ContextDecoder(nn.Module, Fitted):
    """Pooling over layers, a two-layer MLP, and a copy of the model that is given the outcome as its first embedding.

    As far as Razzhigaev et al. 2025 (arXiv 2502.15007, section 3.2) describe it: frozen states h^1 ... h^L of one token
    -> learned linear pooling over layers (here one weight per layer, softmax) -> two-layer MLP (here D -> D -> D with
    GELU between) -> input embedding of a trainable copy of the same model, which generates the tokens before it.

    Attributes
    ----------
    pool : torch.nn.Parameter
        (layer,) logarithms of the weights of layers 1..n_layers.
    mlp : torch.nn.Sequential
        The MLP.
    lm : torch.nn.Module
        The copy, float32, without dropout.
    mean_state : torch.Tensor
        (layer, d) mean of the states seen in training: what the decoder is given as a control.
    facts : dict
        Id and weight hash of the model, ``max_prefix`` (longest prefix it was trained on), and the settings of the fit.
    """

    KIND, WHAT = "tokinterp context decoder 3", "context decoder"
    NEEDS, FOUND = ("hidden", "max_prefix"), ("loss",)
    mean_state: torch.Tensor

    def __init__(self, model: HookedLM, facts: dict[str, Any], hidden: int | None = None) -> None:
        super().__init__()
        info, self.facts = model.info, dict(facts)
        self.lm: Any = copy.deepcopy(model.lm).float().eval()
        embed: nn.Module = self.lm.get_input_embeddings()
        first = torch.zeros(1, dtype=torch.int64, device=numbers_of(embed).device)
        with torch.no_grad():
            width = int(embed(first).shape[-1])
        self.facts.update(model=info.id, weights=info.identity, hidden=int(hidden or info.d_model))
        own: Any = {"device": "cpu", "dtype": torch.float32}
        between = self.facts["hidden"]
        self.pool = nn.Parameter(torch.zeros(info.n_layers, **own))
        self.mlp = nn.Sequential(nn.Linear(info.d_model, between, **own), nn.GELU(), nn.Linear(between, width, **own))
        self.register_buffer("mean_state", torch.zeros(info.n_layers, info.d_model, **own))
        self.to(model.device)

    def __repr__(self) -> str:
        return Fitted.__repr__(self)

    def _about(self) -> str:
        """Return the longest prefix."""
        return f"prefixes up to {self.facts['max_prefix']}"

    def tensors(self) -> Tensors:
        """Return what is kept in a file: every parameter once, and the mean state."""
        return {**{n: p.detach() for n, p in self.named_parameters()}, "mean_state": self.mean_state}

    def forward(self, states: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """Return (row, n) cross-entropies of the prefix tokens, nat; 0 beyond the end of a prefix.

        Parameters
        ----------
        states : torch.Tensor
            (row, layer, d) stream of one token at layers 1..n_layers.
        prefix : torch.Tensor
            (row, n) int64 tokens before it, in order; -1 beyond the end.
        """
        pooled = torch.einsum("l,rld->rd", self.pool.softmax(0), states.float())
        first = self.mlp(pooled)[:, None]
        known = prefix >= 0
        ids = prefix.clamp_min(0)
        inputs = torch.cat([first, self.lm.get_input_embeddings()(ids[:, :-1])], 1)
        mask = torch.cat([torch.ones_like(known[:, :1]), known[:, :-1]], 1)
        with evaluating(self.lm):
            logits = self.lm(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
        return loss.view_as(ids).masked_fill(~known, 0)

    @classmethod
    def _put(cls, tensors: Tensors, facts: dict[str, Any], model: Model | None) -> ContextDecoder:
        """Return the decoder of a model with these numbers."""
        if not isinstance(model, HookedLM):
            raise ValueError("model: a decoder holds a copy of its model: give that model")
        with seeded(0):  # its first weights are drawn, and then those of the file are put in their place
            out = cls(model, facts, facts["hidden"])
        out.facts = facts
        check_shapes(tensors, {k: tuple(v.shape) for k, v in out.tensors().items()}, cls.WHAT)
        out.take(tensors)
        out.check()
        return out

    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up parameters and mean state."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(tensors[name])
