"""AttentionSinks: tokens to which every later token attends, as one paper counts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, level
from .kernels import attention_received

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

LEAST = 16
"""Queries that must see a position, for it to be compared with others."""
SINK = "Gu et al. 2024, arXiv 2410.10781 (Sink_eps)"


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

    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> text = ti.bundled_texts()[0].text
    >>> prompts = ti.Prompts.from_texts([text], model, max_tokens=64)
    >>> run = ti.measure(model, prompts, {"s": ti.attention.AttentionSinks(tokens=64)}, progress=False)
    >>> run["s"]["sink_rate"].sizes["position"]
    64
    """

    first = ("sink_rate", "first_received", "key_norm", "value_norm")
    fields = {
        "sink_rate": Field(
            ("block", "head", "position"), "share of prompts above the threshold", "1", SINK,
            short="share of prompts that make it a sink", range=(0, 1),
        ),
        "received": Field(
            ("block", "head", "position"), "mean attention received", "1", SINK, short="mean attention received",
            range=(0, 1),
        ),
        "n_queries": Field(("position",), "queries that see the position"),
        "first_received": Field(
            ("prompt", "block", "head"), "mean attention that position 0 receives", "1", SINK,
            short="attention that position 0 receives", range=(0, 1),
        ),
        "largest_later": Field(
            ("prompt", "block", "head"), "largest attention received by a later position", "1", SINK
        ),
        "largest_position": Field(("prompt", "block", "head"), "the later position that receives most"),
        "first_above": Field(("prompt",), "share of heads with position 0 above the threshold"),
        "key_norm": Field(
            ("block", "position"), "mean norm of the keys of all heads", short="norm of keys", range=(0, None),
        ),
        "value_norm": Field(
            ("block", "position"), "mean norm of the values of all heads", short="norm of values", range=(0, None),
        ),
        "_count": Field((), "prompts that are long enough"),
    }  # fmt: skip
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

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that some prompt is long enough."""
        super().begin(info, prompts)
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
