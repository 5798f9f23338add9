"""SetNorms: how large the stream is at sets of tokens, and which share of them is massive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.massive import RULES, massive_rows
from ..run.measurement import Field, Measurement
from ..settings import checked, one_of, positive
from .token_sets import check_sets, padded, resolve

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

SETS = {"first": "first", "separators": "separators", "other": "other"}
SUN = "Sun et al. 2024, arXiv 2402.17762"
EACH = ("prompt", "layer", "key_set")


@checked(rule=one_of(*RULES), factor=positive)
class SetNorms(Measurement):
    """Norms of the stream, and the share of massive tokens, of sets of tokens at every layer.

    Parameters
    ----------
    sets : mapping of name -> rule
        See `AttentionMass`.
    layers : iterable of int, optional
        All by default.
    rule, factor
        What counts as massive, see `tokinterp.kernels.massive.massive_rows`.

    Notes
    -----
    A prompt that has no token of a set is NaN there.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"sizes": ti.attention.SetNorms({"sink": "first", "rest": "other"})}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)
    >>> run["sizes"]["norm"].dims
    ('prompt', 'layer', 'key_set')
    """

    first = ("massive_share", "norm")
    fields = {
        "massive_share": Field(EACH, "share of the set's tokens that are massive", "1", SUN, short="massive tokens"),
        "norm": Field(EACH, "mean norm of the set's tokens", log=True),
    }

    def __init__(
        self, sets: Mapping[str, Any] = SETS, layers: Iterable[int] | None = None, rule: str = "norm",
        factor: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sets, self.layers, self.rule, self.factor = check_sets("sets", sets), layers, rule, factor

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Find the tokens of each set."""
        super().begin(info, prompts)
        self._sets = resolve(prompts, self.sets)

    def update(self, batch: Batch) -> None:
        """Take the means of a batch."""
        member = padded(self._sets, batch)
        norms, hits = [], []
        for layer in self.at_layers():
            x = batch.resid(layer)
            norms.append(torch.linalg.vector_norm(x.double(), dim=-1))
            hits.append(massive_rows(x, batch.mask, self.rule, self.factor))
        count = member.sum(2)[:, None]  # 0 / 0 is NaN
        norm, share = (
            torch.stack([(v[:, None] * member).double().sum(2) for v in rows], 1) / count for rows in (norms, hits)
        )
        self.keep(batch, norm=norm, massive_share=share)

    def coords(self) -> Mapping[str, Any]:
        """Return the names of the sets."""
        return {"key_set": (np.array(list(self.sets)), "set of tokens", "1")}
