"""A model whose last layer is read after the final norm, as in the hidden states that libraries return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tokinterp.run.sites import Site


class LastNormed:
    """Another view of a model: the stream at the last layer comes after the final norm.

    Viswanathan et al. 2025 and everybody who reads ``hidden_states`` of transformers have this last layer; the layers
    before it are the stream itself.  Loss and logits are right at the last layer; do not decode other layers with it,
    whose norm is left out.

    Parameters
    ----------
    model : Model
        What is looked at, and left as it is.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> last, prompts = ti.resid([model.info.n_layers]), ti.Prompts.from_ids([[5, 6, 7]], model)
    >>> one, two = (ti.capture(m, prompts, [0], last).rows(model.info.n_layers) for m in (model, LastNormed(model)))
    >>> torch.equal(model.normed(one), two)
    True
    """

    def __init__(self, model: Any) -> None:
        self.inner = model
        self.info = replace(model.info, id=f"{model.info.id}, last layer normed")
        self._last = Site("resid", model.info.n_layers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(
        self, ids: torch.Tensor, sites: Sequence[Site], *, consume: Callable[..., Any] | None = None, **options: Any
    ) -> dict[Site, torch.Tensor]:
        """Run the model and take the norm of its last layer."""

        def normed(site: Site, value: torch.Tensor) -> torch.Tensor:
            return self.inner.normed(value) if site == self._last else value

        if consume is not None:
            options["consume"] = lambda site, value: consume(site, normed(site, value))
        return {site: normed(site, value) for site, value in self.inner.run(ids, sites, **options).items()}

    def normed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return the points as they are: the last layer is normed."""
        return resid

    def unembed(self, resid: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (..., d_vocab) of points of the last layer."""
        return self.inner.head(resid)
