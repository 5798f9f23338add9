"""NeighbourGraph: who points at whom among the nearest neighbours; hubs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..capture import resid
from ..dataset import layer_coords, variable
from ..kernels.membership import graph_numbers
from ..settings import checked, ranks
from .base import Measurement, choose_layers
from .clouds import Neighbourhood, check_sizes, neighbours

if TYPE_CHECKING:
    from ..capture import Batch, Site
    from ..models.base import ModelInfo
    from ..text.prompts import Prompts


@checked(k=ranks)
class NeighbourGraph(Measurement):
    """Reciprocity, transitivity and hubness of the graph that points from each token to its k nearest neighbours.

    One graph per prompt and layer, of the distinct points (copies of a point are removed, as for the dimension).

    Parameters
    ----------
    k : sequence of int
        Numbers of neighbours.
    layers : iterable of int, optional
        Layers to look at; all by default.
    tokens : int, optional
        In-degrees of single tokens are kept for the prompts numbered below this; None keeps all, 0 none.
    exclude : sequence of str
        Tokens left out: ``"special"``, ``"massive"`` (rows found at that layer).
    small : str
        What happens to a prompt with fewer than k + 2 tokens: ``"error"`` before the run, or ``"nan"``.
    max_bytes : int, optional
        Working memory.

    Notes
    -----
    For unrelated arrows reciprocity and transitivity would be about k / (N - 1), given as ``chance``.  Hubs are points
    that are among the neighbours of many others; ``in_degree_skewness`` above 1 says that a layer has them
    (Radovanovic et al. 2010).  NaN where a cloud has no more than k distinct points (``n_unique``), and for the
    transitivity at k = 1, where no third arrow is possible.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. Paris is in France, they say."], model)
    >>> run = ti.measure(model, prompts, {"graph": ti.NeighbourGraph(k=(3,))}, progress=False)
    >>> run["graph"]["reciprocity"].dims
    ('prompt', 'layer', 'k')
    """

    def __init__(
        self,
        k: Sequence[int] = (1, 10, 30),
        layers: Iterable[int] | None = None,
        tokens: int | None = 0,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
        max_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.k, self.layers, self.tokens = tuple(k), layers, tokens
        self.exclude, self.small, self.max_bytes = tuple(exclude), small, max_bytes

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers."""
        return resid(choose_layers(self.layers, info))

    def neighbourhoods(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the numbers of neighbours."""
        return [self._neighbourhood(info)]

    def _neighbourhood(self, info: ModelInfo) -> Neighbourhood:
        return Neighbourhood(tuple(choose_layers(self.layers, info)), frozenset(self.k), self.exclude)

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers against the model, and k against the lengths of the prompts."""
        super().start(info, prompts)
        choose_layers(self.layers, info)
        k = max(self.k) if self.small == "error" else min(self.k)
        check_sizes(prompts, self.exclude, k + 2, self.small, f"k={k} needs")

    def update(self, batch: Batch) -> None:
        """Count arrows in the clouds of a batch, some layers at a time."""
        columns: dict[str, list[torch.Tensor]] = {}
        degrees = []
        for _, near in neighbours(batch, self._neighbourhood(self.info), self.max_bytes):
            found = [graph_numbers(near, k, self.max_bytes or 2**28) for k in self.k]
            for name in COLUMNS:
                column = torch.stack([getattr(f, name) for f in found], 1)
                columns.setdefault(name, []).append(column.unflatten(0, (-1, len(batch))))
            columns.setdefault("n_unique", []).append(near.n_unique.unflatten(0, (-1, len(batch))))
            if self.tokens != 0:
                degree = torch.stack([f.in_degree for f in found], -1)[:, : batch.ids.shape[1]]
                degrees.append(degree.unflatten(0, (-1, len(batch))))
        self.append(
            prompt=batch.prompt_numbers,
            **{name: torch.cat(parts).transpose(0, 1) for name, parts in columns.items()},
        )
        if self.tokens != 0:
            limit = np.inf if self.tokens is None else self.tokens
            chosen = np.flatnonzero(np.repeat(np.asarray(batch.numbers), batch.lengths) < limit)
            kept = torch.from_numpy(chosen).to(batch.device)
            degree = batch.flatten(torch.cat(degrees).permute(1, 2, 0, 3).contiguous())[kept]
            self.append(
                token_prompt=batch.row_prompt[kept],
                token_position=batch.row_position[kept],
                token_id=batch.row_ids[kept],
                in_degree=degree.int(),
            )

    def result(self) -> xr.Dataset:
        """Return the dataset described in the class."""
        layers = choose_layers(self.layers, self.info)
        prompt, unique, *columns = self.table("prompt", "n_unique", *COLUMNS)
        v, ks = variable, np.array(self.k)
        chance = np.where(unique[..., None] > ks, ks / np.maximum(unique[..., None] - 1, 1), np.nan)
        data: dict[str, Any] = {
            "n_unique": v(("prompt", "layer"), unique, "distinct points in the cloud", "1"),
            "chance": v(("prompt", "layer", "k"), chance, "share of any arrow being there, k / (n_unique - 1)", "1"),
        }
        for (new, *text), column in zip(COLUMNS.values(), columns, strict=True):
            data[new] = v(("prompt", "layer", "k"), column, *text)
        coords: dict[str, Any] = {
            "prompt": v("prompt", prompt, "number of the prompt in the input", "1"),
            "k": v("k", ks, "neighbours", "1"),
            **layer_coords(layers, self.info),
        }
        if self.tokens != 0:
            number, position, ids, degree = self.table("token_prompt", "token_position", "token_id", "in_degree")
            name = "points that have the token among their k nearest, -1 for copies and tokens left out"
            data["in_degree"] = v(("token", "layer", "k"), degree, name, "1", RADOVANOVIC)
            coords["token_prompt"] = v("token", number, "number of the prompt in the input", "1")
            coords["position"] = v("token", position, "place in the sequence, BOS counted", "1")
            coords["token_id"] = v("token", ids, "token id", "1")
        out = xr.Dataset(data, coords)
        out["n_unique"].attrs["exclude"] = ", ".join(self.exclude) or "nothing"
        out["chance"].attrs["missing"] = "NaN where a cloud has no more than k distinct points, and so in other values"
        return out


RADOVANOVIC = "Radovanovic, Nanopoulos and Ivanovic 2010, JMLR 11 (hubness)"
COLUMNS: dict[str, tuple[str, ...]] = {
    "reciprocity": ("reciprocity", "share of arrows to neighbours whose opposite is there too", "1"),
    "transitivity": ("transitivity", "share of paths of two arrows that a third one closes", "1"),
    "skewness": ("in_degree_skewness", "skewness of the in-degree (hubness)", "1", RADOVANOVIC),
    "largest": ("in_degree_largest", "largest in-degree, -1 where there is none", "1"),
    "orphans": ("orphans", "share of points that are a neighbour of no other", "1"),
}
