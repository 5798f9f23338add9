"""TokenNorms: how long the rows of the stream are, and the massive activations among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import massive
from ..run.batch import sizes
from ..run.measurement import Field, Tensors
from ..settings import checked, count
from .clouds import OfLayers

if TYPE_CHECKING:
    from ..run.batch import Batch

SUN = "Sun et al. 2024, arXiv 2402.17762, section 2"
TOP = 3
LAYER = ("prompt", "layer")


@checked(entries=count(1))
class TokenNorms(OfLayers):
    """Norm of every token at every layer, the largest magnitudes of each prompt, and a list of massive activations.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to look at; all by default.
    tokens : int, optional
        Norms of single tokens are kept for the prompts numbered below this; None keeps all, 0 none.
    rule : str
        What the list counts as massive: ``"norm"`` (norm above ``factor`` times the median norm of the prompt;
        scale-free) or ``"sun2024"`` (an entry above 100 and at least 1,000 times the median magnitude); see
        `tokinterp.kernels.massive.massive_rows`.  ``massive_rows`` counts both.
    factor : float
        Of the rule ``"norm"``.
    entries : int
        Entries listed per layer, largest ratio to the median magnitude first.

    Notes
    -----
    ``top_magnitude`` (the three largest entries of a prompt) beside ``median_magnitude`` is the curve of Sun et al.
    2024, figure 1; ``top_channels`` is the participation ratio (sum x^2)^2 / sum x^4 over the channels of the longest
    row, the number of channels that carry it.  Special tokens take part in everything here: they are what one looks
    for.  The median magnitude is taken from 4,096 entries of each prompt.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"norms": ti.geometry.TokenNorms()}, progress=False)
    >>> norms = run["norms"].to_dataset()
    >>> norms["norm"].dims, bool((norms["max_norm"] >= norms["median_norm"]).all())
    (('token', 'layer'), True)
    """

    first = ("top_magnitude", "max_norm", "top_channels", "massive_rows", "norm")
    fields = {
        "median_norm": Field(LAYER, "median norm of the rows of a prompt", short="median norm", range=(0, None)),
        "max_norm": Field(
            LAYER, "largest norm of a row of a prompt", short="largest norm", beside=("median_norm",), log=True,
        ),
        "top_position": Field(LAYER, "position of the row of largest norm, BOS counted"),
        "top_channels": Field(
            LAYER, "participation ratio over channels of the row of largest norm",
            short="channels that carry the longest row", range=(0, None),
        ),
        "top_magnitude": Field(
            (*LAYER, "rank"), "largest magnitudes of entries of a prompt", "1", SUN, short="largest magnitudes",
            log=True,
        ),
        "median_magnitude": Field(
            LAYER, "median magnitude of the entries of a prompt", "1", SUN, short="median magnitude", log=True,
        ),
        "massive_rows": Field(
            (*LAYER, "rule"), "rows of the prompt with massive activations", "1", SUN, short="massive rows per prompt",
            range=(0, None),
        ),
        "norm": Field(("token", "layer"), "norm of the stream", short="norm of the stream", range=(0, None)),
        "entry_layer": Field(("entry",), "layer of the massive entry", "1", SUN),
        "entry_prompt": Field(("entry",), "number of the prompt of the massive entry", "1", SUN),
        "entry_position": Field(("entry",), "position of the massive entry, BOS counted", "1", SUN),
        "entry_token_id": Field(("entry",), "token id at the massive entry", "1", SUN),
        "entry_channel": Field(("entry",), "channel of the massive entry", "1", SUN),
        "entry_value": Field(("entry",), "massive entry of the stream", "1", SUN),
        "entry_ratio": Field(
            ("entry",), "its magnitude over the median magnitude of its prompt (4,096 entries sampled)", "1", SUN
        ),
        "entry_norm_ratio": Field(("entry",), "norm of its row over the median norm of its prompt", "1", SUN),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        tokens: int | None = 64,
        rule: str = "norm",
        factor: float = 10.0,
        entries: int = 20,
    ) -> None:
        super().__init__()
        self.layers, self.tokens, self.rule, self.factor, self.entries = layers, tokens, rule, factor, entries

    # -- one batch --------------------------------------------------------------------------------------------
    def of_layer(self, batch: Batch, layer: int, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take norms, magnitudes and massive entries of a layer."""
        layers = self.at_layers()
        if not self.sums:
            empty = massive.no_entries(len(layers), self.entries, device=batch.device)
            self.sums = {f"entry_{n}": c for n, c in empty._asdict().items()}
        x = batch.resid(layer)
        found = sizes(batch, layer)
        rules = torch.stack([massive.by_norm(found, self.factor), massive.by_magnitude(found)]) & mask
        rows = rules[massive.RULES.index(self.rule)]
        entries = massive.massive_entries(x, batch.ids, batch.prompt_numbers, found, rows, self.rule, self.entries)
        self._keep_entries(layers.index(layer), entries)
        out = _of_prompt(x, mask, found, rules)
        return out if self.tokens == 0 else {**out, "norm": found.norm}

    def _keep_entries(self, i: int | slice, other: massive.Entries) -> None:
        mine = (self.sums[f"entry_{name}"][i] for name in massive.Entries._fields)
        joined = massive.Entries(*(torch.cat([a, b.to(a)], dim=-1) for a, b in zip(mine, other, strict=True)))
        for name, column in massive.largest(joined, self.entries)._asdict().items():
            self.sums[f"entry_{name}"][i] = column

    def merge_sums(self, other: Tensors) -> None:
        """Keep the largest entries of both parts of the corpus."""
        if not self.sums or not other:
            self.sums = self.sums or {k: v.clone() for k, v in other.items()}
            return
        self._keep_entries(slice(None), massive.Entries(*(other[f"entry_{n}"] for n in massive.Entries._fields)))

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the list of massive entries."""
        columns = {n: self.sums[f"entry_{n}"].cpu().numpy() for n in massive.Entries._fields}
        layer, place = np.nonzero(columns["channel"] >= 0)
        listed = {n: c[layer, place] for n, c in columns.items()}
        for name in ("ratio", "norm_ratio"):  # the median of a prompt can be 0
            listed[name] = np.where(np.isfinite(listed[name]), listed[name], np.nan)
        listed["layer"] = np.array(self.at_layers(), np.int64)[layer]
        return {f"entry_{n}": column for n, column in listed.items()}

    def coords(self) -> Mapping[str, Any]:
        """Return ranks and rules."""
        return {
            "rank": (np.arange(TOP), "order by magnitude, 0 first", "1"),
            "rule": (np.array(massive.RULES), "what counts as massive", "1"),
        }


def _of_prompt(
    x: torch.Tensor, mask: torch.Tensor, sizes: massive.Sizes, rules: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the columns (prompt, ...) of one layer."""
    known = sizes.norm.nan_to_num(nan=-1.0, posinf=-1.0)
    longest = known.argmax(1)
    top = x[torch.arange(len(x), device=x.device, dtype=torch.int64), longest].double()
    # the three largest entries of a prompt are among the three largest of each row
    each = x.detach().float().abs().masked_fill(~mask[..., None], -1).topk(min(TOP, x.shape[-1]), dim=-1).values
    magnitude = each.flatten(1).topk(TOP, dim=-1).values
    return {
        "median_norm": sizes.median_norm,
        "max_norm": known.gather(1, longest[:, None])[:, 0],
        "top_position": longest,
        "top_channels": (top**2).sum(1) ** 2 / (top**4).sum(1),
        "top_magnitude": torch.where(magnitude >= 0, magnitude, torch.nan),
        "median_magnitude": sizes.median,
        "massive_rows": rules.sum(2).T,
    }
