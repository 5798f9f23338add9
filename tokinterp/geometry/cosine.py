"""CosineSimilarity: how alike the directions of tokens are, in a prompt, side by side, and across prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field
from ..settings import checked, count, number, ranks, several
from .clouds import Neighbourhood, OfLayers, check_sizes, neighbours
from .kernels.cosine import close_pairs, lagged_cosine, neighbour_angles, redundancy, unit_rows
from .kernels.spectrum import centred_cosine, mean_cosine

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

BINS = 36  # of 5 degrees
VISWANATHAN = "Viswanathan et al. 2025, arXiv 2501.10573"
ETHAYARAJH = "Ethayarajh 2019, arXiv 1909.00512 (here all pairs instead of a sample)"
TRAN = "Tran et al. 2024, PiToMe, arXiv 2405.16148, equation 4 as in the released code"
WEN = "Wen et al. 2025, DART, arXiv 2502.11494"
KHATTAB = "Khattab and Zaharia 2020, ColBERT, arXiv 2004.12832 (MaxSim)"
TIMKEY = "Timkey and van Schijndel 2021, arXiv 2109.04404"
CLOUD = ("prompt", "layer")


@checked(lags=ranks, close=several(number(above=0, below=2)), pivots=count())
class CosineSimilarity(OfLayers):
    """Mean cosine between token vectors at each layer, with its controls, and angles between nearest neighbours.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to look at; all by default.
    lags : sequence of int
        Distances in the text at which ``cosine_lag`` is taken; 1 are adjacent tokens.
    close : sequence of float
        ``close_pairs`` counts pairs of tokens with a cosine above 1 - delta, for each delta; () leaves out the
        N x N matrix.
    angles : bool
        Whether to take the angle at each token between its two nearest neighbours (from the neighbours that
        `IntrinsicDimension` uses).
    channels : int
        Channels listed with the largest share in the mean cosine (0: none).
    exclude : sequence of str
        Tokens left out: ``"special"``, ``"massive"`` (rows found at that layer).  Lags count places of the text.
    pivots : int
        Tokens of largest norm with which the others are compared for ``pivot_cosine``; 0 leaves out all that says how
        redundant tokens are (another N x N matrix).

    Notes
    -----
    - ``cosine``: over pairs of different tokens of a prompt; ``cosine_diagonal`` counts each token with itself, as
      Viswanathan et al. 2025 do; ``cosine_centred``: about the mean of the prompt, near -1 / (N - 1) where all tokens
      lie equally far from it.
    - ``cosine_lag``: of tokens so many places apart.  In text whose tokens are put in random order its mean is exactly
      ``cosine``, so ``smoothness`` = ``cosine_lag`` - ``cosine`` is the contrast with shuffled pairs, without a draw.
    - ``cosine_across``: over all pairs of tokens of different prompts (the baseline of Ethayarajh 2019, which draws
      some); ``cosine_adjusted`` = mean of ``cosine`` less that.
    - ``angle``: mean over the distinct tokens of a prompt, ``angle_count`` their histogram over all prompts.  In an
      isotropic cloud of d dimensions angles lie around 60 to 90 degrees, ever closer to 60 for the two nearest.
    - ``energy``: mean over tokens of the mean of elu(cosine - m) with the others, m = 0.9 (1 - layer / n_layers): what
      is merged first where it is large.  ``pivot_cosine``: mean over the other tokens of the largest cosine with a
      pivot, beside as many tokens spaced evenly, ``pivot_cosine_even``.  ``maxsim``: mean over the tokens of the second
      half of a prompt of the largest cosine with one of the first half, beside the mean cosine of the halves,
      ``maxsim_mean``; ``maxsim_spread``: effective number of tokens of the first half that are so found, over their
      number, and ``maxsim_spread_null``, if they were found at random.
    - ``channel_share``: part of the mean cosine of all pairs of the corpus that comes from one channel (Timkey and van
      Schijndel 2021); a few with large shares say that the cosine is about them.

    Memory: 512 rows of the matrix of cosines of a prompt at a time.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France, they say."], model)
    >>> run = ti.measure(model, prompts, {"cosine": ti.geometry.CosineSimilarity()}, progress=False)
    >>> run["cosine"]["cosine"].dims
    ('prompt', 'layer')
    """

    first = ("cosine", "cosine_across", "cosine_centred", "smoothness", "angle_count")
    fields = {
        "n_tokens": Field(CLOUD, "tokens that take part", "token"),
        "cosine": Field(
            CLOUD, "mean cosine of pairs of different tokens", short="cosine in a prompt", chance=0,
            beside=("cosine_across", "cosine_centred"),
        ),
        "cosine_diagonal": Field(
            CLOUD, "mean cosine of pairs of tokens, each with itself counted", "1", VISWANATHAN,
            short="cosine in a prompt, with itself", chance=0,
        ),
        "cosine_centred": Field(
            CLOUD, "mean cosine of pairs of different tokens, about the mean of the prompt",
            short="cosine in a prompt, centred", chance=0,
        ),
        "cosine_lag": Field(
            (*CLOUD, "offset"), "mean cosine of tokens so many places apart", short="cosine of tokens so far apart",
            chance=0,
        ),
        "close_pairs": Field((*CLOUD, "threshold"), "share of pairs of tokens with a cosine above the threshold"),
        "smoothness": Field(
            (*CLOUD, "offset"), "mean cosine of tokens so many places apart, less that of all pairs",
            short="cosine above that of shuffled pairs", chance=0,
        ),
        "cosine_across": Field(
            ("layer",), "mean cosine of tokens of different prompts", "1", ETHAYARAJH, short="cosine across prompts",
            chance=0,
        ),
        "cosine_adjusted": Field(
            ("layer",), "mean cosine in a prompt less that across prompts", "1", ETHAYARAJH, short="cosine, adjusted",
            chance=0,
        ),
        "channel": Field(("layer", "rank"), "channel with the largest shares in the mean cosine"),
        "channel_share": Field(
            ("layer", "rank"), "share of the channel in the mean cosine of all pairs of tokens", "1", TIMKEY
        ),
        "angle": Field(
            CLOUD, "mean angle at a token between its two nearest neighbours", "degree", VISWANATHAN,
            short="angle of nearest neighbours", chance=60,
        ),
        "angle_count": Field(
            ("layer", "bin"), "tokens with an angle in the bin", "token", short="tokens with this angle",
            range=(0, None),
        ),
        "energy": Field(
            CLOUD, "mean energy score of a token among the others", "1", TRAN, short="energy score", range=(-1, 1)
        ),
        "pivot_cosine": Field(
            CLOUD, "mean largest cosine of a token with one of the longest", "1", WEN, short="cosine with pivots",
            chance="pivot_cosine_even",
        ),
        "pivot_cosine_even": Field(CLOUD, "the same with as many tokens spaced evenly", short="with other tokens"),
        "maxsim": Field(
            CLOUD, "mean largest cosine of a token of the second half with one of the first", "1", KHATTAB,
            short="MaxSim of the halves", chance="maxsim_mean",
        ),
        "maxsim_mean": Field(CLOUD, "mean cosine of tokens of the two halves", short="mean cosine of the halves"),
        "maxsim_spread": Field(
            CLOUD, "effective share of the tokens of the first half that are found so", "1", KHATTAB,
            short="tokens found", range=(0, 1), chance="maxsim_spread_null",
        ),
        "maxsim_spread_null": Field(CLOUD, "the same if they are found at random", short="found at random"),
        "_unit": Field(("layer", "channel"), "sum of the unit vectors"),
        "_unit_square": Field(("layer", "channel"), "sum of their squares"),
        "_prompt_square": Field(("layer",), "sum over prompts of the squared length of their sum of unit vectors"),
        "_number": Field(("layer",), "unit vectors"),
        "_number_square": Field(("layer",), "sum over prompts of the square of their number"),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        lags: Sequence[int] = (1, 2, 4, 8),
        close: Sequence[float] = (0.1,),
        angles: bool = True,
        channels: int = 3,
        exclude: Sequence[str] = ("special",),
        pivots: int = 0,
    ) -> None:
        super().__init__()
        self.pivots = pivots
        self.layers, self.lags, self.close = layers, tuple(lags), tuple(float(x) for x in close)
        self.angles, self.channels, self.exclude = angles, channels, tuple(exclude)

    def requests(self, info: ModelInfo) -> list[Neighbourhood]:
        """Return the two nearest, if angles are asked for."""
        return [self._neighbourhood(info)] if self.angles else []

    def _neighbourhood(self, info: ModelInfo) -> Neighbourhood:
        return Neighbourhood(tuple(self.at_layers(info)), frozenset((1, 2)), tuple(self.exclude))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and channels against the model, and that some prompt has a pair of tokens."""
        super().begin(info, prompts)
        if self.channels > info.d_model:
            raise ValueError(f"channels={self.channels}: the stream of {info.id} has only {info.d_model}")
        check_sizes(prompts, self.exclude, 2, "nan", "a pair of tokens needs")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Take the cosines in a batch, layer by layer, and the angles."""
        columns = self.each_layer(batch)
        if self.angles:
            columns["angle"], counts = self._angles(batch)
            self.add("angle_count", counts)
        self.keep(batch, **columns)

    def of_layer(self, batch: Batch, layer: int, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take the cosines at a layer."""
        x = batch.points(layer)
        unit, directed = unit_rows(x, mask)
        total, number = unit.sum(1, dtype=torch.float64), directed.sum(1)
        norm = torch.linalg.vector_norm(x.float(), dim=-1)
        lags = [n for n in self.lags if n < unit.shape[1]]
        lagged = unit.new_full((len(batch), len(self.lags)), torch.nan, dtype=torch.float64)
        if lags:
            lagged[:, : len(lags)] = lagged_cosine(unit, directed, lags)[0]
        close = torch.stack(
            [close_pairs(u[None], d[None], self._thresholds)[0] for u, d in zip(unit, directed, strict=True)]
        )
        more = {}
        if self.pivots:
            margin = 0.9 * (1 - layer / self.info.n_layers)
            more = redundancy(unit, directed, norm, self.pivots, margin)
        return {
            **more,
            "n_tokens": number,
            "cosine": mean_cosine(total, number),
            "cosine_diagonal": mean_cosine(total, number, diagonal=True),
            "cosine_centred": centred_cosine(x.float().masked_fill(~mask[..., None], 0), norm, mask),
            "cosine_lag": lagged,
            **({"close_pairs": close} if self.close else {}),
            "_unit": total.sum(0),
            "_unit_square": unit.double().square().sum((0, 1)),
            "_prompt_square": total.square().sum(),
            "_number": number.sum(),
            "_number_square": number.square().sum(),
        }

    @property
    def _thresholds(self) -> list[float]:
        return [1 - x for x in self.close]

    def _angles(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean angles (prompt, layer) and int64 counts (layer, bin)."""
        means, counts = [], []
        for group, near in neighbours(batch, self._neighbourhood(self.info), self.memory):
            indices = near.indices.unflatten(0, (len(group), len(batch)))
            for i, layer in enumerate(group):
                angle = neighbour_angles(batch.points(layer), indices[i])
                means.append(angle.nanmean(1))
                place = (angle * (BINS / 180)).nan_to_num(BINS).clamp(max=BINS - 1).long()
                place = torch.where(angle.isnan(), BINS, place).flatten()
                counts.append(torch.zeros(BINS + 1, dtype=torch.int64, device=place.device).index_add_(
                    0, place, torch.ones_like(place))[:BINS])  # fmt: skip
        return torch.stack(means, 1), torch.stack(counts)

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return contrasts, cosines across prompts, and the channels that carry the mean cosine."""
        n, n2 = found["_number"].astype(float), found["_number_square"].astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            across = ((found["_unit"] ** 2).sum(-1) - found["_prompt_square"]) / (n**2 - n2)
            part = (found["_unit"] ** 2 - found["_unit_square"]) / (n * (n - 1))[:, None]
            within = np.array([x[np.isfinite(x)].mean() if np.isfinite(x).any() else np.nan for x in found["cosine"].T])
            share = part / part.sum(-1, keepdims=True)
        across = np.where(n**2 > n2, across, np.nan)
        out = {
            "smoothness": found["cosine_lag"] - found["cosine"][..., None],
            "cosine_across": across,
            "cosine_adjusted": within - across,
        }
        if self.channels:
            out["channel"] = np.argsort(-np.nan_to_num(part), axis=-1, kind="stable")[:, : self.channels]
            out["channel_share"] = np.take_along_axis(share, out["channel"], -1)
        return out

    def coords(self) -> Mapping[str, Any]:
        """Return lags, thresholds, ranks of channels and bins of angles."""
        return {
            "offset": (np.array(self.lags), "places between the two tokens", "token"),
            "threshold": (np.array(self._thresholds), "cosine above which a pair is close", "1"),
            "rank": (np.arange(self.channels), "order by share, 0 first", "1"),
            "bin": ((np.arange(BINS) + 0.5) * 180 / BINS, "middle of the bin of angles", "degree"),
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out."""
        return {"n_tokens": {"exclude": ", ".join(self.exclude) or "nothing"}}
