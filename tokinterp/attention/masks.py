"""Keep-masks: which keys stay visible to each query, what that costs, and how many are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..behaviour.loss import TokenLoss
from ..kernels.state import neutral
from ..models.steady import steady
from ..results.dataset import variable
from ..results.stamp import stamped
from ..run.conditions import Condition, Runs, compared
from ..run.edits import KnockOut
from ..settings import checked, count, function, mapping, one_of
from ..settings.describe import describe
from ..text.marks import mark
from .token_sets import separator_ids

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

KINDS = ("separators", "window", "interval", "random", "all")


@checked(kind=one_of(*KINDS), window=count(1))
@dataclass(frozen=True)
class Policy:
    """Which keys a query may read: the first ``initial``, the last ``window`` (itself counted), and some others.

    Attributes
    ----------
    kind : str
        What else is kept: ``"separators"`` (SepLLM, Chen et al. 2024, arXiv 2412.12094), nothing (``"window"``:
        StreamingLLM, Xiao et al. 2023, arXiv 2309.17453), every so-manieth key (``"interval"``) or random ones
        (``"random"``) - both as many per prompt as it has separators, the controls of equal size -, or ``"all"``.
    initial, window : int
        First and last keys that stay visible (SepLLM: 3 and 256).
    separators : tuple of int
        Token ids that are separators; `separators_of` finds them.
    seed : int
        Of the random keys.

    Examples
    --------
    >>> ids = torch.tensor([[0, 5, 6, 7, 8]])
    >>> keep = Policy("separators", initial=1, window=1, separators=(6,))(ids, torch.ones_like(ids).bool())
    >>> keep[0, 4].tolist()
    [True, False, True, False, True]
    """

    kind: str
    initial: int = 3
    window: int = 256
    separators: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind in ("separators", "interval", "random") and not self.separators:
            raise ValueError(
                f"separators={self.separators}: policy {self.kind!r} needs the ids of separators: "
                "separators_of(prompts)"
            )

    def extra(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (prompt, position) bool, the keys that stay visible however far away."""
        if self.kind in ("window", "all"):
            return torch.zeros_like(mask)
        marks = torch.isin(ids, torch.tensor(self.separators, device=ids.device, dtype=torch.int64)) & mask
        if self.kind == "separators":
            return marks
        number, length = marks.sum(1, keepdim=True), mask.sum(1, keepdim=True)
        place = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int64)
        if self.kind == "interval":  # the same number, spread evenly
            length = length.clamp_min(1)
            return (place * number // length != (place - 1) * number // length) & mask
        score = _noise(ids, mask, self.seed)
        rank = score.argsort(1).argsort(1)
        return (rank < number) & mask

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (prompt, query, key) bool, true where a query may read a key; causal, padding false."""
        place = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int64)
        causal = place[:, None] >= place[None, :]
        if self.kind == "all":
            keep = causal[None]
        else:
            near = (place[:, None] - place[None, :] < self.window) | (place < self.initial)
            keep = causal & (near | self.extra(ids, mask)[:, None, :])
        return keep & mask[:, None, :] & mask[:, :, None]


def _noise(ids: torch.Tensor, mask: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (prompt, position) numbers that look random and depend only on a prompt's own ids."""
    out = np.full(ids.shape, 2.0)
    for row, (i, m) in enumerate(zip(ids.cpu().numpy(), mask.cpu().numpy(), strict=True)):
        n = int(m.sum())
        mark = int(np.frombuffer(np.ascontiguousarray(i[:n]).tobytes(), np.uint32).astype(np.uint64).sum())
        out[row, :n] = np.random.default_rng([seed, mark, n]).random(n)
    return torch.from_numpy(out).to(ids.device)


@dataclass(frozen=True, eq=False)
class KeepOnly(KnockOut):
    """Edit that closes all edges a policy does not keep; make it with `keep_only`."""

    keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def fit(self, width: int, longest: int) -> KeepOnly:
        """Return the edit itself: it fits any batch."""
        return self

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> KeepOnly:
        """Return the edit itself: its edges are worked out from the ids."""
        return self

    def edges(self, ids: torch.Tensor, mask: torch.Tensor, n_heads: int) -> torch.Tensor:
        """Return (prompt, 1, query, key) bool, true where attention is removed."""
        assert self.keep is not None
        causal = Policy("all")(ids, mask)
        return (causal & ~self.keep(ids, mask))[:, None]

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {
            "op": "keep_only", "policy": describe(self.keep),
            "blocks": None if self.blocks is None else list(self.blocks),
        }  # fmt: skip


@checked()
@neutral()
def keep_only(policy: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], blocks: Any = None) -> KeepOnly:
    """Return an edit that hides every key that the policy does not keep, in some or all blocks.

    A policy is a `Policy`, or a function of (ids, mask) that returns (prompt, query, key) bool; every query must keep
    some key, and keys behind it are never seen.

    Parameters
    ----------
    policy : Policy or callable
        What each query may see.
    blocks : iterable of int, optional
        Where; all by default.

    Returns
    -------
    KeepOnly
        An edit, for ``edits=``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> edit = keep_only(Policy("window", initial=1, window=8))
    >>> run = ti.measure(model, ["The Nile flows north."], {"lens": ti.lens.LogitLens()}, edits=[edit], progress=False)
    """
    return KeepOnly(None, [], None if blocks is None else tuple(blocks), None, policy)


