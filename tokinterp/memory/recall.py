"""PrefixRecall: which of the words before a token a linear probe finds in its states; no training but least squares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import linear
from ..run.measurement import Field, Measurement
from ..settings import checked, count, positive

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

HALVES = 2

TOKEN = ("token", "layer")


@checked(n_words=count(1), ridge=positive, tokens=count(1))
class PrefixRecall(Measurement):
    """Bag of the tokens before a place, read from its state by ridge regression, on prompts not fitted on.

    A proxy of contextual memory that needs no trained decoder, and another quantity than `ContextMemory`: the most
    frequent tokens of the prompts make up a vocabulary; the target of a place is which of them have occurred before it.
    Prompts of even and of odd number are fitted apart, and each is scored by the map of the other half (two readings).
    States and targets are taken about their means within bins of the prefix length (1, 2-3, 4-7, ...), so that knowing
    the position explains nothing.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to read; all by default.
    n_words : int
        Size of the vocabulary.
    ridge : float
        Added to the diagonal of the covariance of the states, in units of its mean. Tokens of a prompt share most of
        their prefixes, so there are far fewer independent rows than tokens, and a weak ridge overfits: on 138 prompts
        of the bundled texts ``explained`` of the last layer is -0.05, -0.01, 0.01 and 0.004 for 0.01, 0.3, 3 and 30.
    exclude : sequence of str
        Rows left out of the fit: ``"massive"`` ones.  Special tokens are no part of a prefix, and their places are
        neither fitted nor scored: ``"special"`` need not be named.
    tokens : int, optional
        Values of single tokens are kept for the prompts numbered below this; None keeps all.

    Notes
    -----
    - ``recall`` (token, layer): of the r vocabulary tokens in the prefix, the share among the r of highest score; NaN
      where r is 0. ``recall_base``: the same with the mean bag of that length in place of the probe.
    - ``explained_token`` (token, layer): 1 - |bag - probe|^2 / |bag - mean bag|^2; ``explained`` (layer): over all
      tokens together. 0 without any memory but of position; below 0 for an overfitted probe (use more prompts, or more
      ``ridge``).

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("story")[:8]]
    >>> asked = {"recall": ti.memory.PrefixRecall(layers=[2], n_words=32)}
    >>> ti.measure(ti.load_model(), texts, asked, progress=False)["recall"]["recall"].dims
    ('token', 'layer')
    """

    first = ("explained", "recall")
    fields = {
        "recall": Field(
            TOKEN, "share of the prefix's vocabulary tokens among the highest scored", short="recall of the prefix",
            range=(0, 1), chance="recall_base",
        ),
        "recall_base": Field(
            ("token",), "the same by the mean bag of prefixes of that length", short="by the mean bag",
        ),
        "explained_token": Field(
            TOKEN, "explained share of the bag of the prefix, held out", short="explained share of the bag",
        ),
        "n_seen": Field(("token",), "different vocabulary tokens in the prefix", "token"),
        "explained": Field(
            ("layer",), "explained share of the bags of prefixes beyond their length, held out",
            short="explained share of the bags",
        ),
        "n_fitted": Field((), "tokens fitted on, both halves", "token"),
    }  # fmt: skip
    passes = 2

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        n_words: int = 256,
        ridge: float = 3.0,
        exclude: Sequence[str] = ("massive",),
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.n_words, self.ridge, self.exclude, self.tokens = layers, n_words, ridge, exclude, tokens

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Choose the vocabulary, and check that there are two halves."""
        super().begin(info, prompts)
        if len(prompts.lengths) < HALVES:
            raise ValueError("one prompt cannot be halved into prompts to fit and to score: give at least 2")
        count = np.bincount(prompts.token_ids[~prompts.special_mask], minlength=info.d_vocab)
        words = np.argsort(-count, kind="stable")[: self.n_words]
        self.words = words[count[words] > 0]
        self.n_bins = int(np.log2(max(prompts.lengths))) + 1

    def _bags(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return of the rows that count: index in the flat batch, (row, word) bags, bin and half."""
        of = torch.full((self.info.d_vocab,), len(self.words), dtype=torch.int64, device=batch.device)
        of[torch.from_numpy(self.words).to(batch.device)] = torch.arange(
            len(self.words), device=batch.device, dtype=torch.int64
        )
        seen = torch.nn.functional.one_hot(of[batch.ids], len(self.words) + 1)[..., :-1]
        seen = seen.masked_fill((~batch.mask | batch.special)[..., None], 0).to(torch.float32)
        before = (seen.cumsum(1) - seen).clamp(max=1)
        start = (batch.special | ~batch.mask).long().cumprod(1).sum(1)
        length = torch.arange(batch.ids.shape[1], device=batch.device, dtype=torch.int64) - start[:, None]
        wanted = batch.mask & ~batch.special & (length > 0)
        index = batch.flatten(wanted).nonzero()[:, 0]
        level = batch.flatten(length)[index].double().log2().long().clamp(0, self.n_bins - 1)
        return index, batch.flatten(before)[index], level, batch.tokens.prompt[index] % HALVES

    def update(self, batch: Batch) -> None:
        """Add a batch to the fit, or score it."""
        index, bags, level, half = self._bags(batch)
        if self.reading == 0:
            self._add(batch, index, bags, level, half)
        else:
            self._score(batch, index, bags, level, half)

    def _add(self, batch: Batch, index: Any, bags: Any, level: Any, half: Any) -> None:
        layers = self.at_layers()
        device, d, n = batch.device, self.info.d_model, len(self.words)
        if "shift" not in self.sums:
            shift = torch.stack([batch.flatten(batch.points(layer)).double().mean(0) for layer in layers])
            self.sums["shift"] = shift
            for name, shape in (
                ("second", (len(layers), HALVES, d, d)), ("cross", (len(layers), HALVES, d, n)),
                ("first", (len(layers), HALVES, self.n_bins, d)), ("bag", (HALVES, self.n_bins, n)),
                ("count", (HALVES, self.n_bins)),
            ):  # fmt: skip
                self.sums[name] = torch.zeros(shape, dtype=torch.float64, device=device)
        place = torch.nn.functional.one_hot(level, self.n_bins).double()
        keep = batch.flatten(batch.kept(self.exclude, *layers))[index]
        for h in range(HALVES):
            mine = ((half == h) & keep).double()[:, None]
            at, bag = place * mine, bags.double()
            self.sums["count"][h] += at.sum(0)
            self.sums["bag"][h] += at.T @ bag
            for i, layer in enumerate(layers):
                x = batch.flatten(batch.points(layer))[index].double() - self.sums["shift"][i]
                self.sums["first"][i, h] += at.T @ x
                x = x * mine
                self.sums["second"][i, h] += x.T @ x
                self.sums["cross"][i, h] += x.T @ bag

    def end_reading(self) -> None:
        """Solve both halves."""
        if self.reading:
            return
        s = self.sums
        count = s["count"].clamp_min(1)[..., None]
        bag = s["bag"] / count
        mean = s["first"] / count
        size = count * (s["count"][..., None] > 0)
        scatter = s["second"] - torch.einsum("lhbd,hb,lhbe->lhde", mean, size[..., 0], mean)
        cross = s["cross"] - torch.einsum("lhbd,hb,hbv->lhdv", mean, size[..., 0], bag)
        maps = torch.empty_like(cross)
        for i in range(len(maps)):
            for h in range(HALVES):
                zero = scatter.new_zeros(())
                pair = linear.Pair(
                    s["count"][h].sum().long(), mean[i, h, 0], bag[h, 0], scatter[i, h], cross[i, h], zero
                )
                maps[i, h] = linear.solve(pair, ridge=self.ridge, cutoff=0.0).weight
        enough = (s["count"].sum(1) > self.n_bins + 1)[:, None, None]
        missing = (s["count"] == 0)[..., None]  # a bin that the other half lacks
        self.sums = {
            "shift": s["shift"], "map": maps, "mean": mean, "fitted": s["count"],
            "bag": torch.where(missing | ~enough, torch.nan, bag),
            "left": s["second"].new_zeros(len(maps)), "total": s["second"].new_zeros(()),
        }  # fmt: skip

    def _score(self, batch: Batch, index: Any, bags: Any, level: Any, half: Any) -> None:
        layers, other = self.at_layers(), 1 - half
        base = self.sums["bag"][other, level]
        known = ~base.isnan().any(1)
        total = ((bags - base) ** 2).sum(1)
        self.sums["total"] += torch.where(known, total, 0.0).sum()
        recall, explained = [], []
        for i, layer in enumerate(layers):
            x = (
                batch.flatten(batch.points(layer))[index].double()
                - self.sums["shift"][i]
                - self.sums["mean"][i, other, level]
            )
            maps = self.sums["map"][i]
            score = base + torch.where((other == 0)[:, None], x @ maps[0], x @ maps[1])
            left = ((bags - score) ** 2).sum(1)
            self.sums["left"][i] += torch.where(known, left, 0.0).sum()
            recall.append(_recall(score, bags))
            explained.append(torch.where(total > 0, 1 - left / total, torch.nan))
        few = torch.isin(index, batch.tokens.below(self.tokens))
        self.keep_rows(
            batch, index[few], n_seen=bags.sum(1).long()[few], recall=torch.stack(recall, 1)[few].float(),
            recall_base=_recall(base, bags)[few].float(), explained_token=torch.stack(explained, 1)[few].float(),
        )  # fmt: skip

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return what is explained of all tokens together."""
        left, total = self.sums["left"].cpu(), self.sums["total"].cpu()
        explained = torch.where(total > 0, 1 - left / total, torch.nan)
        return {"explained": explained, "n_fitted": self.sums["fitted"].sum().long()}


def _recall(score: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
    """Return (row,) the share of each bag among its size many of highest score; NaN for an empty bag."""
    order = score.argsort(dim=1, descending=True, stable=True)
    hits = bags.gather(1, order).cumsum(1)
    size = bags.sum(1).long()
    found = hits.gather(1, (size - 1).clamp_min(0)[:, None])[:, 0] / size
    return torch.where((size > 0) & ~score.isnan().any(1), found, torch.nan)
