"""AttentionMass: where attention goes, one block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, flag, level, one_of
from .kernels import attention_masses, chance, row_similarity
from .token_sets import check_sets, padded, resolve

if TYPE_CHECKING:
    from ..models.hooks import HookedLM
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

KOBAYASHI = "Kobayashi et al. 2020, arXiv 2004.10102"
LEARNED = 0.01  # of the attention must go to a learned sink to be more than rounding
NONE = -1.0  # stands for a cosine that there is not, in what has to be finite
SETS = ("query_set", "key_set")
EACH = ("prompt", "block", "head", *SETS)
NET = "net of position 0 and of the query itself"
KEYS = {"sink": "first", "separators": "separators", "other": "other"}


@checked(threshold=level, value_weighted=flag | one_of("values"))
class AttentionMass(Measurement):
    """How much attention sets of queries give to sets of keys, by head, against chance and net of sink and self.

    Patterns are reduced block by block as the pass reaches them and are never held together: with T tokens and H heads
    at most about five tensors of H T^2 float32 are alive (the library's own included), whatever the number of blocks.

    Parameters
    ----------
    keys, queries : mapping of name -> rule
        Sets of positions. A rule is ``"all"``, ``"first"`` (position 0), ``"last"``, ``"special"``, ``"separators"``
        (. , ? ! ; : and white space), ``"other"`` (in none of the other sets), a class of tokens (``"punctuation"``,
        ``"stop word"``, ...), the name of a mark of the prompts (`tokinterp.text.mark`), which as keys may have no
        token in these prompts, or a bool array with one entry per token of all prompts.
    blocks : iterable of int, optional
        All by default.
    value_weighted : bool or "values"
        Whether to weigh by the norm of what is written, ||v W_O|| (Kobayashi et al. 2020), too; or by that of the
        values themselves, ||v||.
    threshold : float
        Mass above which a head counts in ``heads_above``.
    similarity : bool
        Whether to compare each head with the block before, too; the mean pattern of a block is kept for the next.

    Notes
    -----
    Per prompt, for a set S and queries Q: ``mass`` = mean over q of the weights on S; ``enrichment`` = mass
    over ``chance``, the mean of |S and [0..q]| / (q + 1). ``net_*`` are the same with position 0 and q itself taken
    out, of the sets and of the whole, over the queries that have something left: a sink holds most of the mass and
    writes little. ``valued_mass`` is the share of S in the sum of weights times written norms. Where a prompt has no
    such query or no key of the set, enrichment is NaN.  Where a model has learned sinks (gpt-oss), the masses of all
    positions sum to 1 - ``sink_mass``, a variable that other models do not have; ``net_*`` and ``valued_mass`` are
    shares of what falls on positions.  ``similarity``: mean over queries of the cosine of the weights of a head with
    the mean of those of the heads of the block before (of the blocks asked for), without position 0 and the query
    itself, beside the cosine with even weights, ``similarity_even``; NaN in the first block.

    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"a": ti.attention.AttentionMass()}, progress=False)
    >>> round(float(run["a"]["mass"].sum("key_set").mean()), 5)
    1.0
    """

    first = ("mass", "net_enrichment", "valued_mass")
    fields = {
        "n_queries": Field(("prompt", "query_set"), "queries"),
        "n_keys": Field(("prompt", "key_set"), "positions of the set"),
        "chance": Field(("prompt", *SETS), "share of the visible positions that are of the set"),
        "mass": Field(EACH, "mean attention on the set", short="attention on the set", range=(0, 1), chance="chance"),
        "enrichment": Field(
            EACH, "attention on the set over chance", short="attention over chance", range=(0, None), chance=1,
        ),
        "net_mass": Field(
            EACH, f"mean attention on the set, {NET}", short="attention on the set, net of sink", range=(0, 1),
            chance="net_chance",
        ),
        "net_chance": Field(EACH, f"share of the visible positions that are of the set, {NET}"),
        "net_enrichment": Field(
            EACH, f"attention on the set over chance, {NET}", short="attention over chance, net of sink",
            range=(0, None), chance=1,
        ),
        "valued_mass": Field(
            EACH, "mean share of the set in attention weighted by the norm of what is written", "1", KOBAYASHI,
            short="share of attention times written norm", range=(0, 1),
        ),
        "heads_above": Field(
            ("prompt", "block", *SETS), "heads whose mass is above the threshold", short="heads above the threshold",
            range=(0, None),
        ),
        "similarity": Field(
            ("prompt", "block", "head"), f"mean cosine of the attention with that of the block before, {NET}",
            short="attention as in the block before", range=(0, 1), chance="similarity_even",
        ),
        "similarity_even": Field(
            ("prompt", "block", "head"), f"mean cosine of the attention with even attention, {NET}",
            short="even attention",
        ),
        "sink_mass": Field(
            ("prompt", "block", "head", "query_set"), "mean attention left to a learned sink, on no position"
        ),
        "_short": Field(("prompt", "block", "head", "query_set"), "mean attention on no position, rounding included"),
    }  # fmt: skip
    block_site = "pattern"
    streams = True

    def __init__(
        self,
        keys: Mapping[str, Any] = KEYS,
        queries: Mapping[str, Any] | None = None,
        blocks: Iterable[int] | None = None,
        value_weighted: bool | str = True,
        threshold: float = 0.3,
        similarity: bool = False,
    ) -> None:
        super().__init__()
        self.keys = check_sets("keys", keys)
        self.queries = check_sets("queries", {"all": "all"} if queries is None else queries)
        self.blocks, self.value_weighted, self.threshold = blocks, value_weighted, threshold
        self.similarity = similarity

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the patterns, and the values if they are weighed."""
        names = ("value", "pattern") if self.value_weighted else ("pattern",)
        return [Site(name, b) for b in self.at_blocks(info) for name in names]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check blocks, and find the tokens of each set."""
        super().begin(info, prompts)
        self._keys, self._queries = resolve(prompts, self.keys, "keys"), resolve(prompts, self.queries, "queries")
        for what, packed, sets in (("queries", self._queries, self.queries), ("keys", self._keys, self.keys)):
            absent = {
                n for n, rule in sets.items() if what == "keys" and isinstance(rule, str) and rule in prompts.marks
            }
            empty = [n for n, row in zip(sets, packed, strict=True) if not row.any() and n not in absent]
            if empty:
                raise ValueError(f"{what} {empty}: no token of any prompt belongs to it")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Reduce a pattern; of values keep the norm of what they write."""
        if site.name == "value" and self.value_weighted == "values":
            heads = cast("HookedLM", batch.model).attention.shapes[site.at].n_values
            norm = value.unflatten(2, (heads, -1)).float().norm(dim=-1).transpose(1, 2).to(batch.device)
            return norm.repeat_interleave(self.info.n_heads // heads, 1)
        if site.name == "value":
            return batch.model.written_norm(site.at, value).to(batch.device)
        norms = batch.seen(self, Site("value", site.at)) if self.value_weighted else None
        asked, on = (padded(p, batch) for p in (self._queries, self._keys))
        found = attention_masses(value, asked, on, norms)
        more = [self._similarity(batch, value)] if self.similarity else []
        return torch.cat([torch.stack(found[:4], -1).flatten(2), found.net_queries.double(), found.short, *more], dim=2)

    def _similarity(self, batch: Batch, pattern: torch.Tensor) -> torch.Tensor:
        """Compare a pattern with the one that passed by before, and keep its mean for the next."""
        key = ("mean pattern", id(self))
        before = batch.shared.get(key)
        batch.shared[key] = pattern.float().mean(1)
        if before is None:
            return torch.full((*pattern.shape[:2], 2), NONE, dtype=torch.float64, device=pattern.device)
        return row_similarity(pattern, before, batch.mask).nan_to_num(NONE)

    def update(self, batch: Batch) -> None:
        """Take the masses of a batch."""
        asked, on = (padded(p, batch) for p in (self._queries, self._keys))
        n_q, n_s = asked.shape[1], on.shape[1]
        blocks = self.at_blocks()
        looks = torch.stack([batch.seen(self, Site("pattern", b)) for b in blocks], 1)  # (prompt, block, head, ...)
        sums, net_queries, short, alike = looks.split((n_q * n_s * 4, n_q, n_q, 2 * self.similarity), dim=-1)
        mass, net, net_chance, valued = sums.unflatten(-1, (n_q, n_s, 4)).unbind(-1)
        n = asked.sum(-1)
        per_query, per_net = n[:, None, None, :, None], net_queries[..., None]
        mean = mass / per_query
        here = on.any(-1)[:, None, None, None]
        weighed = {"valued_mass": torch.where(here, valued / per_query, 0 * per_query)} if self.value_weighted else {}
        if self.similarity:
            alike = torch.where(alike == NONE, torch.nan, alike)
            weighed |= {"similarity": alike[..., 0], "similarity_even": alike[..., 1]}
        self.keep(
            batch, n_queries=n, n_keys=on.sum(-1), chance=chance(asked, on) / n[..., None],
            mass=mean, net_mass=net / per_net, net_chance=net_chance / per_net,
            enrichment=mean / (chance(asked, on) / n[..., None])[:, None, None],
            net_enrichment=net / torch.where(net_chance > 0, net_chance, torch.nan),
            heads_above=(mean > self.threshold).sum(2), _short=short / n[:, None, None], **weighed,
        )  # fmt: skip

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the mass on a learned sink, where there is one."""
        learned = np.nan_to_num(found["_short"]).max(initial=0) > LEARNED
        return {"sink_mass": found["_short"]} if learned else {}

    def coords(self) -> Mapping[str, Any]:
        """Return the names of the sets."""
        return {
            "query_set": (np.array(list(self.queries)), "which positions look", "1"),
            "key_set": (np.array(list(self.keys)), "which positions are looked at", "1"),
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the threshold."""
        return {"heads_above": {"threshold": self.threshold}}
