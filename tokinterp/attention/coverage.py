"""SegmentCoverage: which share of the attention on past segments falls on their separators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count
from .kernels import LEAST
from .masks import SEP, separators_of

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

EACH = ("prompt", "block", "head")


@checked(window=count(1), initial=count())
class SegmentCoverage(Measurement):
    """Which share of the attention on past segments falls on their separators.

    Segments are (b_{i-1}, b_i] between separators b_i. Attention within reach (the query's own segment, or the last
    ``window`` tokens) and on the first ``initial`` tokens, the sink, is left out.

    Parameters
    ----------
    window : int, optional
        Last keys, the query itself counted, that are within reach; by default those of the query's own segment.
    initial : int
        First tokens that are left out.
    blocks : iterable of int, optional
        All by default.

    Notes
    -----
    ``separator_share``, ``chance`` and ``enrichment`` are over the ``n_queries`` that have keys and attention out of
    reach; NaN without any.  The patterns pass by one block at a time.

    Memory: 15 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"coverage": ti.attention.SegmentCoverage()}
    >>> run = ti.measure(ti.load_model(), ["One, two. Three, four."], asked, progress=False)
    >>> bool((run["coverage"]["separator_share"] <= 1).all())
    True
    """

    first = ("separator_share", "enrichment", "far_mass")
    fields = {
        "far_mass": Field(EACH, "mean attention out of reach", "1", SEP, short="attention out of reach", range=(0, 1)),
        "separator_share": Field(
            EACH, "share of it on separators", "1", SEP, short="share of attention on separators", range=(0, 1),
            chance="chance",
        ),
        "chance": Field(EACH, "share of separators among the keys out of reach"),
        "enrichment": Field(
            EACH, "share on separators over chance", short="share on separators over chance", range=(0, None), chance=1,
        ),
        "n_queries": Field(EACH, "queries with attention out of reach"),
    }  # fmt: skip
    block_site = "pattern"
    streams = True

    def __init__(self, window: int | None = None, initial: int = 1, blocks: Iterable[int] | None = None) -> None:
        super().__init__()
        self.window, self.initial, self.blocks = window, initial, blocks

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the attention patterns of the blocks."""
        return [Site("pattern", b) for b in self.at_blocks(info)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Find the separators, and check that some query has a key out of reach."""
        super().begin(info, prompts)
        self._separators = separators_of(prompts)
        lengths = np.asarray(prompts.lengths)
        place = np.arange(prompts.n_tokens) - np.repeat(prompts.starts[:-1], lengths)
        if self.window is None:
            inside = (place >= self.initial) & (place < np.repeat(lengths, lengths) - 1)
            able = bool((inside & np.isin(prompts.token_ids, self._separators)).any())
        else:
            able = int(lengths.max()) - 1 - self.initial >= self.window
        if not able:
            raise ValueError(
                f"window={self.window}, initial={self.initial}: no query has a key out of reach: give longer texts of "
                "several segments, or smaller ones"
            )

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Reduce a pattern to the sums of `coverage`."""
        mark, far = self._places(batch)
        return coverage(value, mark, far)

    def update(self, batch: Batch) -> None:
        """Take the means of a batch."""
        sums = torch.stack([batch.seen(self, Site("pattern", b)) for b in self.at_blocks()], 1)
        able = (self._places(batch)[1].any(-1)).sum(-1)[:, None, None]
        mass, share, chance, number = means(sums, able)
        enrichment = torch.where(chance > 0, share / chance, torch.nan)
        self.keep(
            batch, far_mass=mass, separator_share=share, chance=chance, enrichment=enrichment, n_queries=number.long()
        )

    def _places(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (prompt, key) the separators, and (prompt, query, key) the keys out of reach."""
        mark = torch.isin(batch.ids, torch.tensor(self._separators, dtype=torch.int64, device=batch.device))
        return mark & batch.mask, out_of_reach(mark & batch.mask, batch.mask, self.window, self.initial)


def out_of_reach(mark: torch.Tensor, mask: torch.Tensor, window: int | None, initial: int) -> torch.Tensor:
    """Return (prompt, query, key) bool, true on keys of past segments, or before the window, behind the first ones."""
    place = torch.arange(mark.shape[1], device=mark.device, dtype=torch.int64)
    if window is None:
        segment = mark.cumsum(1) - mark.long()
        far = segment[:, :, None] > segment[:, None, :]
    else:
        far = (place[:, None] - place[None, :] >= window)[None]
    return far & (place >= initial) & mask[:, :, None] & mask[:, None, :]


def coverage(pattern: torch.Tensor, mark: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """Return (prompt, head, 4) sums over queries: mass out of reach, share on separators, chance, and their number.

    The last three are over the queries with mass out of reach.

    Parameters
    ----------
    pattern : torch.Tensor
        (prompt, head, query, key) attention weights.
    mark, far : torch.Tensor
        (prompt, key) separators; (prompt, query, key) keys out of reach.
    """
    both = (far & mark[:, None]).double()
    left = (pattern * far[:, None]).sum(-1, dtype=torch.float64)
    on = (pattern * both[:, None]).sum(-1, dtype=torch.float64)
    size = far.double().sum(-1)
    counts = (size > 0)[:, None] & (left > LEAST)
    part = torch.where(counts, on / left.clamp_min(LEAST), 0)
    among = torch.where(counts, (both.sum(-1) / size.clamp_min(1))[:, None], 0)
    return torch.stack([left.sum(-1), part.sum(-1), among.sum(-1), counts.double().sum(-1)], -1)


def means(sums: torch.Tensor, able: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return mass out of reach, share on separators, chance and number of queries, of the sums of `coverage`.

    Parameters
    ----------
    sums : torch.Tensor
        (..., 4).
    able : torch.Tensor
        (...) queries with keys out of reach.
    """
    mass, part, among, number = sums.unbind(-1)
    return mass / able, part / number, among / number, number
