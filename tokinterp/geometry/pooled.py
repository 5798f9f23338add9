"""PooledStates: the stream itself, one row for each prompt or for each token of some classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..run.measurement import Field, Measurement
from ..settings import checked, names, one_of, refuse
from ..text.classes import CLASSES

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

POOLING = ("mean", "last", "tokens")


@checked(pooling=one_of(*POOLING), classes=names(*CLASSES, least=1))
class PooledStates(Measurement):
    """Keep the stream at some layers: the mean or the last token of each prompt, or every token.

    The result grows with the number of prompts (of tokens): choose layers.

    Parameters
    ----------
    layers : iterable of int, optional
        Layers to keep; all by default.
    pooling : str
        ``"mean"`` of the tokens that take part, the ``"last"`` of them, or all ``"tokens"``, one row each.
    classes : sequence of str, optional
        Only tokens of these classes take part (see `tokinterp.text.token_classes`: ``"word"``, ``"last piece"``,
        ``"punctuation"``, ...).
    exclude : sequence of str
        Tokens left out: ``"special"`` ones, ``"massive"`` rows (found at the layer; not with ``"tokens"``, where the
        layers share their rows).
    centred_unit : bool
        Whether the rows of a prompt are taken about their mean and scaled to length 1 before their ``"mean"`` is, as in
        the code of Skean et al. 2025.

    Notes
    -----
    A prompt in which no token takes part has NaN (and ``n_rows`` 0).

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> run = ti.measure(model, ["The Nile flows north."], {"pooled": ti.geometry.PooledStates(layers=[4])},
    ...     progress=False)
    >>> run["pooled"]["state"].dims, run["pooled"]["state"].shape == (1, 1, model.info.d_model)
    (('prompt', 'layer', 'channel'), True)
    """

    first = ("state",)
    fields = {
        "state": Field(("prompt", "layer", "channel"), "mean of the stream over tokens"),
        "n_rows": Field(("prompt", "layer"), "tokens that take part"),
    }

    def __init__(
        self,
        layers: Iterable[int] | None = None,
        pooling: str = "mean",
        classes: Sequence[str] | None = None,
        exclude: Sequence[str] = ("special",),
        centred_unit: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.pooling, self.classes = layers, pooling, classes
        self.exclude, self.centred_unit = exclude, centred_unit
        if pooling == "tokens":
            self.fields = {"state": Field(("token", "layer", "channel"), "stream")}
        if centred_unit and pooling != "mean":
            refuse("centred_unit", centred_unit, f"it goes with pooling='mean', not with {pooling!r}")
        if pooling == "tokens" and "massive" in self.exclude:
            refuse(
                "exclude", exclude, "with pooling='tokens' rows would differ from layer to layer: leave 'massive' out"
            )

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check layers, classes and the size of the result."""
        super().begin(info, prompts)
        rows = len(prompts.lengths) if self.pooling != "tokens" else int(sum(prompts.lengths))
        need = 4 * rows * len(self.at_layers()) * info.d_model
        if need > self.memory:
            raise ValueError(
                f"{rows} rows of {info.d_model} channels at these layers are {need / 2**30:.1f} GiB: choose fewer "
                f"layers= or prompts, or raise memory={self.memory} of the run"
            )
        self._allowed = None
        if self.classes is not None:
            self._allowed = prompts.classes.mask(*self.classes)
            if not self._allowed.any():
                raise ValueError(f"classes={list(self.classes)}: no token of the prompts is of such a class")

    def update(self, batch: Batch) -> None:
        """Keep the rows of a batch."""
        layers = self.at_layers()
        masks = [batch.kept(self.exclude, n) for n in layers]
        if self._allowed is not None:
            chosen = batch.tokens.of_stream(self._allowed)
            masks = [m & chosen for m in masks]
        if self.pooling == "tokens":
            rows = batch.flatten(masks[0]).nonzero()[:, 0]
            self.keep_rows(batch, rows, state=torch.stack([batch.rows(n)[rows].float() for n in layers], dim=1))
            return
        found = [self._pool(batch.resid(n), m) for n, m in zip(layers, masks, strict=True)]
        self.keep(batch, n_rows=torch.stack([m.sum(1) for m in masks], dim=1), state=torch.stack(found, dim=1))

    def _pool(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        number = keep.sum(1)
        if self.centred_unit:
            x = x.double().masked_fill(~keep[..., None], 0)
            x = torch.nn.functional.normalize(x - x.sum(1, keepdim=True) / number[:, None, None], dim=-1)
        if self.pooling == "mean":
            total = x.masked_fill(~keep[..., None], 0).sum(1, dtype=torch.float64)
            return (total / number[:, None]).float()
        place = torch.arange(x.shape[1], device=x.device, dtype=torch.int64)
        last = torch.where(keep, place, -1).amax(1)
        row = x[torch.arange(len(x), device=x.device, dtype=torch.int64), last.clamp_min(0)].float()
        return row.masked_fill(number[:, None] == 0, torch.nan)

    def coords(self) -> Mapping[str, Any]:
        """Return the coordinates of the stream."""
        return {"channel": (np.arange(self.info.d_model), "coordinate of the stream", "1")}

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return which state it is."""
        return {"state": {"long_name": "stream at the last token"}} if self.pooling == "last" else {}
