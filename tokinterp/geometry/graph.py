"""NeighbourGraph: who points at whom among the nearest neighbours; hubs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field
from ..settings import checked, ranks
from .clouds import OfClouds, check_sizes
from .kernels.membership import graph_numbers

if TYPE_CHECKING:
    from ..kernels.neighbours import Neighbours
    from ..models.info import ModelInfo
    from ..text.prompts import Prompts

RADOVANOVIC = "Radovanovic, Nanopoulos and Ivanovic 2010, JMLR 11 (hubness)"
EACH = ("prompt", "layer", "k")
MISSING = "NaN where a cloud has no more than k distinct points, and so in other values"


@checked(k=ranks)
class NeighbourGraph(OfClouds):
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
    >>> run = ti.measure(model, prompts, {"graph": ti.geometry.NeighbourGraph(k=(3,))}, progress=False)
    >>> run["graph"]["reciprocity"].dims
    ('prompt', 'layer', 'k')
    """

    first = ("reciprocity", "transitivity", "in_degree_skewness")
    fields = {
        "n_unique": Field(("prompt", "layer"), "distinct points in the cloud"),
        "chance": Field(EACH, "share of any arrow being there, k / (n_unique - 1)"),
        "reciprocity": Field(
            EACH, "share of arrows to neighbours whose opposite is there too", short="reciprocity", range=(0, 1),
            chance="chance",
        ),
        "transitivity": Field(
            EACH, "share of paths of two arrows that a third one closes", short="transitivity", range=(0, 1),
            chance="chance",
        ),
        "in_degree_skewness": Field(
            EACH, "skewness of the in-degree (hubness)", "1", RADOVANOVIC, short="skewness of the in-degree",
        ),
        "in_degree_largest": Field(
            EACH, "largest in-degree, -1 where there is none", short="largest in-degree", range=(0, None),
        ),
        "orphans": Field(
            EACH, "share of points that are a neighbour of no other", short="share of orphans", range=(0, 1),
        ),
        "in_degree": Field(
            ("token", "layer", "k"),
            "points that have the token among their k nearest, -1 for copies and tokens left out",
            "1",
            RADOVANOVIC,
        ),
    }  # fmt: skip

    def __init__(
        self,
        k: Sequence[int] = (1, 10, 30),
        layers: Iterable[int] | None = None,
        tokens: int | None = 0,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
    ) -> None:
        super().__init__(layers, tokens, exclude, small)
        self.k = tuple(k)

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers against the model, and k against the lengths of the prompts."""
        super().begin(info, prompts)
        k = max(self.k) if self.small == "error" else min(self.k)
        check_sizes(prompts, self.exclude, k + 2, self.small, f"k={k} needs")

    def ranks(self) -> Collection[int]:
        """Return the numbers of neighbours."""
        return self.k

    def of_clouds(self, near: Neighbours) -> dict[str, torch.Tensor]:
        """Count arrows."""
        found = [graph_numbers(near, k, self.memory // 32) for k in self.k]

        def stacked(name: str) -> torch.Tensor:
            return torch.stack([getattr(f, name) for f in found], -1)

        out = {
            "n_unique": near.n_unique,
            "reciprocity": stacked("reciprocity"),
            "transitivity": stacked("transitivity"),
            "in_degree_skewness": stacked("skewness"),
            "in_degree_largest": stacked("largest"),
            "orphans": stacked("orphans"),
        }
        return out if self.tokens == 0 else {**out, "in_degree": stacked("in_degree").int()}

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the chance level."""
        n, ks = found["n_unique"][..., None], np.array(self.k)
        return {"chance": np.where(n > ks, ks / np.maximum(n - 1, 1), np.nan)}

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of neighbours."""
        return {"k": (np.array(self.k), "neighbours", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out, and where values are missing."""
        return {"n_unique": {"exclude": ", ".join(self.exclude) or "nothing"}, "chance": {"missing": MISSING}}
