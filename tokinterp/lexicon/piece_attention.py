"""PieceAttention: how much the last piece of a word attends to the pieces before it, in every block and head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, several
from ..text.pieces import rows_of, word_pieces

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

PAPER = "Kaplan et al. 2025, arXiv 2410.05864"

EACH = ("prompt", "pieces", "block", "head")


@checked(sizes=several(count(2), ascending=True))
class PieceAttention(Measurement):
    """Attention from the last token of words of several tokens to their earlier tokens.

    Patterns are read block by block as the pass reaches them and are never held together.

    The control has the same distances and no word: attention from a word of one token to as many tokens before it,
    which are all words of one token too.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of tokens of a word.
    blocks : iterable of int, optional
        All by default.
    by_head : bool
        Whether heads are kept apart; else their mean.
    min_position : int
        Words whose first token stands before this position (BOS counted) are left out: the fewer tokens there are to
        attend to, the more each gets.

    Notes
    -----
    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("story")[:3]]
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=128)
    >>> run = ti.measure(model, prompts, {"pieces": ti.lexicon.PieceAttention((2, 3))}, progress=False)
    >>> run["pieces"]["attention"].dims
    ('prompt', 'pieces', 'block')
    """

    first = ("attention",)
    fields = {
        "attention": Field(
            EACH, "attention from the last token of a word to its earlier tokens", "1", PAPER,
            short="attention to earlier pieces", range=(0, None), beside=("control",),
        ),
        "control": Field(
            EACH, "attention from a one-token word to as many one-token words before it",
            short="one-token words before it", range=(0, None),
        ),
        "n_words": Field(("prompt", "pieces"), "words"),
        "n_control": Field(("prompt", "pieces"), "words of the control"),
    }  # fmt: skip
    block_site = "pattern"
    streams = True

    def __init__(
        self,
        sizes: Sequence[int] = (2, 3, 4),
        blocks: Iterable[int] | None = None,
        by_head: bool = False,
        min_position: int = 8,
    ) -> None:
        super().__init__()
        self.sizes, self.blocks, self.by_head, self.min_position = tuple(sizes), blocks, by_head, min_position
        if not by_head:
            self.fields = {n: replace(f, dims=f.dims[:3]) for n, f in self.fields.items()}

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the attention weights of the blocks."""
        return [Site("pattern", b) for b in self.at_blocks(info)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Find the words, and the runs of one-token words they are compared with."""
        super().begin(info, prompts)
        table = word_pieces(prompts, self.sizes, self.min_position)
        if not (table[:, 3] == 0).any():
            raise ValueError(
                f"none of the {len(prompts)} prompts has a word of {list(self.sizes)} tokens at position "
                f"{self.min_position} or later: give longer text, or other sizes"
            )
        self._table = table

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, size, control or not, head) the sum of the weights on the pieces before, over the words."""
        n_heads, sizes = self.info.n_heads if self.by_head else 1, self.sizes
        place, query, size, cell = self._rows(batch)
        total = torch.zeros(len(batch) * len(sizes) * 2, n_heads, dtype=torch.float64, device=batch.device)
        for back in range(1, max(sizes)):
            weight = value[place, :, query, (query - back).clamp_min(0)].double() * (size > back)[:, None]
            total.index_add_(0, cell, weight if self.by_head else weight.mean(1, keepdim=True))
        return total.unflatten(0, (len(batch), len(sizes), 2))

    def update(self, batch: Batch) -> None:
        """Average over the words of each prompt."""
        cell = self._rows(batch)[-1]
        count = torch.zeros(len(batch) * len(self.sizes) * 2, dtype=torch.float64, device=batch.device)
        count.index_add_(0, cell, torch.ones(len(cell), dtype=torch.float64, device=batch.device))
        count = count.unflatten(0, (len(batch), len(self.sizes), 2))
        looks = torch.stack([batch.seen(self, site) for site in self.sites(self.info)], 3)
        # 0/0 is NaN: the prompt has no such word.
        mass, n = looks / count[..., None, None], count.long()
        if not self.by_head:
            mass = mass[..., 0]
        self.keep(batch, attention=mass[:, :, 0], control=mass[:, :, 1], n_words=n[:, :, 0], n_control=n[:, :, 1])

    def _rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return, for each word of a batch and its control: place of the prompt, query, size, and cell of the sum."""
        found = torch.from_numpy(rows_of(self._table, batch.numbers)).to(batch.device)
        place, query, size, control = found.unbind(1)
        kind = (size[:, None] == torch.tensor(self.sizes, device=batch.device, dtype=torch.int64)).int().argmax(1)
        return place, query, size, (place * len(self.sizes) + kind) * 2 + control

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of tokens."""
        return {"pieces": (np.array(self.sizes), "tokens of the word", "token")}
