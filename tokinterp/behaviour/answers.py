"""The stream where an answer begins, and how what it predicts differs from what another one predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..kernels.divergence import compare
from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, several

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

ROWS = 64  # of logits at once


@checked(sizes=several(count(1), 1))
class AnswerStates(Measurement):
    """The stream after the last block where the answer begins: from it follows all that is predicted there.

    Parameters
    ----------
    sizes : sequence of int
        Tokens of the answer of each prompt, which ends with all of them but the last (see `Answers`).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The capital of France is"], {"end": AnswerStates([1])}, progress=False)
    >>> run["end"]["state"].dims
    ('prompt', 'channel')
    """

    fields = {
        "state": Field(("prompt", "channel"), "stream after the last block where the answer begins", short="stream")
    }

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream after the last block."""
        return [Site("resid", info.n_layers)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that every prompt can hold its answer."""
        super().begin(info, prompts)
        if len(self.sizes) != len(prompts):
            raise ValueError(f"sizes: {len(self.sizes)} for {len(prompts)} prompts: give one for each")
        short = np.flatnonzero(np.asarray(self.sizes) > prompts.lengths)
        if len(short):
            raise ValueError(f"sizes: prompt {short[0]} is shorter than its answer of {self.sizes[short[0]]} tokens")

    def update(self, batch: Batch) -> None:
        """Keep the stream at one place of each prompt."""
        size = torch.tensor([self.sizes[n] for n in batch.numbers], dtype=torch.int64, device=batch.device)
        place = (batch.mask.sum(1) - size)[:, None, None]
        x = batch.resid(self.info.n_layers)
        self.keep(batch, state=x.gather(1, place.expand(-1, 1, x.shape[-1]))[:, 0].float())


def differences(
    model: Model, changed: np.ndarray, reference: np.ndarray, tokens: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return (prompt,) how the predictions from states differ from those of the reference, see `compare`.

    Parameters
    ----------
    model : Model
        Whose head predicts.
    changed, reference : numpy.ndarray
        (prompt, d_model) of `AnswerStates`; NaN gives NaN.
    tokens : numpy.ndarray, optional
        (prompt,) token ids: ``log_prob`` is the change of their log-probability, ``rank`` how many are more probable
        after it.
    """
    parts: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        for a in range(0, len(changed), ROWS):
            both = [torch.from_numpy(x[a : a + ROWS]).to(model.device) for x in (changed, reference)]
            p, q = (torch.log_softmax(model.unembed(x).float(), -1) for x in both)
            found = compare(p, q)
            if tokens is not None:
                at = torch.from_numpy(tokens[a : a + ROWS].astype(np.int64)).to(p.device)[:, None]
                found["log_prob"] = (p.gather(1, at) - q.gather(1, at))[:, 0]
                found["rank"] = (p > p.gather(1, at)).sum(1)
            known = torch.stack([x.isfinite().all(1) for x in both]).all(0)
            parts.append({k: v.double().masked_fill(~known, torch.nan).cpu() for k, v in found.items()})
    return {k: torch.cat([part[k] for part in parts]).numpy() for k in parts[0]}
