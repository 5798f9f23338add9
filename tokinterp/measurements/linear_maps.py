"""Maps from layer to layer, fitted once on a corpus, kept in a file, and applied to any text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ..files import write_tensors
from ..kernels import linear

if TYPE_CHECKING:
    from ..models.base import ModelInfo

FORMAT = "tokinterp linear maps 1"


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

    def __repr__(self) -> str:
        return f"LinearMaps({self.model}, {len(self.blocks)} blocks, {self.n} rows, {self.digest})"

    @property
    def digest(self) -> str:
        """Hash of the numbers."""
        h = hashlib.sha256(repr((self.blocks, self.n, self.weights)).encode())
        for name in TENSORS:
            h.update(getattr(self, name).cpu().contiguous().numpy().tobytes())
        return h.hexdigest()[:12]

    def check(self, info: ModelInfo, blocks: Sequence[int]) -> None:
        """Raise ValueError if the maps are of another model or lack a block."""
        if info.weights != self.weights:
            raise ValueError(
                f"these maps were fitted on {self.model} (weights {self.weights}), not on {info.id} ({info.weights}): "
                "fit them again"
            )
        if missing := sorted(set(blocks) - set(self.blocks)):
            raise ValueError(f"no maps of blocks {missing}: there are {self.blocks}")

    def save(self, path: str | Path) -> Path:
        """Write the maps as one safetensors file, in one step.

        Examples
        --------
        >>> import tempfile
        >>> import tokinterp as ti
        >>> model = ti.load_model()
        >>> asked = {"error": ti.TokenNonlinearity(blocks=[0])}
        >>> _ = ti.measure(model, [t.text for t in ti.bundled_texts("story")[:12]], asked, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     maps = ti.LinearMaps.load(asked["error"].fitted().save(folder + "/maps.safetensors"))
        >>> maps.blocks
        [0]
        """
        facts = {"format": FORMAT, "model": self.model, "weights": self.weights, "n": self.n, "blocks": self.blocks}
        return write_tensors(path, {name: getattr(self, name) for name in TENSORS}, {"tokinterp": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> LinearMaps:
        """Read maps that `save` wrote.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("tokinterp", "{}"))
            if facts.get("format") != FORMAT:
                raise ValueError(f"{path} holds no maps of LinearMaps.save: {facts.get('format', 'no format')!r}")
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        return cls(facts["blocks"], **tensors, n=facts["n"], model=facts["model"], weights=facts["weights"])


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
