"""The shares that heads, keys, biases, MLP and what was there before have in the stream of one block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ..kernels.attribution import head_nearness, nearness, pruned
from ..run.sites import Site

if TYPE_CHECKING:
    from ..models.hooks import HookedLM
    from ..run.batch import Batch

PARTS = ("resid", "value", "pattern", "attn_out", "mlp_out")
"""Sites of a block that its shares are made of, in the order of a pass."""


class Rule(NamedTuple):
    """How shares are made and which of them are edges.

    Attributes
    ----------
    norm : {1, 2}
        Of the vectors.
    threshold : float
        Edges have more than this.
    renormalise : bool
        Whether what is not above the threshold is taken away before the rest is made to sum to one, after which every
        share is an edge.
    bias : bool
        Whether the bias of the output projection is a part.
    """

    norm: int = 1
    threshold: float = 0.04
    renormalise: bool = False
    bias: bool = True

    @property
    def least(self) -> float:
        """What an edge must be above."""
        return 0.0 if self.renormalise else self.threshold


class Shares(NamedTuple):
    """Shares of the parts of one block.

    Attributes
    ----------
    heads : torch.Tensor
        (prompt, head, query, key) in the stream after attention; in that after the block where attention and MLP work
        in parallel.
    resid, bias : torch.Tensor
        (prompt, query) of the stream before the block and of the output projection's bias in the same sum.
    mlp : torch.Tensor
        (prompt, query) of the MLP in the stream after the block.
    through : torch.Tensor or None
        (prompt, query) of the stream before the MLP in that after it; None in a parallel block.
    """

    heads: Tensor
    resid: Tensor
    bias: Tensor
    mlp: Tensor
    through: Tensor | None

    def edges(self, least: float) -> Tensor:
        """Return (prompt, query, key) bool: edges to the stream after attention from that before the block.

        What a token takes from itself is the sum of its heads and its residual connection; in a parallel block its MLP
        leads there too.
        """
        weight = self.heads.sum(1)
        weight.diagonal(dim1=1, dim2=2).add_(self.resid)
        out = weight > least
        if self.through is None:
            out.diagonal(dim1=1, dim2=2).logical_or_(self.mlp > least)
        return out

    def open(self, least: float) -> Tensor:
        """Return (prompt, query) bool: whether there is an edge from after the block to after attention."""
        if self.through is None:
            return torch.ones_like(self.mlp, dtype=torch.bool)
        return (self.through > least) | (self.mlp > least)


def block_shares(batch: Batch, block: int, found: Mapping[str, Tensor], rule: Rule) -> Shares:
    """Return the shares of a block from its activations.

    Parameters
    ----------
    batch : Batch
        Whose activations they are.
    block : int
        Its number.
    found : mapping of str to torch.Tensor
        The activations by site, those of ``PARTS``.
    rule : Rule
        How shares are made.

    Raises
    ------
    ValueError
        If the heads do not sum to what attention adds to the stream.
    """
    device, model = batch.device, cast("HookedLM", batch.model)
    dtype = torch.promote_types(found["attn_out"].dtype, torch.float32)
    x, value, pattern, out, mlp = (found[n].to(device, dtype) for n in PARTS)
    makes = model.writes(block, found["value"])
    weight = makes.weight.to(device, dtype)
    n_heads, d_value, _ = weight.shape
    each = value.unflatten(2, (-1, d_value)).transpose(1, 2)
    written = each.repeat_interleave(n_heads // each.shape[1], 1) @ weight
    bias = None if makes.bias is None else makes.bias.to(device, dtype)
    if makes.gain is not None:
        gain = makes.gain.to(device, dtype)
        written, bias = written * gain, None if bias is None else bias * gain
    total = (pattern @ written).sum(1) + (0 if bias is None else bias)
    if makes.gain is not None:  # the norm divides by a number of its own at each position
        size = ((out * total).sum(-1) / total.square().sum(-1).clamp_min(1e-30))[..., None]
        total, pattern, bias = total * size, pattern * size[:, None], None if bias is None else bias * size
    _check_sum(total, out, batch.mask, model, block)
    parallel = Site("resid_mid", block).at not in model.offered.get("resid_mid", ())
    after = x + out + (mlp if parallel else 0)
    names, others = ["resid"], [x]
    if bias is not None and rule.bias:
        names, others = [*names, "bias"], [*others, bias.expand_as(x)]
    if parallel:
        names, others = [*names, "mlp"], [*others, mlp]
    near = torch.stack([nearness(after, part, rule.norm) for part in others], -1)
    heads = head_nearness(after, pattern, written, rule.norm)
    shares = torch.cat([heads.transpose(1, 2).flatten(2), near], -1)
    shares = shares / shares.sum(-1, keepdim=True)
    shares = pruned(shares, rule.threshold) if rule.renormalise else shares
    parts: dict[str, Any] = dict(zip(names, shares[..., -len(names) :].unbind(-1), strict=True))
    nothing = torch.zeros_like(near[..., 0])
    by_head = shares[..., : -len(names)].unflatten(2, (n_heads, -1)).transpose(1, 2)
    through = None
    if not parallel:
        end = after + mlp
        two = torch.stack([nearness(end, part, rule.norm) for part in (mlp, after)], -1)
        two = two / two.sum(-1, keepdim=True)
        parts["mlp"], through = (pruned(two, rule.threshold) if rule.renormalise else two).unbind(-1)
    return Shares(by_head, parts["resid"], parts.get("bias", nothing), parts["mlp"], through)


def _check_sum(total: Tensor, out: Tensor, mask: Tensor, model: HookedLM, block: int) -> None:
    apart = (total - out).norm(dim=-1) / out.norm(dim=-1).clamp_min(1e-6)
    worst = float(torch.where(mask & apart.isfinite(), apart, 0).max())
    if worst > max(5 * model.tolerance, 1e-3):
        raise ValueError(
            f"block {block} of {model.info.architecture}: what its heads write differs by {worst:.2g} from what "
            "attention adds to the stream, so that it has no parts: leave out edits of attn_out, or take a model whose "
            "attention has a plain output projection, with an RMS norm behind it or none"
        )
