"""Blocks whose attention can be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..run.sites import Site
from ..settings.describe import numbered

if TYPE_CHECKING:
    from ..models.base import Model


def shown_blocks(model: Model) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return the blocks whose attention weights can be looked at, and what a result says of the others.

    Raises
    ------
    ValueError
        If there are none.
    """
    shown: tuple[int, ...] = getattr(model, "offered", {}).get("pattern") or tuple(range(model.info.n_layers))
    model.check([Site("pattern", b) for b in shown])
    if not (others := sorted({*range(model.info.n_layers)} - {*shown})):
        return shown, {}
    return shown, {"blocks_without_pattern": f"{numbered(others)}: no attention weights to look at there (NaN)"}
