"""What to look at first in any result: the figures of a report."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..results.dataset import kind
from ..settings import checked
from . import style
from .layers import AXES, by_layer
from .tokens import prompt_of


@checked()
def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figures that show a result.

    A module of this folder that says ``MEASUREMENT = "LogitLens"`` (or a tuple of names) and has a function
    ``overview`` draws the results of that measurement; of any other result, the first variables that have layers are
    drawn.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of one measurement.
    prompt : int, optional
        Prompt whose tokens are drawn; by default the first that has any.

    Yields
    ------
    name, caption, figure : str, str, Figure
    """
    prompt = first_prompt(ds) if prompt is None else prompt
    own = own_module(kind(ds.attrs))
    if own is not None:
        yield from own.overview(ds, prompt)
        return
    names = [str(n) for n, v in ds.data_vars.items() if {*v.dims} & {*AXES} and not {*v.dims} & {"token", "position"}]
    for name in [n for n in names if ds[n].dtype.kind == "f" and not n.endswith(("_error", "_interval"))][:6]:
        fig, axes = style.figure("column")
        extra = [str(d) for d in ds[name].dims if d not in (*AXES, "prompt")]
        with style.paper_style():
            by_layer(ds, name, ax=axes[0, 0], select={d: ds[d].values[:1] for d in extra[2:] if d in ds.coords})
        yield name, f"{ds[name].attrs.get('long_name', name)}.", fig


def overview_html(ds: xr.Dataset) -> str:
    """Return HTML beside the figures, where the module that draws results of this measurement has a ``page``."""
    page = getattr(own_module(kind(ds.attrs)), "page", None)
    return page(ds) if page is not None else ""


def own_module(measurement: str) -> ModuleType | None:
    """Return the module of this folder that draws results of a measurement."""
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = import_module(f"{__package__}.{info.name}")
        named = getattr(module, "MEASUREMENT", ())
        if measurement and measurement in ((named,) if isinstance(named, str) else named):
            return module
    return None


def first_prompt(ds: xr.Dataset) -> int | None:
    """Return the lowest number of a prompt that has values per token, if any."""
    if ds.sizes.get("token", 0) == 0 or "position" not in ds.coords:
        return None
    return int(np.min(prompt_of(ds)))
