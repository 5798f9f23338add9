"""AttentionMass and AttentionSinks: where attention goes, one block at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..capture import Site
from ..kernels.attention import attention_masses, attention_received, chance
from ..settings import checked, count, level
from .base import Field, Measurement
from .token_sets import check_sets, padded, resolve

if TYPE_CHECKING:
    from ..capture import Batch
    from ..models.base import ModelInfo
    from ..text.prompts import Prompts

LEAST = 16
SINK = "Gu et al. 2024, arXiv 2410.10781 (Sink_eps)"
KOBAYASHI = "Kobayashi et al. 2020, arXiv 2004.10102"
LEARNED = 0.01  # of the attention must go to a learned sink to be more than rounding
SETS = ("query_set", "key_set")
EACH = ("prompt", "block", "head", *SETS)
NET = "net of position 0 and of the query itself"
KEYS = {"sink": "first", "separators": "separators", "other": "other"}


@checked(threshold=level)
class AttentionMass(Measurement):
    """How much attention sets of queries give to sets of keys, by head, against chance and net of sink and self.

    Patterns are reduced block by block as the pass reaches them and are never held together: with T tokens and H heads
    at most about five tensors of H T^2 float32 are alive (the library's own included), whatever the number of blocks.

    Parameters
    ----------
    keys, queries : mapping of name -> rule
        Sets of positions. A rule is ``"all"``, ``"first"`` (position 0), ``"last"``, ``"special"``, ``"separators"``
        (. , ? ! ; : and white space), ``"other"`` (in none of the other sets), a class of tokens (``"punctuation"``,
        ``"stop word"``, ...), or a bool array with one entry per token of all prompts.
    blocks : iterable of int, optional
        All by default.
    value_weighted : bool
        Whether to weigh by the norm of what is written, ||v W_O|| (Kobayashi et al. 2020), too.
    threshold : float
        Mass above which a head counts in ``heads_above``.

    Notes
    -----
    Per prompt, for a set S and queries Q: ``mass`` = mean over q of the weights on S; ``enrichment`` = mass
    over ``chance``, the mean of |S and [0..q]| / (q + 1). ``net_*`` are the same with position 0 and q itself taken
    out, of the sets and of the whole, over the queries that have something left: a sink holds most of the mass and
    writes little. ``valued_mass`` is the share of S in the sum of weights times written norms. Where a prompt has no
    such query or no key of the set, enrichment is NaN.  Where a model has learned sinks (gpt-oss), the masses of all
    positions sum to 1 - ``sink_mass``, a variable that other models do not have; ``net_*`` and ``valued_mass`` are
    shares of what falls on positions.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"a": ti.AttentionMass()}, progress=False)
    >>> round(float(run["a"]["mass"].sum("key_set").mean()), 5)
    1.0
    """

    fields = {
        "n_queries": Field(("prompt", "query_set"), "queries"),
        "n_keys": Field(("prompt", "key_set"), "positions of the set"),
        "chance": Field(("prompt", *SETS), "share of the visible positions that are of the set"),
        "mass": Field(EACH, "mean attention on the set"),
        "enrichment": Field(EACH, "attention on the set over chance"),
        "net_mass": Field(EACH, f"mean attention on the set, {NET}"),
        "net_chance": Field(EACH, f"share of the visible positions that are of the set, {NET}"),
        "net_enrichment": Field(EACH, f"attention on the set over chance, {NET}"),
        "valued_mass": Field(
            EACH, "mean share of the set in attention weighted by the norm of what is written", "1", KOBAYASHI
        ),
        "heads_above": Field(("prompt", "block", *SETS), "heads whose mass is above the threshold"),
        "sink_mass": Field(
            ("prompt", "block", "head", "query_set"), "mean attention left to a learned sink, on no position"
        ),
        "_short": Field(("prompt", "block", "head", "query_set"), "mean attention on no position, rounding included"),
    }
    block_site = "pattern"
    streams = True

    def __init__(
        self,
        keys: Mapping[str, Any] = KEYS,
        queries: Mapping[str, Any] | None = None,
        blocks: Iterable[int] | None = None,
        value_weighted: bool = True,
        threshold: float = 0.3,
    ) -> None:
        super().__init__()
        self.keys = check_sets("keys", keys)
        self.queries = check_sets("queries", {"all": "all"} if queries is None else queries)
        self.blocks, self.value_weighted, self.threshold = blocks, value_weighted, threshold

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the patterns, and the values if they are weighed."""
        names = ("value", "pattern") if self.value_weighted else ("pattern",)
        return [Site(name, b) for b in self.at_blocks(info) for name in names]

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check blocks, and find the tokens of each set."""
        super().start(info, prompts)
        self._starts = prompts.starts
        self._keys, self._queries = resolve(prompts, self.keys), resolve(prompts, self.queries)
        for what, packed, names in (("queries", self._queries, self.queries), ("keys", self._keys, self.keys)):
            empty = [n for n, row in zip(names, packed, strict=True) if not row.any()]
            if empty:
                raise ValueError(f"{what} {empty}: no token of any prompt belongs to it")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Reduce a pattern; of values keep the norm of what they write."""
        if site.name == "value":
            return batch.model.written_norm(site.at, value).to(batch.device)
        norms = batch.seen(self, Site("value", site.at)) if self.value_weighted else None
        asked, on = (padded(p, self._starts, batch) for p in (self._queries, self._keys))
        found = attention_masses(value, asked, on, norms)
        return torch.cat([torch.stack(found[:4], -1).flatten(2), found.net_queries.double(), found.short], dim=2)

    def update(self, batch: Batch) -> None:
        """Take the masses of a batch."""
        asked, on = (padded(p, self._starts, batch) for p in (self._queries, self._keys))
        n_q, n_s = asked.shape[1], on.shape[1]
        blocks = self.at_blocks()
        looks = torch.stack([batch.seen(self, Site("pattern", b)) for b in blocks], 1)  # (prompt, block, head, ...)
        sums, net_queries, short = looks.split((n_q * n_s * 4, n_q, n_q), dim=-1)
        mass, net, net_chance, valued = sums.unflatten(-1, (n_q, n_s, 4)).unbind(-1)
        n = asked.sum(-1)
        per_query, per_net = n[:, None, None, :, None], net_queries[..., None]
        mean = mass / per_query
        here = on.any(-1)[:, None, None, None]
        weighed = {"valued_mass": torch.where(here, valued / per_query, 0 * per_query)} if self.value_weighted else {}
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


