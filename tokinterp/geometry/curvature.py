"""Curvature: how sharply the stream turns from token to token, and from layer to layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..run.measurement import Field, Measurement
from ..run.sites import resid
from ..settings import checked
from .kernels.curvature import nanmean, position_curvature, turning

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.sites import Site
    from ..text.prompts import Prompts

HENAFF = "Henaff et al. 2019, Nat. Neurosci. 22, 984; Hosseini and Fedorenko 2023, arXiv 2311.04930"
SKEAN = "Skean et al. 2025, arXiv 2502.02013, code"
LAYER, BLOCK, TOKEN = ("prompt", "layer"), ("prompt", "block"), ("token", "layer")


@checked()
class Curvature(Measurement):
    """Turning angles along positions and along depth, and how far each block moves a token.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers whose curvature over positions is measured; all by default.
    depth : bool
        Whether to follow each token through all layers: ``depth_curvature``, ``relative_step``, ``norm_ratio`` and
        ``step_cosine``.
    tokens : int, optional
        Angles of single tokens are kept for the prompts numbered below this; None keeps all.
    exclude : sequence of str
        Tokens left out: ``"special"`` ones and ``"massive"`` rows (found at the layer; over depth, at any layer that
        takes part).  An angle needs three neighbouring tokens (layers) that all take part.

    Notes
    -----
    With v_t = h_(t+1) - h_t, the curvature at t + 1 is the angle between v_t and v_(t+1), in [0, pi]; its mean over
    positions is ``curvature`` (Henaff et al. 2019; Hosseini and Fedorenko 2023).  A straight line has 0, a random walk
    pi / 2 (90 degrees), independent points 2 pi / 3 (120 degrees).  ``curvature_absolute`` is the angle between lines
    (absolute value of the cosine, in [0, pi / 2]) that the code of Skean et al. 2025 computes: it takes a turn of 120
    degrees for one of 60, so that it ranks layers the other way.  Steps of length 0 (a token repeated at layer 0) have
    no angle and are left out; the published code counts them as 0.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north to the sea."], {"curvature": ti.geometry.Curvature()},
    ...     progress=False)
    >>> bool(1.6 < run["curvature"]["curvature"].sel(layer=0).item() < 2.6)
    True
    """

    first = ("curvature", "depth_curvature", "relative_step", "step_cosine", "token_curvature")
    fields = {
        "curvature": Field(LAYER, "mean turning angle from token to token", "rad", HENAFF, short="turning angle"),
        "curvature_absolute": Field(
            LAYER, "mean angle between the lines of successive steps", "rad", SKEAN,
            short="angle between lines of steps",
        ),
        "n_angles": Field(LAYER, "turning angles that take part"),
        "depth_curvature": Field(
            LAYER, "mean turning angle of a token from layer to layer (none at the first and last layer)", "rad",
            short="turning angle over depth",
        ),
        "relative_step": Field(
            BLOCK, "mean length of a block's update over the norm of its input",
            short="norm added / norm of the input", log=True,
        ),
        "norm_ratio": Field(
            BLOCK, "mean norm of a block's output over that of its input", short="norm of output / norm of input",
            range=(0, None),
        ),
        "step_cosine": Field(
            BLOCK, "mean cosine of a block's input and output", short="cosine of input and output", range=(None, 1),
        ),
        "token_curvature": Field(TOKEN, "turning angle at the token", "rad", HENAFF, short="turning angle"),
        "token_depth_curvature": Field(
            TOKEN, "turning angle of the token's way through the layers", "rad", HENAFF,
            short="turning angle over depth",
        ),
    }  # fmt: skip

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        depth: bool = True,
        tokens: int | None = 0,
        exclude: Sequence[str] = ("special", "massive"),
    ) -> None:
        super().__init__()
        self.layers, self.depth, self.tokens, self.exclude = layers, depth, tokens, exclude

    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the stream at the layers, at all of them with ``depth``."""
        return resid(range(info.n_layers + 1) if self.depth else self.at_layers(info))

    def at_blocks(self, info: ModelInfo | None = None) -> list[int]:
        """Return all blocks: what happens over depth is seen at each."""
        return list(range((info or self.info).n_layers))

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers, and that some prompt has three tokens."""
        super().begin(info, prompts)
        if max(prompts.lengths) < 3:
            raise ValueError(f"the longest prompt has {max(prompts.lengths)} tokens: an angle needs three")

    # -- one batch --------------------------------------------------------------------------------------------
    def update(self, batch: Batch) -> None:
        """Take the angles of a batch."""
        layers = self.at_layers()
        every = [s.at for s in self.sites(self.info)]
        masks = {n: batch.kept(self.exclude, n) for n in every}
        angles = torch.stack([position_curvature(batch.points(n), masks[n]) for n in layers], dim=2)
        mean, number = nanmean(angles)
        unsigned, _ = nanmean(torch.minimum(angles, torch.pi - angles))
        columns = {"curvature": mean, "curvature_absolute": unsigned, "n_angles": number}
        if self.tokens != 0:
            columns["token_curvature"] = angles
        if self.depth:
            bend = self._follow(batch, masks, columns)
            if self.tokens != 0:
                columns["token_depth_curvature"] = bend[:, :, layers]
        self.keep(batch, **columns)

    def _follow(self, batch: Batch, masks: dict[int, torch.Tensor], columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add the columns (prompt, block or layer) of the way through the layers; return (prompt, position, layer)."""
        layers = sorted(masks)
        bend = torch.full((*batch.ids.shape, len(layers)), torch.nan, device=batch.device, dtype=torch.float32)
        blocks: dict[str, list[torch.Tensor]] = {"relative_step": [], "norm_ratio": [], "step_cosine": []}
        step_before, x = None, batch.resid(0).float()
        norm = torch.linalg.vector_norm(x, dim=-1)
        for n in layers[1:]:
            y = batch.resid(n).float()
            step, norm_after = y - x, torch.linalg.vector_norm(y, dim=-1)
            out = ~(masks[n - 1] & masks[n])
            for name, value in (
                ("relative_step", torch.linalg.vector_norm(step, dim=-1) / norm),
                ("norm_ratio", norm_after / norm),
                ("step_cosine", (x * y).sum(-1) / (norm * norm_after)),
            ):
                value = torch.where(value.isfinite(), value, torch.nan)  # a row of length 0 has no ratio
                blocks[name].append(nanmean(value.masked_fill(out, torch.nan))[0])
            if step_before is not None:
                out = ~(masks[n - 2] & masks[n - 1] & masks[n])
                bend[..., n - 1] = turning(step_before, step).masked_fill(out, torch.nan)
            step_before, x, norm = step, y, norm_after
        columns.update({name: torch.stack(values, dim=1) for name, values in blocks.items()})
        columns["depth_curvature"] = nanmean(bend)[0][:, self.at_layers()]
        return bend

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is left out."""
        left = ", ".join(self.exclude) or "nothing"
        return {name: {"excluded": left} for name, field in self.fields.items() if field.table == "prompt"}
