"""ContextMemory: how well the text before a token can be written from that token's states alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked, count
from .decoder import ContextDecoder
from .training import prefixes

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts

ROWS = 64  # prefixes decoded at once
PAPER = "Razzhigaev et al. 2025, arXiv 2502.15007, section 3.2"
LOSS = {
    "context_loss": "cross-entropy per token of the prefix, written from the token's states",
    "context_loss_blank": "cross-entropy per token of the prefix, written from the mean state",
}


@checked(tokens=count(1))
class ContextMemory(Measurement):
    """Cross-entropy of the prefix of every token, written by a trained decoder from the token's states.

    The score C_i of Razzhigaev et al. 2025 (arXiv 2502.15007, section 3.2): lower is more context stored. It is the
    mean over the tokens of the prefix, so that prefixes of different lengths can be compared; C still grows with the
    length, and the means are given by bins of it.

    Parameters
    ----------
    decoder : ContextDecoder
        From `tokinterp.memory.fit_context_decoder`, trained on other texts.
    tokens : int, optional
        Only prompts numbered below this are scored; None scores all (one pass of the copy per token).
    control : bool
        Also write each prefix from the mean state of the training tokens: what is known without the token. The
        difference is what the token's own states tell.

    Notes
    -----
    Tokens with a prefix longer than the decoder's ``max_prefix``, and those without one, are not scored.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:4]]
    >>> decoder = ti.memory.fit_context_decoder(model, texts, steps=1, rows=4, max_prefix=4, progress=False)
    >>> run = ti.measure(model, texts, {"memory": ti.memory.ContextMemory(decoder)}, progress=False)
    >>> run["memory"]["context_loss"].dims
    ('token',)
    """

    first = ("context_loss_by_length",)
    fields = {
        "prefix_length": Field(("token",), "tokens before the token, BOS not counted", "token"),
        **{name: Field(("token",), text, "nat", PAPER) for name, text in LOSS.items()},
        **{
            f"{name}_by_length": Field(
                ("prompt", "bin"),
                f"{text}, mean over tokens",
                "nat",
                PAPER,
                short=short,
                range=(0, None),
                beside=[f"{n}_by_length" for n in LOSS if n != name],
            )
            for (name, text), short in zip(
                LOSS.items(), ("loss from the states", "loss from the mean state"), strict=True
            )
        },
        "n_by_length": Field(("prompt", "bin"), "tokens in the bin", "token"),
    }

    def __init__(self, decoder: ContextDecoder, tokens: int | None = None, control: bool = True) -> None:
        super().__init__()
        self.decoder, self.tokens, self.control = decoder, tokens, control

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at layers 1..n_layers."""
        return resid(range(1, info.n_layers + 1))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that the decoder was trained for this model."""
        super().begin(info, prompts)
        facts = self.decoder.facts
        if facts["weights"] != info.identity:
            raise ValueError(
                f"this decoder was trained on {facts['model']} (weights {facts['weights']}), not on {info.id} "
                f"({info.identity}): train one with tokinterp.memory.fit_context_decoder"
            )

    def update(self, batch: Batch) -> None:
        """Score the tokens of a batch."""
        start = (batch.special | ~batch.mask).long().cumprod(1).sum(1)
        length = torch.arange(batch.ids.shape[1], device=batch.device, dtype=torch.int64) - start[:, None]
        few = torch.zeros(len(batch.tokens), dtype=torch.bool, device=batch.device)
        few[batch.tokens.below(self.tokens)] = True
        wanted = batch.tokens.spread(few) & (length > 0) & (length <= self.decoder.facts["max_prefix"])
        row, position = wanted.nonzero(as_tuple=True)
        found: dict[str, list[torch.Tensor]] = {"context_loss": [], "context_loss_blank": []}
        layers = range(1, self.info.n_layers + 1)
        with torch.no_grad():
            for a in range(0, len(row), ROWS):
                r, p = row[a : a + ROWS], position[a : a + ROWS]
                prefix = prefixes(batch.ids, start, r, p)
                states = torch.stack([batch.resid(n)[r, p].float() for n in layers], 1)
                size = (prefix >= 0).sum(1)
                found["context_loss"].append(self.decoder(states, prefix).sum(1) / size)
                if self.control:
                    blank = self.decoder.mean_state.expand_as(states)
                    found["context_loss_blank"].append(self.decoder(blank, prefix).sum(1) / size)
        if not len(row):  # a table even if none of the prompts is kept
            none = torch.zeros(0, dtype=torch.float32, device=batch.device)
            found = {name: [none] for name in found if self.control or name == "context_loss"}
        columns = {name: torch.cat(parts) for name, parts in found.items() if parts}
        rows = batch.flatten(wanted).nonzero()[:, 0]
        self.keep_rows(batch, rows, prefix_length=length[row, position], **columns)

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return means by bins of the length."""
        number, length = found["token_prompt"], found["prefix_length"]
        edges = self._edges()
        place, prompts = np.log2(length).astype(int), np.unique(number)
        at = np.searchsorted(prompts, number) * len(edges) + place
        shape = (len(prompts), len(edges))
        n = np.bincount(at, minlength=len(prompts) * len(edges))
        out: dict[str, Any] = {"prompt": prompts, "n_by_length": n.reshape(shape)}
        for name in LOSS:
            if name in found:
                with np.errstate(invalid="ignore"):
                    mean = np.bincount(at, found[name].astype(np.float64), minlength=len(n)) / n
                out[f"{name}_by_length"] = mean.reshape(shape)
        return out

    def _edges(self) -> np.ndarray:
        """Return the shortest prefixes of bins that double."""
        longest = max((int(part.max()) for part in self.rows["prefix_length"] if len(part)), default=1)
        return 2 ** np.arange(int(np.log2(longest)) + 1)

    def coords(self) -> Mapping[str, Any]:
        """Return the bins of lengths."""
        return {
            "bin": (self._edges(), "shortest prefix of the bin; the longest is one less than twice as long", "token")
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the decoder."""
        return {"context_loss": {"decoder": repr(self.decoder)}}
