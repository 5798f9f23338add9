"""A text coloured token by token, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..results.facts import DEPTHS, facts_of, first_of, pick, preferred, show
from ..results.tables import result_with
from ..settings import checked, number, pair
from . import pages
from .heatmaps import prompt_of, scale_of, strings_of, tokens_of


@checked(limits=pair(number(), number()))
def tokens(
    ds: xr.Dataset | xr.DataTree,
    name: str | None = None,
    prompt: int | None = None,
    *,
    layer: int | None = None,
    select: Mapping[str, Any] | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> pages.Html:
    """Show a text coloured by a value of its tokens; pointing at a token, or going to it with Tab, shows all it has.

    Parameters
    ----------
    ds : xarray.Dataset
        A result with values of single tokens.
    name : str, optional
        Variable that gives the colours; by default the first one per token.
    prompt : int, optional
        Number of the prompt; by default the first with any tokens.
    layer : int, optional
        Layer (or block) that gives the colours; by default the last.
    select : mapping, optional
        Value of each further dimension; by default the first.
    limits : (float, float), optional
        Values at the ends of the colours; by default the range of the variable, or else all but the outer 2 % at all
        layers. To compare prompts, give the same.
    title : str, optional
        First line.

    Returns
    -------
    Html
        A string; a notebook shows it, light or dark, ``.save(path)`` writes a page. Texts are escaped, and nothing in
        it is a script.

    Raises
    ------
    ValueError
        If there are no values per token, or not of this prompt, layer or dimension.

    Examples
    --------
    >>> coords = {"token_prompt": ("token", [0, 0]), "position": ("token", [0, 1]), "text": ("token", ["<b", ">"])}
    >>> view = tokens(xr.Dataset({"loss": ("token", [0.5, 2.0], {"units": "nat"})}, coords), "loss", 0)
    >>> "&lt;b" in view, "loss: 2 nat" in view
    (True, True)
    """
    ds = result_with(ds, name)
    known = [str(n) for n, v in ds.data_vars.items() if "token" in v.dims and v.dtype.kind in "fiub"]
    if name is None:
        name = next((n for n in (*first_of(ds), *known) if n in known), "")
    one = pick(ds, name, select) if name in ds or name else ds
    if name not in known:
        raise ValueError(
            f"name={name!r}: no value per token; there are {', '.join(known) or 'none: measure with tokens=None'}"
        )
    facts = facts_of(ds, name)
    depth = next((d for d in DEPTHS if d in one[name].dims), None)
    number_ = int(np.min(prompt_of(ds))) if prompt is None else prompt
    rows = tokens_of(one, number_, range(1 + int(ds["position"].max())))
    rest = [str(d) for d in one[name].dims if d not in ("token", depth)]
    v = rows[name].isel({d: preferred(rows, d) for d in rest}).transpose("token", *([depth] if depth else []))
    values = v.values.astype(float).reshape(v.sizes["token"], -1)
    layers: list[Any] = v[depth].values.tolist() if depth else [None]
    if layer is not None and layer not in layers:
        raise ValueError(f"layer={layer}: {name} has {depth or 'no layer'} {', '.join(map(str, layers))}")
    at = len(layers) - 1 if layer is None else layers.index(layer)
    _, low, high, extend = scale_of(values, facts, limits)
    units = "" if facts.units == "1" else f" {facts.units}"
    parts = []
    for text, place, row in zip(strings_of(rows), rows["position"].values.tolist(), values, strict=True):
        tip = [f"{text!r}, position {place}"]
        if depth is None:
            tip.append(f"{facts.label}: {row[0]:.4g}{units}")
        else:
            tip += [facts.label, *_columns([f"{depth} {n}: {x:.4g}{units}" for n, x in zip(layers, row, strict=True)])]
        bad = not np.isfinite(row[at])
        parts.append(pages.token(text, tip, None if bad else pages.step_of(row[at], low, high), none=bad))
    chosen = [
        *([f"{depth} {layers[at]}"] if depth else []),
        *(show(rows[d].values[preferred(rows, d)], d) for d in rest if rows.sizes[d] > 1 and d in rows.coords),
    ]
    what = ", ".join([f"{facts.label}{f' ({facts.units})' if units else ''}", *chosen])
    return pages.page(f'{pages.key(what, low, high, extend)}<div class="text">{"".join(parts)}</div>', title)


def _columns(lines: list[str]) -> list[str]:
    """Return lines in as many columns as keep them within eight rows."""
    rows = min(len(lines), 8)
    width = max(map(len, lines)) + 2
    return ["".join(x.ljust(width) for x in lines[i::rows]).rstrip() for i in range(rows)]
