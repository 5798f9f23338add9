"""Items answered in one batch, by hand: what the package is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokinterp.run.sites import Site

if TYPE_CHECKING:
    from tokinterp.models.base import Model
    from tokinterp.run.edits import Edit
    from tokinterp.text.items import Items


class Padded(NamedTuple):
    """Some items as one batch, answers appended but for their last token.

    Attributes
    ----------
    ids, mask : torch.Tensor
        (row, position).
    last : torch.Tensor
        (row,) position q* of the end of the input.
    answer : torch.Tensor
        (row, token) ids of the answers, -1 where there is none.
    """

    ids: Tensor
    mask: Tensor
    last: Tensor
    answer: Tensor

    @property
    def answering(self) -> Tensor:
        """(row, position) bool: q* and the answer's own tokens."""
        return self.mask & (
            torch.arange(self.ids.shape[1], device=self.ids.device, dtype=torch.int64) >= self.last[:, None]
        )


class Answers(NamedTuple):
    """What was answered.

    Attributes
    ----------
    log_probs : torch.Tensor
        (row, vocab) float32 log-probabilities at q*.
    log_prob : torch.Tensor
        (row,) float64 log-probability of the whole answer, teacher forced.
    correct : torch.Tensor
        (row,) bool, whether every token of the answer is the most probable one.
    rank : torch.Tensor
        (row,) tokens more probable at q* than the first of the answer.
    """

    log_probs: Tensor
    log_prob: Tensor
    correct: Tensor
    rank: Tensor


def pad(items: Items, rows: Sequence[int]) -> Padded:
    """Return some items as one right-padded batch on the model's device."""
    wholes = [np.concatenate([items.ids[r], items.answers[r][:-1]]) for r in rows]
    ids = np.zeros((len(rows), max(map(len, wholes))), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    answer = np.full((len(rows), max(len(items.answers[r]) for r in rows)), -1)
    for i, (r, whole) in enumerate(zip(rows, wholes, strict=True)):
        ids[i, : len(whole)], mask[i, : len(whole)] = whole, True
        answer[i, : len(items.answers[r])] = items.answers[r]
    last = np.array([len(items.ids[r]) - 1 for r in rows])
    device = items.model.device
    return Padded(*(torch.from_numpy(a).to(device) for a in (ids, mask, last, answer)))


def ask(
    model: Model, batch: Padded, edits: Sequence[Edit] = (), position_ids: Tensor | None = None,
    look: Callable[[Site, Tensor], None] | None = None, sites: Sequence[Site] = (),
) -> Answers:  # fmt: skip
    """Run a batch and return what is answered; ``look`` is shown other sites on the way."""
    final = Site("resid", model.info.n_layers)
    found: list[Tensor] = []

    def take(site: Site, value: Tensor) -> None:
        if site == final:
            found.append(value)
        if look is not None and site in sites:
            look(site, value)

    with torch.no_grad():
        model.run(batch.ids, [*sites, final], mask=batch.mask, edits=edits, position_ids=position_ids, consume=take)
        size = batch.answer.shape[1]
        places = (batch.last[:, None] + torch.arange(size, device=batch.ids.device, dtype=torch.int64)).clamp_max(
            batch.ids.shape[1] - 1
        )
        stream = found[0].gather(1, places[..., None].expand(-1, -1, found[0].shape[-1]))
        log_probs = torch.log_softmax(model.unembed(stream).float(), -1)
        asked = batch.answer >= 0
        target = batch.answer.clamp_min(0)[..., None]
        own = log_probs.gather(2, target)
        above = (log_probs > own).sum(-1)
        return Answers(
            log_probs[:, 0], own[..., 0].double().masked_fill(~asked, 0).sum(1), ((above == 0) | ~asked).all(1),
            above[:, 0],
        )  # fmt: skip
