"""What a model is to tokinterp, whichever library loaded it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .info import ModelInfo

if TYPE_CHECKING:
    from ..run.edits import Edit
    from ..run.sites import Site


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
        graph: bool = False,
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
