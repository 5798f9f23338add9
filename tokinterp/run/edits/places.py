"""Places in the sequence that tokens are given instead of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...settings import checked
from ...settings import whole as numbers_of_tokens
from ...settings.describe import describe


@checked(places=numbers_of_tokens)
@dataclass(frozen=True, eq=False)
class Renumber:
    """Give the tokens of a run other places in the sequence (``position_ids``); made by :func:`renumber`.

    Attributes
    ----------
    places : numpy.ndarray
        (token,) place of each token of all prompts.
    """

    places: np.ndarray

    def check_tokens(self, prompts: Any) -> None:
        """Raise ValueError if the prompts have another number of tokens."""
        if len(self.places) != prompts.n_tokens:
            raise ValueError(
                f"places: {len(self.places)} places for {prompts.n_tokens} tokens of all prompts, in {self}"
            )

    def of_batch(self, prompts: Any, numbers: Sequence[int], mask: torch.Tensor) -> torch.Tensor:
        """Return (prompt, position) places of a batch; those of padding are the largest real ones."""
        start = torch.from_numpy(prompts.starts[list(numbers)]).to(mask.device)[:, None]
        place = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device)
        inside = torch.minimum(place, mask.sum(1, keepdim=True) - 1)
        return torch.from_numpy(self.places.astype(np.int64)).to(mask.device)[start + inside]

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> Renumber:
        """Refuse a pass that knows no other prompts."""
        raise ValueError(f"{self}: one pass does not know which tokens of the run these are: give it position_ids")

    def __str__(self) -> str:
        return f"renumber({len(self.places)} tokens)"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {"op": "renumber", "places": describe(self.places)}


@checked(places=numbers_of_tokens)
def renumber(places: np.ndarray) -> Renumber:
    """Give the tokens of all prompts of a run other places in the sequence than 0, 1, 2, ...

    Parameters
    ----------
    places : numpy.ndarray
        (token,) place of each token, prompt by prompt.

    Notes
    -----
    Tokens that are hidden from all later ones, with what follows them renumbered as if they were not there, are as good
    as deleted.  Models that count places by themselves (ALiBi) refuse it.

    Examples
    --------
    >>> import numpy as np, tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The flows north."], model)
    >>> places = np.concatenate([np.arange(n) for n in prompts.lengths])
    >>> places[prompts.starts[1] + 2 :] += 1  # as if a word stood there
    >>> run = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(layers=[4])}, edits=[ti.edits.renumber(places)],
    ...                  progress=False)
    """
    return Renumber(places)


def closed_up(hidden: np.ndarray, prompts: Any) -> np.ndarray:
    """Return (token,) places in which what follows hidden tokens stands where it would without them.

    Parameters
    ----------
    hidden : numpy.ndarray
        (token,) bool; these keep their own places.
    prompts : Prompts
        Of the run.
    """
    out = [
        np.arange(b - a) - np.where(hidden[a:b], 0, np.cumsum(hidden[a:b]))
        for a, b in zip(prompts.starts[:-1], prompts.starts[1:], strict=True)
    ]
    return np.concatenate(out)
