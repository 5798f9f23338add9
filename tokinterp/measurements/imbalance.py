"""InformationImbalance: does the neighbourhood of a token at one layer tell its neighbourhood at another?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..capture import resid
from ..dataset import block_coords, layer_coords, variable
from ..kernels.membership import membership, neighbour_lists, rank_rows
from ..settings import checked, ranks, refuse
from .base import Measurement, choose_layers
from .clouds import Neighbourhood, check_sizes, same_points, tables

if TYPE_CHECKING:
    from ..capture import Batch, Site
    from ..models.base import ModelInfo
    from ..text.prompts import Prompts


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
    max_bytes : int, optional
        Working memory; by default 256 MiB.

    Notes
    -----
    ``imbalance_pair`` (k, layer, other_layer) is Delta(layer -> other_layer), a mean over prompts; per prompt there are
    ``imbalance_forward``, Delta(b -> b + 1), and ``imbalance_backward``, Delta(b + 1 -> b): where the first is smaller,
    layer b tells more about the next than the other way round, so information is lost.  Points at equal distance share
    their ranks, copies of a point share the places among the k nearest: nothing depends on the order of the tokens.
    ``least``, (k + 1) / N, is the value of a cloud with itself.

    References
    ----------
    Glielmo, Zeni, Cheng, Csanyi and Laio 2022, PNAS Nexus 1, pgac039, equation 1; Cheng et al. 2025, arXiv 2405.15471
    (between layers).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. Paris is in France, they say."], model)
    >>> run = ti.measure(model, prompts, {"imbalance": ti.InformationImbalance()}, progress=False)
    >>> run["imbalance"]["imbalance_pair"].dims
    ('k', 'layer', 'other_layer')
    """

    def __init__(
        self,
        k: Sequence[int] = (1,),
        layers: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
        max_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.k, self.layers, self.exclude = tuple(k), layers, tuple(exclude)
        self.small, self.max_bytes = small, max_bytes

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers."""
        return resid(choose_layers(self.layers, info))

    def neighbourhoods(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the numbers of neighbours."""
        return [self._neighbourhood(info)]

    def _neighbourhood(self, info: ModelInfo) -> Neighbourhood:
        return Neighbourhood(tuple(choose_layers(self.layers, info)), frozenset(self.k), same_points(self.exclude))

    def start(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers against the model, and k against the lengths of the prompts."""
        super().start(info, prompts)
        layers = choose_layers(self.layers, info)
        if len(layers) < 2:
            refuse("layers", layers, "an imbalance is between two layers at least")
        k = max(self.k) if self.small == "error" else min(self.k)
        check_sizes(prompts, self.exclude, k + 2, self.small, f"k={k} needs")

    def update(self, batch: Batch) -> None:
        """Rank the neighbours in the clouds of a batch, prompt by prompt."""
        layers = choose_layers(self.layers, self.info)
        at = torch.tensor([i for i, n in enumerate(layers) if n + 1 in layers], dtype=torch.int64, device=batch.device)
        found = tables(batch, self._neighbourhood(self.info), self.max_bytes)
        ks = torch.tensor(self.k, device=batch.device, dtype=torch.int64)
        forward, backward, numbers = [], [], []
        for p, n in enumerate(batch.lengths):
            mask, number = found.mask[p, :n], found.mask[p, :n].sum()
            first = found.first[p, :, :n]
            lists = neighbour_lists(found.indices[p, :, :n], first, mask)
            points = [self._centred(batch.points(layer)[p, :n], mask) for layer in layers]
            delta = torch.zeros(len(ks), len(layers), len(layers), dtype=torch.float64, device=batch.device)
            step = max(1, (self.max_bytes or 2**28) // (64 * len(layers) * n))
            for start in range(0, n, step):
                rows = slice(start, min(start + step, n))
                rank = torch.stack([rank_rows(x, f, mask, rows) for x, f in zip(points, first, strict=True)])
                for i, k in enumerate(self.k):
                    delta[i] += membership(lists, k, rows).double().flatten(1) @ rank.flatten(1).T
            whole = found.finite[p]
            usable = (number >= ks + 2)[:, None, None] & whole[:, None] & whole
            delta = 2 * delta / number**2 / ks[:, None, None]
            self.add("pair", torch.where(usable, delta, 0.0))
            self.add("pair_prompts", usable.long())
            delta = delta.where(usable, torch.nan)
            forward.append(delta[:, at, at + 1].T)
            backward.append(delta[:, at + 1, at].T)
            numbers.append(number)
        self.append(
            prompt=batch.prompt_numbers,
            n_points=torch.stack(numbers),
            forward=torch.stack(forward),
            backward=torch.stack(backward),
        )

    @staticmethod
    def _centred(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.double().masked_fill(~mask[:, None], 0)
        return x - x.sum(0) / mask.sum()

    def result(self) -> xr.Dataset:
        """Return the dataset described in the class."""
        layers = choose_layers(self.layers, self.info)
        blocks = [n for n in layers if n + 1 in layers]
        prompt, n_points, forward, backward = self.table("prompt", "n_points", "forward", "backward")
        with np.errstate(invalid="ignore"):
            pair = self.sums["pair"].cpu().numpy() / self.sums["pair_prompts"].cpu().numpy()
        v, ks = variable, np.array(self.k)
        least = np.where(n_points[:, None] >= ks + 2, (ks + 1) / n_points[:, None], np.nan)
        data: dict[str, Any] = {
            "n_points": v("prompt", n_points, "tokens in the cloud", "1"),
            "least": v(("prompt", "k"), least, "information imbalance of a cloud with itself, (k + 1) / N", "1"),
            "imbalance_pair": v(
                ("k", "layer", "other_layer"), pair, "information imbalance from a layer to another, mean over prompts",
                "1", GLIELMO),
        }  # fmt: skip
        coords: dict[str, Any] = {
            "prompt": v("prompt", prompt, "number of the prompt in the input", "1"),
            "k": v("k", ks, "neighbours", "1"),
            "other_layer": v("other_layer", np.array(layers), "blocks applied", "1"),
            **layer_coords(layers, self.info),
        }
        if blocks:
            coords["block"] = block_coords(blocks, self.info)["block"]
            name = "information imbalance from layer b to b + 1"
            data["imbalance_forward"] = v(("prompt", "block", "k"), forward, name, "1", GLIELMO)
            name = "information imbalance from layer b + 1 to b"
            data["imbalance_backward"] = v(("prompt", "block", "k"), backward, name, "1", GLIELMO)
        out = xr.Dataset(data, coords)
        out["n_points"].attrs["exclude"] = ", ".join(self.exclude) or "nothing"
        out["least"].attrs["missing"] = "NaN where a prompt has fewer than k + 2 tokens, and so in all other values"
        return out


GLIELMO = "Glielmo et al. 2022, PNAS Nexus 1, pgac039, equation 1"
