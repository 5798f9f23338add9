"""What a model is to tokinterp, whichever library loaded it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..describe import hash_json

if TYPE_CHECKING:
    from ..capture import Edit, Site


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


Activations = dict["Site", torch.Tensor]


class Model(Protocol):
    """A causal language model that can be run on token ids with some of its sites captured."""

    info: ModelInfo
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Device on which ids are expected."""
        ...

    def identify(self) -> ModelInfo:
        """Look anew at what decides the numbers, keep it as ``info`` and return it."""
        ...

    def check(self, sites: Sequence[Site], edits: Sequence[Edit] = ()) -> None:
        """Raise ValueError if the model lacks one of the sites, or what an edit names."""
        ...

    def run(
        self,
        ids: torch.Tensor,
        sites: Sequence[Site],
        *,
        mask: torch.Tensor | None = None,
        edits: Sequence[Edit] = (),
        position_ids: torch.Tensor | None = None,
        consume: Callable[[Site, torch.Tensor], None] | None = None,
    ) -> Activations:
        """Run right-padded ids (batch, position) and return the activations of the sites."""
        ...

    def unembed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of points of the stream (..., d_model): final norm and LM head."""
        ...

    def normed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return the final norm of points of the stream."""
        ...

    def head(self, normed: torch.Tensor) -> torch.Tensor:
        """Return float32 logits of already normed points: LM head, logit scaling and soft cap."""
        ...

    def written_norm(self, block: int, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, position) norm of what each head of a block would write of its values."""
        ...
