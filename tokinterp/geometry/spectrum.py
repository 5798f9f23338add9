"""Spectrum: how the token cloud of each layer is spread over directions, with and without massive rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import moments
from ..kernels.state import neutral
from ..run.batch import sizes
from ..run.measurement import Field, Measurement, Tensors
from ..settings import checked, count, level, pair, refuse, several
from .kernels import spectrum

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

FLOAT32 = float(torch.finfo(torch.float32).eps)

CHUN = "Chun et al. 2026, arXiv 2509.26560, row-corrected; Himeno and Yamada 2014, J. Multivariate Anal. 130, 27"
SHAPE = "Razzhigaev et al. 2024, The Shape of Learning, Findings of EACL"
ROY = "Roy and Vetterli 2007, EUSIPCO"
REQ = "Agrawal et al. 2022, alpha-ReQ, NeurIPS; fit of Stringer et al. 2019, Nature 571, 361"
PROMPTS = "Viswanathan et al. 2025, arXiv 2501.10573"
CORPUS, PROMPT = ("layer", "subset"), ("prompt", "layer", "subset")


@checked(thresholds=several(level), components=count(1), power_law=pair(count(1), count(1)))
class Spectrum(Measurement):
    """Covariance spectrum, anisotropy and mean cosine of the stream at each layer.

    Everything comes in two versions on the dimension ``subset``: ``"all"`` rows, and the ``"regular"`` ones that are
    left without the excluded rows (the products are taken over the regular rows once, and over the few excluded ones
    apart). Results equal those of the covariance of all rows in float64 to about 1e-6 of its largest eigenvalue, with
    any channel offset and any batches; memory is one d x d float64 matrix a layer.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to look at; all by default.
    exclude : tuple of str
        What the regular rows are without: ``"special"`` (BOS and other special tokens) and ``"massive"`` (rows found at
        that layer; `TokenNorms` lists them).  ``()`` gives only the subset ``"all"``.
    thresholds : sequence of float
        Shares of the variance for ``pca_components``.
    components : int, optional
        How many eigenvalues are kept in the result; all by default.
    power_law : (int, int)
        First and last eigenvalue, from 1, of the fit of ``power_law``.

    Notes
    -----
    All spectral numbers are of the centred cloud and cannot exceed ``rank_limit`` = min(n - 1, d).  The covariance has
    the divisor n - 1.  Tokens of one text are not independent rows, so n overstates what is known.

    Eigenvalues below 1.2e-7 times the largest one of the regular rows are rounding and given as 0.

    - ``anisotropy``: share of the largest eigenvalue (Razzhigaev et al. 2024).
    - ``participation_ratio``: plug-in; ``participation_ratio_unbiased``: see
      `tokinterp.geometry.kernels.spectrum.unbiased_participation_ratio` (Chun et al. 2026, row-corrected).
    - ``effective_rank``: from singular values (Roy and Vetterli 2007); ``effective_rank_variance``: from eigenvalues.
    - ``power_law``: exponent a of eigenvalue_k ~ k^-a (alpha-ReQ); ``kaiser``: eigenvalues above their mean;
      ``broken_stick``: leading components larger than the pieces of a stick broken at random.
    - ``mean_cosine``: over all pairs of different rows of the corpus, about the origin.  After the corpus mean is
      removed this average is near 0 whatever the cloud, and it cannot be had in one reading, so the centred cosine is
      given per prompt, about the prompt's own mean: ``prompt_cosine_centred``, near -1/(n-1) where all rows lie equally
      far from it.
    - ``prompt_cosine_diagonal`` counts each row with itself, as Viswanathan et al. (arXiv 2501.10573) do.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France."], model)
    >>> run = ti.measure(model, prompts, {"spectrum": ti.geometry.Spectrum()})
    >>> sorted(run["spectrum"].to_dataset().subset.values.tolist())
    ['all', 'regular']
    """

    first = ("anisotropy", "participation_ratio_unbiased", "effective_rank", "mean_norm", "prompt_cosine",
             "prompt_cosine_centred", "eigenvalue")  # fmt: skip
    fields = {
        "n": Field(CORPUS, "rows that take part"),
        "rank_limit": Field(CORPUS, "largest possible rank, min(n - 1, d_model)"),
        "mean_norm": Field(CORPUS, "mean Euclidean norm of rows", short="mean norm of rows", range=(0, None)),
        "anisotropy": Field(
            CORPUS, "share of the largest eigenvalue of the covariance", "1", SHAPE, short="anisotropy", range=(0, 1),
        ),
        "participation_ratio": Field(
            CORPUS, "participation ratio, plug-in", short="participation ratio", range=(0, None),
        ),
        "participation_ratio_unbiased": Field(
            CORPUS, "participation ratio, numerator and denominator unbiased", "1", CHUN,
            short="participation ratio, unbiased", range=(0, None),
        ),
        "effective_rank": Field(
            CORPUS, "effective rank of the centred cloud, from singular values", "1", ROY,
            short="effective rank (singular values)", range=(0, None),
        ),
        "effective_rank_variance": Field(
            CORPUS, "effective rank of the centred cloud, from eigenvalues", short="effective rank (eigenvalues)",
            range=(0, None),
        ),
        "pca_components": Field(
            (*CORPUS, "threshold"), "principal components that reach a share of the variance",
            short="principal components", range=(0, None),
        ),
        "kaiser": Field(CORPUS, "eigenvalues above their mean", range=(0, None)),
        "broken_stick": Field(
            CORPUS, "leading components above the broken stick", "1", "Jackson 1993, Ecology 74, 2204",
            short="components above the broken stick", range=(0, None),
        ),
        "power_law": Field(CORPUS, "exponent of the decay of the eigenvalues", "1", REQ, short="power-law exponent"),
        "total_variance": Field(CORPUS, "trace of the covariance", short="total variance", log=True),
        "mean_cosine": Field(
            CORPUS, "mean cosine of pairs of different rows of the corpus, about the origin",
            short="mean cosine of row pairs", chance=0,
        ),
        "mean_cosine_diagonal": Field(CORPUS, "the same with each row paired with itself too"),
        "eigenvalue": Field(
            (*CORPUS, "component"), "eigenvalue of the covariance (divisor n - 1)", short="eigenvalue", log=True,
            along=("component",),
        ),
        "prompt_n": Field(PROMPT, "rows of the prompt that take part"),
        "prompt_norm": Field(
            PROMPT, "mean Euclidean norm of the prompt's rows", short="mean norm of rows", range=(0, None),
        ),
        "prompt_cosine": Field(
            PROMPT, "mean cosine of pairs of different rows of the prompt, about the origin",
            short="mean cosine within a prompt", chance=0,
        ),
        "prompt_cosine_diagonal": Field(
            PROMPT, "the same with each row paired with itself too", "1", PROMPTS,
            short="mean cosine within a prompt, with itself", chance=0,
        ),
        "prompt_cosine_centred": Field(
            PROMPT, "mean cosine of pairs of different rows, about the mean of the prompt",
            short="mean cosine within a prompt, centred", chance=0,
        ),
        "nonfinite_rows": Field(("layer",), "rows with NaN or infinite entries, left out"),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special", "massive"),
        thresholds: Sequence[float] = (0.9, 0.95, 0.99),
        components: int | None = None,
        power_law: tuple[int, int] = (11, 500),
    ) -> None:
        super().__init__()
        self.layers, self.exclude, self.thresholds = layers, exclude, tuple(thresholds)
        self.components, self.power_law = components, power_law
        if power_law[0] > power_law[1] - 9:
            refuse("power_law", power_law, "give the first and last eigenvalue of the fit, at least 10 of them")

    @property
    def subsets(self) -> list[str]:
        """Names on the dimension ``subset``."""
        return ["all", "regular"] if self.exclude else ["all"]

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and eigenvalues asked for against the model."""
        super().begin(info, prompts)
        if self.components is not None and self.components > info.d_model:
            refuse("components", self.components, f"the stream of {info.id} has only {info.d_model} channels")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Add the rows of a batch."""
        layers = self.at_layers()
        parts = [self._parts(batch, layer) for layer in layers]
        if "shift" not in self.sums:
            self._begin(batch, layers, [p[:, 0] for p in parts])
        # The one wait for the device: how many excluded rows there are, so that only they are gathered.
        extra = torch.stack([p[:, 1:].sum() for p in parts]).tolist()
        columns: dict[str, list[torch.Tensor]] = {}
        for i, layer in enumerate(layers):
            norm = sizes(batch, layer).norm
            for name, value in self._add_layer(i, batch.points(layer), norm, parts[i], extra[i]).items():
                columns.setdefault(name, []).append(value)
            self.sums["nonfinite"][i] += (batch.mask & ~parts[i].any(1)).sum()
        self.keep(batch, **{k: torch.stack(v, dim=1) for k, v in columns.items()})

    def _parts(self, batch: Batch, layer: int) -> torch.Tensor:
        """Return (prompt, part, position) bool: regular and excluded rows, or all where none are excluded."""
        finite = sizes(batch, layer).norm.isfinite()  # padding is NaN
        kept = batch.kept(self.exclude, layer)
        return torch.stack([finite & kept, finite & ~kept], dim=1) if self.exclude else finite[:, None]

    def _begin(self, batch: Batch, layers: list[int], regular: list[torch.Tensor]) -> None:
        """Choose the shift, the mean of the regular rows of the first batch, and make room for the sums."""
        shifts = []
        for layer, keep in zip(layers, regular, strict=True):
            x = batch.points(layer)
            dtype = torch.promote_types(x.dtype, torch.float32)
            finite = torch.linalg.vector_norm(x, dim=-1, dtype=dtype).isfinite() & batch.mask
            keep = torch.where(keep.any(), keep, finite)[..., None]
            total = x.float().masked_fill(~keep, 0).sum((0, 1), dtype=torch.float64)
            shifts.append((total / keep.sum().clamp_min(1)).float())
        parts, count, device = len(self.subsets), len(layers), batch.device
        shift = torch.stack(shifts)[:, None].expand(-1, parts, -1)
        d = shift.shape[-1]
        triangles = torch.zeros(count, d + parts - 1, d, dtype=torch.float64, device=device)  # one or two, see _moments
        self.sums.update(moments.empty(shift, triangles)._asdict())
        self.sums["norm"] = torch.zeros(count, parts, dtype=torch.float64, device=device)
        self.sums["unit"] = torch.zeros(count, parts, d, dtype=torch.float64, device=device)
        self.sums["units"] = torch.zeros(count, parts, dtype=torch.int64, device=device)
        self.sums["nonfinite"] = torch.zeros(count, dtype=torch.int64, device=device)

    def _add_layer(
        self, i: int, x: torch.Tensor, norm: torch.Tensor, parts: torch.Tensor, extra: int
    ) -> dict[str, torch.Tensor]:
        """Add the rows of one layer to the sums and return the columns (prompt, subset) of the prompts."""
        d = x.shape[-1]
        x = x.float().masked_fill(~parts.any(1)[..., None], 0)
        y = x - self.sums["shift"][i, 0].float()
        flat, kept = y.reshape(-1, d), parts.transpose(0, 1).flatten(1)
        moments.accumulate(_moments(self.sums, i)[0], flat, kept[0])
        if extra:
            chosen = kept[1].int().argsort(descending=True, stable=True)[:extra]
            moments.accumulate(_moments(self.sums, i)[1], flat[chosen].double())

        length = torch.where(parts, norm[:, None], 0.0)  # (prompt, part, position)
        directed = length > 0
        with neutral():
            unit = ((directed / length.masked_fill(~directed, 1)) @ x).double()
        number = directed.sum(-1)
        self.sums["norm"][i] += length.sum((0, 2), dtype=torch.float64)
        self.sums["unit"][i] += unit.sum(0)
        self.sums["units"][i] += number.sum(0)
        members = parts if len(self.subsets) == 1 else torch.stack([parts.any(1), parts[:, 0]], dim=1)
        n, unit, number = members.sum(-1), _to_subsets(unit), _to_subsets(number)
        return {
            "prompt_n": n,
            "prompt_norm": _to_subsets(length.sum(-1, dtype=torch.float64)) / n,
            "prompt_cosine": spectrum.mean_cosine(unit, number),
            "prompt_cosine_diagonal": spectrum.mean_cosine(unit, number, diagonal=True),
            "prompt_cosine_centred": torch.stack(
                [spectrum.centred_cosine(y, norm, m) for m in members.unbind(1)], dim=1
            ),
        }

    def merge_sums(self, other: Tensors) -> None:
        """Add the sums of another part of the corpus, whatever its shift."""
        if not self.sums or not other:
            self.sums = self.sums or {k: v.clone() for k, v in other.items()}
            return
        for i in range(len(self.sums["shift"])):
            merged = [moments.merge(*pair) for pair in zip(_moments(self.sums, i), _moments(other, i), strict=True)]
            for name, *parts in zip(moments.Moments._fields, *merged, strict=True):
                if name == "second":
                    self.sums[name][i] = moments.packed_triangles(*parts) if len(parts) == 2 else parts[0]
                else:
                    self.sums[name][i] = torch.stack(parts)
        for name in ("norm", "unit", "units", "nonfinite"):
            self.sums[name] += other[name]

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the spectral numbers."""
        cells = [self._numbers(i) for i in range(len(self.at_layers()))]
        stacked = {k: np.stack([c[k] for c in cells]) for k in cells[0]}
        return {**stacked, "nonfinite_rows": self.sums["nonfinite"].cpu().numpy()}

    def coords(self) -> Mapping[str, Any]:
        """Return subsets, thresholds and components."""
        return {
            "subset": (np.array(self.subsets), "which rows take part", "1"),
            "threshold": (np.array(self.thresholds), "share of the variance", "1"),
            "component": (np.arange(self.components or self.info.d_model), "largest first", "1"),
        }

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what the regular rows are without."""
        left = ", ".join(self.exclude) or "nothing"
        return {"subset": {"regular": f"without: {left}"}}

    def _numbers(self, i: int) -> dict[str, np.ndarray]:
        """All numbers of one layer, each with a first axis ``subset``."""
        device = torch.device(
            self.info.device
        )  # a run with a store ends with its sums on the CPU, which is slow at this
        if device.type == "cuda" and not torch.cuda.is_available():
            device = torch.device("cpu")
        sums = {name: value[i].to(device) for name, value in self.sums.items()}
        part = _moments({name: value[None] for name, value in sums.items()}, 0)
        clouds = [moments.central(part[0])]  # the regular rows, or all
        spectra = [spectrum.eigenvalues(clouds[0].scatter, clouds[0].count)]
        noise = FLOAT32 * spectra[0][0].nan_to_num()  # of the regular rows' products; the excluded ones are in float64
        spectra[0] = torch.where(spectra[0] <= noise, 0.0, spectra[0])
        if len(part) > 1 and int(part[1].count):
            clouds.insert(0, moments.central(moments.merge(*part)))
            spectra.insert(0, spectrum.eigenvalues(clouds[0].scatter, clouds[0].count, noise))
        cells: list[dict[str, torch.Tensor]] = []
        for s, (cloud, values) in enumerate(zip(clouds, spectra, strict=True)):
            pick = slice(0, None if s == 0 else 1)  # all parts, or the regular one
            number, rank = sums["units"][pick].sum(), torch.clamp(cloud.count - 1, 0, values.shape[-1])
            unit = sums["unit"][pick].sum(0)
            cells.append({
                "n": cloud.count,
                "rank_limit": rank,
                "mean_norm": sums["norm"][pick].sum() / cloud.count,
                "anisotropy": spectrum.anisotropy(values),
                "participation_ratio": spectrum.participation_ratio(values),
                "participation_ratio_unbiased": spectrum.unbiased_participation_ratio(cloud),
                "effective_rank": spectrum.effective_rank(values),
                "effective_rank_variance": spectrum.effective_rank(values, of="variance"),
                "pca_components": spectrum.components_for(values, self.thresholds),
                "kaiser": spectrum.kaiser(values, rank),
                "broken_stick": spectrum.broken_stick(values, rank),
                "power_law": spectrum.power_law(values, self.power_law),
                "total_variance": values.sum(),
                "mean_cosine": spectrum.mean_cosine(unit, number),
                "mean_cosine_diagonal": spectrum.mean_cosine(unit, number, diagonal=True),
                "eigenvalue": values[: self.components],
            })  # fmt: skip
        cells += cells[: len(part) - len(cells)]  # nothing was excluded here: the same rows
        return {k: np.stack([c[k].cpu().numpy() for c in cells]) for k in cells[0]}


def _moments(sums: Tensors, layer: int) -> list[moments.Moments]:
    """Views of the moments of regular and excluded rows (or all) at a layer; two second moments lie in one tensor."""
    packed, parts = sums["second"][layer], sums["count"].shape[1]
    second = moments.two_triangles(packed) if parts == 2 else (packed,)
    rest = [{f: sums[f][layer, part] for f in moments.Moments._fields if f != "second"} for part in range(parts)]
    return [moments.Moments(**fields, second=matrix) for fields, matrix in zip(rest, second, strict=True)]


def _to_subsets(parts: torch.Tensor) -> torch.Tensor:
    """(prompt, part, ...) sums over regular and excluded rows -> (prompt, subset, ...) over all and regular ones."""
    return parts if parts.shape[1] == 1 else torch.stack([parts.sum(1), parts[:, 0]], dim=1)
