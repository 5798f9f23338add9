"""Decoding of a batch of prompts that end at different places: greedy, under edits of their tokens, or guided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad

from .edits import SiteEdit
from .edits.edges import KnockOut
from .sites import Site

if TYPE_CHECKING:
    from ..models.base import Model
    from .edits import Edit


class Decoded(NamedTuple):
    """What follows the prompts of a batch.

    Attributes
    ----------
    ids, logprob : torch.Tensor
        (prompt, step) token decoded, and its float32 log-probability; -1 and NaN from where on logits are NaN.
    first : torch.Tensor
        (prompt, vocab) float32 log-probabilities right after the prompt.
    watched : torch.Tensor
        (prompt, step) float32 log-probability of the token asked for; empty without one.
    """

    ids: torch.Tensor
    logprob: torch.Tensor
    first: torch.Tensor
    watched: torch.Tensor


@torch.no_grad()
def decode(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, n_tokens: int, edits: Sequence[Edit] = (),
    places: torch.Tensor | None = None, watch: torch.Tensor | None = None,
) -> Decoded:  # fmt: skip
    """Decode greedily after each prompt of a batch.

    Parameters
    ----------
    model : Model
        What is run; the whole sequence anew for each token.
    ids, mask : torch.Tensor
        (prompt, position) right-padded ids, and bool, true on real tokens.
    n_tokens : int
        Tokens decoded after each prompt.
    edits : sequence of Edit
        As they are for this batch.  Chosen positions are those of the prompt's own tokens, whatever is decoded; where
        none are chosen (None) the edit is made at the decoded tokens, too, and hidden keys are hidden from them.
    places : torch.Tensor, optional
        (prompt, position) position ids; the decoded tokens count on from the last.
    watch : torch.Tensor, optional
        (prompt,) token whose log-probability is asked for at every step, whatever is decoded.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> ids = torch.tensor([[1, 50, 60], [1, 70, 0]])
    >>> tuple(decode(model, ids, ids > 0, 2).ids.shape)
    (2, 2)
    """
    last, lengths = Site("resid", model.info.n_layers), mask.sum(1)
    settled = [e.settle(ids, mask) if _chosen(e) else e for e in edits]
    row = torch.arange(len(ids), dtype=torch.int64, device=ids.device)
    ids, mask = pad(ids, (0, n_tokens)), pad(mask, (0, n_tokens))
    place = torch.arange(ids.shape[1], dtype=torch.int64, device=ids.device)
    if places is not None:
        after = places[row, lengths - 1, None] + 1 + place - lengths[:, None]
        places = torch.where(mask, pad(places, (0, n_tokens)), after)
    longest = int(lengths.max())
    scores, watched, first = [], [], torch.empty(0, dtype=torch.float32, device="cpu")
    for step in range(n_tokens):
        width = longest + step
        stream = model.run(
            ids[:, :width], [last], mask=mask[:, :width], edits=[_of_width(e, width) for e in settled],
            position_ids=None if places is None else places[:, :width],
        )[last]  # fmt: skip
        scores.append(model.unembed(stream[row, lengths + step - 1]).log_softmax(-1))
        first = scores[0] if step == 0 else first
        ids[row, lengths + step], mask[row, lengths + step] = scores[-1].argmax(-1), True
        if watch is not None:
            watched.append(scores[-1].gather(1, watch[:, None])[:, 0])
        scores[-1] = scores[-1].amax(-1)
    found = ids[row[:, None], lengths[:, None] + place[:n_tokens]]
    logprob = torch.stack(scores, 1)
    seen = torch.stack(watched, 1) if watched else logprob[:, :0]
    return Decoded(found.masked_fill(logprob.isnan(), -1), logprob, first, seen)


class Guided(NamedTuple):
    """What follows the prompts of a batch if a score chooses.

    Attributes
    ----------
    ids, logprob : torch.Tensor
        (prompt, step) token chosen, and its float32 log-probability; -1 and NaN from where on logits are NaN.
    states : torch.Tensor
        (prompt, position, d_model) last layer of the whole texts, after the final norm; anything on padding.
    """

    ids: torch.Tensor
    logprob: torch.Tensor
    states: torch.Tensor


@torch.no_grad()
def decode_guided(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, n_tokens: int, k: int,
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Guided:  # fmt: skip
    """Decode after each prompt of a batch: of the k most probable tokens always the one whose text has the best score.

    Parameters
    ----------
    model : Model
        What is run; k whole sequences of each prompt for each token.
    ids, mask : torch.Tensor
        (prompt, position) right-padded ids, and bool, true on real tokens.
    n_tokens : int
        Tokens decoded after each prompt.
    k : int
        Candidates of each step; 1 is greedy decoding.
    score : callable
        Of the normed states of the last layer (row, position, d_model) and their mask; returns (row,).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> ids = torch.tensor([[1, 50, 60], [1, 70, 0]])
    >>> first = decode_guided(model, ids, ids > 0, 2, 1, lambda x, mask: x[:, 0, 0]).ids
    >>> bool((first == decode(model, ids, ids > 0, 2).ids).all())
    True
    """
    last, n = Site("resid", model.info.n_layers), len(ids)
    row = torch.arange(n, dtype=torch.int64, device=ids.device)
    length, width = mask.sum(1), int(mask.sum(1).max())
    ids, mask = (pad(x[:, :width], (0, n_tokens)).repeat_interleave(k, 0) for x in (ids, mask))
    every = torch.arange(n * k, dtype=torch.int64, device=ids.device)
    states = model.run(ids[::k, :width], [last], mask=mask[::k, :width])[last]
    following = model.unembed(states[row, length - 1]).log_softmax(-1)
    found, logprob = [], []
    for step in range(n_tokens):
        best = following.topk(k)
        at = length.repeat_interleave(k) + step
        ids[every, at], mask[every, at] = best.indices.flatten(), True
        some = slice(0, width + step + 1)
        states = model.run(ids[:, some], [last], mask=mask[:, some])[last]
        normed = model.normed(states)
        value = score(normed, mask[:, some]).view(n, k).nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        chosen = value.argmax(1)
        kept = row * k + chosen
        found.append(best.indices[row, chosen])
        logprob.append(best.values[row, chosen])
        ids = ids[kept].repeat_interleave(k, 0)
        following = model.unembed(states[kept, length + step]).log_softmax(-1)
        states = normed[kept]
    bad = torch.stack(logprob, 1).isnan()
    return Guided(torch.stack(found, 1).masked_fill(bad, -1), torch.stack(logprob, 1), states)


def _chosen(edit: Edit) -> bool:
    """Whether an edit is made at some positions, or has values by position, so that it is about the prompt's tokens."""
    if isinstance(edit, KnockOut):
        return True
    assert isinstance(edit, SiteEdit), f"{edit} is no edit of one batch"
    by_position = edit.value is not None and edit.value.ndim > 1 and edit.value.shape[-2] > 1
    return edit.positions is not None or by_position


def _of_width(edit: Edit, width: int) -> Edit:
    """Return a settled edit for a batch of another width: padding is neither changed nor hidden."""

    def fit(where: Any, end: int = 0) -> Any:
        """Cut off or pad the axis of positions, which has so many axes behind it."""
        more = width - where.shape[-1 - end]
        return pad(where, (*(0,) * 2 * end, 0, more))

    if isinstance(edit, KnockOut):
        keys, queries = (None if w is None else fit(w) for w in (edit.keys, edit.queries))
        return replace(edit, keys=keys, queries=queries)
    assert isinstance(edit, SiteEdit)
    if not isinstance(edit.positions, torch.Tensor):
        return edit
    value = edit.value
    if value is not None and value.ndim > 1 and value.shape[-2] > 1:
        value = fit(value, 1)
    return replace(edit, positions=fit(edit.positions), value=value)
