"""Where a network trained on Match3 looks: from its fillers and from the answer position, by block and head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...run.measurement import Field, Measurement
from ...run.sites import Site
from ...settings import checked, count
from . import match3
from .contents import check_fillers
from .task import Task
from .words import Words

if TYPE_CHECKING:
    from ...models.info import ModelInfo
    from ...run.batch import Batch
    from ...text.prompts import Prompts

QUERIES = ("fillers", "answer")
KEYS = ("rows", "end of input", "other fillers", "self")
EACH = ("prompt", "block", "head")
REFERENCE = "Pfau, Merrill and Bowman 2024, arXiv 2404.15758 (order of the pairs)"


@checked(n=count(3), d=count(1), m=count(2))
class DotAttention(Measurement):
    """Attention of the fillers and of the answer position on rows, end of the input, fillers and self.

    Patterns are reduced block by block and never held together.

    Parameters
    ----------
    n, d, m : int
        Of the task.
    blocks : iterable of int, optional
        All by default.

    Notes
    -----
    Per prompt, block and head.  ``mass``: mean over the queries of a set; the four sets of keys share out everything
    that is visible, so that they sum to one.  ``chance``: the same of uniform attention.  ``own_rows``: mean over the
    fillers that stand for a pair (i, j) in the chain of thought of the attention on rows i and j; ``two_other_rows``:
    twice the mean over the rows that are not of the pair.  ``slot_match`` and ``slot_plain``: mean attention of the
    answer position on one filler whose pair some third row completes, and on one of the others (NaN where a prompt
    has none).

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.fillers.tasks.contents import filler_prompts
    >>> from tokinterp.fillers.tasks.network import Network, as_model, build
    >>> task = Task(n=4, d=1)
    >>> model = as_model(build(task, Network(2, 32, 2, 64)), task)
    >>> run = ti.measure(model, filler_prompts(task, model, 5), {"a": DotAttention(4, 1)}, progress=False)
    >>> bool((abs(run["a"]["mass"].sum("key_set") - 1) < 1e-5).all())
    True
    """

    first = ("mass", "own_rows", "slot_match")
    fields = {
        "mass": Field(
            (*EACH, "query_set", "key_set"), "mean attention on the set", short="attention on the set", range=(0, 1),
            chance="chance",
        ),
        "own_rows": Field(
            EACH, "attention of a filler on the two rows of its pair", "1", REFERENCE, short="on the rows of its pair",
            beside=("two_other_rows",), along=("block",), range=(0, None),
        ),
        "two_other_rows": Field(
            EACH, "attention of a filler on two rows that are not of its pair", short="on two other rows",
            range=(0, None),
        ),
        "slot_match": Field(
            EACH, "attention of the answer position on a filler whose pair is completed", short="on fillers completed",
            beside=("slot_plain",), along=("block",), range=(0, None),
        ),
        "slot_plain": Field(
            EACH, "attention of the answer position on a filler whose pair is not", short="on fillers not completed",
            range=(0, None),
        ),
        "n_matches": Field(("prompt",), "fillers whose pair is completed by a third row", "token"),
        "chance": Field(("query_set", "key_set"), "the same of uniform attention", short="uniform attention"),
    }  # fmt: skip
    block_site = "pattern"
    streams = True

    def __init__(self, n: int, d: int, m: int = 10, blocks: Iterable[int] | None = None) -> None:
        super().__init__()
        self.n, self.d, self.m = Task(n=n, d=d, m=m).n, d, m
        self.blocks = None if blocks is None else list(blocks)

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the patterns."""
        return [Site("pattern", b) for b in self.at_blocks(info)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check blocks, and that all prompts are of the filler format of this task."""
        super().begin(info, prompts)
        self.n_fillers = check_fillers(self.words, info, prompts)

    @property
    def words(self) -> Words:
        """Vocabulary of the task."""
        return Words(self.n, self.d, self.m)

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head, 12) of a pattern: masses of fillers and answer, own and other rows, matches, plain."""
        n, f = self.n, self.n_fillers
        first, at = n + 1, n + 1 + f  # the first filler, the answer cue
        a = value.double()
        dots, ask = a[:, :, first:at], a[:, :, at]  # (prompt, head, filler, key), (prompt, head, key)
        own = dots[..., first:at].diagonal(dim1=2, dim2=3)
        among = dots[..., first:at].sum(-1) - own
        masses = [
            torch.stack([dots[..., :n].sum(-1), dots[..., n], among, own], -1).mean(2),
            torch.stack([ask[..., :n].sum(-1), ask[..., n], ask[..., first:at].sum(-1), ask[..., at]], -1),
        ]
        slots = min(f, n * (n - 1))
        i, j = match3.pairs(n, a.device)[:, torch.arange(slots, device=a.device, dtype=torch.int64) // 2]
        of_pair = torch.zeros(slots, n, dtype=a.dtype, device=a.device)
        of_pair[torch.arange(slots, dtype=torch.int64, device="cpu"), i] = 1.0
        of_pair[torch.arange(slots, dtype=torch.int64, device="cpu"), j] = 1.0
        on_rows = dots[:, :, :slots, :n]
        mine = (on_rows * of_pair).sum(-1).mean(-1)
        rest = 2 / (n - 2) * (on_rows * (1 - of_pair)).sum(-1).mean(-1)
        match = match3.partner(self.words.digits(batch.ids[:, :n]), self.m)[:, : (slots + 1) // 2] >= 0
        match = match.repeat_interleave(2, 1)[:, None, :slots].double()
        read = ask[..., first : first + slots]
        # Sums; update() divides them by the numbers of slots, which may be 0.
        hits, plain = (read * match).sum(-1), (read * (1 - match)).sum(-1)
        number = match.sum(-1).expand_as(hits)
        return torch.cat([*masses, torch.stack([mine, rest, hits, plain, number], -1)], -1)

    def update(self, batch: Batch) -> None:
        """Take the masses of a batch."""
        blocks = self.at_blocks()
        found = torch.stack([batch.seen(self, Site("pattern", b)) for b in blocks], 1)  # (prompt, block, head, 13)
        mine, rest, hits, plain, number = found[..., 8:].unbind(-1)
        slots = min(self.n_fillers, self.n * (self.n - 1))
        self.keep(
            batch, mass=found[..., :8].unflatten(-1, (2, 4)), own_rows=mine, two_other_rows=rest,
            slot_match=hits / number, slot_plain=plain / (slots - number), n_matches=number[:, 0, 0],
        )  # fmt: skip

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the masses of uniform attention."""
        n, f = self.n, self.n_fillers
        seen = n + 2 + np.arange(f)  # positions that filler 0, 1, ... can see
        last = n + 2 + f
        chance = [
            [(n / seen).mean(), (1 / seen).mean(), (np.arange(f) / seen).mean(), (1 / seen).mean()],
            [n / last, 1 / last, f / last, 1 / last],
        ]
        return {"chance": chance}

    def coords(self) -> Mapping[str, Any]:
        """Return the names of the sets."""
        return {
            "query_set": (np.array(QUERIES), "which positions look", "1"),
            "key_set": (np.array(KEYS), "which positions are looked at", "1"),
        }
