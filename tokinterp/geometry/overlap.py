"""NeighbourOverlap: do tokens keep their neighbours from layer to layer, and do neighbours share a label?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.state import neutral
from ..run.measurement import Field, Measurement
from ..settings import checked, mapping, ranks, refuse, several, string
from .clouds import Neighbourhood, Tables, check_sizes, tables
from .kernels.membership import membership, neighbour_lists

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

LABELS = ("token_id", "next_token", "token_class")
DOIMO = "Doimo et al. 2020, arXiv 2007.03506; Viswanathan et al. 2025, arXiv 2501.10573"
MISSING = "NaN where a prompt has fewer than k + 2 tokens, and so in all other values"
BLOCK, LABEL = ("prompt", "block", "k"), ("prompt", "layer", "k", "label")
WAYS = {
    "": "",
    "_balanced": ", every class of the same weight",
    "_corrected": ", of as many as its class has",
}
LABEL_FIELDS = {
    f"label_{what}{way}": Field(
        dims,
        f"neighbours with the label of the token{said}{text}",
        "1",
        source,
        short="chance" if what == "chance" else "neighbours of the same label",
        range=(0, 1),
        chance=f"label_chance{way}" if what == "overlap" else None,
    )
    for way, text in WAYS.items()
    for what, dims, said, source in (
        ("overlap", LABEL, "", DOIMO),
        ("chance", ("prompt", "k", "label"), ", by chance", None),
    )
}


@checked(k=ranks, labels=several(string) | string, classes=mapping())
class NeighbourOverlap(Measurement):
    """Share of the k nearest neighbours of a token that are the same in two layers, or have the same label.

    One cloud per prompt and layer, the neighbours of `IntrinsicDimension` (searched once for both).  Overlap of block b
    is that of layers b and b + 1.

    Parameters
    ----------
    k : sequence of int
        Numbers of neighbours.  The sign of an effect can depend on k: give several.
    layers : iterable of int, optional
        Layers to look at; all by default.  ``overlap`` is given for the blocks with both layers among them.
    pairs : bool
        Whether to compare every layer with every other (``overlap_pair``, a mean over prompts).
    labels : sequence of str
        Labels to compare neighbours by: ``"token_id"``, ``"next_token"`` (the last token has none), ``"token_class"``
        (`tokinterp.text.classes.token_classes`; needs prompts with a text), and the names in ``classes``.
    classes : mapping of str to array, optional
        Labels of your own, parts of speech for example: whole numbers (token,) in the order of the token stream, -1
        where there is none.
    tokens : int, optional
        Values of single tokens are kept for the prompts numbered below this; None keeps all, 0 none.
    exclude : sequence of str
        Tokens left out: ``"special"`` (the published clouds had none), ``"massive"`` (rows found at any of the layers;
        see `tokinterp.kernels.massive.massive_rows`).
    small : str
        What happens to a prompt with fewer than k + 2 tokens: ``"error"`` before the run, or ``"nan"``.

    Notes
    -----
    The expected value for unrelated clouds is k / (N - 1), given as ``chance``; compare prompts of equal length only,
    or use ``(overlap - chance) / (1 - chance)``, given as ``overlap_corrected``.

    Copies of a point (a repeated token at layer 0, say) are neighbours at distance 0 and have no order among
    themselves: where only some of them fit into the k places, the value is the mean over all orders, drawn for each
    layer by itself.  Nothing depends on the order of the tokens, and chance stays k / (N - 1); but a layer with copies
    (``n_copies``) has an overlap below 1 with itself.

    ``label_overlap`` is the mean over tokens; in ``label_overlap_balanced`` every class weighs the same (DADApy's
    default); ``label_overlap_corrected`` divides by the most that the class allows, min(k, size of the class - 1), and
    leaves out tokens alone in their class.  Each has its chance level.

    Memory: 22 x layers x n^2 bytes for a prompt of n tokens, or a 32nd of the run's ``memory`` where that is less.

    References
    ----------
    Doimo, Glielmo, Ansuini and Laio 2020, arXiv 2007.03506; Viswanathan et al. 2025, arXiv 2501.10573, section
    "Neighborhood overlap".

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. Paris is in France, they say."], model)
    >>> run = ti.measure(model, prompts, {"overlap": ti.geometry.NeighbourOverlap(k=(1, 3))}, progress=False)
    >>> run["overlap"]["overlap"].dims
    ('prompt', 'block', 'k')
    """

    first = ("overlap", "overlap_corrected", "overlap_pair", "label_overlap")
    fields = {
        "n_points": Field(("prompt",), "tokens in the cloud"),
        "n_copies": Field(("prompt", "layer"), "tokens that are an exact copy of an earlier one"),
        "chance": Field(("prompt", "k"), "overlap of unrelated clouds, k / (N - 1)"),
        "overlap": Field(
            BLOCK, "overlap of neighbours between a layer and the next", "1", DOIMO, short="overlap of neighbours",
            range=(0, 1), chance="chance",
        ),
        "overlap_corrected": Field(
            BLOCK, "overlap of neighbours, 0 by chance", short="overlap of neighbours, corrected", range=(None, 1),
            chance=0,
        ),
        "overlap_pair": Field(
            ("k", "layer", "other_layer"), "overlap of neighbours between two layers, mean over prompts", "1", DOIMO,
            short="overlap of neighbours", range=(0, 1), chance="chance",
        ),
        **LABEL_FIELDS,
        "token_overlap": Field(
            ("token", "block", "k"), "overlap of neighbours of the token", "1", DOIMO, short="overlap of neighbours",
            range=(0, 1), chance="chance",
        ),
        "_pair": Field(("k", "layer", "other_layer"), "sum over prompts of the overlaps of pairs"),
        "_pair_prompts": Field(("k", "layer", "other_layer"), "prompts in it"),
    }  # fmt: skip

    def __init__(
        self,
        k: Sequence[int] = (1, 10, 30),
        layers: Iterable[int] | None = None,
        pairs: bool = True,
        labels: Sequence[str] = ("token_id", "next_token"),
        classes: Mapping[str, Any] | None = None,
        tokens: int | None = 0,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
    ) -> None:
        super().__init__()
        self.classes = {} if classes is None else {str(n): np.asarray(v) for n, v in classes.items()}
        own = [n for n in self.classes if n not in labels]
        self.labels = ((labels,) if isinstance(labels, str) else tuple(labels)) + tuple(own)
        self.k, self.layers, self.pairs, self.tokens = tuple(k), layers, pairs, tokens
        self.exclude, self.small = tuple(exclude), small
        known = [*LABELS, *self.classes]
        unknown = [n for n in self.labels if n not in known]
        if unknown:
            refuse("labels", unknown, f"the labels are {', '.join(known)}; give others with classes=")
        bad = [n for n, v in self.classes.items() if v.ndim != 1 or v.dtype.kind not in "iu" or n in LABELS]
        if bad:
            raise ValueError(f"classes[{bad[0]!r}]: give whole numbers (token,) under a name other than {LABELS}")

    def requests(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the numbers of neighbours."""
        return [Neighbourhood(tuple(self.at_layers(info)), frozenset(self.k), self.exclude, together=True)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers, lengths and labels, and sort the tokens into classes if they are asked for."""
        super().begin(info, prompts)
        layers = self.at_layers()
        if not self.at_blocks() and not self.pairs and not self.labels:
            raise ValueError(f"layers={layers}: no two follow each other; take neighbours, or pairs=True")
        k = max(self.k) if self.small == "error" else min(self.k)
        check_sizes(prompts, self.exclude, k + 2, self.small, f"k={k} needs")
        self._codes = dict(self.classes)
        for name, codes in self.classes.items():
            if len(codes) != prompts.n_tokens:
                raise ValueError(
                    f"classes[{name!r}] has {len(codes)} labels for {prompts.n_tokens} tokens of the prompts"
                )
        if "token_class" in self.labels:
            self._codes["token_class"] = prompts.classes.codes

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Compare the neighbours in the clouds of a batch, prompt by prompt."""
        found = tables(batch, self.requests(self.info)[0], self.memory)
        labels = self._label_codes(batch)
        columns: dict[str, list[torch.Tensor]] = {}
        width = batch.ids.shape[1]
        for p, n in enumerate(batch.lengths):
            one = Tables(found.indices[p, :, :n], found.first[p, :, :n], found.finite[p], found.mask[p, :n])
            for name, column in self._prompt(one, labels[:, p, :n]).items():
                if name == "token_overlap":
                    column = torch.nn.functional.pad(column, (0, 0, 0, 0, 0, width - n))
                columns.setdefault(name, []).append(column)
        self.keep(batch, **{name: torch.stack(parts) for name, parts in columns.items()})

    def _label_codes(self, batch: Batch) -> torch.Tensor:
        """Return (label, prompt, position) int64 labels, -1 where there is none."""
        out = torch.full((len(self.labels), *batch.ids.shape), -1, dtype=torch.int64, device=batch.device)
        for i, name in enumerate(self.labels):
            if name == "token_id":
                out[i] = batch.ids
            elif name == "next_token":
                out[i] = batch.labels(1)
            else:
                out[i] = batch.tokens.of_stream(np.asarray(self._codes[name], np.int64), -1)
        return out

    def _prompt(self, one: Tables, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the columns of one prompt, without a prompt axis; ``token_overlap`` (position, block, k) float32."""
        layers = self.at_layers()
        at = [layers.index(b) for b in self.at_blocks()]
        n, device = len(one.mask), one.mask.device
        lists = neighbour_lists(one.indices, one.first, one.mask)
        kept = torch.zeros(n, len(at), len(self.k), device=device, dtype=torch.float32)
        pair = torch.zeros(len(self.k), len(layers), len(layers), dtype=torch.float64, device=device)
        hits = torch.zeros(len(self.labels), len(layers), len(self.k), n, device=device, dtype=torch.float32)
        step = max(1, self.memory // 32 // (32 * len(layers) * n))
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            same = (labels[:, rows, None] == labels[:, None]).float()
            for i, k in enumerate(self.k):
                near = membership(lists, k, rows)
                kept[rows, :, i] = ((near[at] * near[[a + 1 for a in at]]).sum(-1) / k).T
                with neutral():
                    if self.pairs:
                        flat = near.flatten(1)
                        pair[i] += (flat @ flat.T).double()
                    for j in range(len(self.labels)):
                        hits[j, :, i, rows] = (near * same[j]).sum(-1)
        mask, number = one.mask, one.mask.sum()
        ks = torch.tensor(self.k, device=device, dtype=torch.int64)
        large = number >= ks + 2
        whole = one.finite
        nan = torch.tensor(torch.nan, dtype=torch.float64, device=device)
        kept = torch.where(mask[:, None, None] & large & (whole[at] & whole[[a + 1 for a in at]])[:, None], kept, nan)
        if self.pairs:
            usable = large[:, None, None] & whole[:, None] & whole
            self.add("_pair", torch.where(usable, pair / (number * ks)[:, None, None], 0.0))
            self.add("_pair_prompts", usable.long())
        out = {
            "n_points": number,
            "n_copies": (one.mask & (one.first != torch.arange(n, device=device, dtype=torch.int64))).sum(1),
        }
        if at:
            out["overlap"] = kept.nanmean(0)
            if self.tokens != 0:
                out["token_overlap"] = kept.float()
        if self.labels:
            out |= self._against_labels(hits.double(), labels, mask, large, whole)
        return out

    def _against_labels(
        self, hits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, large: torch.Tensor, whole: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return means of hits (label, layer, k, position) over tokens, in three ways, with their chance levels."""
        named = mask & (labels >= 0)
        others = torch.stack([(row[:, None] == row[keep]).sum(1) - 1 for row, keep in zip(labels, named, strict=True)])
        others = torch.where(named, others, 0).double()
        ks = torch.tensor(self.k, device=mask.device, dtype=torch.float64)
        luck = (others / (mask.sum() - 1))[:, None, None]  # (label, layer, k, position)
        most = torch.minimum(others[:, None], ks[:, None])[:, None]
        ways = {
            "": (ks[:, None], named.double()),
            "_balanced": (ks[:, None], named / (others + 1)),
            "_corrected": (most.clamp(min=1), (named & (others > 0)).double()),
        }
        out = {}
        for name, (divisor, weight) in ways.items():
            weight = (weight / weight.sum(-1, keepdim=True))[:, None, None]  # 0 / 0 is NaN: no token has a label
            value = (hits / divisor * weight).sum(-1)
            out[f"label_overlap{name}"] = value.where(large & whole[:, None], torch.nan).permute(1, 2, 0)
            chance = (ks[:, None] * luck / divisor * weight).sum(-1)[:, 0]
            out[f"label_chance{name}"] = chance.where(large, torch.nan).T
        return out

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return chance, the overlap beyond it, and the means over prompts of all pairs of layers."""
        n, ks = found["n_points"][:, None], np.array(self.k)
        with np.errstate(divide="ignore", invalid="ignore"):
            out = {"chance": np.where(n >= ks + 2, ks / (n - 1.0), np.nan)}
            if self.pairs:
                out["overlap_pair"] = found["_pair"] / found["_pair_prompts"]
        if "overlap" in found:
            luck = out["chance"][:, None]
            out["overlap_corrected"] = (found["overlap"] - luck) / (1 - luck)
        return out

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of neighbours, and what they are compared by."""
        label = (np.array(self.labels), "what neighbours are compared by", "1")
        return {"k": (np.array(self.k), "neighbours", "1"), "label": label}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out, and where values are missing."""
        return {"n_points": {"exclude": ", ".join(self.exclude) or "nothing"}, "chance": {"missing": MISSING}}
