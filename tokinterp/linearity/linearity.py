"""Linearity: how well each block's output is a linear map of its input, with and without the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import linear
from ..kernels.duplicates import first_of_kind
from ..run.measurement import Field
from ..settings import checked, number
from .chains import Chains

if TYPE_CHECKING:
    from ..run.batch import Batch

REFUSED = "0: given; 1: no more distinct rows than directions: any map fits; 2: no output but the input"

SECRETLY = "Razzhigaev et al. 2024, arXiv 2405.12250, section 3; 2025, arXiv 2502.15007, section 3.1"
STEPS = ("relative_step", "relative_step_after", "cosine")


@checked(cutoff=number(0, below=1))
class Linearity(Chains):
    """Linearity score of every block: the share of the variance of layer b + 1 that a linear map of layer b explains.

    One reading and float64 sums of fixed size; the second moments of a layer serve the block before and the block after
    it. The map is any matrix with an intercept, fitted by least squares; the papers call the score "Procrustes
    similarity", but no rotation is meant (``rotation_similarity`` is that one).

    Parameters
    ----------
    blocks : iterable of int, optional
        Blocks to look at; all by default. Block b leads from layer b to layer b + 1.
    exclude : sequence of str
        Rows left out: ``"special"`` (BOS and other special tokens) and ``"massive"`` (rows found at any of the
        layers in use, so that all have the same rows). ``()`` gives the published score, which one
        massive row can move from 0.98 to 0.99.
    held_out : bool
        Also fit on each half of the prompts (even and odd numbers) and score the other; doubles the memory.
    cutoff : float
        Eigenvalues of the input's covariance below this times the largest take no part in the map (the published code
        divides by all singular values, however small).

    Notes
    -----
    Independent clouds of n rows have an expected score of rank / (n - 1) (``linearity_floor``), so the raw score needs
    n of many times d_model; ``linearity_adjusted`` = 1 - (1 - score)(n - 1)/(n - rank - 1) is 0 there, and
    ``linearity_held_out`` pays no price for the number of parameters. All are NaN, and ``refused`` says so, where
    n_distinct - 1 <= rank: there any two clouds have a score of 1. Tokens of one text are not independent rows, so the
    true floor is somewhat higher; the held-out score, whose halves share no prompt, is the safest to quote.

    Without the residual the output is layer b + 1 minus layer b, what the block adds; the held-out score then is
    relative to the smaller variance and can be far below 0.

    ``rotation_similarity`` is not squared: where the best map is a rotation and a scale it is the root of linearity.

    Memory: (layers + blocks) x halves float64 matrices of d_model x d_model.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts("story")[:12]]
    >>> run = ti.measure(model, texts, {"linearity": ti.linearity.Linearity(blocks=[0, 1])}, progress=False)
    >>> run["linearity"]["linearity"].dims
    ('block',)
    """

    first = ("linearity", "linearity_without_residual", "relative_step", "cosine")
    fields = {
        "linearity": Field(
            ("block",), "share of the next layer's variance that a linear map of this layer explains", "1", SECRETLY,
            short="linearity", range=(0, 1), chance="linearity_floor",
            beside=("linearity_adjusted", "linearity_held_out"),
        ),
        "linearity_adjusted": Field(
            ("block",), "linearity, adjusted for the number of parameters of the map", short="adjusted",
        ),
        "linearity_held_out": Field(
            ("block",), "linearity on the half of the prompts that the map was not fitted on", short="held out",
        ),
        "linearity_without_residual": Field(
            ("block",), "share of the variance of what the block adds that is linear", "1", SECRETLY,
            short="linearity without the residual", range=(0, 1),
            beside=("linearity_without_residual_adjusted", "linearity_without_residual_held_out"),
        ),
        "linearity_without_residual_adjusted": Field(
            ("block",), "linearity without the residual, adjusted for parameters", short="adjusted",
        ),
        "linearity_without_residual_held_out": Field(
            ("block",), "linearity without the residual on the other half of the prompts", short="held out",
        ),
        "linearity_floor": Field(
            ("block",), "expected linearity of independent clouds of as many rows, rank / (n - 1)",
            short="independent clouds, as published",
        ),
        "rotation_similarity": Field(
            ("block",), "nuclear norm of the normalised cross-covariance (orthogonal Procrustes)",
            short="Procrustes similarity", range=(0, 1),
        ),
        "rank": Field(("block",), "directions of the input that the map uses"),
        "n": Field(("block",), "rows that take part", "token"),
        "n_distinct": Field(
            ("block",), "the same without rows that repeat an earlier one of their prompt at both layers", "token"
        ),
        "refused": Field(("block",), "why a score is missing"),
        "prompt_n": Field(("prompt",), "rows of the prompt that take part", "token"),
        "relative_step": Field(
            ("prompt", "block"), "mean norm of what the block adds over the norm of its input",
            short="norm added / norm of the input", log=True,
        ),
        "relative_step_after": Field(
            ("prompt", "block"), "mean norm of what the block adds over the norm of its output", "1", SECRETLY,
            short="norm added / norm of the output", log=True,
        ),
        "cosine": Field(
            ("prompt", "block"), "mean cosine of a token's stream before and after the block",
            short="cosine before and after the block", range=(None, 1),
        ),
    }  # fmt: skip

    def __init__(
        self,
        blocks: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special", "massive"),
        held_out: bool = True,
        cutoff: float = linear.CUTOFF,
    ) -> None:
        super().__init__()
        self.blocks, self.exclude = blocks, exclude
        self.held_out, self.cutoff = held_out, cutoff
        self.parts = 2 if self.held_out else 1

    def update(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        keep = self.kept(batch)
        self.add_batch(batch, keep)
        first = {n: first_of_kind(batch.points(n), keep) for n in self.at_layers()}
        place = torch.arange(keep.shape[1], dtype=torch.int64, device=batch.device)
        copies = [(first[b] == first[b + 1]) & (first[b] != place) for b in self.at_blocks()]
        self.add("distinct", torch.stack([(keep & ~c).sum() for c in copies]))
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in STEPS}
        for b in self.at_blocks():
            x, y = batch.resid(b).float(), batch.resid(b + 1).float()
            before, after = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
            step = torch.linalg.vector_norm(y - x, dim=-1)
            cosine = torch.linalg.vecdot(x, y) / (before * after)
            for name, value in zip(STEPS, (step / before, step / after, cosine), strict=True):
                ok = keep & value.isfinite()
                total = value.masked_fill(~ok, 0).sum(1, dtype=torch.float64)
                columns[name].append(total / ok.sum(1))
        self.keep(batch, prompt_n=keep.sum(1), **{k: torch.stack(v, 1) for k, v in columns.items()})

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the scores of the blocks."""
        cells = [self._numbers(i) for i in range(len(self.at_blocks()))]
        return {name: np.array([c[name] for c in cells]) for name in cells[0]}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out, and why scores are missing."""
        return {"refused": {"meaning": REFUSED}, "n": {"exclude": ", ".join(self.exclude) or "nothing"}}

    def _numbers(self, place: int) -> dict[str, Any]:
        """All numbers of one block."""
        whole = self.pair(place)
        parts = linear.decompose(whole.scatter)
        halves = [self.pair(place, [p]) for p in range(self.parts)] if self.held_out else []
        of_halves = [linear.decompose(h.scatter) for h in halves]
        out: dict[str, Any] = {"n": int(whole.count), "n_distinct": int(self.sums["distinct"][place])}
        for prefix, change in (("linearity", lambda p: p), ("linearity_without_residual", linear.without_residual)):
            pair = change(whole)
            fit = linear.solve(pair, cutoff=self.cutoff, parts=parts)
            score, rank = float(linear.linearity(pair, fit)), int(fit.rank)
            enough = out["n_distinct"] - 1 > rank > 0
            out[prefix] = score if enough else np.nan
            out[f"{prefix}_adjusted"] = float(
                linear.adjusted(torch.tensor(out[prefix], dtype=torch.float64, device="cpu"), pair.count, fit.rank)
            )
            if halves:
                fits = [
                    linear.solve(change(h), cutoff=self.cutoff, parts=p) for h, p in zip(halves, of_halves, strict=True)
                ]
                out[f"{prefix}_held_out"] = _held_out([change(h) for h in halves], fits) if enough else np.nan
            if prefix == "linearity":
                out["rank"] = rank
                out["linearity_floor"] = float(linear.floor(pair.count, fit.rank)) if enough else np.nan
                out["rotation_similarity"] = float(linear.rotation_similarity(pair)) if enough else np.nan
            out["refused"] = 1 if not enough else 2 if np.isnan(score) else 0
        return out


def _held_out(halves: list[linear.Pair], fits: list[linear.Fit]) -> float:
    """Return 1 - residual / total sum of squares, each half scored by the map of the other."""
    left, total = 0.0, 0.0
    for i, (train, test) in enumerate((halves, halves[::-1])):
        if int(train.count) - 1 <= int(fits[i].rank) or int(test.count) < 2:
            return np.nan
        left += float(linear.held_out(fits[i], train, test))
        total += float(test.total)
    return 1 - left / total if total > 0 else np.nan
