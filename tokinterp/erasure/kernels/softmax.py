"""Softmax probes: the gradient by hand, and what a probe says about its targets.

A probe is one matrix of (class, d).  Nothing here holds more than two blocks of (row, class), whatever the number of
rows and of probes: rows are taken in blocks, so that the memory beyond the weights themselves is fixed.  (Blocks over
the classes would save nothing more: one block of a few hundred rows is smaller than the gradient of the matrix.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.lens import target_rank

BLOCK_BYTES = {"cpu": 2**24, "cuda": 2**28}


class Reading(NamedTuple):
    """What a probe says about its targets.

    Attributes
    ----------
    log_prob : torch.Tensor
        (row,) float32, nat, of the target; NaN without one, and where the probe had no row of it to be fitted on.
    rank : torch.Tensor
        (row,) int64, number of classes with a greater logit (0: the target comes first); -1 where that is NaN.
    """

    log_prob: Tensor
    rank: Tensor


class Scratch:
    """Two blocks of (row, class) to work in, made once and used for every probe.

    Parameters
    ----------
    classes : int
        Columns.
    rows : int
        Rows that are taken at a time at most.
    device : torch.device
        Where.
    products : torch.dtype
        float32, or bfloat16 for faster products; the softmax is float32 in either case.
    memory : int, optional
        Of one float32 block; by default 16 MiB on a CPU (it stays in the cache) and 256 MiB on a GPU.
    """

    def __init__(
        self, classes: int, rows: int, device: torch.device, products: torch.dtype = torch.float32,
        memory: int | None = None,
    ) -> None:  # fmt: skip
        room = memory or BLOCK_BYTES.get(device.type, 2**26)
        self.rows = max(1, min(rows, max(64, room // (4 * classes)) if memory is None else room // (4 * classes)))
        self.products = products
        self.prob = torch.empty(self.rows, classes, device=device, dtype=torch.float32)
        self.logits = torch.empty(self.rows, classes, device=device, dtype=products)

    @staticmethod
    def bytes(classes: int, rows: int, device: torch.device, products: torch.dtype = torch.float32) -> int:
        """Return the memory that such a scratch takes."""
        block = max(64, BLOCK_BYTES.get(device.type, 2**26) // (4 * classes))
        return min(rows, block) * classes * (4 + 2 * products.itemsize)


def softmax_gradient(
    x: Tensor, weight: Tensor, target: Tensor, grad: Tensor, scratch: Scratch, *, add: bool = False
) -> Tensor:
    """Write the gradient of the mean softmax cross-entropy of one probe; return the loss.

    With P the softmax of x W' and Y the one-hot targets the gradient is (P - Y)' x / n.  Each block of rows costs two
    products, one softmax in a reused buffer, and one subtraction per row; autograd keeps and copies four such blocks.

    Parameters
    ----------
    x : torch.Tensor
        (row, d) inputs in the dtype of the products.
    weight : torch.Tensor
        (class, d) float32.
    target : torch.Tensor
        (row,) int64 class, -1 where there is none: such a row takes no part.
    grad : torch.Tensor
        (class, d) float32; **overwritten**, or added to where ``add`` is true.
    scratch : Scratch
        For this number of classes.
    add : bool
        Add to what ``grad`` holds.

    Returns
    -------
    torch.Tensor
        () float32 mean cross-entropy of the rows with a target, nat (0 where there are none).

    Examples
    --------
    >>> x, w, g = torch.ones(1, 2), torch.zeros(2, 2), torch.empty(2, 2)
    >>> float(softmax_gradient(x, w, torch.tensor([0]), g, Scratch(2, 1, x.device)).exp())
    2.0
    >>> g.tolist()
    [[-0.5, -0.5], [0.5, 0.5]]
    """
    known = target >= 0
    share = known.to(torch.float32).div_(known.sum().clamp_min(1))
    matrix = weight.to(scratch.products).T
    loss = torch.zeros((), device=x.device, dtype=torch.float32)
    for start in range(0, len(x), scratch.rows):
        rows = slice(start, start + scratch.rows)
        block, part, prob = x[rows], share[rows], scratch.prob[: len(x[rows])]
        logits = torch.mm(block, matrix, out=scratch.logits[: len(block)])
        loss += _minus_one_hot(logits, target[rows], part, prob)
        right = block.float() * part[:, None]  # rows without a target get no share
        if scratch.products == torch.float32:
            grad.addmm_(prob.T, right, beta=1.0 if add or start else 0.0)
        else:
            piece = torch.mm(prob.to(scratch.products).T, right.to(scratch.products))
            grad.add_(piece) if add or start else grad.copy_(piece)
    return loss


def factored_gradient(
    x: Tensor, factor: Tensor, head: Tensor, target: Tensor, grad: Tensor, scratch: Scratch, *, add: bool = False
) -> Tensor:
    """Write the gradient of the mean cross-entropy with respect to ``factor``, where the weights are head @ factor.

    Parameters
    ----------
    x : torch.Tensor
        (row, d) inputs in the dtype of the products.
    factor : torch.Tensor
        (m, d) float32, what is trained.
    head : torch.Tensor
        (class, m) float32, frozen.
    target, scratch, add
        As for `softmax_gradient`.
    grad : torch.Tensor
        (m, d) float32; overwritten, or added to.

    Returns
    -------
    torch.Tensor
        () float32 mean cross-entropy, nat.
    """
    kind = scratch.products
    known = target >= 0
    share = known.to(torch.float32).div_(known.sum().clamp_min(1))
    inner, outer = factor.to(kind).T, head.to(kind)
    loss = torch.zeros((), device=x.device, dtype=torch.float32)
    for start in range(0, len(x), scratch.rows):
        rows = slice(start, start + scratch.rows)
        block = x[rows]
        logits = torch.mm(block @ inner, outer.T, out=scratch.logits[: len(block)])
        prob, part = scratch.prob[: len(block)], share[rows]
        loss += _minus_one_hot(logits, target[rows], part, prob)
        right = ((prob.to(kind) @ outer).float() * part[:, None]).T @ block.float()
        grad.add_(right) if add or start else grad.copy_(right)
    return loss


def _minus_one_hot(logits: Tensor, target: Tensor, share: Tensor, prob: Tensor) -> Tensor:
    """Write softmax minus one-hot into ``prob`` and return the cross-entropy weighted by ``share``."""
    goal = target.clamp_min(0)[:, None]
    torch.softmax(logits, 1, dtype=torch.float32, out=prob)
    loss = -prob.gather(1, goal)[:, 0].clamp_min(1e-38).log_().dot(share)
    prob.scatter_add_(1, goal, prob.new_full((1, 1), -1.0).expand(len(prob), 1))
    return loss


def read_targets(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, scratch: Scratch | None = None,
    rank: bool = True,
) -> Reading:  # fmt: skip
    """Return log-probability and rank of the target of each row under one probe.

    Parameters
    ----------
    x : torch.Tensor
        (row, d).
    weight : torch.Tensor
        (class, d) float32.
    target : torch.Tensor
        (row,) int64 class, -1 where there is none.
    bias : torch.Tensor, optional
        (class,); -inf for classes without rows (`shrunk_lda`), of which the probe knows nothing.
    scratch : Scratch, optional
        For this number of classes.
    rank : bool
        Count the greater logits; without, all ranks are -1.

    Examples
    --------
    >>> found = read_targets(torch.eye(2), torch.eye(2) * 50, torch.tensor([0, 0]))
    >>> found.rank.tolist(), found.log_prob.tolist()
    ([0, 1], [0.0, -50.0])
    """
    scratch = scratch or Scratch(len(weight), len(x), x.device)
    if bias is not None:  # not a probability of 0: there was nothing to fit
        target = target.masked_fill(bias.isneginf()[target.clamp_min(0)], -1)
    known = target >= 0
    out = torch.full((len(x),), torch.nan, device=x.device, dtype=torch.float32)
    ranks = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    matrix = weight.to(scratch.products).T
    for start in range(0, len(x), scratch.rows):
        rows = slice(start, start + scratch.rows)
        block, goal = x[rows].to(scratch.products), target[rows]
        logits = torch.mm(block, matrix, out=scratch.logits[: len(block)])
        logits = logits if bias is None else logits.add_(bias)
        reached = logits.gather(1, goal.clamp_min(0)[:, None])[:, 0].float()
        out[rows] = reached - torch.logsumexp(logits.float(), 1)
        if rank:
            ranks[rows] = target_rank(logits, goal, scratch.prob[: len(block)])
    return Reading(out.masked_fill_(~known, torch.nan), ranks)


def top_classes(x: Tensor, weight: Tensor, k: int, bias: Tensor | None = None) -> Tensor:
    """Return (row, k) int64 classes of the greatest logits, greatest first."""
    logits = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    return logits.topk(k, 1).indices
