"""TokenNonlinearity: how far each token's step through a block is from the linear map that fits the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..kernels import linear
from ..run.measurement import Field
from ..settings import checked, count, number, one_of
from .chains import Chains
from .maps import TENSORS, LinearMaps, map_of

if TYPE_CHECKING:
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..run.measurement import Tensors
    from ..text.prompts import Prompts

FITS = ("corpus", "prompt")
SCALES = ("rms", "paper", "token")

PAPER = "Razzhigaev et al. 2025, arXiv 2502.15007, equations 1 and 2"
LONG = {
    "rms": "distance from the linear map, over the root mean square spread of the outputs",
    "paper": "distance from the linear map of Frobenius-normalised clouds",
    "token": "distance from the linear map, over the token's distance from the mean",
}


@checked(fit=one_of(*FITS), scale=one_of(*SCALES), tokens=count(1), cutoff=number(0, below=1))
class TokenNonlinearity(Chains):
    """Distance of every token at layer b + 1 from where the linear map of block b takes it.

    Reads the prompts twice: first to fit one map per block, then to score every token; given ``maps`` it only scores.

    Parameters
    ----------
    blocks : iterable of int, optional
        Blocks to look at; all by default.
    exclude : sequence of str
        Rows that take no part in the fit, as in `Linearity`; they are scored all the same, and ``fitted`` tells them
        apart.
    maps : LinearMaps, optional
        Maps fitted before (`fit_linear_maps`, `LinearMaps.load`), with which values of any text are comparable.
    fit : str
        ``"corpus"``: one map for all prompts, as the paper says. ``"prompt"``: one for each prompt, fitted on that
        prompt alone, as the released token-wise code does; refused (NaN) where the prompt has no more tokens than
        directions, because then it passes through every token.
    scale : str
        ``"rms"``: in units of the root mean square distance of the fitted outputs from their mean, so that 1 is a token
        as badly predicted as by no map at all, whatever the number of rows (E_i times the root of n). ``"paper"``:
        E_i, of the Frobenius-normalised matrices; the squares add up to 1 minus the score of the block, and so shrink
        with n. ``"token"``: relative to the token's own distance from the mean (commented out in the released code).
    tokens : int, optional
        Values are kept for the prompts numbered below this; None keeps all (the result grows with the corpus).
    cutoff : float
        As in `Linearity`.

    Notes
    -----
    ``nonlinearity`` (token, block); ``nonlinearity_mean`` is its mean over blocks, what the paper correlates with
    contextual memory.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text[:300] for t in ti.bundled_texts("story")[:12]]
    >>> run = ti.measure(model, texts, {"error": ti.linearity.TokenNonlinearity()}, progress=False)
    >>> run["error"]["nonlinearity"].dims
    ('token', 'block')
    """

    first = ("nonlinearity", "nonlinearity_mean")
    fields = {
        "nonlinearity": Field(("token", "block"), LONG["rms"], "1", PAPER, short="nonlinearity", range=(0, None)),
        "nonlinearity_mean": Field(
            ("token",), f"{LONG['rms']}, mean over blocks", "1", PAPER, short="nonlinearity, mean over blocks",
            range=(0, None),
        ),
        "fitted": Field(("token",), "whether the token was among those that the map is fitted on"),
        "linearity": Field(
            ("block",), "linearity of the fit on its own rows", short="linearity of the fit", range=(0, 1),
        ),
        "n": Field((), "rows of the fit", "token"),
    }  # fmt: skip

    def __init__(
        self,
        blocks: Iterable[int] | None = None,
        exclude: Sequence[str] = ("special", "massive"),
        maps: LinearMaps | None = None,
        fit: str = "corpus",
        scale: str = "rms",
        tokens: int | None = None,
        cutoff: float = linear.CUTOFF,
    ) -> None:
        super().__init__()
        self.blocks, self.exclude = blocks, exclude
        self.maps, self.fit, self.scale, self.tokens, self.cutoff = maps, fit, scale, tokens, cutoff
        if maps is not None and fit == "prompt":
            raise ValueError("maps= are fitted already: they go with fit='corpus'")
        self.passes = 2 if maps is None and fit == "corpus" else 1

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check blocks, maps, and that there are more tokens than directions."""
        super().begin(info, prompts)
        if self.maps is not None:
            self.maps.check_use(info, self.at_blocks())
            return
        self.check_rows(prompts, each=self.fit == "prompt")

    def update(self, batch: Batch) -> None:
        """Add the rows of a batch to the fit, or score them."""
        keep = self.kept(batch)
        if self.passes == 2 and self.reading == 0:
            self.add_batch(batch, keep)
            return
        index = batch.tokens.below(self.tokens)
        if not len(index):  # a table even if none of the prompts is kept
            error = torch.zeros(0, len(self.at_blocks()), dtype=torch.float64, device=batch.device)
        elif self.fit == "prompt":
            error = self._by_prompt(batch, batch.flatten(keep))[index]
        else:
            error = self._by_maps(batch, index)
        self.keep_rows(batch, index, fitted=batch.flatten(keep)[index], nonlinearity=error.float())

    def end_reading(self) -> None:
        """Turn the sums of the first reading into maps."""
        if self.reading or self.passes == 1:
            return
        maps = self.maps_of_sums(self.cutoff)
        self.sums = {name: maps[name].to(self.sums["count"].device) for name in (*TENSORS, "n")}

    def merge_sums(self, other: Tensors) -> None:
        """Add the sums of the fit; maps that were given are the same in every part."""
        if self.maps is None:
            super().merge_sums(other)
        else:
            self.sums = self.sums or dict(other)

    def _maps(self, device: torch.device) -> dict[str, torch.Tensor]:
        if self.maps is None:
            return self.sums
        if "n" not in self.sums:  # once per run, on the device
            places = [self.maps.blocks.index(b) for b in self.at_blocks()]
            self.sums = {name: getattr(self.maps, name)[places].to(device) for name in TENSORS}
            self.sums["n"] = torch.tensor(self.maps.facts["n"], device=device, dtype=torch.int64)
        return self.sums

    def _by_maps(self, batch: Batch, index: torch.Tensor) -> torch.Tensor:
        """Return (row, block) scaled distances of chosen rows."""
        maps, out = self._maps(batch.device), []
        for i, b in enumerate(self.at_blocks()):
            x, y = (batch.flatten(batch.points(n))[index].double() for n in (b, b + 1))
            mean, size = maps["mean_out"][i], maps["spread"][i]
            error = linear.residual_norms(x, y, maps["mean_in"][i], mean, maps["weight"][i])
            out.append(self._scaled(error, y - mean, size, maps["n"]))
        return torch.stack(out, 1)

    def _scaled(self, error: torch.Tensor, y: torch.Tensor, size: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        by = torch.linalg.vector_norm(y, dim=-1) if self.scale == "token" else size.clone()
        if self.scale == "paper":
            by = by * n.double().sqrt()
        return torch.where(by > 0, error / by, torch.nan)

    def _by_prompt(self, batch: Batch, keep: torch.Tensor) -> torch.Tensor:
        """Return (row, block) distances from the map of each prompt."""
        out = torch.full(
            (len(batch.tokens), len(self.at_blocks())), torch.nan, dtype=torch.float64, device=batch.device
        )
        edges = np.concatenate([[0], np.cumsum(batch.lengths)]).tolist()
        for i, b in enumerate(self.at_blocks()):
            before, after = (batch.flatten(batch.points(n)) for n in (b, b + 1))
            for start, stop in pairwise(edges):
                x, y = before[start:stop].double(), after[start:stop].double()
                here = keep[start:stop].double()[:, None]
                mean_x, mean_y = ((here * r).sum(0) / here.sum() for r in (x, y))
                u, v = (x - mean_x) * here, (y - mean_y) * here
                pair = linear.Pair(here.sum().long(), mean_x, mean_y, u.T @ u, u.T @ v, (v * v).sum())
                m = map_of(pair, self.cutoff)
                error = linear.residual_norms(x, y, m["mean_in"], m["mean_out"], m["weight"])
                out[start:stop, i] = self._scaled(error, y - mean_y, m["spread"], pair.count)
        return out

    def derive(self, found: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return means over blocks, and what the maps are."""
        out: dict[str, Any] = {"nonlinearity_mean": found["nonlinearity"].mean(1)}
        if self.fit == "corpus":
            maps = self._maps(torch.device("cpu"))
            out.update(linearity=maps["linearity"], n=maps["n"])
        return out

    def notes(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the scale, what is left out of the fit, and why values are missing."""
        missing = "NaN: the fit has no more rows than directions and passes through all"
        return {
            "nonlinearity": {"long_name": LONG[self.scale], "missing": missing},
            "nonlinearity_mean": {"long_name": f"{LONG[self.scale]}, mean over blocks"},
            "fitted": {"exclude": ", ".join(self.exclude) or "nothing"},
        }
