"""ErasureScores: what the stream forgets of its own and earlier tokens, and the spans at whose ends it forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked, integer, mapping, one_of, several
from .kernels import spans as seg

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts
    from .token_probes import TokenProbes

SCALES = {"prob": "probability", "logprob": "log-probability", "rank": "reciprocal rank"}
SEGMENTATIONS = ("greedy", "dp")
PSI = {"denominator": "code", "left_penalty": True, "right_penalty": False, "max_length": None}
SPANS_AT_ONCE = 2**22
PAPER = "Feucht et al. 2024, arXiv 2406.20086"


@checked(
    offsets=several(integer),
    scale=one_of(*SCALES),
    psi=mapping(),
    segmentation=one_of(*SEGMENTATIONS),
)
class ErasureScores(Measurement):
    """Drop of token probes between two layers, the score psi of spans, and a segmentation of every prompt.

    delta(t, i) is the probability that the probe of offset i gives the true token at t + i at layer ``start`` minus
    that at layer ``end``; psi of a span is defined in `tokinterp.erasure.kernels.spans.span_scores`.

    Parameters
    ----------
    probes : TokenProbes
        Fitted at both layers for all offsets.
    start, end : int, optional
        Layers (blocks applied).  By default 2 and 10 of 32 blocks, as in the paper, and the same share of other depths;
        for a new model see `end_layer`.
    offsets : sequence of int
        0 and negative ones; the paper has 0, -1, -2.
    scale : {"prob", "logprob", "rank"}
        Score of the true token: its probability (the paper), log-probability, or 1 / (1 + number of more probable
        types), which does not depend on how confident a probe is.
    psi : dict, optional
        Options of `span_scores` that are not its defaults: ``denominator``, ``left_penalty``, ``right_penalty``,
        ``max_length``.
    segmentation : {"greedy", "dp"}
        As published, or the spans of greatest total ``psi * tokens``.
    tokens : int, optional
        delta of single tokens is kept for the prompts numbered below this; None keeps all, 0 none.

    Raises
    ------
    ValueError
        For unknown settings; at the start of a run for probes without the layers or offsets, probes of another width,
        layers out of order, or prompts none of whose tokens the probes know.

    Notes
    -----
    Result: per token (``token``) ``delta`` and ``token_psi``, psi of its segment; per segment (``span``) ``psi``,
    ``seen`` (share of its terms whose target was a label); per prompt the mean delta, the number of segments, of those
    with two or more tokens, their mean psi, and the share of tokens in those with psi > 0.

    BOS and other special tokens are in no span, and terms that have one as their target, or a type that was never a
    label of the probes, are missing; `tokinterp.erasure.Feucht2024Scores` has them as published.

    A control is the same measurement on `shuffle_blocks(prompts, ...)` or on `sample_bigrams(prompts)`.

    There is no exclusion of massive activations, which other means over tokens need: delta in probability or reciprocal
    rank lies between -1 and 1, so that no token can dominate a mean, and the token most often massive, the first one,
    is special. Leaving tokens out inside a text would also change which spans there are. Look at ``mean_delta``
    with ``scale="rank"`` where a few tokens are suspected.

    With the denominator "code" a span that begins right after BOS gets longer to the left at no cost, since its first
    terms are missing; "paper" has no such gap.

    References
    ----------
    Feucht et al. 2024, arXiv 2406.20086, section 5, equation 1.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.erasure.probes import fit_probes
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The Rhine flows north."], model)
    >>> probes = fit_probes(model, prompts, layers=[1, 3], offsets=[0, -1, -2], progress=False)
    >>> run = ti.measure(model, prompts, {"erasure": ErasureScores(probes, start=1, end=3)}, progress=False)
    >>> int((run["erasure"]["stop"] - run["erasure"]["start"]).sum()) == prompts.n_tokens - 2  # all but BOS
    True
    """

    first = ("mean_delta", "in_units", "mean_psi")
    fields = {
        "psi": Field(("span",), "erasure score", "1", f"{PAPER}, equation 1", short="erasure score psi", chance=0),
        "seen": Field(("span",), "share of the terms whose target was a label of the probes"),
        "mean_delta": Field(("prompt", "offset"), "mean drop of the true token", short="mean drop", chance=0),
        "n_terms": Field(("prompt", "offset"), "positions with a delta", "token"),
        "n_segments": Field(("prompt",), "segments"),
        "n_multi": Field(("prompt",), "segments of two or more tokens"),
        "mean_psi": Field(
            ("prompt",), "mean erasure score of segments of two or more tokens", short="mean psi of segments",
            chance=0,
        ),
        "in_units": Field(
            ("prompt",), "share of tokens in segments of two or more tokens with psi > 0",
            short="share of tokens in erased segments",
        ),
        "delta": Field(
            ("token", "offset"), "drop of the true token", "1", f"{PAPER}, section 5", short="drop", chance=0,
        ),
        "token_psi": Field(
            ("token",), "erasure score of the segment that holds the token", short="psi of the segment", chance=0,
        ),
        "_covered": Field(("prompt",), "tokens in segments"),
    }  # fmt: skip
    exclude: ClassVar[tuple[str, ...]] = ("special",)
    unseen: ClassVar[str] = "missing"

    def __init__(
        self,
        probes: TokenProbes,
        start: int | None = None,
        end: int | None = None,
        offsets: Sequence[int] = (0, -1, -2),
        scale: str = "prob",
        psi: Mapping[str, Any] | None = None,
        segmentation: str = "greedy",
        tokens: int | None = 64,
    ) -> None:
        super().__init__()
        self.probes = probes
        self.start, self.end = start, end
        self.offsets, self.scale, self.segmentation, self.tokens = tuple(offsets), scale, segmentation, tokens
        self.psi = {**PSI, **(psi or {})}
        seg.check_offsets(self.offsets)
        seg.check_options(**self.psi)
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start={start}, end={end}: erasure is a drop from an earlier layer to a later one")
        missing = [i for i in self.offsets if i not in [int(o) for o in probes.offsets]]
        if missing:
            raise ValueError(
                f"the probes have no offsets {missing}, only {[int(o) for o in probes.offsets]}: fit them for "
                f"offsets={self.offsets}, or choose fewer"
            )

    def between(self, info: ModelInfo) -> tuple[int, int]:
        """Return start and end for a model, the defaults filled in."""
        start, end = default_layers(info.n_layers)
        start = start if self.start is None else self.start
        return start, max(end, start + 1) if self.end is None else self.end

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the two layers."""
        return resid(self.between(info))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check the probes against the model and the prompts."""
        super().begin(info, prompts)
        start, end = self.between(info)
        self.probes.check_model(info)
        if start >= end:
            raise ValueError(f"start={start}, end={end}: erasure is a drop from an earlier layer to a later one")
        for layer in (start, end):
            if not 0 <= layer <= info.n_layers:
                raise ValueError(f"layer {layer}: {info.id} has layers 0 to {info.n_layers}")
            if layer not in [int(n) for n in self.probes.layers]:
                raise ValueError(
                    f"the probes have no layer {layer}, only {[int(n) for n in self.probes.layers]}: give start= and "
                    "end= among these, or fit more"
                )
        labels = torch.as_tensor(self.probes.labels, dtype=torch.int64, device="cpu").numpy()
        if not np.isin(prompts.token_ids, labels).any():
            raise ValueError("no token of the prompts was ever a label of the probes: they are of another tokenizer")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Score all spans of a batch and keep the segments."""
        with torch.inference_mode():
            delta, exists = self.delta(batch)
            inside = batch.kept(self.exclude)
            n = batch.ids.shape[1]
            step = max(1, SPANS_AT_ONCE // (n * min(self.psi["max_length"] or n, n)))
            token_psi = torch.full(batch.ids.shape, torch.nan, device=batch.device, dtype=torch.float32)
            for first in range(0, len(batch), step):
                part = slice(first, first + step)
                token_psi[part] = self._segment(batch, part, delta[part], exists[part], inside[part])
            known = ~delta.isnan()
            total = seg.on_grid(delta).nan_to_num(nan=0.0).sum(1)
            columns = {"n_terms": known.sum(1), "mean_delta": total / known.sum(1)}
            if self.tokens != 0:
                columns.update(delta=delta, token_psi=token_psi)
            self.keep(batch, _covered=(~token_psi.isnan()).sum(1), **columns)

    def delta(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return delta, NaN where missing, and whether there is a target: both (prompt, position, offset)."""
        start, end = self.between(self.info)
        rows = [self.probes.standardise(batch.rows(layer), layer) for layer in (start, end)]
        shape = (*batch.ids.shape, len(self.offsets))
        delta = torch.full(shape, torch.nan, device=batch.device, dtype=torch.float32)
        exists = torch.zeros(shape, dtype=torch.bool, device=batch.device)
        special = batch.special.to(torch.int64)
        for column, offset in enumerate(self.offsets):
            there = batch.labels(offset) >= 0
            if "special" in self.exclude:
                there &= ~batch.special & (special.roll(-offset, 1) == 0)
            target = batch.flatten(batch.labels(offset))
            before, after = (self._score(x, n, offset, target) for x, n in zip(rows, (start, end), strict=True))
            drop = before - after
            if self.unseen == "zero":
                drop = drop.nan_to_num(nan=0.0)
            delta[..., column] = batch.tokens.spread(drop, torch.nan).masked_fill(~there, torch.nan)
            exists[..., column] = there
        return delta, exists

    def _score(self, rows: torch.Tensor, layer: int, offset: int, target: torch.Tensor) -> torch.Tensor:
        by_rank = self.scale == "rank"
        log_prob, rank = self.probes.read(rows, layer, offset, target, standardised=True, rank=by_rank)
        if by_rank:
            rank = rank.float()
            return 1 / (1 + rank.masked_fill(rank < 0, torch.nan))
        return log_prob.exp() if self.scale == "prob" else log_prob

    def _segment(
        self, batch: Batch, part: slice, delta: torch.Tensor, exists: torch.Tensor, inside: torch.Tensor
    ) -> torch.Tensor:
        """Segment some prompts, append their segments, and return (prompt, position) psi of each token's segment."""
        psi = seg.span_scores(delta, inside, self.offsets, **self.psi)
        lengths = seg.segment_greedy(psi) if self.segmentation == "greedy" else seg.segment_dp(psi)
        text, start, stop = seg.segments(lengths)
        score = psi[text, start, stop - start - 1].float()
        now = self.offsets.index(0)
        past = [c for c in range(len(self.offsets)) if c != now]
        seen, all_terms = (
            x[text, stop - 1, now].double() + seg.sums_over(x[..., past].sum(-1), text, start, stop)
            for x in (~delta.isnan() & exists, exists)
        )
        self.append(
            span_prompt=batch.prompt_numbers[part][text],
            start=start.to(torch.int32),
            stop=stop.to(torch.int32),
            psi=score,
            seen=(seen / all_terms).float(),
        )
        begins = lengths > 0
        which = begins.flatten().cumsum(0).view_as(lengths) - 1
        place = torch.arange(lengths.shape[1], device=lengths.device, dtype=torch.int64)
        reach = torch.where(begins, place + lengths, 0).cummax(1).values
        spread = score[which.clamp(min=0)] if len(score) else torch.zeros_like(which, dtype=torch.float32)
        return spread.masked_fill(place >= reach, torch.nan)

    # -- the outcome ------------------------------------------------------------------------------------------
    def attributes(self) -> Mapping[str, Any]:
        """Say between which layers, and how, tokens were scored."""
        start, end = self.between(self.info)
        attrs = {k: int(v) if isinstance(v, bool) else v for k, v in self.scoring().items()}
        return {**attrs, "start_layer": start, "end_layer": end}

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return what is counted per prompt."""
        return _per_prompt(found)

    def coords(self) -> Mapping[str, Any]:
        """Return the offsets."""
        return {"offset": (np.array(self.offsets), "place decoded minus place probed", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what dropped, between which layers, and in which units."""
        start, end = self.between(self.info)
        units = {"units": "nat" if self.scale == "logprob" else "1"}
        drop = f"drop of the {SCALES[self.scale]} of the true token from layer {start} to {end}"
        return {
            "psi": units,
            "mean_psi": units,
            "token_psi": units,
            "delta": {"long_name": drop, **units},
            "mean_delta": {"long_name": f"mean {drop}", **units},
        }

    def scoring(self) -> dict[str, Any]:
        """Return the settings that the scores of other spans need."""
        names = ("denominator", "left_penalty", "right_penalty")
        return {"scale": self.scale, "segmentation": self.segmentation, **{n: self.psi[n] for n in names}}


def _per_prompt(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the variables that count segments, per prompt."""
    prompt, covered, psi = found["prompt"], found["_covered"], found["psi"]
    where = np.searchsorted(prompt, found["span_prompt"])
    length = found["stop"] - found["start"]
    multi = length > 1

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(where, weights=weights, minlength=len(prompt))

    n_multi = total(multi)
    mean = np.full(len(prompt), np.nan)
    np.divide(total(np.where(multi, psi, 0)), n_multi, out=mean, where=n_multi > 0)
    share = np.full(len(prompt), np.nan)
    np.divide(total(length * (multi & (psi > 0))), covered, out=share, where=covered > 0)
    return {
        "n_segments": total(np.ones(len(where))).astype(np.int64),
        "n_multi": n_multi.astype(np.int64),
        "mean_psi": mean,
        "in_units": share,
    }


# -- layers of a new model ------------------------------------------------------------------------------------
def default_layers(n_layers: int) -> tuple[int, int]:
    """Return the layers of the paper (2 and 10 of 32 blocks) for a model of another depth.

    Examples
    --------
    >>> default_layers(32), default_layers(12), default_layers(2)
    ((2, 10), (1, 4), (1, 2))
    """
    start = max(1, round(n_layers * 2 / 32)) if n_layers > 1 else 0
    return start, min(n_layers, max(start + 1, round(n_layers * 10 / 32)))


def end_layer(layers: Sequence[int], others: Sequence[float], last: Sequence[float], tolerance: float = 0.02) -> int:
    """Return the first layer from which on the erasure gap hardly grows any more: the end to choose for a new model.

    Parameters
    ----------
    layers : sequence of int
        Layers, in order.
    others, last : sequence of float
        Accuracy of offset 0 at each layer, at tokens that end no unit and at last tokens of multi-token words.
    tolerance : float
        The gap of no later layer exceeds that of the layer returned by more than this.

    Examples
    --------
    >>> end_layer([0, 2, 4, 6, 8], [1, 0.98, 0.9, 0.85, 0.8], [1, 0.9, 0.6, 0.4, 0.35])
    6
    """
    gap = np.asarray(others, dtype=float) - np.asarray(last, dtype=float)
    if len(gap) != len(layers) or not np.isfinite(gap).all() or not len(gap):
        raise ValueError(f"{len(layers)} layers need as many finite accuracies, not {gap.tolist()}")
    return int(np.asarray(layers)[np.flatnonzero(gap >= gap.max() - tolerance)[0]])
