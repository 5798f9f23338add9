"""InformationRoutes: which heads, keys and MLPs bring about the stream of each token, and the route of a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import Site
from ..settings import checked, count, none, number, one_of, several
from ..text.pieces import rows_of, word_pieces
from .contributions import PARTS, Rule, block_shares

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts
    from .contributions import Shares

FERRANDO = "Ferrando and Voita 2024, arXiv 2403.00824"
HEAD, PIECE = ("prompt", "block", "head"), ("prompt", "pieces", "block", "head")
SMALL = ("share", "importance", "previous", "previous_control")


@checked(threshold=number(0, below=1), norm=one_of(1, 2), sizes=several(count(2), ascending=True) | none)
class InformationRoutes(Measurement):
    """Shares of heads, keys and MLPs in the stream of every token, and which heads are on the routes of predictions.

    A vector y of the stream is a sum of parts z: what was there before, what each head takes from each key, the bias of
    the output projection, the MLP.  The share of a part is its nearness max(||y|| - ||y - z||, 1e-5) over the sum of
    all; the stream after attention and the stream after the MLP are two such sums, one in blocks whose attention and
    MLP work in parallel.  The route of a prediction begins at its position after the last block and follows all edges,
    downwards, whose shares are above the threshold.

    Parameters
    ----------
    threshold : float
        tau; 0.04 is the default of the authors' demonstration.
    norm : {1, 2}
        Of the vectors; 1 in the paper.
    renormalise : bool
        Whether parts that are not above the threshold are taken away first and the rest made to sum to one; a token of
        which nothing is left has no edges.
    bias : bool
        Whether the bias of the output projection is a part of its own; the authors give it to none.
    sizes : sequence of int, optional
        Tokens of the words for ``merge``; None leaves it out.
    min_position : int
        Words that begin before this position are left out.
    tokens : int or None
        Shares of single tokens are kept for the prompts numbered below this; None keeps all.

    Notes
    -----
    One forward pass.  The parts of one block are made a few queries at a time.  Means are over positions that are not
    special; keys after a query have no share.  Where a norm follows attention (Gemma 2, OLMo 2), each part is divided
    by what that norm divides the whole by.  What attention adds must be the sum of its parts, which is checked by value
    in each block and refused otherwise.  Where a norm follows the sum of stream and attention (OPT 350M), the stream is
    no sum of parts: refused.

    ``previous_control`` is the mean over all other earlier keys but position 0; ``merge_control`` has words of one
    token in the place of the pieces of a word.

    Memory: 18 x heads x n^2 bytes for every prompt of a batch, padded to n tokens, in float32: the patterns of a block
    at a time.

    References
    ----------
    Ferrando and Voita 2024, arXiv 2403.00824.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"routes": ti.attention.InformationRoutes()}
    >>> ds = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)["routes"].to_dataset()
    >>> whole = ds["share"].sum("head") + ds["resid_share"]
    >>> round(float(whole.mean()), 5)
    1.0
    """

    first = ("importance", "activation", "previous", "merge", "mlp_share", "resid_share", "on_route")
    fields = {
        "importance": Field(
            HEAD, "share of a head in the stream after attention, edges only", "1", FERRANDO,
            short="importance of the head", range=(0, 1),
        ),
        "activation": Field(
            HEAD, "share of predictions with an edge of the head on their route", "1", FERRANDO,
            short="predictions that use the head",
        ),
        "share": Field(HEAD, "share of a head in the stream after attention", "1", FERRANDO, range=(0, 1)),
        "previous": Field(
            HEAD, "share that a head takes from the token before", "1", FERRANDO, short="from the token before",
            range=(0, 1), beside=("previous_control",),
        ),
        "previous_control": Field(
            HEAD, "share that a head takes from another earlier token, position 0 left out",
            short="from another earlier token", range=(0, 1),
        ),
        "merge": Field(
            PIECE, "share that a head takes from the earlier tokens of a word, at its last", "1", FERRANDO,
            short="from earlier pieces of the word", range=(0, 1), beside=("merge_control",),
        ),
        "merge_control": Field(
            PIECE, "share that a head takes from as many one-token words before a one-token word",
            short="from one-token words before", range=(0, 1),
        ),
        "n_words": Field(("prompt", "pieces"), "words"),
        "n_control": Field(("prompt", "pieces"), "words of the control"),
        "resid_share": Field(
            ("prompt", "block"), "share of the stream before the block in that after attention", "1", FERRANDO,
            short="share of the residual", range=(0, 1),
        ),
        "bias_share": Field(
            ("prompt", "block"), "share of the bias of the output projection in the stream after attention"
        ),
        "mlp_share": Field(
            ("prompt", "block"), "share of the MLP in the stream after the block", "1", FERRANDO,
            short="share of the MLP", range=(0, 1),
        ),
        "on_route": Field(
            ("prompt", "layer"), "share of the visible positions that are on the route of a prediction", "1", FERRANDO,
            short="positions on the route",
        ),
        "token_resid": Field(
            ("token", "block"), "share of the stream before the block in that after attention", "1", FERRANDO,
            short="share of the residual", range=(0, 1),
        ),
        "token_mlp": Field(
            ("token", "block"), "share of the MLP in the stream after the block", "1", FERRANDO,
            short="share of the MLP", range=(0, 1),
        ),
    }  # fmt: skip
    streams = True

    def __init__(
        self, threshold: float = 0.04, norm: int = 1, renormalise: bool = False, bias: bool = True,
        sizes: Sequence[int] | None = (2, 3), min_position: int = 8, tokens: int | None = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.threshold, self.norm, self.renormalise, self.bias = threshold, norm, renormalise, bias
        self.sizes, self.min_position, self.tokens = None if sizes is None else tuple(sizes), min_position, tokens
        self.rule = Rule(norm, threshold, renormalise, bias)

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return what the parts of each block are made of."""
        return [Site(name, b) for b in range(info.n_layers) for name in PARTS]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Find the words, and the runs of one-token words they are compared with."""
        super().begin(info, prompts)
        if info.n_heads == 0:
            raise ValueError(f"{info.id} has no attention heads, of which routes are made: take a transformer")
        self._table = word_pieces(prompts, self.sizes, self.min_position) if self.sizes else None

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Hold what a block's shares are made of until its MLP is reached; return what ``update`` needs of them."""
        held = batch.once((id(self), "parts"), dict[str, torch.Tensor])
        held[site.name] = value
        if site.name != "mlp_out":
            return value.flatten(1).float().abs().amax(1, keepdim=True)
        found = block_shares(batch, site.at, held, self.rule)
        held.clear()
        return torch.cat([part.flatten(1).float() for part in self._reduce(batch, found)], 1)

    def _reduce(self, batch: Batch, found: Shares) -> tuple[torch.Tensor, ...]:
        """Return edges, heads with edges, what is open downwards, shares by token, by head, and of words."""
        least, counted = self.rule.least, _counted(batch)
        n = counted.sum(1).double()[:, None]
        heads = found.heads
        edge = torch.where(heads > least, heads, 0)
        ask = counted.double()[:, None]

        def mean(x: torch.Tensor) -> torch.Tensor:  # (prompt, head, query) over queries
            return (x.double() * ask).sum(-1) / n

        before = torch.zeros_like(heads[..., 0])
        before[..., 1:] = heads.diagonal(-1, 2, 3)
        others = heads.tril(-2)[..., 1:].sum(-1)
        place = torch.arange(heads.shape[2], device=batch.device, dtype=torch.int64)
        asked = (counted & (place >= 3))[:, None].double()  # those that see position 0, another, the one before
        per = asked.sum(-1)
        control = (torch.where(place >= 3, others / (place - 2).clamp_min(1), 0).double() * asked).sum(-1) / per
        previous = (before.double() * asked).sum(-1) / per
        small = torch.stack([mean(heads.sum(-1)), mean(edge.sum(-1)), previous, control], 1)
        tokens = torch.stack([found.resid, found.bias, found.mlp], 1)
        return (
            found.edges(least), (heads > least).any(-1), found.open(least), tokens, small, self._words(batch, heads)
        )  # fmt: skip

    def _words(self, batch: Batch, heads: torch.Tensor) -> torch.Tensor:
        """Return (prompt, size, word or control, head) the sum over words of the share of their earlier tokens."""
        sizes = self.sizes or ()
        out = torch.zeros(len(batch) * len(sizes) * 2, heads.shape[1], dtype=torch.float64, device=batch.device)
        if sizes:
            place, query, size, cell = self._rows(batch)
            for back in range(1, max(sizes)):
                taken = heads[place, :, query, (query - back).clamp_min(0)].double()
                out.index_add_(0, cell, taken * (size > back)[:, None])
        return out.unflatten(0, (len(batch), len(sizes), 2)) if sizes else out.new_zeros(len(batch), 0)

    def _rows(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return, for each word of a batch and its control: place of the prompt, query, size, and cell of the sum."""
        assert self._table is not None
        assert self.sizes is not None
        found = torch.from_numpy(rows_of(self._table, batch.numbers)).to(batch.device)
        place, query, size, control = found.unbind(1)
        kind = (size[:, None] == torch.tensor(self.sizes, device=batch.device, dtype=torch.int64)).int().argmax(1)
        return place, query, size, (place * len(self.sizes) + kind) * 2 + control

    def update(self, batch: Batch) -> None:
        """Follow the routes of all predictions of a batch downwards, and average shares over positions."""
        heads, width = self.info.n_heads, batch.ids.shape[1]
        words = 0 if self.sizes is None else len(self.sizes) * 2 * heads
        parts = [width * width, heads * width, width, 3 * width, len(SMALL) * heads, words]
        counted, place = _counted(batch), torch.arange(width, device=batch.device, dtype=torch.int64)
        reach = torch.diag_embed(counted)  # (prompt, prediction, node)
        targets = counted.sum(1).double()[:, None]
        active, tokens, small, merged, seen = [], [], [], [], [_visible(reach, counted, place)]
        for site in self.sites(self.info):
            batch.seen(self, site)  # in the order of the pass, where they were kept
        for b in reversed(range(self.info.n_layers)):
            found = batch.seen(self, Site("mlp_out", b)).split(parts, 1)
            edges, used = found[0].unflatten(1, (width, width)), found[1].unflatten(1, (heads, width))
            reach = reach & (found[2] > 0)[:, None]
            at = reach.float()
            active.append(((at @ used.mT > 0) & counted[..., None]).sum(1) / targets)
            reach = at @ edges > 0
            seen.append(_visible(reach, counted, place))
            tokens.append(found[3].unflatten(1, (3, width)))
            small.append(found[4].unflatten(1, (len(SMALL), heads)))
            merged.append(found[5])
        by_token = torch.stack(tokens[::-1], 1)  # (prompt, block, part, position)
        means = (by_token.double() * counted[:, None, None]).sum(-1) / targets[..., None]
        columns = dict(zip(SMALL, torch.stack(small[::-1], 1).unbind(2), strict=True))
        if self.sizes is not None:
            columns |= self._merged(batch, torch.stack(merged[::-1], 1).unflatten(2, (len(self.sizes), 2, heads)))
        self.keep(
            batch, activation=torch.stack(active[::-1], 1), resid_share=means[..., 0], bias_share=means[..., 1],
            mlp_share=means[..., 2], on_route=torch.stack(seen[::-1], 1), token_resid=by_token[:, :, 0].mT,
            token_mlp=by_token[:, :, 2].mT, **columns,
        )  # fmt: skip

    def _merged(self, batch: Batch, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return means over words of (prompt, block, size, word or control, head) sums; 0/0 where there are none."""
        sizes = self.sizes or ()
        cell = self._rows(batch)[-1]
        n = torch.zeros(len(batch) * len(sizes) * 2, dtype=torch.float64, device=batch.device)
        n.index_add_(0, cell, torch.ones(len(cell), dtype=torch.float64, device=batch.device))
        n = n.unflatten(0, (len(batch), len(sizes), 2))
        mean = sums.transpose(1, 2).double() / n[:, :, None, :, None]
        return {"merge": mean[:, :, :, 0], "merge_control": mean[:, :, :, 1], "n_words": n[:, :, 0].long(),
                "n_control": n[:, :, 1].long()}  # fmt: skip

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of tokens of words."""
        return {"pieces": (np.array(self.sizes or (), np.int64), "tokens of the word", "token")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the threshold."""
        over = f"above {self.threshold:g}{', renormalised' if self.renormalise else ''}"
        return {n: {"comment": f"edges are {over}"} for n in ("importance", "activation", "on_route")}


def _counted(batch: Batch) -> torch.Tensor:
    """Return (prompt, position) bool, the tokens that are predictions and that means are over."""
    return batch.mask & ~batch.special


def _visible(reach: torch.Tensor, counted: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return (prompt,) the mean over predictions of the share of positions up to it that are reached."""
    share = reach.sum(-1).double() / (place + 1)
    return (share * counted).sum(1) / counted.sum(1)
