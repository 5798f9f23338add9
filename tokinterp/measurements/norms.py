"""TokenNorms: how long the rows of the stream are, and the massive activations among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..capture import resid
from ..dataset import layer_coords, variable
from ..kernels import massive
from ..settings import checked, count
from .base import Measurement, Tensors, choose_layers
from .spectrum import SUN

if TYPE_CHECKING:
    from ..capture import Batch, Site
    from ..models.base import ModelInfo
    from ..text.prompts import Prompts

TOP = 3


@checked(keep=count(1))
class TokenNorms(Measurement):
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
    keep : int
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
    >>> run = ti.measure(model, ["The Nile flows north."], {"norms": ti.TokenNorms()}, progress=False)
    >>> norms = run["norms"].to_dataset()
    >>> norms["norm"].dims, bool((norms["max_norm"] >= norms["median_norm"]).all())
    (('token', 'layer'), True)
    """

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        tokens: int | None = 64,
        rule: str = "norm",
        factor: float = 10.0,
        keep: int = 20,
    ) -> None:
        super().__init__()
        self.layers, self.tokens, self.rule, self.factor, self.keep = layers, tokens, rule, factor, keep

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers."""
        return resid(choose_layers(self.layers, info))

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check the layers."""
        super().start(info, prompts)
        choose_layers(self.layers, info)

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Take norms, magnitudes and massive entries of a batch."""
        layers = choose_layers(self.layers, self.info)
        if not self.sums:
            empty = massive.no_entries(len(layers), self.keep, device=batch.device)
            self.sums = {f"entry_{n}": c for n, c in empty._asdict().items()}
        columns: dict[str, list[torch.Tensor]] = {}
        norms = []
        for i, layer in enumerate(layers):
            x = batch.resid(layer)
            sizes = massive.measure_sizes(x, batch.mask)
            rules = torch.stack([massive.by_norm(sizes, self.factor), massive.by_magnitude(sizes)]) & batch.mask
            rows = rules[massive.RULES.index(self.rule)]
            entries = massive.massive_entries(x, batch.ids, batch.prompt_numbers, sizes, rows, self.rule, self.keep)
            self._keep_entries(i, entries)
            norms.append(sizes.norm)
            for name, value in _of_prompt(x, batch.mask, sizes, rules).items():
                columns.setdefault(name, []).append(value)
        self.append(prompt=batch.prompt_numbers, **{k: torch.stack(v, dim=1) for k, v in columns.items()})
        kept = batch.rows_below(self.tokens)
        if len(kept):
            self.append(
                token_prompt=batch.row_prompt[kept], token_position=batch.row_position[kept],
                token_id=batch.row_ids[kept], token_norm=batch.flatten(torch.stack(norms, dim=2))[kept],
            )  # fmt: skip

    def _keep_entries(self, i: int | slice, other: massive.Entries) -> None:
        mine = (self.sums[f"entry_{name}"][i] for name in massive.Entries._fields)
        joined = massive.Entries(*(torch.cat([a, b.to(a)], dim=-1) for a, b in zip(mine, other, strict=True)))
        for name, column in massive.largest(joined, self.keep)._asdict().items():
            self.sums[f"entry_{name}"][i] = column

    def merge_sums(self, other: Tensors) -> None:
        """Keep the largest entries of both parts of the corpus."""
        if not self.sums or not other:
            self.sums = self.sums or {k: v.clone() for k, v in other.items()}
            return
        self._keep_entries(slice(None), massive.Entries(*(other[f"entry_{n}"] for n in massive.Entries._fields)))

    # -- the outcome ------------------------------------------------------------------------------------------
    def result(self) -> xr.Dataset:
        """Return the dataset described in the class."""
        layers = choose_layers(self.layers, self.info)
        prompt, *columns = self.table("prompt", *PROMPT)
        data: dict[str, Any] = {}
        for (name, (dims, *text)), column in zip(PROMPT.items(), columns, strict=True):
            data[name] = variable(("prompt", "layer", *dims), column, *text)
        coords = {
            "prompt": variable("prompt", prompt, "number of the prompt in the input", "1"),
            "rank": variable("rank", np.arange(TOP), "order by magnitude, 0 first", "1"),
            "rule": variable("rule", np.array(massive.RULES), "what counts as massive", "1"),
            **layer_coords(layers, self.info),
        }
        if "token_prompt" in self.rows:
            number, position, ids, norm = self.table("token_prompt", "token_position", "token_id", "token_norm")
            data["norm"] = variable(("token", "layer"), norm, "norm of the stream", "1")
            coords["token_prompt"] = variable("token", number, "number of the prompt in the input", "1")
            coords["position"] = variable("token", position, "place in the sequence, BOS counted", "1")
            coords["token_id"] = variable("token", ids, "token id", "1")
        data.update(self._entries(layers))
        return xr.Dataset(data, coords)

    def _entries(self, layers: list[int]) -> dict[str, xr.Variable]:
        columns = {n: self.sums[f"entry_{n}"].cpu().numpy() for n in massive.Entries._fields}
        layer, place = np.nonzero(columns["channel"] >= 0)
        found = {n: c[layer, place] for n, c in columns.items()}
        for name in ("ratio", "norm_ratio"):  # the median of a prompt can be 0
            found[name] = np.where(np.isfinite(found[name]), found[name], np.nan)
        found["layer"] = np.array(layers, np.int64)[layer]
        return {f"entry_{n}": variable("entry", found[n], text, "1", SUN) for n, text in ENTRY.items()}


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


PROMPT: dict[str, tuple[Any, ...]] = {
    "median_norm": ((), "median norm of the rows of a prompt", "1"),
    "max_norm": ((), "largest norm of a row of a prompt", "1"),
    "top_position": ((), "position of the row of largest norm, BOS counted", "1"),
    "top_channels": ((), "participation ratio over channels of the row of largest norm", "1"),
    "top_magnitude": (("rank",), "largest magnitudes of entries of a prompt", "1", SUN),
    "median_magnitude": ((), "median magnitude of the entries of a prompt", "1", SUN),
    "massive_rows": (("rule",), "rows of the prompt with massive activations", "1", SUN),
}
ENTRY = {
    "layer": "layer of the massive entry",
    "prompt": "number of the prompt of the massive entry",
    "position": "position of the massive entry, BOS counted",
    "token_id": "token id at the massive entry",
    "channel": "channel of the massive entry",
    "value": "massive entry of the stream",
    "ratio": "its magnitude over the median magnitude of its prompt (4,096 entries sampled)",
    "norm_ratio": "norm of its row over the median norm of its prompt",
}
