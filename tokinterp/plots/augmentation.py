"""How well layers tell prompts apart, and how little they mind edits: InfoNCE, LiDAR and DiME over layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..settings import checked
from . import style
from .layers import by_layer

MEASUREMENT = "augmentation_metrics"
NAMES = {
    "infonce_share": "InfoNCE (share)",
    "infonce_loss": "InfoNCE loss",
    "infonce_bound": "InfoNCE bound",
    "lidar_share": "LiDAR (share)",
    "lidar": "LiDAR",
    "lidar_skean2025": "LiDAR, as published",
    "dime": "DiME",
}
DRAWN = {
    "infonce_share": "how surely two readings of a prompt find each other among all prompts: 1 - InfoNCE loss / "
    "log(prompts), 0 as by chance",
    "lidar_share": "directions in which prompts differ by more than edits, as a share of the largest possible number",
    "dime": "matrix entropy gained when readings of different prompts are paired",
}


@checked()
def augmentation_by_layer(
    ds: xr.Dataset, name: str = "infonce_share", *, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draw a number of augmented readings over layers, with its jackknife interval over prompts.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``augmentation_metrics``.
    name : str
        ``"infonce_share"``, ``"infonce_bound"``, ``"lidar_share"``, ``"lidar"``, ``"dime"``, ...
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    **options
        ``other``, ``label``, ``layers``, ``relative``, ``width`` of `by_layer`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    return by_layer(ds, name, ax=ax, **{"ylabel": NAMES.get(name), **options})


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``augmentation_metrics``."""
    drawn = [n for n in DRAWN if n in ds]
    if not drawn:
        return
    fig, axes = style.figure("double" if len(drawn) > 1 else "column", columns=len(drawn))
    with style.paper_style():
        for name, ax in zip(drawn, axes.flat, strict=True):
            augmentation_by_layer(ds, name, ax=ax)
        if len(drawn) > 1:
            style.panel_letters(axes)
    given = json.loads(str(ds.attrs.get("parameters", "{}")))
    text = ". ".join((f"{chr(97 + i)}: " if len(drawn) > 1 else "") + DRAWN[n] for i, n in enumerate(drawn))
    how = ""
    if {"q", "rate", "kind"} <= given.keys():
        edit = {"delete": "deleted", "replace": "replaced", "swap": "swapped"}.get(given["kind"], given["kind"])
        readings = f"{given['q']} readings of each with {given['rate']:.0%} of tokens {edit}"
        how = f" {int(ds['n_prompts'])} prompts, {readings}."
    bands = any(f"{n}_interval" in ds for n in drawn)
    level = (
        f" Bands: {given.get('level', 0.95):.0%} jackknife intervals over {int(ds['n_prompts'])} prompts."
        if bands
        else ""
    )
    yield "augmentation", f"{text if len(drawn) > 1 else text[0].upper() + text[1:]}.{how}{level}", fig
