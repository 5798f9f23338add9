"""Maps from layer to layer, fitted once on a corpus, kept in a file, and applied to any text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files.paths import local_path
from ..fitted import check_finite, check_shapes, digest_of, load_tensors, save_tensors
from ..kernels import linear
from ..settings import blocks, checked

if TYPE_CHECKING:
    from ..models.info import ModelInfo

FORMAT = "tokinterp linear maps 2"


@checked(blocks=blocks)
@dataclass
class LinearMaps:
    """One affine map per block, layer b -> layer b + 1, with what is needed to judge a token by it.

    Attributes
    ----------
    blocks : list of int
        Blocks.
    weight : torch.Tensor
        (block, d, d) float64: layer b + 1 is near ``mean_out + (layer b - mean_in) @ weight``.
    mean_in, mean_out : torch.Tensor
        (block, d) float64.
    spread : torch.Tensor
        (block,) float64 root mean square distance of the fitted outputs from their mean.
    linearity : torch.Tensor
        (block,) float64 score of the fit on its own corpus; NaN for a fit that was refused.
    n : int
        Rows of the fit.
    model, weights : str
        Id and weight hash of the model.

    Raises
    ------
    ValueError
        For tensors of other shapes, or NaN or infinite numbers other than the weight of a fit that was refused.
    """

    blocks: list[int]
    weight: torch.Tensor
    mean_in: torch.Tensor
    mean_out: torch.Tensor
    spread: torch.Tensor
    linearity: torch.Tensor
    n: int
    model: str
    weights: str

    def __post_init__(self) -> None:
        n, width = len(self.blocks), self.mean_in.shape[-1]
        shapes = {"weight": (n, width, width), **dict.fromkeys(("mean_in", "mean_out"), (n, width))}
        check_shapes(self._tensors(), {**shapes, **dict.fromkeys(("spread", "linearity"), (n,))}, "linear maps")
        given = ~self.linearity.isnan()
        finite = {**self._tensors(), "weight": self.weight[given], "linearity": self.linearity[given]}
        check_finite(finite, "linear maps", "fit them again")

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in TENSORS}

    def __repr__(self) -> str:
        return f"LinearMaps({self.model}, {len(self.blocks)} blocks, {self.n} rows, {self.digest})"

    @property
    def digest(self) -> str:
        """Hash of the numbers."""
        return digest_of(self._tensors(), [self.blocks, self.n, self.weights])[:12]

    def check(self, info: ModelInfo, blocks: Sequence[int]) -> None:
        """Raise ValueError if the maps are of another model or lack a block."""
        if info.identity != self.weights:
            raise ValueError(
                f"these maps were fitted on {self.model} (weights {self.weights}), not on {info.id} ({info.identity}): "
                "fit them again"
            )
        if missing := sorted(set(blocks) - set(self.blocks)):
            raise ValueError(f"no maps of blocks {missing}: there are {self.blocks}")

    @checked()
    def save(self, path: str | Path) -> Path:
        """Write the maps as one safetensors file with its digest, in one step.

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
        facts = {"model": self.model, "weights": self.weights, "n": self.n, "blocks": self.blocks}
        save_tensors(path, self._tensors(), FORMAT, facts, finite=False)
        return local_path(path)

    @classmethod
    @checked()
    def load(cls, path: str | Path) -> LinearMaps:
        """Read maps that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If the file holds something else, or is damaged (digest, shapes, NaN).
        """
        facts, tensors = load_tensors(local_path(path), FORMAT, "maps of LinearMaps.save", finite=False)
        own = {name: tensors[name] for name in TENSORS}
        return cls(facts["blocks"], **own, n=facts["n"], model=facts["model"], weights=facts["weights"])


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
