"""ProbeScores: how often token probes are right, for which tokens, and what a text alone would have told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.documents import interval_name
from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked, refuse
from ..stats.resample import group_sums, ratio, ratio_interval, resample_columns
from ..stats.simultaneous import ratio_parts, simultaneous_band
from ..text.classes import CLASSES, TokenClasses
from ..text.spans import Spans
from .probe_text import label_ids
from .token_probes import TokenProbes

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts

PAPER = "Feucht et al. (2024), arXiv 2406.20086, section 2"
SUBSETS: tuple[str, ...] = (
    "all", "other", "first piece", "middle piece", "last piece", "single-token word", "punctuation", "last of 1",
    "last of 2", "last of 3", "last of 4+", "seen label", "unseen label", "seen pair", "unseen pair",
)  # fmt: skip
_FROM_LABELS = SUBSETS[-4:]
_TOP = 5
_FULL, _FLAT = ("subset", "layer", "offset"), ("subset", "offset")
_SHARES = {
    "accuracy": Field(
        _FULL, "share of positions whose label has the greatest logit", "1", PAPER, short="accuracy",
        chance="bigram_accuracy",
    ),
    "top5_accuracy": Field(_FULL, "share of positions whose label is among the top 5", "1", PAPER),
    "relative_accuracy": Field(_FULL, "accuracy divided by its seen-label ceiling", "1", PAPER),
    "cross_entropy": Field(_FULL, "mean cross-entropy of seen labels", "nat", PAPER),
    "gap": Field(
        _FULL, "accuracy of other positions minus the subset's", "1", PAPER, short="gap in accuracy",
        range=(None, None), chance=0,
    ),
    "ceiling": Field(_FLAT, "share of positions whose label was seen in training", "1", PAPER),
    "bigram_accuracy": Field(_FLAT, "accuracy of argmax P(label | token at t)", "1", PAPER, short="bigrams"),
    "unigram_accuracy": Field(_FLAT, "accuracy of the most frequent label", "1", PAPER),
}  # fmt: skip
"""What has an interval over documents, under its name with ``_interval``."""


@checked()
class ProbeScores(Measurement):
    """Accuracy and cross-entropy of token probes per layer, offset and subset of the tokens.

    Parameters
    ----------
    probes : TokenProbes
        From `fit_probes`, of the same model; the prompts must be other text than they were fitted on.
    spans : Spans, optional
        Entities, multiword expressions and the like on the same texts: each kind adds ``last of KIND`` (the last token
        of a span of at least two tokens).
    layers, offsets : iterable of int, optional
        Some of the fitted ones; all by default.
    level : float
        Of the intervals.
    n_boot, seed : int
        Bootstrap draws over documents, and their seed.

    Notes
    -----
    The subset of a position is that of the token at t, whose state is read.  ``all`` are the positions that have a
    label (special tokens are neither labels nor sources, unless the probes were fitted so); ``last piece`` are last
    tokens of multi-token words, ``other`` all positions but those; ``last of 2`` the last tokens of words of two tokens
    (``last of 1``: words of one); ``seen label``: the label was one at this offset in the training text; ``seen pair``:
    the token at t was seen with this label.

    A probe cannot be right about a label never seen, so ``ceiling``, the share of seen labels, is the best accuracy
    there is, and the accuracy of a probe of the embedding at offset 0; ``relative_accuracy`` is accuracy divided by it.
    Cross-entropy is over seen labels, NaN where a closed form had no row of one of them (its prompts were left out of
    the fit, as not finite).  Intervals (`tokinterp.stats.resample`) draw whole documents, hits divided by positions;
    those of ``gap`` draw both of its subsets together, and ``gap_band`` holds at all layers at once: it is that of the
    layer with the largest gap.  They are NaN where fewer than 3 documents (``n_groups``) have a part.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.erasure.probes import fit_probes
    >>> model = ti.load_model()
    >>> texts = ti.bundled_texts()
    >>> make = lambda part: ti.Prompts.from_texts([t.text for t in part], model, max_tokens=64)
    >>> probes = fit_probes(model, make(texts[:8]), layers=[0, 4], offsets=[0, -1], progress=False)
    >>> scores = score_probes(probes, model, make(texts[8:12]), progress=False)
    >>> embedding = scores.sel(subset="all", layer=0, offset=0)
    >>> bool(abs(embedding["accuracy"] - embedding["ceiling"]) < 0.1)
    True
    """

    fields = {
        **_SHARES,
        **{f"{n}_interval": Field(("bound", *f.dims), f"interval of {n}", f.units) for n, f in _SHARES.items()},
        "gap_band": Field(("bound", *_FULL), "interval of gap at all layers at once"),
        "n_positions": Field(_FLAT, "positions with a label", "token"),
        "n_seen": Field(_FLAT, "positions with a seen label", "token"),
        "n_groups": Field(_FLAT, "documents with a position that has a label"),
        "_counts": Field(("prompt", *_FLAT, "count"), "positions, seen labels, hits of unigram and of bigram"),
        "_hits": Field(("prompt", *_FULL, "count"), "hits, hits among the first five, sums of cross-entropy"),
    }
    first = ("accuracy", "gap", "relative_accuracy", "cross_entropy")

    def __init__(
        self,
        probes: TokenProbes,
        spans: Spans | None = None,
        layers: Iterable[int] | None = None,
        offsets: Iterable[int] | None = None,
        level: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.probes, self.spans = probes, spans
        self.layers = list(probes.layers) if layers is None else sorted(set(layers))
        self.offsets = list(probes.offsets) if offsets is None else sorted(set(offsets))
        for name, mine, there in (("layer", self.layers, probes.layers), ("offset", self.offsets, probes.offsets)):
            if missing := [n for n in mine if n not in there]:
                refuse(f"{name}s", missing, f"no probes of these: they were fitted at {name}s {there}")
        self.level, self.n_boot, self.seed = level, n_boot, seed

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers."""
        return resid(self.layers)

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check that the probes belong to the model, and sort the tokens of the prompts into subsets.

        Raises
        ------
        ValueError
            If the probes belong to another model, the prompts hold no multi-token word, or no label at an offset.
        """
        super().begin(info, prompts)
        self.probes.check_model(info)
        self.subsets, self._bits = token_subsets(prompts, self.spans)
        self._documents = prompts.documents
        for o in self.offsets:
            if not (label_ids(prompts, o, self._bos) >= 0).any():
                raise ValueError(f"offset {o}: no token of these prompts has a label there: give longer prompts")
        self._special = torch.from_numpy(prompts.vocabulary.special_ids.astype(np.int64))

    @property
    def _bos(self) -> bool:
        return bool(self.probes.facts.get("bos"))

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Count hits per prompt, subset, layer and offset."""
        n, device = len(batch), batch.device
        width = len(self.subsets)
        row = torch.repeat_interleave(
            torch.arange(n, device=device, dtype=torch.int64),
            torch.tensor(batch.lengths, device=device, dtype=torch.int64),
        )
        bits = torch.from_numpy(self._bits[batch.tokens.place]).to(device)
        text_part = (bits[:, None] >> torch.arange(width, device=device, dtype=torch.int64)) & 1
        members, labels = [], []
        counts = torch.zeros(n, width, len(self.offsets), 4, device=device, dtype=torch.float64)
        for k, o in enumerate(self.offsets):
            label = self._labels(batch, o)
            seen = self.probes.classes(label, o) >= 0
            member = text_part.bool() & (label >= 0)[:, None]
            pair = self.probes.text.seen_pair(o, batch.tokens.ids, label) if self.probes.text is not None else seen
            for name, flag in zip(_FROM_LABELS, (seen, ~seen, pair, ~pair), strict=True):
                member[:, self.subsets.index(name)] = flag & (label >= 0)
            uni, two = self._baselines(batch, label, o)
            values = torch.stack([torch.ones_like(seen), seen, uni, two], 1).double()
            counts[:, :, k] = _per_prompt(row, member, values, n)
            members.append(member)
            labels.append(label)
        hits = torch.zeros(n, width, len(self.layers), len(self.offsets), 3, device=device, dtype=torch.float64)
        with torch.inference_mode():
            for i, layer in enumerate(self.layers):
                x = self.probes.standardise(batch.rows(layer), layer)
                for k, o in enumerate(self.offsets):
                    found = self.probes.read(x, layer, o, labels[k], standardised=True)
                    top1, top = found.rank == 0, (found.rank >= 0) & (found.rank < _TOP)
                    loss = -found.log_prob.double().nan_to_num(0.0)
                    unfitted = (found.log_prob.isnan() & (self.probes.classes(labels[k], o) >= 0)).double()
                    values = torch.stack([top1.double(), top.double(), loss, unfitted], 1)
                    sums = _per_prompt(row, members[k], values, n)
                    sums[..., 2].masked_fill_(sums[..., 3] > 0, torch.nan)  # no loss is known, and none is infinite
                    hits[:, :, i, k] = sums[..., :3]
        self.keep(batch, _counts=counts, _hits=hits.float())

    def _labels(self, batch: Batch, offset: int) -> torch.Tensor:
        label = batch.flatten(batch.labels(offset))
        if self._bos:
            return label.masked_fill(batch.tokens.position == 0, -1) if offset == 0 else label
        special = torch.isin(label, self._special.to(label.device)) | batch.tokens.special
        return label.masked_fill(special, -1)

    def _baselines(self, batch: Batch, label: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (row,) bool: whether the most frequent label, or the bigram answer to the token at t, is right."""
        text = self.probes.text
        if text is None:
            return torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label, dtype=torch.bool)
        k = text.offsets.index(offset)
        bigram = text.bigram[k].to(label.device)[batch.tokens.ids].long()
        return label == int(text.unigram[k]), label == bigram

    # -- result -----------------------------------------------------------------------------------------------
    def attributes(self) -> Mapping[str, Any]:
        """Say how many documents were drawn, and which probes are scored."""
        n, method = self._n_documents, str(self.probes.facts.get("method"))
        return {
            "n_documents": n, "n_groups": n, "groups": "documents", "probes": self.probes.digest,
            "probes_method": method,
        }  # fmt: skip

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the shares of all documents together, with intervals that draw documents."""
        document = self._documents[found["prompt"]]
        counts, hits = (group_sums(found[name], document) for name in ("_counts", "_hits"))
        self._n_documents = len(counts)
        positions, seen = counts[..., 0], counts[..., 1]
        over = {"layer": positions[:, :, None], "seen": seen[:, :, None]}
        out: dict[str, np.ndarray] = {}

        def share(name: str, above: np.ndarray, below: np.ndarray) -> None:
            out[name] = ratio(above.sum(0), below.sum(0))
            out[f"{name}_interval"] = ratio_interval(above, below, **self._draw)

        share("accuracy", hits[..., 0], over["layer"])
        share("top5_accuracy", hits[..., 1], over["layer"])
        share("relative_accuracy", hits[..., 0], over["seen"])
        share("cross_entropy", hits[..., 2], over["seen"])
        out.update(self._gap(hits[..., 0], positions))
        if self.probes.text is not None:
            share("ceiling", seen, positions)
            share("bigram_accuracy", counts[..., 3], positions)
            share("unigram_accuracy", counts[..., 2], positions)
        out["n_positions"], out["n_seen"] = (x.sum(0).astype(np.int64) for x in (positions, seen))
        out["n_groups"] = (positions > 0).sum(0)
        return out

    def coords(self) -> Mapping[str, Any]:
        """Return offsets, subsets and bounds."""
        return {
            "offset": (np.array(self.offsets), "place decoded minus place probed", "token"),
            "subset": (np.array(self.subsets), "which tokens take part", "1"),
            "bound": (np.array(["lower", "upper"]), "bound of the interval", "1"),
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Say of which level the intervals are, and what is drawn."""
        said = {f"{n}_interval": f.long_name for n, f in _SHARES.items()}
        said["gap_band"] = f"{_SHARES['gap'].long_name}, at all layers at once,"
        drawn = ("documents", self._n_documents)
        return {n: {"long_name": interval_name(what, self.level, *drawn)} for n, what in said.items()}

    @property
    def _draw(self) -> dict[str, Any]:
        return {"level": self.level, "n_boot": self.n_boot, "seed": self.seed}

    def _gap(self, hits: np.ndarray, n: np.ndarray) -> dict[str, np.ndarray]:
        """Return accuracy of the other tokens minus that of each subset: what erasure takes at word ends."""
        base, count = self.subsets.index("other"), np.broadcast_to(n[:, :, None], hits.shape)
        value = ratio(hits.sum(0), count.sum(0))
        bounds = np.full((2, *value.shape), np.nan)
        flat = [x.reshape(*x.shape[:2], -1) for x in (hits, count)]  # (document, subset, layer and offset)
        for s in range(len(value)):
            (a, c), (b, d) = ((x[:, base], x[:, s]) for x in flat)

            def gap(w: np.ndarray, part: slice, a: Any = a, b: Any = b, c: Any = c, d: Any = d) -> np.ndarray:
                return ratio(w @ a[:, part], w @ b[:, part]) - ratio(w @ c[:, part], w @ d[:, part])

            have = np.minimum((b > 0).sum(0), (d > 0).sum(0))
            bounds[:, s] = resample_columns(gap, len(hits), have, **self._draw).reshape(2, *value.shape[1:])
        both = (count > 0) & (count[:, [base]] > 0)  # (document, subset, layer, offset): documents with both subsets
        theirs, own = (ratio_parts(x * both, y * both) for x, y in ((hits[:, [base]], count[:, [base]]), (hits, count)))
        band = simultaneous_band((theirs - own).swapaxes(2, 3), **self._draw).swapaxes(2, 3)
        band += value[base] - value - ratio(np.nansum(theirs - own, 0), both.sum(0))
        return {"gap": value[base] - value, "gap_interval": bounds, "gap_band": band}


@checked()
@steady
def score_probes(
    probes: TokenProbes, model: Model, prompts: Prompts, spans: Spans | None = None, **options: Any
) -> xr.Dataset:
    """Return the scores of probes on other prompts: `ProbeScores` alone in one pass.

    Parameters
    ----------
    probes, model, prompts, spans
        See `ProbeScores`.
    **options
        Further arguments of `ProbeScores` (layers, offsets, level, n_boot, seed) and of ``measure`` (store, progress,
        batch_tokens).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:4]]
    >>> fit, test = (ti.Prompts.from_texts(part, model, max_tokens=64) for part in (texts[:2], texts[2:]))
    >>> probes = ti.erasure.fit_probes(model, fit, layers=[2], offsets=[0], method="ridge", progress=False)
    >>> "accuracy" in ti.erasure.score_probes(probes, model, test, progress=False)
    True
    """
    from ..run.engine import measure

    mine = {k: options.pop(k) for k in ("layers", "offsets", "level", "n_boot", "seed") if k in options}
    run = measure(model, prompts, {"probes": ProbeScores(probes, spans, **mine)}, **options)
    return run["probes"].to_dataset()


# -- subsets --------------------------------------------------------------------------------------------------
def token_subsets(prompts: Prompts, spans: Spans | None = None) -> tuple[list[str], np.ndarray]:
    """Return names of the subsets, and (token,) int64 with the bit of every subset a token is in.

    Subsets that depend on the label have no bits.

    Raises
    ------
    ValueError
        If no word of the prompts has more than one token.
    """
    found = spans.align(prompts) if spans is not None else None
    classes = prompts.classes
    last = classes.mask("last piece")
    if not last.any():
        raise ValueError(
            f"none of the {len(prompts)} prompts has a word of several tokens, so nothing can be compared: give text "
            "whose words the tokenizer splits"
        )
    length = word_lengths(classes, prompts)
    flags = {
        "all": np.ones(len(last), bool), "other": ~last, "first piece": classes.mask("first piece"),
        "middle piece": classes.mask("middle piece"), "last piece": last,
        "single-token word": classes.mask("word", "stop word"), "punctuation": classes.mask("punctuation"),
        "last of 1": length == 1, "last of 2": length == 2, "last of 3": length == 3, "last of 4+": length >= 4,
    }  # fmt: skip
    names = list(SUBSETS)
    if found is not None:
        several = found.where(found.n_tokens > 1)
        for kind in sorted(set(found.kind.tolist())):
            names.append(f"last of {kind}")
            flags[names[-1]] = several.last_tokens(prompts, kind)
    bits = np.zeros(len(last), np.int64)
    for name, flag in flags.items():
        bits |= flag.astype(np.int64) << names.index(name)
    return names, bits


def word_lengths(classes: TokenClasses, prompts: Prompts) -> np.ndarray:
    """Return (token,) int64 number of tokens of the word that ends here, 0 where none does.

    White space between pieces does not count; a word of which only the end lies in the prompt counts for nothing.
    """
    code = {n: k for k, n in enumerate(CLASSES)}
    kinds, out = classes.codes, np.zeros(len(classes.codes), np.int64)
    out[np.isin(kinds, [code["word"], code["stop word"]])] = 1
    pieces = np.isin(kinds, [code["first piece"], code["middle piece"], code["last piece"]])
    place, total = np.arange(len(kinds)), np.cumsum(pieces)
    begin = np.maximum.accumulate(np.where(kinds == code["first piece"], place, -1))
    start = np.repeat(prompts.starts[:-1], np.diff(prompts.starts))
    ends = (kinds == code["last piece"]) & (begin >= start)
    out[ends] = total[ends] - total[begin[ends]] + 1
    return out


# -- sums and intervals ---------------------------------------------------------------------------------------
def _per_prompt(row: torch.Tensor, member: torch.Tensor, values: torch.Tensor, n: int) -> torch.Tensor:
    """Return (prompt, subset, value) sums of (row, value) over the rows of each prompt in each subset."""
    table = (member.double()[:, :, None] * values[:, None]).reshape(len(row), -1)
    out = torch.zeros(n, table.shape[1], dtype=torch.float64, device=row.device).index_add_(0, row, table)
    return out.reshape(n, member.shape[1], values.shape[1])
