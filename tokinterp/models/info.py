"""Facts about a model that decide the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..settings.describe import hash_json


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a loaded model that decide the numbers.

    Attributes
    ----------
    id : str
        Hub name or last part of the folder.
    revision : str
        Commit of the hub repository, or ``"local"``.
    weights : str
        Hash of every parameter.
    architecture : str
        Class of the underlying module, for example ``LlamaForCausalLM``.
    backend : str
        ``hf``, ``transformer_lens`` or ``nnsight``.
    n_layers, n_heads, d_model, d_vocab, max_tokens : int
        Blocks, attention heads, width of the stream, rows of the unembedding, longest context.
    dtype, device : str
        Of the weights, for example ``bfloat16`` and ``cuda:0``.
    tokenizer : str
        Hash of vocabulary, merges and special tokens; empty without a tokenizer.
    facts : dict
        What the model computes, as it was when last looked at (at the start of every run): ``config``, ``state`` of
        its modules (buffers, adapters) and ``hooks`` of others.
    """

    id: str
    revision: str
    weights: str
    architecture: str
    backend: str
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    max_tokens: int
    dtype: str
    device: str
    tokenizer: str
    facts: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def identity(self) -> str:
        """Hash of weights, config, state of the modules and hooks: equal only for models that compute the same."""
        return hash_json([self.weights, *(self.facts.get(k) for k in ("config", "state", "hooks"))])
