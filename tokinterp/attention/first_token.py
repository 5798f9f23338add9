"""FirstTokenAttention: how much of its attention each head spends on the first token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, level
from .kernels import attention_received

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

GU = "Gu et al. 2024, arXiv 2410.10781, section 3; Xiao et al. 2023, arXiv 2309.17453"


@checked(threshold=level)
class FirstTokenAttention(Measurement):
    """Attention to position 0 of every head, averaged over the later positions of each prompt.

    The patterns pass by one block at a time, so memory is that of one block's pattern.

    Parameters
    ----------
    blocks : iterable of int, optional
        Blocks to look at; all by default.
    threshold : float
        A head with more than this share on the first token counts as a sink in ``sink_rate`` (0.3 in Gu et al. 2024).

    Notes
    -----
    Position 0 itself, which can look nowhere else, is left out; a prompt of one token has no value.  Even attention
    gives the average of 1 / (position + 1): ``uniform``.

    `AttentionSinks` is the protocol of Gu et al.: every position as a possible sink, in the first ``tokens`` tokens of
    prompts that are long enough, position 0 counted among its own queries. This is for prompts of any length, whole,
    and position 0 alone: (T alpha_0 - 1) / (T - 1) for the alpha_0 (``first_received``) of T tokens.

    Memory: 10 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"sinks": ti.attention.FirstTokenAttention()},
    ...     progress=False)
    >>> run["sinks"]["first_token_mass"].dims
    ('prompt', 'block', 'head')
    """

    first = ("first_token_mass", "sink_rate")
    fields = {
        "first_token_mass": Field(
            ("prompt", "block", "head"), "mean attention of later positions to the first token", "1", GU,
            short="attention to the first token", range=(0, 1), chance="uniform",
        ),
        "sink_rate": Field(
            ("prompt", "block"), "share of heads with more than the threshold on the first token", "1", GU,
            short="share of heads that are sinks", range=(0, 1),
        ),
        "uniform": Field(("prompt",), "the same of a head that looks everywhere alike", short="uniform attention"),
    }  # fmt: skip
    streams = True
    block_site = "pattern"

    def __init__(self, blocks: Iterable[int] | None = None, threshold: float = 0.3) -> None:
        super().__init__()
        self.blocks, self.threshold = blocks, threshold

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the attention patterns of the blocks."""
        return [Site("pattern", b) for b in self.at_blocks(info)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check the blocks, and that some prompt has two tokens."""
        super().begin(info, prompts)
        if max(prompts.lengths) < 2:
            raise ValueError("every prompt has a single token, which can only look at itself: give longer prompts")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return (prompt, head) the mean over later positions of the attention to position 0."""
        later = batch.mask.clone()
        later[:, 0] = False
        return attention_received(value[..., :1], later)[..., 0]

    def update(self, batch: Batch) -> None:
        """Take the masses of a batch."""
        mass = torch.stack([batch.seen(self, site) for site in self.sites(self.info)], dim=1)
        later = batch.mask.sum(1) - 1
        even = 1 / torch.arange(1, batch.ids.shape[1] + 1, device=batch.device, dtype=torch.float64)
        uniform = (even * batch.mask)[:, 1:].sum(1) / later
        self.keep(batch, first_token_mass=mass, uniform=uniform)

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the share of heads that are sinks."""
        mass = found["first_token_mass"]
        with np.errstate(invalid="ignore"):
            return {"sink_rate": np.where(np.isnan(mass).all(2), np.nan, (mass > self.threshold).mean(2))}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the threshold."""
        return {"sink_rate": {"long_name": f"share of heads with more than {self.threshold:g} on the first token"}}
