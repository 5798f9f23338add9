"""IntrinsicDimension: in how many directions the tokens of a prompt spread at each layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels.neighbours import Neighbours
from ..run.measurement import Field
from ..settings import checked, count, one_of
from .clouds import OfClouds, cloud_sizes
from .kernels import gride as estimators

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..text.prompts import Prompts

PER_RANK = estimators.PER_RANK
CLOUD = ("prompt", "layer")
DENTI = "Denti, Doimo, Laio and Mira 2022, Scientific Reports 12, 20005 (GRIDE)"
FACCO = "Facco, d'Errico, Rodriguez and Laio 2017, Scientific Reports 7, 12140 (TwoNN)"
LEVINA = "Levina and Bickel 2005, NIPS 17; MacKay and Ghahramani 2005, comment on it (harmonic mean)"
CLOUDS = "Viswanathan et al. 2025, arXiv 2501.10573 (one cloud per prompt and layer)"
REFUSED = (
    "0: nothing; 1: fewer than four distinct points per neighbour rank for some estimate; 2: NaN or infinite "
    "activations; 3: too many equal distances"
)


def gride_fields(*cloud: str) -> dict[str, Field]:
    """Return the fields of GRIDE, of clouds that lie along some dimensions, and of the sizes of the clouds."""
    scale = (*cloud, "scale")
    return {
        "dimension": Field(
            scale, "intrinsic dimension by GRIDE", "1", f"{DENTI}; {CLOUDS}", short="intrinsic dimension (GRIDE)",
            range=(0, None), along=("layer", "scale"),
        ),
        "dimension_error": Field(
            scale, "standard error of the GRIDE dimension, points taken as independent", "1", DENTI
        ),
        "distance": Field(scale, "mean distance to the two neighbours of the scale"),
        "n_tied": Field(scale, "points left out because the two distances are equal"),
        "n_cut": Field(scale, "points with an outlying ratio, left out of the dimension but not of its error"),
        "n_points": Field(cloud, "tokens in the cloud, duplicates counted"),
        "n_unique": Field(cloud, "distinct points in the cloud"),
        "refused": Field(cloud, "why an estimate is missing"),
    }  # fmt: skip


def gride_columns(found: estimators.Gride) -> dict[str, torch.Tensor]:
    """Return the estimates of GRIDE under the names of their fields."""
    columns = found._asdict()
    columns["dimension_error"] = columns.pop("error")
    return columns


@checked(k=count(2), twonn=one_of(*estimators.TWONN), average=one_of(*estimators.MEANS))
class IntrinsicDimension(OfClouds):
    """Intrinsic dimension of the cloud of token vectors of each prompt at each layer.

    One cloud per prompt and layer, one table of exact nearest neighbours per cloud, and from it GRIDE at several
    scales, TwoNN, the maximum likelihood of Levina and Bickel, and the local dimension around every token.

    Parameters
    ----------
    scales : sequence of int
        Neighbour ranks ``n2`` of GRIDE, powers of two; each is compared with ``n1 = n2 / 2``.  Scale 2 is TwoNN; 4 is
        the one to quote first (Viswanathan et al. 2025).
    layers : iterable of int, optional
        Layers to look at; all by default.
    k : int
        Neighbours of the maximum likelihood estimate and of the local dimension.
    twonn : str
        Fit of ``dimension_twonn``: ``"gride"``, ``"facco"``, ``"mle"`` or ``"mle_censored"``, see
        `tokinterp.geometry.kernels.gride.twonn`.  That of LLM-Microscope as released, which counts duplicates and is
        inflated by them, is ``PerCloud(tokinterp.geometry.airi_twonn, distinct=False)``.
    average : str
        ``"harmonic"`` (MacKay and Ghahramani) or ``"arithmetic"`` (as first published) mean of the local values.
    tokens : int, optional
        Local dimensions are kept for the prompts numbered below this; None keeps all (the result grows with the
        corpus), 0 none.
    exclude : sequence of str
        Points left out of the clouds: ``"special"`` (BOS and other special tokens) and ``"massive"`` (rows that
        `tokinterp.kernels.massive.massive_rows` finds at that layer).  The published clouds have no special tokens,
        because their texts were run without, and lose no token of the text, whatever its norm; so by default here.
    small : str
        What happens to a prompt with fewer than four tokens per neighbour rank in use: ``"error"`` before the run, or
        ``"nan"`` for the values that it is too small for.

    Notes
    -----
    Exact duplicates (a repeated token at layer 0, say) are removed from a cloud first and counted in ``n_removed``; a
    removed token has the local dimension of the one that it equals.  A value for which fewer than four distinct points
    per neighbour rank are left is NaN, and ``refused`` says why.  Values above about 15 are lower bounds: 1,000 points
    cannot show many more directions, and clouds of different size should not be compared.  The standard error counts
    points as independent; for the spread over prompts use `tokinterp.summary`.

    Memory: 12 x n^2 bytes for a prompt of n tokens, or an eighth of the run's ``memory`` where that is less.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north. " * 4 + "Paris is in France."], model)
    >>> run = ti.measure(model, prompts, {"dimension": ti.geometry.IntrinsicDimension((2, 4), k=4)}, progress=False)
    >>> run["dimension"]["dimension"].dims
    ('prompt', 'layer', 'scale')
    """

    first = ("dimension", "dimension_mle", "dimension_twonn")
    fields = {
        **gride_fields(*CLOUD),
        "dimension_mle": Field(
            ("prompt", "layer"), "intrinsic dimension by maximum likelihood", "1", LEVINA,
            short="intrinsic dimension (MLE)", range=(0, None),
        ),
        "dimension_twonn": Field(
            ("prompt", "layer"), "intrinsic dimension from the two nearest neighbours", "1", FACCO,
            short="intrinsic dimension (TwoNN)", range=(0, None),
        ),
        "n_redone": Field(("prompt", "layer"), "points whose neighbours were searched again with more digits"),
        "n_removed": Field(CLOUD, "exact duplicates removed"),
        "local_dimension": Field(
            ("token", "layer"), "intrinsic dimension around the token", "1", LEVINA, short="local dimension",
            range=(0, None),
        ),
    }  # fmt: skip

    def __init__(
        self,
        scales: Sequence[int] = (2, 4, 8, 16, 32, 64),
        layers: Iterable[int] | None = None,
        k: int = 20,
        twonn: str = "gride",
        average: str = "harmonic",
        tokens: int | None = 64,
        exclude: Sequence[str] = ("special",),
        small: str = "error",
    ) -> None:
        super().__init__(layers, tokens, exclude, small)
        self.scales, self.k, self.twonn, self.average = tuple(scales), k, twonn, average

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers against the model, and scales and k against the lengths of the prompts."""
        super().begin(info, prompts)
        lengths = cloud_sizes(prompts, self.exclude)
        needed = PER_RANK * max(*self.scales, self.k)
        what = f"scale {max(self.scales)}" if max(self.scales) >= self.k else f"k={self.k}"
        if self.small == "nan":
            needed = PER_RANK * min(*self.scales, self.k)
            what = f"scale {min(self.scales)}" if min(self.scales) <= self.k else f"k={self.k}"
        short = lengths < needed
        if short.all() if self.small == "nan" else short.any():
            least = int(lengths.max() if self.small == "nan" else lengths.min())
            fit = 2 ** int(np.log2(max(least // PER_RANK, 1)))
            way = f"make them with min_tokens={needed + int((np.asarray(prompts.lengths) - lengths).max())}"
            if fit >= 2:
                way += f", take scales up to {fit} and k up to {least // PER_RANK}"
            if self.small == "error":
                way += ", or small='nan'"
            raise ValueError(
                f"{int(short.sum())} of {len(lengths)} prompts have fewer than {needed} tokens (the "
                f"{'longest' if self.small == 'nan' else 'shortest'} has {least}), which {what} needs (four tokens per "
                f"neighbour): {way}"
            )

    def ranks(self) -> Collection[int]:
        """Return the ranks of the scales, and the first k."""
        return {*self.scales, *(n // 2 for n in self.scales), *range(1, self.k + 1), 1, 2}

    def of_clouds(self, near: Neighbours) -> dict[str, torch.Tensor]:
        """Estimate."""
        valid = near.valid & near.finite[:, None]
        found = estimators.gride(near.distances, valid, self.scales)
        mle = estimators.mle(near.distances, valid, self.k, average=self.average)
        two = estimators.twonn(near.distances, valid, self.twonn)
        missing = found.dimension.isnan().any(1) | mle.isnan() | two.isnan()
        few = near.n_unique < PER_RANK * max(*self.scales, self.k)
        reason = torch.where(near.finite, torch.where(few, 1, torch.where(missing, 3, 0)), 2)
        out = {
            **gride_columns(found),
            "dimension_mle": mle,
            "dimension_twonn": two,
            "n_points": near.n_points,
            "n_unique": near.n_unique,
            "n_redone": near.n_redone,
            "refused": reason.to(torch.int8),
        }
        return out if self.tokens == 0 else {**out, "local_dimension": self._local(near)}

    def _local(self, near: Neighbours) -> torch.Tensor:
        """Return (cloud, point) float32 local dimensions; a copy has that of its first."""
        local = estimators.local_dimension(near.distances, self.k)
        enough = near.n_unique >= PER_RANK * self.k
        return torch.where(enough[:, None], local.gather(1, near.first), torch.nan).float()

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the duplicates."""
        return {"n_removed": found["n_points"] - found["n_unique"]}

    def coords(self) -> Mapping[str, Any]:
        """Return the scales."""
        return {"scale": (np.array(self.scales), "farther neighbour rank n2 = 2 n1 of GRIDE", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return how each estimate is made."""
        divisor = {"k": self.k, "divisor": "k - 1"}
        return {
            "dimension_mle": {**divisor, "average": self.average},
            "local_dimension": divisor,
            "dimension_twonn": {"fit": self.twonn},
            "n_points": {"exclude": ", ".join(self.exclude) or "nothing"},
            "refused": {"meaning": REFUSED},
        }
