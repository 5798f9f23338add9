"""Maps from layer to layer, fitted once on a corpus, kept in a file, and applied to any text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..fitted import Fitted, Tensors
from ..kernels import linear
from ..models.info import ModelInfo
from ..settings import checked, mapping


@checked(facts=mapping())
@dataclass(repr=False, eq=False)
class LinearMaps(Fitted):
    """One affine map per block, layer b -> layer b + 1, with what is needed to judge a token by it.

    Attributes
    ----------
    weight : torch.Tensor
        (block, d, d) float64: layer b + 1 is near ``mean_out + (layer b - mean_in) @ weight``.
    mean_in, mean_out : torch.Tensor
        (block, d) float64.
    spread : torch.Tensor
        (block,) float64 root mean square distance of the fitted outputs from their mean.
    linearity : torch.Tensor
        (block,) float64 score of the fit on its own corpus; NaN for a fit that was refused.
    facts : dict
        ``model`` and ``weights``, ``blocks``, ``n`` (rows of the fit), and the settings of the fit.

    Raises
    ------
    ValueError
        For tensors of other shapes, or NaN or infinite numbers other than the weight of a fit that was refused.

    Examples
    --------
    >>> import tempfile
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:12]]
    >>> fitted = ti.linearity.fit_linear_maps(model, texts, blocks=[0], progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     maps = ti.linearity.LinearMaps.load(fitted.save(folder + "/maps.safetensors"))
    >>> maps.blocks
    [0]
    """

    weight: torch.Tensor
    mean_in: torch.Tensor
    mean_out: torch.Tensor
    spread: torch.Tensor
    linearity: torch.Tensor
    facts: dict[str, Any]

    KIND, WHAT = "tokinterp linear maps 3", "linear maps"
    NEEDS, FOUND = ("blocks", "n"), ("n",)

    def __post_init__(self) -> None:
        self.check()

    @property
    def blocks(self) -> list[int]:
        """Blocks that have a map."""
        return self.facts["blocks"]

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        n, width = len(self.blocks), self.mean_in.shape[-1]
        shapes = {"weight": (n, width, width), **dict.fromkeys(("mean_in", "mean_out"), (n, width))}
        return {**shapes, **dict.fromkeys(("spread", "linearity"), (n,))}

    def _numbers(self) -> Tensors:
        """Return what may be no NaN: all but the maps of fits that were refused."""
        given = ~self.linearity.isnan()
        return {**self.tensors(), "weight": self.weight[given], "linearity": self.linearity[given]}

    def _about(self) -> str:
        """Return blocks and rows."""
        return f"{len(self.blocks)} blocks, {self.facts['n']} rows"

    def check_use(self, info: ModelInfo, blocks: Sequence[int]) -> None:
        """Raise ValueError if the maps are of another model or lack a block."""
        self.check_model(info)
        if missing := sorted(set(blocks) - set(self.blocks)):
            raise ValueError(f"no maps of blocks {missing}: there are {self.blocks}")


TENSORS = ("weight", "mean_in", "mean_out", "spread", "linearity")


def map_of(pair: linear.Pair, cutoff: float) -> dict[str, torch.Tensor]:
    """Return the tensors of one map; NaN where the fit has no more rows than directions."""
    fit = linear.solve(pair, cutoff=cutoff)
    score = linear.linearity(pair, fit)
    refused = (pair.count - 1 <= fit.rank) | (fit.rank == 0)
    return {
        "weight": torch.where(refused, torch.nan, fit.weight),
        "mean_in": pair.mean_in,
        "mean_out": pair.mean_out,
        "spread": (pair.total / pair.count.double()).sqrt(),
        "linearity": torch.where(refused, torch.nan, score),
    }
