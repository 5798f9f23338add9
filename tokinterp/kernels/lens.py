"""What a block of logits says about the next token, in as few passes over the vocabulary as possible."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

STRIP = 2**18  # logits that are read at a time on a CPU: 1 MB, all passes over which stay in the cache of a core
TOGETHER = 32  # logits of which top_tokens looks at the largest first


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
    logits: Tensor, target: Tensor, final: Final | None = None, listed: Tensor | None = None, top: int = 0
) -> tuple[Lens, Final | None, dict[str, Tensor]]:
    """Read what a block of logits says about the next token, some rows at a time on a CPU.

    One maximum, one subtraction, one exponential, one sum and two scalar products per row; no log-probabilities are
    written.  With z = logits - max and s = sum exp z: cross-entropy log s - z[target], entropy
    log s - sum(exp(z) z) / s, KL(final || lens) = log s - sum(p z) - H(p).  Every pass over the vocabulary after the
    first finds its numbers in the cache.

    Parameters
    ----------
    logits : torch.Tensor
        (row, vocab) float32; **overwritten** by z.
    target : torch.Tensor
        (row,) int64 true next token, -1 where there is none.
    final : Final, optional
        The last layer's prediction of the same rows.  Without it the logits are taken to be the last layer's own: its
        prediction is returned and the KL is 0.
    listed : torch.Tensor, optional
        int64 rows whose rank and top tokens are wanted, too; none by default.
    top : int
        Most probable tokens of these.

    Returns
    -------
    Lens, Final or None, dict of str to torch.Tensor
        The prediction only if ``final`` was not given; of the listed rows ``target_rank`` (see `target_rank`) and, if
        ``top`` is not 0, ``top_id`` and ``top_prob`` (see `top_tokens`).

    Examples
    --------
    >>> lens, final, _ = read_logits(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(float(lens.cross_entropy.exp()), 6), round(float(lens.entropy.exp()), 6)
    (4.0, 4.0)
    """
    n, vocab = logits.shape
    step = max(1, n if logits.device.type != "cpu" else STRIP // vocab)
    scratch = torch.empty_like(logits[:step])
    prob = torch.empty_like(logits) if final is None else final.prob
    total, own, other, above = logits.new_empty(4, n).unbind()
    width = _width(vocab, top) if listed is not None and len(listed) else 0
    peaks = logits.new_empty(n, width)
    known, place = target >= 0, target.clamp_min(0)[:, None]
    for start in range(0, n, step):
        rows = slice(start, start + step)
        z, work = logits[rows], scratch[: min(step, n - start)]
        z.sub_(z.amax(1, keepdim=True))
        exp = _exp(z, prob[rows] if final is None else work)
        torch.sum(exp, 1, out=total[rows])
        torch.sum(torch.mul(exp, z, out=work), 1, out=own[rows])
        if final is None:
            exp.div_(total[rows, None])
        else:
            torch.sum(torch.mul(prob[rows], z, out=work), 1, out=other[rows])
        if listed is not None and len(listed):
            torch.sum(torch.gt(z, z.gather(1, place[rows]), out=work), 1, out=above[rows])
        if width:
            torch.amax(_table(z, width), 1, out=peaks[rows])
    log = total.double().log()
    entropy = log - (own / total).double()
    reached = logits.gather(1, place)[:, 0]
    cross, correct = torch.where(known, log - reached.double(), torch.nan), known & (reached == 0)
    if final is None:
        kl, agrees = torch.zeros_like(entropy) * entropy, torch.ones_like(known)
    else:
        kl = (log - other.double() - final.entropy).clamp_min(0)
        agrees = logits.gather(1, final.top1[:, None])[:, 0] == 0
    columns = {}
    if listed is not None and len(listed):
        columns["target_rank"] = torch.where(known & reached.isfinite(), above.long(), -1)[listed]
        if top:
            ids, share = top_tokens(logits, log, top, peaks if width else None)
            columns.update(top_id=ids[listed], top_prob=share[listed])
    one = Lens(cross, entropy, kl, agrees, correct, log)
    return one, None if final else Final(prob, entropy, logits.argmax(1)), columns


def _exp(z: Tensor, out: Tensor) -> Tensor:
    """Write exponentials; on a CPU as powers of two, which take torch a third of the time."""
    if z.device.type != "cpu":
        return torch.exp(z, out=out)
    return torch.mul(z, 1 / math.log(2), out=out).exp2_()


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


def top_tokens(logits: Tensor, log_total: Tensor, k: int, peaks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ids (row, k) int64 and probabilities (row, k) float32 of the most probable tokens, most probable first.

    The k largest lie in the k columns of a table (``TOGETHER``, width) of the logits that have the largest maxima, or
    among the few that the table leaves out: these are sorted only.

    Parameters
    ----------
    logits : torch.Tensor
        (row, vocab).
    log_total : torch.Tensor
        (row,) logarithm of the sum of their exponentials (`Lens.log_total` for logits that `read_logits` has shifted).
    k : int
        How many.
    peaks : torch.Tensor, optional
        (row, width) the maxima, where they are known.
    """
    vocab = logits.shape[1]
    width = _width(vocab, k)
    if not width:
        value, ids = logits.topk(k, dim=1)
    else:
        peaks = _table(logits, width).amax(1) if peaks is None else peaks
        step = width * torch.arange(TOGETHER, dtype=torch.int64, device=logits.device)
        among = (peaks.topk(k, dim=1).indices[:, None] + step[:, None]).flatten(1)
        rest = torch.arange(TOGETHER * width, vocab, dtype=torch.int64, device=logits.device)
        among = torch.cat([among, rest.expand(len(logits), -1)], 1)
        value, place = logits.gather(1, among).topk(k, dim=1)
        ids = among.gather(1, place)
    return ids, (value - log_total[:, None]).exp().float()


def _width(vocab: int, k: int) -> int:
    """Return how many columns the table of `top_tokens` has; 0 where sorting all costs as much."""
    return vocab // TOGETHER if 0 < 2 * k <= vocab // TOGETHER else 0


def _table(logits: Tensor, width: int) -> Tensor:
    return logits[:, : TOGETHER * width].unflatten(1, (TOGETHER, width))


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
