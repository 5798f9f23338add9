"""Maps from layer to layer fitted on a corpus, for texts that are scored later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import linear
from ..models.steady import steady
from ..run.engine import measure
from ..run.facts import fit_facts
from ..run.measurement import Field
from ..settings import checked, number
from ..text.prompts import Prompts
from .chains import Chains
from .maps import TENSORS, LinearMaps

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch


@checked(cutoff=number(0, below=1))
class BlockMaps(Chains):
    """The affine map of each block that fits a corpus best, as labelled data; see `fit_linear_maps`.

    Parameters
    ----------
    blocks, exclude, cutoff
        See `fit_linear_maps`.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("story")[:12]]
    >>> asked = {"maps": ti.linearity.BlockMaps(blocks=[0])}
    >>> list(ti.measure(ti.load_model(), texts, asked, progress=False).children)
    ['prompts', 'maps']
    """

    fields = {
        "weight": Field(("block", "channel_in", "channel_out"), "weight of the map"),
        "mean_in": Field(("block", "channel_in"), "mean of the inputs"),
        "mean_out": Field(("block", "channel_out"), "mean of the outputs"),
        "spread": Field(("block",), "root mean square distance of the outputs from their mean"),
        "linearity": Field(
            ("block",), "linearity of the fit on its own rows", short="linearity of the fit", range=(0, 1),
        ),
        "n": Field((), "rows of the fit", "token"),
    }  # fmt: skip
    first = ("linearity",)

    def __init__(
        self,
        blocks: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special", "massive"),
        cutoff: float = linear.CUTOFF,
    ) -> None:
        super().__init__()
        self.blocks, self.exclude, self.cutoff = blocks, exclude, cutoff

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check blocks, and that there are more tokens than directions."""
        super().begin(info, prompts)
        self.check_rows(prompts)

    def update(self, batch: Batch) -> None:
        """Add the rows of a batch to the fit."""
        self.add_batch(batch, self.kept(batch))

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return the maps."""
        return {name: value.cpu().numpy() for name, value in self.maps_of_sums(self.cutoff).items()}

    def coords(self) -> Mapping[str, Any]:
        """Return the channels."""
        channels = np.arange(self.info.d_model)
        return dict.fromkeys(("channel_in", "channel_out"), (channels, "channel of the stream", "1"))

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Say what is left out of the fit, and why values are missing."""
        missing = "NaN: the fit has no more rows than directions and passes through all"
        return {"weight": {"exclude": ", ".join(self.exclude) or "nothing", "missing": missing}}


@checked(cutoff=number(0, below=1))
@steady
def fit_linear_maps(
    model: Model,
    prompts: Prompts | Sequence[str],
    blocks: Iterable[int] | None = None,
    *,
    exclude: Sequence[str] = ("special", "massive"),
    cutoff: float = linear.CUTOFF,
    store: str | Path | None = None,
    **options: Any,
) -> LinearMaps:
    """Fit one affine map per block, layer b -> layer b + 1, on the tokens of a corpus.

    Parameters
    ----------
    model, prompts
        As for `measure`.
    blocks : iterable of int, optional
        Blocks to fit; all by default.
    exclude : sequence of str
        Rows that take no part in the fit, as in `Linearity`.
    cutoff : float
        As in `Linearity`.
    store : path, optional
        As for `measure`: a run that was stopped goes on, and one that is finished gives the same maps again.
    **options
        Further arguments of `measure` (``batch_tokens``, ``progress``, ``edits``, ...).

    Returns
    -------
    LinearMaps
        For ``TokenNonlinearity(maps=)``, on any text.

    Raises
    ------
    ValueError
        If the prompts have no more tokens than the model has channels, and for what `measure` refuses.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:12]]
    >>> maps = ti.linearity.fit_linear_maps(model, texts, blocks=[0], progress=False)
    >>> asked = {"error": ti.linearity.TokenNonlinearity(blocks=[0], maps=maps)}
    >>> ti.measure(model, ["The Nile flows north."], asked, progress=False)["error"]["nonlinearity"].dims
    ('token', 'block')
    """
    if "share" in options:
        raise ValueError("share: maps are fitted in one piece")
    prompts = prompts if isinstance(prompts, Prompts) else Prompts.from_texts(prompts, model)
    facts = fit_facts(model, prompts)
    asked = BlockMaps(blocks, exclude, cutoff)
    ds = measure(model, prompts, {"maps": asked}, store=store, **options)["maps"].to_dataset()
    tensors = {name: torch.from_numpy(ds[name].values.copy()) for name in TENSORS}
    settings = {"exclude": list(exclude), "cutoff": cutoff}
    return LinearMaps(**tensors, facts={**facts, "blocks": ds["block"].values.tolist(), **settings, "n": int(ds["n"])})
