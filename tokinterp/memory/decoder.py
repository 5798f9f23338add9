"""ContextDecoder: writes the text before a token from that token's states alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..files.paths import local_path
from ..fitted import check_shapes, digest_of, load_tensors, save_tensors
from ..kernels.state import evaluating, seeded
from ..models.hooks import HookedLM
from ..models.modules import numbers_of

FORMAT = "tokinterp context decoder 2"


class ContextDecoder(nn.Module):
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
        return f"ContextDecoder({self.facts['model']}, prefixes up to {self.facts['max_prefix']}, {self.digest})"

    @property
    def digest(self) -> str:
        """Hash of all numbers and facts."""
        return digest_of(self.tensors(), self.facts)[:12]

    def tensors(self) -> dict[str, torch.Tensor]:
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

    def save(self, path: str | Path) -> Path:
        """Write everything as one safetensors file with its digest, in one step.

        Raises
        ------
        ValueError
            If there are NaN or infinite numbers.
        """
        save_tensors(path, self.tensors(), FORMAT, self.facts)
        return local_path(path)

    @classmethod
    def load(cls, path: str | Path, model: HookedLM) -> ContextDecoder:
        """Read a decoder that `save` wrote; ``model`` is the one that it was fitted on.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If the file holds something else, is damaged (digest, shapes, NaN), or is of another model.
        """
        facts, tensors = load_tensors(local_path(path), FORMAT, "decoder of ContextDecoder.save")
        if facts["weights"] != model.info.identity:
            raise ValueError(
                f"{path} was fitted on {facts['model']} (weights {facts['weights']}), not on {model.info.id} "
                f"({model.info.identity}): fit it again"
            )
        with seeded(0):  # its first weights are drawn, and then those of the file are put in their place
            out = cls(model, facts, facts["hidden"])
        check_shapes(tensors, {k: tuple(v.shape) for k, v in out.tensors().items()}, path)
        out.take(tensors)
        return out

    def take(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up parameters and mean state."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(tensors[name])
