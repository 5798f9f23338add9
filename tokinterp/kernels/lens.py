"""What a block of logits says about the next token, in as few passes over the vocabulary as possible."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Final(NamedTuple):
    """The last layer's prediction of a block of rows.

    Attributes
    ----------
    prob : torch.Tensor
        (row, vocab) float32.
    entropy : torch.Tensor
        (row,) float64, nat.
    top1 : torch.Tensor
        (row,) int64, the most probable token.
    """

    prob: Tensor
    entropy: Tensor
    top1: Tensor


class Lens(NamedTuple):
    """What one layer says about the next token of each row.

    Attributes
    ----------
    cross_entropy : torch.Tensor
        (row,) float64, nat; NaN where there is no target.
    entropy : torch.Tensor
        (row,) float64, nat.
    kl : torch.Tensor
        (row,) float64, nat; KL(final || this layer).
    agreement : torch.Tensor
        (row,) bool: no token is more probable here than the final answer.
    accuracy : torch.Tensor
        (row,) bool: no token is more probable than the target; false without one.
    log_total : torch.Tensor
        (row,) float64, logarithm of the sum of exp(logit - largest logit): -log p of the most probable token.
    """

    cross_entropy: Tensor
    entropy: Tensor
    kl: Tensor
    agreement: Tensor
    accuracy: Tensor
    log_total: Tensor

    @property
    def confidence(self) -> Tensor:
        """(row,) float64, nat; -log p of the most probable token."""
        return self.log_total


def read_logits(
    logits: Tensor, target: Tensor, final: Final | None = None, scratch: Tensor | None = None
) -> tuple[Lens, Final | None]:
    """Read cross-entropy, entropy and KL off a block of logits.

    One maximum, one subtraction, one exponential, one sum and two scalar products per row; no log-probabilities are
    written.  With z = logits - max and s = sum exp z: cross-entropy log s - z[target], entropy
    log s - sum(exp(z) z) / s, KL(final || lens) = log s - sum(p z) - H(p).

    Parameters
    ----------
    logits : torch.Tensor
        (row, vocab) float32; **overwritten** by z.
    target : torch.Tensor
        (row,) int64 true next token, -1 where there is none.
    final : Final, optional
        The last layer's prediction of the same rows.  Without it the logits are taken to be the last layer's own: its
        prediction is returned and the KL is 0.
    scratch : torch.Tensor, optional
        (row, vocab) float32 to work in.

    Returns
    -------
    Lens, Final or None
        The prediction only if ``final`` was not given.

    Examples
    --------
    >>> lens, final = read_logits(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(float(lens.cross_entropy.exp()), 6), round(float(lens.entropy.exp()), 6)
    (4.0, 4.0)
    """
    z = logits.sub_(logits.amax(1, keepdim=True))
    exp = torch.exp(z) if scratch is None else torch.exp(z, out=scratch)
    total = exp.sum(1)
    log = total.double().log()
    entropy = log - (torch.linalg.vecdot(exp, z) / total).double()
    known = target >= 0
    reached = z.gather(1, target.clamp_min(0)[:, None])[:, 0]
    cross = torch.where(known, log - reached.double(), torch.nan)
    correct = known & (reached == 0)
    if final is None:
        answer = z.argmax(1)
        one = Lens(cross, entropy, torch.zeros_like(entropy) * entropy, torch.ones_like(known), correct, log)
        return one, Final(exp / total[:, None], entropy, answer)
    kl = log - torch.linalg.vecdot(final.prob, z).double() - final.entropy
    agrees = z.gather(1, final.top1[:, None])[:, 0] == 0
    return Lens(cross, entropy, kl.clamp_min(0), agrees, correct, log), None


def target_rank(logits: Tensor, target: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Return (row,) how many tokens have a greater logit than the target (0: it is first), -1 without target.

    Parameters
    ----------
    logits : torch.Tensor
        (row, vocab); a constant per row does not matter.
    target : torch.Tensor
        (row,) int64, -1 where there is none.
    scratch : torch.Tensor, optional
        (row, vocab) float32 to work in (float counts add up far faster than bools; exact up to 2**24 tokens).
    """
    reached = logits.gather(1, target.clamp_min(0)[:, None])
    scratch = torch.empty_like(logits) if scratch is None else scratch
    above = torch.gt(logits, reached, out=scratch).sum(1).long()
    return torch.where((target >= 0) & reached[:, 0].isfinite(), above, -1)


def top_tokens(logits: Tensor, log_total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ids (row, k) int64 and probabilities (row, k) float32 of the most probable tokens, most probable first.

    Parameters
    ----------
    logits : torch.Tensor
        (row, vocab).
    log_total : torch.Tensor
        (row,) logarithm of the sum of their exponentials (`Lens.log_total` for logits that `read_logits` has shifted).
    k : int
        How many.
    """
    value, ids = logits.topk(k, dim=1)
    return ids, (value - log_total[:, None]).exp().float()


def first_and_stable(agrees: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row first agrees with its final answer, and from where on it always does.

    Parameters
    ----------
    agreement : torch.Tensor
        (row, layer, ...) bool.

    Returns
    -------
    torch.Tensor, torch.Tensor
        (row, ...) int64 index on the axis ``layer``; its length where there is no such layer.

    Examples
    --------
    >>> [t.tolist() for t in first_and_stable(torch.tensor([[False, True, False, True]]))]
    [[1], [3]]
    """
    first = (agrees.long().cumsum(1) == 0).sum(1)
    stable = agrees.shape[1] - agrees.long().flip(1).cumprod(1).sum(1)
    return first, stable