def separators_of(prompts: Prompts) -> tuple[int, ...]:
    """Return the ids of the separators among the tokens of prompts.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = separator_ids(prompts.vocabulary, prompts.token_ids)
    if not len(found):
        raise ValueError("the prompts have no separator (. , ? ! ; : or white space): give text with punctuation")
    return tuple(int(i) for i in found)


@checked(policies=mapping(function, 1), window=count(1))
@steady
def policy_loss(
    model: Model,
    prompts: Prompts,
    policies: Mapping[str, Policy] | None = None,
    *,
    initial: int = 3,
    window: int = 256,
    seed: int = 0,
    **run: Unpack[Runs],
) -> xr.Dataset:
    """Measure what a model loses when only the keys of a policy stay visible.

    Parameters
    ----------
    model, prompts
        Prompts longer than ``initial + window``, or nothing is hidden.
    policies : mapping of name -> Policy, optional
        By default separators, window alone, evenly spaced keys and random keys, the last two as many as separators, and
        a window enlarged to the same number of visible keys; the text needs separators for these.
    initial, window : int
        Of the default policies.
    seed : int
        Of the random keys.
    **run
        ``batch_tokens``, ``store``, ``share``, ...: see `tokinterp.run.conditions.Runs`.

    Returns
    -------
    xarray.Dataset
        By ``prompt`` and ``policy``: ``loss_change`` = mean over the positions behind ``initial + window`` of the
        cross-entropy of the next token less that of the whole model, ``retention`` = mean share of the visible keys
        that these positions keep; ``loss`` of the whole model by prompt; ``n_positions``. Prompts without such
        positions are NaN.

    Raises
    ------
    ValueError
        If no prompt is long enough, there is no policy, or no separator for the default ones.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("article")[:2]]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=64)
    >>> ds = policy_loss(model, prompts, window=12)
    >>> bool(ds["loss_change"].mean() > 0)
    True
    """
    if policies is None:
        policies = default_policies(prompts, separators_of(prompts), initial, window, seed)
    behind = max((p.initial + p.window for p in policies.values() if p.kind != "all"), default=0)
    lengths = np.asarray(prompts.lengths)
    if lengths.max() <= behind + 1:
        raise ValueError(
            f"the longest prompt has {lengths.max()} tokens and every query keeps the first and last {behind}: "
            "nothing would be hidden; give longer prompts or a smaller window="
        )
    far = mark(prompts, far=np.stack([np.minimum(behind + 1, lengths), lengths], 1))
    conditions = {"whole": Condition(far)}
    conditions |= {f"policy {name}": Condition(far, [keep_only(policy)]) for name, policy in policies.items()}
    found = compared(model, conditions, {"loss": TokenLoss("far")}, **run)
    if found is None:
        return xr.Dataset()
    loss = found["loss"]["loss"].transpose("prompt", "condition").values
    kept = np.stack([of_prompts(prompts, partial(_retention, policy, behind)) for policy in policies.values()], 1)
    each = ("prompt", "policy")
    data = {
        "loss_change": variable(each, loss[:, 1:] - loss[:, :1], "change of the cross-entropy of the next token", "nat",
                                SEP),
        "retention": variable(each, kept, "share of the visible keys that are kept", "1"),
        "loss": variable("prompt", loss[:, 0], "cross-entropy of the next token, all keys visible", "nat"),
        "n_positions": variable(
            "prompt", np.maximum(lengths - 1 - behind, 0), "positions behind the first and last keys that all keep", "1"
        ),
    }  # fmt: skip
    coords = {
        "prompt": variable("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "policy": variable("policy", np.array(list(policies)), "which keys stay visible", "1"),
    }
    return stamped(xr.Dataset(data, coords), "policy_loss", model, prompts, {"policies": dict(policies)}, seed)


def _retention(policy: Policy, behind: int, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (prompt,) mean share of the visible keys that positions behind the first ones keep, but for the last."""
    far = (torch.arange(ids.shape[1] - 1, device=ids.device, dtype=torch.int64) >= behind) & mask[:, 1:]
    share = policy(ids, mask).sum(-1)[:, :-1] / Policy("all")(ids, mask).sum(-1)[:, :-1].clamp_min(1)
    return share.double().masked_fill(~far, 0).sum(1) / far.sum(1)


def of_prompts(prompts: Prompts, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Return (prompt,) what a function of padded ids and mask gives, no model run."""
    out: dict[int, Any] = {}
    for rows in prompts.batches(4096):
        ids, mask, _ = (torch.from_numpy(a) for a in prompts.padded(rows))
        out |= dict(zip(rows, function(ids, mask).tolist(), strict=True))
    return np.array([out[i] for i in range(len(prompts))])


def default_policies(
    prompts: Prompts, marks: tuple[int, ...], initial: int = 3, window: int = 256, seed: int = 0
) -> dict[str, Policy]:
    """Return the separators' policy and its controls, all sizes matched."""
    share = float(np.isin(prompts.token_ids, marks).mean())
    lengths = np.asarray(prompts.lengths, dtype=float)
    far = np.maximum(lengths - initial - window, 0)
    wider = window + max(1, round(share * float((far**2).sum() / (2 * np.maximum(far.sum(), 1)))))
    return {
        "separators": Policy("separators", initial, window, marks),
        "random": Policy("random", initial, window, marks, seed),
        "interval": Policy("interval", initial, window, marks),
        "window": Policy("window", initial, window),
        "wider window": Policy("window", initial, wider),
    }


SEP = "SepLLM, Chen et al. 2024, arXiv 2412.12094"
