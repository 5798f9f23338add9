"""MatrixEntropy: how many directions the tokens of a prompt, and the prompts of a corpus, share out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from ..kernels.state import neutral
from ..run.measurement import Field, Measurement
from ..settings import checked, count, number, refuse, several
from .kernels import entropy

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

SKEAN = "Skean et al. 2025, arXiv 2502.02013, eq. 1; Giraldo et al. 2014"
GARRIDO = "Garrido et al. 2023, arXiv 2210.02885, eq. 1 (without its 1e-7)"
LAYER, ORDER = ("prompt", "layer"), ("prompt", "layer", "order")


@checked(alpha=number(0) | several(number(0), 1), prompts=count())
class MatrixEntropy(Measurement):
    """Matrix-based entropy of each layer: of the tokens of a prompt, and of the mean-pooled prompts of a corpus.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to look at; all by default.
    alpha : float or sequence of float
        Orders of the Renyi entropy, on the dimension ``order``: 1 is the von Neumann entropy, 2 the collision entropy.
    exclude : sequence of str
        Tokens left out: ``"special"`` ones and ``"massive"`` rows (found at the layer).  One massive row is nearly the
        whole trace of an uncentred Gram matrix, and the entropy then near 0 whatever the others do.
    centre, unit : bool
        Whether the mean of the prompt is subtracted, and then each row scaled to length 1, before ``prompt_entropy``.
        The paper says neither; the released code does both.  Both, and ``exclude=()``, make ``prompt_effective_rank``
        the eRank of Wei et al. 2024 (see `diff_erank`).
    dataset : bool
        Whether to give the entropy of the prompts too, from a streamed d x d sum for each layer.
    prompts : int, optional
        Prompts numbered below this get a ``prompt_entropy`` (an eigendecomposition for each prompt and layer, in
        float64: seconds for prompts of 1,024 tokens); None for all.  The dataset entropy is of all prompts.

    Notes
    -----
    K = Z Z' / tr, S_alpha = log(sum_k lambda_k^alpha) / (1 - alpha), where the lambda are the squared singular values
    of Z as shares; Z has the rows of one prompt, or one mean-pooled row for each prompt.  In nat, and as a share of the
    largest possible value log min(n, d) (``..._share``, the paper's "maxEntropy").  Its other scalings are the raw
    value over log n or log d.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = ["The Nile flows north.", "Paris is in France."]
    >>> run = ti.measure(model, texts, {"entropy": ti.geometry.MatrixEntropy(alpha=(1, 2))}, progress=False)
    >>> share = run["entropy"]["prompt_entropy_share"].sel(order=1)
    >>> bool(((share > 0) & (share <= 1)).all())
    True
    """

    first = ("prompt_entropy_share", "prompt_effective_rank", "dataset_entropy_share", "dataset_rankme")
    fields = {
        "n_rows": Field(LAYER, "tokens that take part"),
        "prompt_entropy": Field(
            ORDER, "matrix entropy of the tokens of a prompt", "nat", SKEAN, short="matrix entropy of a prompt",
            range=(0, None),
        ),
        "prompt_entropy_share": Field(
            ORDER, "prompt entropy divided by log min(tokens, channels)", "1", SKEAN,
            short="matrix entropy of a prompt (share)", range=(0, 1),
        ),
        "prompt_effective_rank": Field(
            LAYER, "exp of the von Neumann entropy of the tokens of a prompt", "1", SKEAN,
            short="effective rank of a prompt", range=(0, None),
        ),
        "n_prompts": Field(("layer",), "prompts that take part in the dataset entropy"),
        "dataset_entropy": Field(
            ("layer", "order"), "matrix entropy of the mean-pooled prompts", "nat", SKEAN,
            short="matrix entropy of the dataset", range=(0, None),
        ),
        "dataset_entropy_share": Field(
            ("layer", "order"), "dataset entropy divided by log min(prompts, channels)", "1", SKEAN,
            short="matrix entropy of the dataset (share)", range=(0, 1),
        ),
        "dataset_rankme": Field(
            ("layer",), "RankMe of the mean-pooled prompts, uncentred", "1", GARRIDO, short="RankMe of the dataset",
            range=(0, None),
        ),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        alpha: float | Sequence[float] = (1.0,),
        exclude: Sequence[str] = ("special", "massive"),
        centre: bool = False,
        unit: bool = False,
        dataset: bool = True,
        prompts: int | None = None,
    ) -> None:
        super().__init__()
        self.alpha = tuple(float(a) for a in ([alpha] if isinstance(alpha, int | float) else alpha))
        self.layers, self.exclude, self.centre, self.unit, self.dataset = layers, exclude, centre, unit, dataset
        self.prompts = prompts
        if len(set(self.alpha)) < len(self.alpha):
            refuse("alpha", alpha, "name each order once")

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers and memory."""
        super().begin(info, prompts)
        need = 8 * len(self.at_layers()) * info.d_model**2
        if self.dataset and need > self.memory:
            raise ValueError(
                f"the dataset entropy of {info.id} needs {need / 2**30:.1f} GiB of sums: choose fewer layers=, "
                f"dataset=False, or raise memory={self.memory} of the run"
            )

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Decompose the Gram matrices of the prompts and add their means to the sums."""
        layers = self.at_layers()
        masks = [batch.kept(self.exclude, n) for n in layers]
        columns = {"n_rows": torch.stack([m.sum(1) for m in masks], dim=1)}
        if self.dataset:
            self._add_means(batch, layers, masks)
        wanted = [b for b, n in enumerate(batch.numbers) if self.prompts is None or n < self.prompts]
        sizes = {"layer": len(layers), "order": len(self.alpha)}
        for name in self._asked():
            shape = (len(batch), *(sizes[d] for d in self.fields[name].dims[1:]))
            columns[name] = torch.full(shape, torch.nan, dtype=torch.float64, device=batch.device)
        if wanted:
            here = batch if len(wanted) == len(batch) else batch.select(wanted)
            for i, (layer, mask) in enumerate(zip(layers, masks, strict=True)):
                for name, value in self._of_prompts(here, layer, mask[wanted]).items():
                    columns[name][wanted, i] = value.double()
        self.keep(batch, **columns)

    def _asked(self) -> list[str]:
        """Return the names of the fields that take a decomposition of each prompt."""
        if self.prompts == 0:
            return []
        return ["prompt_entropy", "prompt_entropy_share", "prompt_effective_rank"]

    def _of_prompts(self, batch: Batch, layer: int, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return (prompt, order) entropies of one layer."""
        x = batch.points(layer).float().masked_fill(~keep[..., None], 0)
        number = keep.sum(1)
        if self.centre:
            x = (x - x.sum(1, keepdim=True) / number[:, None, None].clamp_min(1)).masked_fill(~keep[..., None], 0)
        if self.unit:
            x = torch.nn.functional.normalize(x, dim=-1)
        spectrum = entropy.gram_spectrum(x)
        out = {"prompt_entropy": torch.stack([entropy.renyi(spectrum, a) for a in self.alpha], dim=-1)}
        most = (number - int(self.centre)).clamp_max(x.shape[-1]).double()
        # of one direction nothing can be said: 0 / 0
        out["prompt_entropy_share"] = out["prompt_entropy"] / torch.where(most > 1, most.log(), torch.nan)[:, None]
        out["prompt_effective_rank"] = entropy.renyi(spectrum, 1.0).exp()
        return out

    def _add_means(self, batch: Batch, layers: list[int], masks: list[torch.Tensor]) -> None:
        for i, (layer, keep) in enumerate(zip(layers, masks, strict=True)):
            x = batch.points(layer).masked_fill(~keep[..., None], 0)
            number = keep.sum(1)
            mean = x.sum(1, dtype=torch.float64) / number.clamp_min(1)[:, None]
            if "pooled" not in self.sums:
                shape = (len(layers), mean.shape[1], mean.shape[1])
                self.sums["pooled"] = torch.zeros(shape, dtype=torch.float64, device=batch.device)
                self.sums["count"] = torch.zeros(len(layers), dtype=torch.int64, device=batch.device)
            self.sums["pooled"][i].addmm_(mean.T, mean)
            self.sums["count"][i] += (number > 0).sum()

    # -- the outcome ------------------------------------------------------------------------------------------
    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the entropies of the prompts of the corpus."""
        return self._of_dataset() if self.dataset else {}

    def coords(self) -> Mapping[str, Any]:
        """Return the orders."""
        return {"order": (np.array(self.alpha), "order alpha of the Renyi entropy", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return which rows take part."""
        return {name: {"rows": self._rows_text()} for name in self.fields if name.startswith("prompt_")}

    def _rows_text(self) -> str:
        done = [w for w, on in (("centred", self.centre), ("scaled to length 1", self.unit)) if on]
        left = f"without {', '.join(self.exclude)}" if self.exclude else "all tokens"
        return "; ".join([left, *done])

    def _of_dataset(self) -> dict[str, np.ndarray]:
        count, d = self.sums["count"].cpu(), self.info.d_model
        cuda = self.info.device.startswith("cuda") and torch.cuda.is_available()
        table = []
        for n, pooled in zip(count, self.sums["pooled"], strict=True):
            values = torch.linalg.eigvalsh(pooled.to(self.info.device) if cuda else pooled)
            possible = torch.arange(d, device=values.device, dtype=torch.int64) >= d - n.to(values.device)
            values = torch.where(possible & (values > 1e-13 * values[-1]), values, 0.0)
            renyi = [entropy.renyi(values, a) for a in self.alpha]
            table.append([*renyi, entropy.renyi(values.sqrt()).exp()])
        found = np.array([[float(v) for v in row] for row in table])
        most = np.minimum(count.numpy(), d).astype(float)
        share = found[:, :-1] / np.where(most > 1, np.log(np.maximum(most, 2)), np.nan)[:, None]
        return {
            "n_prompts": count.numpy(),
            "dataset_entropy": found[:, :-1],
            "dataset_entropy_share": share,
            "dataset_rankme": found[:, -1],
        }


@checked()
@neutral()
def diff_erank(untrained: xr.Dataset, trained: xr.Dataset) -> xr.DataArray:
    """Return Diff-eRank: by how much training lowers the effective rank of the tokens of a prompt.

    Parameters
    ----------
    untrained, trained : xarray.Dataset
        Results of ``MatrixEntropy(exclude=(), centre=True, unit=True)`` of two networks on the same prompts.

    Returns
    -------
    xarray.DataArray
        (prompt, layer) eRank(untrained) - eRank(trained).  Positive where training has removed directions.

    Raises
    ------
    ValueError
        If prompts, layers or settings differ.

    Notes
    -----
    The sign is that of the paper, whose larger models have larger values, and of its code; elsewhere the difference is
    also written the other way round, eRank(trained) - eRank(untrained).  The paper looks at the last layer after the
    final norm; layer n_layers here is before it.

    References
    ----------
    Wei et al. 2024, Diff-eRank, arXiv 2401.17139.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> ask = {"entropy": ti.geometry.MatrixEntropy(exclude=(), centre=True, unit=True, dataset=False)}
    >>> one = ti.measure(model, ["The Nile flows north."], ask, progress=False)["entropy"].to_dataset()
    >>> float(diff_erank(one, one).max())
    0.0
    """
    for name in ("parameters", "prompts"):
        a, b = untrained.attrs.get(name), trained.attrs.get(name)
        if a != b:
            raise ValueError(
                f"the two results differ in {name}: measure both networks on the same prompts, same settings"
            )
    a, b = (ds["prompt_effective_rank"] for ds in (untrained, trained))
    a, b = xr.align(a, b, join="exact")
    out = a.copy(data=a.values - b.values)
    out.attrs = {"long_name": "effective rank, untrained minus trained", "units": "1", "references": "arXiv 2401.17139"}
    return out.rename("diff_erank")
