"""LogitDimension: in how many directions the predictions of a prompt spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.neighbours import nearest
from ..run.measurement import Measurement
from ..run.sites import Site
from ..settings import checked, one_of
from .clouds import check_sizes
from .dimension import REFUSED, gride_columns, gride_fields
from .kernels import gride as estimators

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

SPACES = ("logits", "logprob")
ROWS = 64  # decoded at a time, so that the head's own copies stay small


@checked(space=one_of(*SPACES))
class LogitDimension(Measurement):
    """Intrinsic dimension of the cloud of predictions of each prompt: one point of the vocabulary's width per token.

    Parameters
    ----------
    scales : sequence of int
        Neighbour ranks of GRIDE, as in `IntrinsicDimension`.
    space : str
        ``"logits"`` (Viswanathan et al. 2025) or ``"logprob"``, in which what is added to all logits of a token does
        not matter.
    exclude : sequence of str
        Tokens left out: ``"special"``, ``"massive"`` (rows found at the last layer).
    small : str
        What happens to a prompt with fewer than four tokens per scale: ``"error"`` before the run, or ``"nan"``.

    Notes
    -----
    The vocabulary is used whole; the logits of a prompt may take a quarter of the ``memory`` of the run.  The search
    costs 2 N^2 x d_vocab operations in each prompt, where a layer costs 2 N^2 x d_model.

    References
    ----------
    Viswanathan et al. 2025, arXiv 2501.10573, section on the dimension of logits.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. " * 4 + "Paris is in France."], model)
    >>> run = ti.measure(model, prompts, {"logits": ti.geometry.LogitDimension((2, 4))}, progress=False)
    >>> run["logits"]["dimension"].dims
    ('prompt', 'scale')
    """

    first = ("dimension",)
    fields = gride_fields("prompt")

    def __init__(
        self,
        scales: Sequence[int] = (2, 4, 8, 16, 32, 64),
        space: str = "logits",
        exclude: Sequence[str] = ("special",),
        small: str = "error",
    ) -> None:
        super().__init__()
        self.scales, self.space, self.exclude = tuple(scales), space, exclude
        self.small = small

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the last layer."""
        return [Site("resid", info.n_layers)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check the lengths of the prompts against the scales and the memory."""
        super().begin(info, prompts)
        scale = max(self.scales) if self.small == "error" else min(self.scales)
        check_sizes(prompts, self.exclude, estimators.PER_RANK * scale, self.small, f"scale {scale} needs")
        needed, room = 4 * max(prompts.lengths) * info.d_vocab, self.memory // 4
        if needed > room:
            raise ValueError(
                f"the logits of a prompt of {max(prompts.lengths)} tokens take {needed / 2**20:.0f} MiB, a quarter of "
                f"memory={self.memory} is {room / 2**20:.0f} MiB: use shorter prompts, or more memory= in the run"
            )

    def update(self, batch: Batch) -> None:
        """Decode and search, prompt by prompt."""
        x = batch.resid(self.info.n_layers)
        mask = batch.kept(self.exclude, self.info.n_layers)
        ranks = {*self.scales, *(n // 2 for n in self.scales)}
        columns: dict[str, list[torch.Tensor]] = {}
        for p, n in enumerate(batch.lengths):
            keep, rows = mask[p, :n], x[p, :n]
            logits = torch.cat([batch.model.unembed(part) for part in rows.split(ROWS)])
            if self.space == "logprob":
                logits = logits.log_softmax(-1)
            lacking = max(0, max(ranks) + 1 - n)
            if lacking:
                logits = torch.nn.functional.pad(logits, (0, 0, 0, lacking))
                keep = torch.nn.functional.pad(keep, (0, lacking))
            near = nearest(logits[None], max(ranks), keep[None], ranks=ranks, memory=self.memory // 4)
            found = estimators.gride(near.distances, near.valid & near.finite[:, None], self.scales)
            few = near.n_unique < estimators.PER_RANK * max(self.scales)
            reason = torch.where(near.finite, torch.where(few, 1, 0), 2)
            reason = torch.where((reason == 0) & found.dimension.isnan().any(1), 3, reason)
            for name, column in {
                **gride_columns(found), "n_points": near.n_points, "n_unique": near.n_unique, "refused": reason,
            }.items():  # fmt: skip
                columns.setdefault(name, []).append(column)
        self.keep(batch, **{name: torch.cat(parts) for name, parts in columns.items()})

    def coords(self) -> Mapping[str, Any]:
        """Return the scales."""
        return {"scale": (np.array(self.scales), "farther neighbour rank n2 = 2 n1 of GRIDE", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the space, and what is left out."""
        return {
            "dimension": {"long_name": f"intrinsic dimension of the cloud of {self.space}, by GRIDE"},
            "n_points": {"exclude": ", ".join(self.exclude) or "nothing"},
            "refused": {"meaning": REFUSED},
        }
