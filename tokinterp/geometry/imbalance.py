"""InformationImbalance: does the neighbourhood of a token at one layer tell its neighbourhood at another?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..settings import checked, ranks, refuse
from .clouds import Neighbourhood, check_sizes, tables
from .kernels.membership import neighbour_lists, rank_rows, sum_over_neighbours

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

GLIELMO = "Glielmo et al. 2022, PNAS Nexus 1, pgac039, equation 1"
MISSING = "NaN where a prompt has fewer than k + 2 tokens, and so in all other values"


@checked(k=ranks)
class InformationImbalance(Measurement):
    """Information imbalance between the token clouds of all pairs of layers, in both directions.

    Delta(A -> B) = 2 / N times the mean rank, by distance in B, of the k nearest neighbours in A: about (k + 1) / N if
    A tells everything about B, about 1 if it tells nothing.  Ranks are exact (DADApy draws those beyond its table by
    lot).

    Parameters
    ----------
    k : sequence of int
        Numbers of neighbours.
    layers : iterable of int, optional
        Layers to look at; all by default.  One sort of N x N distances each gives all pairs.
    exclude : sequence of str
        Tokens left out; as in `NeighbourOverlap`.
    small : str
        What happens to a prompt with fewer than k + 2 tokens: ``"error"`` before the run, or ``"nan"``.

    Notes
    -----
    ``imbalance_pair`` (k, layer, other_layer) is Delta(layer -> other_layer), a mean over prompts; per prompt there are
    ``imbalance_forward``, Delta(b -> b + 1), and ``imbalance_backward``, Delta(b + 1 -> b): where the first is smaller,
    layer b tells more about the next than the other way round, so information is lost.  Points at equal distance share
    their ranks, copies of a point share the places among the k nearest: nothing depends on the order of the tokens.
    ``least``, (k + 1) / N, is the value of a cloud with itself.

    Memory: 20 x layers x n^2 bytes for a prompt of n tokens, or a 32nd of the run's ``memory`` where that is less.

    References
    ----------
    Glielmo, Zeni, Cheng, Csanyi and Laio 2022, PNAS Nexus 1, pgac039, equation 1; Cheng et al. 2025, arXiv 2405.15471
    (between layers).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. Paris is in France, they say."], model)
    >>> run = ti.measure(model, prompts, {"imbalance": ti.geometry.InformationImbalance()}, progress=False)
    >>> run["imbalance"]["imbalance_pair"].dims
    ('k', 'layer', 'other_layer')
    """

    first = ("imbalance_forward", "imbalance_backward", "imbalance_pair")
    fields = {
        "n_points": Field(("prompt",), "tokens in the cloud"),
        "least": Field(
            ("prompt", "k"), "information imbalance of a cloud with itself, (k + 1) / N", short="a cloud with itself",
        ),
        "imbalance_pair": Field(
            ("k", "layer", "other_layer"), "information imbalance from a layer to another, mean over prompts", "1",
            GLIELMO, short="imbalance from layer to other layer", range=(0, None),
        ),
        "imbalance_forward": Field(
            ("prompt", "block", "k"), "information imbalance from layer b to b + 1", "1", GLIELMO,
            short="imbalance, b to b + 1", range=(0, None), chance="least", beside=("imbalance_backward",),
        ),
        "imbalance_backward": Field(
            ("prompt", "block", "k"), "information imbalance from layer b + 1 to b", "1", GLIELMO,
            short="imbalance, b + 1 to b", range=(0, None),
        ),
        "_pair": Field(("k", "layer", "other_layer"), "sum over prompts of the imbalances of pairs"),
        "_pair_prompts": Field(("k", "layer", "other_layer"), "prompts in it"),
    }  # fmt: skip

    def __init__(
        self,
        k: Sequence[int] = (1,),
        layers: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
    ) -> None:
        super().__init__()
        self.k, self.layers, self.exclude = tuple(k), layers, tuple(exclude)
        self.small = small

    def requests(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the numbers of neighbours."""
        return [Neighbourhood(tuple(self.at_layers(info)), frozenset(self.k), self.exclude, together=True)]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers against the model, and k against the lengths of the prompts."""
        super().begin(info, prompts)
        layers = self.at_layers()
        if len(layers) < 2:
            refuse("layers", layers, "an imbalance is between two layers at least")
        k = max(self.k) if self.small == "error" else min(self.k)
        check_sizes(prompts, self.exclude, k + 2, self.small, f"k={k} needs")

    def update(self, batch: Batch) -> None:
        """Rank the neighbours in the clouds of a batch, prompt by prompt."""
        layers = self.at_layers()
        at = torch.tensor([i for i, n in enumerate(layers) if n + 1 in layers], dtype=torch.int64, device=batch.device)
        found = tables(batch, self.requests(self.info)[0], self.memory)
        ks = torch.tensor(self.k, device=batch.device, dtype=torch.int64)
        forward, backward, numbers = [], [], []
        for p, n in enumerate(batch.lengths):
            mask, number = found.mask[p, :n], found.mask[p, :n].sum()
            first = found.first[p, :, :n]
            lists = neighbour_lists(found.indices[p, :, :n], first, mask)
            points = [self._centred(batch.points(layer)[p, :n], mask) for layer in layers]
            delta = torch.zeros(len(ks), len(layers), len(layers), dtype=torch.float64, device=batch.device)
            step = max(1, self.memory // 32 // (64 * len(layers) * n))
            for start in range(0, n, step):
                rows = slice(start, min(start + step, n))
                rank = torch.stack([rank_rows(x, f, mask, rows) for x, f in zip(points, first, strict=True)])
                for i, k in enumerate(self.k):
                    delta[i] += sum_over_neighbours(lists, k, rank, rows)
            whole = found.finite[p]
            usable = (number >= ks + 2)[:, None, None] & whole[:, None] & whole
            delta = 2 * delta / number**2 / ks[:, None, None]
            self.add("_pair", torch.where(usable, delta, 0.0))
            self.add("_pair_prompts", usable.long())
            delta = delta.where(usable, torch.nan)
            forward.append(delta[:, at, at + 1].T)
            backward.append(delta[:, at + 1, at].T)
            numbers.append(number)
        ends = {}
        if len(at):
            ends = {"imbalance_forward": torch.stack(forward), "imbalance_backward": torch.stack(backward)}
        self.keep(batch, n_points=torch.stack(numbers), **ends)

    @staticmethod
    def _centred(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.double().masked_fill(~mask[:, None], 0)
        return x - x.sum(0) / mask.sum()

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the least possible value, and the means over prompts."""
        n, ks = found["n_points"][:, None], np.array(self.k)
        with np.errstate(invalid="ignore"):
            pair = found["_pair"] / found["_pair_prompts"]
        return {"least": np.where(n >= ks + 2, (ks + 1) / n, np.nan), "imbalance_pair": pair}

    def coords(self) -> Mapping[str, Any]:
        """Return the numbers of neighbours."""
        return {"k": (np.array(self.k), "neighbours", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out, and where values are missing."""
        return {"n_points": {"exclude": ", ".join(self.exclude) or "nothing"}, "least": {"missing": MISSING}}
