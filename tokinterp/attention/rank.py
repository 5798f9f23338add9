"""AttentionRank: how many dimensions the attention of each head has, against its size and against no structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, several

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

BHOJANAPALLI = "Bhojanapalli et al. 2020, arXiv 2002.07028"
ROY = "Roy and Vetterli 2007, The effective rank"
EACH = ("prompt", "length", "block", "head")


@checked(lengths=several(count(2), 1, ascending=True))
class AttentionRank(Measurement):
    """Rank and effective rank of the logits of every head, and of its weights, over the first tokens of prompts.

    A head whose keys are narrower than the text is long cannot express every pattern: the rank of its logits is at most
    d_head, and of its effective rank less is used.  The logits are products of queries and keys as attention uses them
    (rotated), before masking, over all pairs of positions, later keys included.

    Parameters
    ----------
    lengths : sequence of int
        Numbers of tokens at the beginning that are looked at, each in the prompts that have so many.
    blocks : iterable of int, optional
        All by default.
    seed : int
        Of the random baseline.

    Notes
    -----
    ``rank_logits`` counts singular values above n eps times the largest, eps that of float32 whatever the dtype of the
    weights: in half precision the rounding of queries and keys counts as dimensions, too.
    ``eff_rank`` is exp of the entropy of the singular values divided by their sum; ``stable_rank`` the sum of squares
    over the largest square.  ``null_eff_rank`` is the effective rank of logits of Gaussian queries and keys with the
    mean and spread of each coordinate of the head's own: what independent tokens would have.  ``eff_rank_pattern``
    is that of the weights after the softmax, whose rank is full whatever that of the logits.

    Soft caps and biases by distance (ALiBi) are added behind these logits and are not a part of them.

    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    References
    ----------
    Bhojanapalli et al. 2020, arXiv 2002.07028.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([ti.bundled_texts("story")[0].text], model, max_tokens=64)
    >>> ds = ti.measure(model, prompts, {"r": ti.attention.AttentionRank([64])}, progress=False)["r"]
    >>> bool((ds["rank_logits"] <= ds["rank_bound"]).all())
    True
    """

    first = ("eff_rank", "eff_rank_share", "eff_rank_pattern")
    fields = {
        "rank_logits": Field(EACH, "rank of the attention logits", "1", BHOJANAPALLI, short="rank of the logits",
                             range=(0, None)),
        "eff_rank": Field(EACH, "effective rank of the attention logits", "1", ROY, range=(1, None),
                          short="effective rank of the logits", chance="null_eff_rank"),
        "null_eff_rank": Field(EACH, "effective rank of logits of independent Gaussian queries and keys",
                               short="independent tokens"),
        "eff_rank_share": Field(EACH, "effective rank of the logits over what the size of the head allows", "1",
                                BHOJANAPALLI, short="share of the rank that is used", range=(0, 1)),
        "stable_rank": Field(EACH, "stable rank of the attention logits", range=(1, None)),
        "eff_rank_pattern": Field(EACH, "effective rank of the attention weights", "1", ROY,
                                  short="effective rank of the weights", range=(1, None)),
        "rank_bound": Field(EACH, "largest rank that the size of the head allows", "1", BHOJANAPALLI),
    }  # fmt: skip
    streams = True
    block_site = "pattern"

    def __init__(self, lengths: Iterable[int] = (32, 64, 128), blocks: Iterable[int] | None = None, seed: int = 0):
        super().__init__()
        self.lengths, self.blocks, self.seed = tuple(lengths), blocks, seed

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return queries, keys and weights of the blocks."""
        return [Site(name, b) for b in self.at_blocks(info) for name in ("query", "key", "pattern")]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that some prompt is long enough."""
        super().begin(info, prompts)
        if max(prompts.lengths) < self.lengths[0]:
            raise ValueError(
                f"lengths={list(self.lengths)}: the longest prompt has {max(prompts.lengths)} tokens: give longer "
                "prompts, or shorter lengths"
            )

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Hold the queries until the keys are reached; return ranks of logits, of no structure, and of weights.

        -1 for prompts that are shorter than a length.
        """
        heads = self.info.n_heads
        held = batch.once((id(self), "query"), dict[str, torch.Tensor])
        if site.name == "query":
            held["query"] = value
            return value.flatten(1).float().abs().amax(1, keepdim=True)
        if site.name == "pattern":
            return self._each(batch, heads, 1, lambda n: effective_rank(_values(value[:, :, :n, :n]))[..., None])
        query = held.pop("query").to(value.device).unflatten(2, (heads, -1)).transpose(1, 2).double()
        key = value.unflatten(2, (-1, query.shape[-1])).transpose(1, 2).double()
        key = key.repeat_interleave(heads // key.shape[1], 1)
        eps = torch.finfo(torch.float32).eps  # that of bfloat16 times 128 tokens leaves no rank at all

        def ranks(n: int) -> torch.Tensor:
            q, k = query[:, :, :n], key[:, :, :n]
            own = _values(q @ k.mT)
            draw = torch.Generator("cpu").manual_seed(self.seed)
            free = _values(_independent(q, draw) @ _independent(k, draw).mT)
            rank = (own > n * eps * own[..., :1]).sum(-1).double()
            stable = own.square().sum(-1) / own[..., 0].square().clamp_min(1e-300)
            bound = torch.full_like(rank, min(n, q.shape[-1]))
            return torch.stack([rank, effective_rank(own), effective_rank(free), stable, bound], -1)

        return self._each(batch, heads, 5, ranks)

    def _each(self, batch: Batch, heads: int, many: int, of: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """Return (prompt, length, head, number) of what is asked of each length, -1 where a prompt is shorter."""
        long = torch.tensor(batch.lengths, device=batch.device, dtype=torch.int64)
        out = torch.full((len(batch), len(self.lengths), heads, many), -1, dtype=torch.float64, device=batch.device)
        for i, n in enumerate(self.lengths):
            if n <= batch.ids.shape[1]:
                out[:, i] = torch.where((long >= n)[:, None, None], of(n).to(batch.device), -1)
        return out

    def update(self, batch: Batch) -> None:
        """Take the ranks of a batch."""
        seen: dict[str, list[torch.Tensor]] = {}
        for site in self.sites(self.info):  # in the order of the pass, where they were kept
            seen.setdefault(site.name, []).append(batch.seen(self, site))
        found = torch.cat([torch.stack(seen[n], 2) for n in ("key", "pattern")], -1)
        rank, eff, free, stable, bound, weights = torch.where(found < 0, torch.nan, found).unbind(-1)
        self.keep(
            batch, rank_logits=rank, eff_rank=eff, null_eff_rank=free, stable_rank=stable, rank_bound=bound,
            eff_rank_share=eff / bound, eff_rank_pattern=weights,
        )  # fmt: skip

    def coords(self) -> Mapping[str, Any]:
        """Return the lengths."""
        return {"length": (np.array(self.lengths), "tokens looked at, from the first", "token")}


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """Return (...,) exp of the entropy of (..., value) singular values over their sum.

    Examples
    --------
    >>> round(float(effective_rank(torch.tensor([1.0, 1.0, 0.0]))), 6)
    2.0
    """
    share = values / values.sum(-1, keepdim=True).clamp_min(1e-300)
    return torch.special.entr(share).sum(-1).exp()


def _values(matrices: torch.Tensor) -> torch.Tensor:
    """Return singular values, NaN of what is not finite."""
    matrices = matrices.double()
    finite = matrices.isfinite().all(-1).all(-1)[..., None]
    return torch.linalg.svdvals(torch.where(finite[..., None], matrices, 0)).masked_fill(~finite, torch.nan)


def _independent(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return Gaussian rows with the mean and standard deviation of each coordinate of (prompt, head, row, coordinate).

    The same numbers for every prompt, whatever the batch.
    """
    noise = torch.randn(x.shape[1:], generator=draw, dtype=torch.float64, device="cpu").to(x.device)
    return x.mean(2, keepdim=True) + x.std(2, keepdim=True) * noise
