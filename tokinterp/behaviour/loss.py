"""How well some tokens are predicted, and how far predictions are from those of the model that nothing was done to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..kernels.divergence import compare
from ..run.edits.positions import flags_of
from ..run.measurement import Field, Measurement
from ..run.sites import Site, resid
from ..run.stream import capture
from ..settings import checked, none, string

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

LOGITS = 2**26
"""Bytes of logits held at once."""


@checked(of=string | none)
class TokenLoss(Measurement):
    """Mean cross-entropy of tokens, each given all that stands before it.

    Parameters
    ----------
    of : str, optional
        Name of the mark (`tokinterp.text.mark`) of the tokens that are predicted; all by default.  The first token of
        a prompt is predicted by nothing and never counts.
    divergence : bool
        Whether to compare the predictions with those of the same model without edits, too: one more pass.
    states : bool
        Whether to compare the states of all layers with those without edits, too.

    Notes
    -----
    How much a token depends on its context is what ``kl`` and 1 - ``state_cosine`` are where the context is hidden:
    ``Condition(prompts, [keep_only(Policy("window", initial=0, window=1))])`` leaves each token only itself
    (`tokinterp.attention`), a larger window the tokens nearest to it.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.text.mark(ti.Prompts.from_texts(["The Nile flows north."], model), river=[[2, 3]])
    >>> run = ti.measure(model, prompts, {"loss": ti.behaviour.TokenLoss("river")}, progress=False)
    >>> int(run["loss"]["n_tokens"][0])
    1
    """

    first = ("loss", "kl")
    fields = {
        "loss": Field(("prompt",), "mean cross-entropy of the tokens", "nat", short="cross-entropy"),
        "kl": Field(("prompt",), "mean KL divergence from the predictions without edits", "nat", range=(0, None)),
        "state_cosine": Field(
            ("prompt", "layer"),
            "mean cosine with the state without edits, of the tokens that predict",
            range=(-1, 1),
            short="cosine with the state without edits",
        ),
        "n_tokens": Field(("prompt",), "tokens that are predicted", "token"),
    }

    def __init__(self, of: str | None = None, divergence: bool = False, states: bool = False) -> None:
        super().__init__()
        self.of, self.divergence, self.states = of, divergence, states

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream after the last block, or at all layers."""
        return resid(range(info.n_layers + 1)) if self.states else [Site("resid", info.n_layers)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Look up the marked tokens."""
        super().begin(info, prompts)
        self._prompts = prompts
        self._flags = None if self.of is None else flags_of(self.of, prompts, "of")

    def update(self, batch: Batch) -> None:
        """Predict the tokens of a batch, some at a time."""
        chosen = batch.mask if self._flags is None else batch.tokens.of_stream(self._flags).bool()
        chosen = chosen[:, 1:] & batch.mask[:, 1:]
        prompt, before = chosen.nonzero(as_tuple=True)
        last, target = Site("resid", self.info.n_layers), batch.ids[prompt, before + 1]
        streams, sites, count = [batch.activations[last]], self.sites(self.info), chosen.sum(1)
        more: dict[str, torch.Tensor] = {}
        if self.divergence or self.states:
            without = capture(batch.model, self._prompts, batch.numbers, sites).activations
            if self.divergence:
                streams.append(without[last])
            if self.states:
                pairs = [(batch.activations[s][:, :-1].double(), without[s][:, :-1].double()) for s in sites]
                cosine = torch.stack([torch.cosine_similarity(x, y, dim=-1) for x, y in pairs], 1)
                more["state_cosine"] = cosine.masked_fill(~chosen[:, None], 0).sum(2) / count[:, None]
        found = torch.zeros(2, *chosen.shape, dtype=torch.float64, device=batch.device)
        every = torch.arange(len(prompt), dtype=torch.int64, device=batch.device)
        for some in every.split(max(1, LOGITS // (4 * self.info.d_vocab))):
            at = prompt[some], before[some]
            p, *plain = (torch.log_softmax(batch.model.unembed(x[at]).float(), -1) for x in streams)
            found[0][at] = -p.gather(1, target[some, None])[:, 0].double()
            if plain:
                found[1][at] = compare(p, plain[0])["kl"].double()
        loss, kl = found.sum(2) / count
        if self.divergence:
            more["kl"] = kl
        self.keep(batch, loss=loss, n_tokens=count, **more)
