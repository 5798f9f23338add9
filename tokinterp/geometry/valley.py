"""CompressionValley: whether the entropy of a prompt falls in middle layers because of one massive row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import normalize

from ..run.measurement import Field, Measurement
from ..settings import checked
from .kernels import entropy

if TYPE_CHECKING:
    from ..run.batch import Batch

ODD = 6364136223846793005
"""By whose powers the tokens up to a place are made one number."""
QUEIPO = "Queipo-de-Llano et al. 2026, arXiv 2510.06477"
SPIKES = "Sun, Canziani, LeCun and Zhu 2026, arXiv 2603.05498"
LAYER = ("prompt", "layer")


@checked()
class CompressionValley(Measurement):
    """Matrix entropy of a prompt with and without its largest row, against the norm of that row, layer by layer.

    Where one row holds nearly the whole trace of the Gram matrix, the entropy is low whatever the other rows do; if the
    valley is gone without that row, it is its doing.

    Parameters
    ----------
    layers : iterable of int, optional
        All by default.

    Notes
    -----
    The largest row is that of the largest norm at the layer.  The control leaves out the row of the median norm.
    Entropies are von Neumann, uncentred, as a share of log min(rows, channels).  ``constancy`` is the mean cosine of
    the largest rows of two prompts, over the pairs that differ somewhere up to these rows: where they do not, as at a
    BOS, the rows are the same by construction; NaN where there is no such pair.  ``constancy_control`` is that of the
    rows of the median norm.  ``persistence`` is the cosine of the largest row with the same token's row one layer
    before, NaN where that is not among the layers.

    What happens to attention sinks without the massive coordinates: `tokinterp.attention.massive_effects`.

    References
    ----------
    Queipo-de-Llano et al. 2026, arXiv 2510.06477; Sun et al. 2026, arXiv 2603.05498.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"valley": ti.geometry.CompressionValley()}
    >>> ds = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)["valley"]
    >>> bool((ds["trace_share"] > 0).all())
    True
    """

    first = ("entropy", "largest_norm_ratio", "trace_share", "constancy", "persistence")
    fields = {
        "entropy": Field(LAYER, "matrix entropy of all rows, share of the largest possible", "1", QUEIPO,
                         short="matrix entropy (share)", range=(0, 1),
                         beside=("entropy_without", "entropy_control")),
        "entropy_without": Field(LAYER, "the same without the largest row", "1", QUEIPO, range=(0, 1),
                                 short="without the largest row"),
        "entropy_control": Field(LAYER, "the same without the row of the median norm", short="without a median row",
                                 range=(0, 1)),
        "largest_norm_ratio": Field(LAYER, "largest norm of a row over the median", "1", QUEIPO, range=(1, None),
                                    log=True, short="largest norm over median"),
        "trace_share": Field(LAYER, "share of the squared norm that the largest row holds", "1", QUEIPO,
                             short="share of the largest row"),
        "largest_position": Field(LAYER, "position of the largest row, BOS counted"),
        "persistence": Field(LAYER, "cosine of the largest row with the same token one layer before", "1", SPIKES,
                             short="cosine with the layer before", range=(-1, 1)),
        "constancy": Field(("layer",), "mean cosine of the largest rows of two prompts", "1", SPIKES,
                           short="cosine between prompts", range=(-1, 1), beside=("constancy_control",)),
        "constancy_control": Field(("layer",), "mean cosine of the rows of the median norm of two prompts",
                                   short="rows of the median norm", range=(-1, 1)),
        "n_pairs": Field(("layer",), "pairs of prompts that differ somewhere up to their largest rows"),
        "_seen": Field(("prompt", "layer"), "what stands up to the largest row, as a number"),
        "_seen_control": Field(("prompt", "layer"), "what stands up to the row of the median norm, as a number"),
    }  # fmt: skip

    def __init__(self, layers: Iterable[int] | None = None) -> None:
        super().__init__()
        self.layers = layers

    def update(self, batch: Batch) -> None:
        """Decompose the Gram matrices of the prompts with and without a row."""
        place = torch.arange(batch.ids.shape[1], device=batch.device, dtype=torch.int64)
        number, columns, sums, seen, before = batch.mask.sum(1), [], [], [], None
        prefix = ((batch.ids + 1) * torch.full_like(place, ODD).cumprod(0)).cumsum(1)  # modulo 2**64
        for layer in self.at_layers():
            x = batch.points(layer).double().masked_fill(~batch.mask[..., None], 0)
            norm = x.norm(dim=-1).masked_fill(~batch.mask, -1)
            largest = norm.argmax(1)
            order = norm.argsort(dim=1, descending=True, stable=True)
            middle = order.gather(1, (number // 2)[:, None])[:, 0]
            parts = [_share(x, number)]
            for left in (largest, middle):
                parts.append(_share(x.masked_fill((place == left[:, None])[..., None], 0), number - 1))
            top, median = (norm.gather(1, at[:, None])[:, 0] for at in (largest, middle))
            trace = top.square() / x.square().sum((1, 2))
            same = torch.full_like(top, torch.nan)
            if before is not None and before[0] == layer - 1:
                same = torch.cosine_similarity(_at(x, largest), _at(before[1], largest), dim=-1)
            columns.append(torch.stack([*parts, top / median, trace, same, largest.double()], 1))
            seen.append(torch.stack([prefix.gather(1, at[:, None])[:, 0] for at in (largest, middle)]))
            sums.append(torch.stack([normalize(_at(x, at), dim=-1).sum(0) for at in (largest, middle)]))
            before = (layer, x)
        self.add("_unit", torch.stack(sums))
        own, control = torch.stack(seen, -1)
        found = torch.stack(columns, 1).unbind(-1)
        self.keep(
            batch, entropy=found[0], entropy_without=found[1], entropy_control=found[2], largest_norm_ratio=found[3],
            trace_share=found[4], persistence=found[5], largest_position=found[6].long(),
            _seen=own, _seen_control=control,
        )  # fmt: skip

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the mean cosine of pairs of prompts from the sum of their unit rows."""
        square = self.sums["_unit"].square().sum(-1).cpu().numpy()
        means, pairs = [], []
        for which, name in enumerate(("_seen", "_seen_control")):
            equal = np.array([np.sum(np.unique(c, return_counts=True)[1] ** 2.0) for c in found[name].T])
            ordered = float(len(found[name])) ** 2 - equal  # what is equal by construction has a cosine of 1
            means.append((square[:, which] - equal) / np.where(ordered > 0, ordered, np.nan))
            pairs.append(ordered / 2)
        return {"constancy": means[0], "constancy_control": means[1], "n_pairs": pairs[0].astype(int)}


def _share(x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return (prompt,) von Neumann entropy over log min(rows, channels) of so many rows, the others zero."""
    most = number.clamp_max(x.shape[-1]).double()
    return entropy.renyi(entropy.gram_spectrum(x.float()), 1.0) / torch.where(most > 1, most.log(), torch.nan)


def _at(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return (prompt, d) the row of each prompt at a place."""
    return x[torch.arange(len(x), device=x.device, dtype=torch.int64), place]