@checked(tokens=count(2), threshold=level)
class AttentionSinks(Measurement):
    """Sink score of every position: the mean attention that it receives, and how often that is large.

    Parameters
    ----------
    tokens : int
        T: only the first so many tokens are looked at, and only in prompts that have them (64 in the paper).
    threshold : float
        eps of Sink_eps.
    blocks : iterable of int, optional
        All by default.
    norms : bool
        Whether to give the mean norms of keys and values by position too (sinks have small ones).

    Notes
    -----
    alpha_k = mean over q >= k of a_qk; Sink_eps(k) is the share of prompts, blocks and heads with alpha_k above eps:
    the mean of ``sink_rate`` over block and head (Gu et al. 2024, arXiv 2410.10781). The last positions are seen by few
    queries, the last one only by itself, and look like sinks for that reason: ``n_queries`` says by how many, and
    ``largest_later`` is over positions seen by at least 16. `FirstTokenAttention` is for position 0 alone, over whole
    prompts of any length and without the query 0, which can look nowhere else.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> text = ti.bundled_texts()[0].text
    >>> prompts = ti.Prompts.from_texts([text], model, max_tokens=64)
    >>> run = ti.measure(model, prompts, {"s": ti.AttentionSinks(tokens=64)}, progress=False)
    >>> run["s"]["sink_rate"].sizes["position"]
    64
    """

    fields = {
        "sink_rate": Field(("block", "head", "position"), "share of prompts above the threshold", "1", SINK),
        "received": Field(("block", "head", "position"), "mean attention received", "1", SINK),
        "n_queries": Field(("position",), "queries that see the position"),
        "first_received": Field(("prompt", "block", "head"), "mean attention that position 0 receives", "1", SINK),
        "largest_later": Field(
            ("prompt", "block", "head"), "largest attention received by a later position", "1", SINK
        ),
        "largest_position": Field(("prompt", "block", "head"), "the later position that receives most"),
        "first_above": Field(("prompt",), "share of heads with position 0 above the threshold"),
        "key_norm": Field(("block", "position"), "mean norm of the keys of all heads"),
        "value_norm": Field(("block", "position"), "mean norm of the values of all heads"),
        "_count": Field((), "prompts that are long enough"),
    }
    block_site = "pattern"
    streams = True

    def __init__(
        self, tokens: int = 64, threshold: float = 0.3, blocks: Iterable[int] | None = None, norms: bool = True
    ) -> None:
        super().__init__()
        self.tokens, self.threshold, self.blocks, self.norms = tokens, threshold, blocks, norms
        self.least = min(LEAST, tokens - 1)

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the patterns, and keys and values if their norms are asked for."""
        names = ("key", "value", "pattern") if self.norms else ("pattern",)
        return [Site(name, b) for b in self.at_blocks(info) for name in names]

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that some prompt is long enough."""
        super().start(info, prompts)
        if max(prompts.lengths) < self.tokens:
            raise ValueError(
                f"tokens={self.tokens}: the longest prompt has {max(prompts.lengths)}; give longer prompts or fewer "
                "tokens"
            )

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Reduce a pattern to what each position receives, keys and values to norms."""
        if site.name == "pattern":
            return attention_received(value[:, :, : self.tokens, : self.tokens])
        return torch.linalg.vector_norm(value[:, : self.tokens], dim=-1, dtype=torch.float64)

    def update(self, batch: Batch) -> None:
        """Take the scores of the prompts that are long enough."""
        full = torch.tensor(batch.lengths, device=batch.device, dtype=torch.int64) >= self.tokens
        if batch.ids.shape[1] < self.tokens:
            return
        blocks = self.at_blocks()
        received = torch.stack([batch.seen(self, Site("pattern", b)) for b in blocks], 1)[full]
        above = received > self.threshold
        later, place = received[..., 1 : self.tokens - self.least + 1].max(-1)
        self.add("sink_rate", above.sum(0))
        self.add("received", received.sum(0))
        self.add("_count", full.sum())
        self.append(
            prompt=batch.prompt_numbers[full], first_received=received[..., 0], largest_later=later,
            largest_position=place + 1, first_above=above[..., 0].double().mean((1, 2)),
        )  # fmt: skip
        for name in ("key", "value") if self.norms else ():
            norms = torch.stack([batch.seen(self, Site(name, b)) for b in blocks], 1)[full]
            self.add(f"{name}_norm", norms.sum(0))

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return means over the prompts."""
        n, sums = self.sums["_count"], self.sums
        means = {k: sums[k] / n for k in ("received", "key_norm", "value_norm") if k in sums}
        return {**means, "sink_rate": sums["sink_rate"].float() / n, "n_queries": np.arange(self.tokens, 0, -1)}

    def coords(self) -> Mapping[str, Any]:
        """Return the positions."""
        return {"position": (np.arange(self.tokens), "place in the sequence, BOS counted", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the threshold."""
        over = f"above {self.threshold:g}"
        return {
            "sink_rate": {"long_name": f"share of prompts {over}"},
            "first_above": {"long_name": f"share of heads with position 0 {over}"},
        }
