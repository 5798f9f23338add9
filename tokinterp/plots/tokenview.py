"""A text coloured token by token, or span by span, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
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

    Of a variable of spans (the score of a segment, say) those of two or more tokens stand in brackets.

    Parameters
    ----------
    ds : xarray.Dataset
        A result with values of single tokens, or of spans and with the tokens that they are of.
    name : str, optional
        Variable that gives the colours, per token or span; by default the first one per token.
    prompt : int, optional
        Number of the prompt; by default the first with any tokens.
    layer : int, optional
        Layer (or block) that gives the colours; by default the last.
    select : mapping, optional
        Value of each further dimension; by default the first.
    limits : (float, float), optional
        Values at the ends of the colours; by default the range of the variable, or else all but the outer 2 % at all
        layers; of spans with a chance level of 0 as far below it as above. To compare prompts, give the same.
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
        If there are no values per token or span, or not of this prompt, layer or dimension.

    Examples
    --------
    >>> coords = {"token_prompt": ("token", [0, 0]), "position": ("token", [0, 1]), "text": ("token", ["<b", ">"])}
    >>> view = tokens(xr.Dataset({"loss": ("token", [0.5, 2.0], {"units": "nat"})}, coords), "loss", 0)
    >>> "&lt;b" in view, "loss: 2 nat" in view
    (True, True)
    """
    ds = result_with(ds, name)
    known = [str(n) for n, v in ds.data_vars.items() if {"token", "span"} & {*v.dims} and v.dtype.kind in "fiub"]
    if name is None:
        name = next((n for n in (*first_of(ds), *known) if n in known and "token" in ds[n].dims), "")
    one = pick(ds, name, select) if name in ds or name else ds
    if name not in known:
        raise ValueError(
            f"name={name!r}: no value per token; there are {', '.join(known) or 'none: measure with tokens=None'}"
        )
    facts, of = facts_of(ds, name), "token" if "token" in ds[name].dims else "span"
    depth = next((d for d in DEPTHS if d in one[name].dims), None)
    number_ = int(np.min(prompt_of(ds))) if prompt is None and "token" in ds.dims else prompt or 0
    places = range(1 + int(ds["position"].max())) if "position" in ds else None
    text = tokens_of(ds, number_, places)
    rows = tokens_of(one, number_, places) if of == "token" else one.isel(span=_spans_of(ds, number_))
    rest = [str(d) for d in one[name].dims if d not in (of, depth)]
    v = rows[name].isel({d: preferred(rows, d) for d in rest}).transpose(of, *([depth] if depth else []))
    values = v.values.astype(float).reshape(v.sizes[of], -1)
    layers: list[Any] = v[depth].values.tolist() if depth else [None]
    if layer is not None and layer not in layers:
        raise ValueError(f"layer={layer}: {name} has {depth or 'no layer'} {', '.join(map(str, layers))}")
    at = len(layers) - 1 if layer is None else layers.index(layer)
    if of == "span":
        several = (rows["stop"] - rows["start"]).values > 1
        values, rows = values[several], rows.isel(span=several)
        if limits is None and facts.chance == 0:
            limits = (-(end := np.abs(values).max(initial=0, where=np.isfinite(values)) or 1.0), end)
    _, low, high, extend = scale_of(values, facts, limits)
    units = "" if facts.units == "1" else f" {facts.units}"

    def says(row: np.ndarray) -> list[str]:
        if depth is None:
            return [f"{facts.label}: {row[0]:.4g}{units}"]
        return [facts.label, *_columns([f"{depth} {n}: {x:.4g}{units}" for n, x in zip(layers, row, strict=True)])]

    def step(row: np.ndarray) -> int | None:
        return pages.step_of(row[at], low, high) if np.isfinite(row[at]) else None

    strings, positions = strings_of(text), text["position"].values.tolist()
    heads = [f"{s!r}, position {p}" for s, p in zip(strings, positions, strict=True)]
    if of == "token":
        parts = [
            pages.token(s, [head, *says(row)], step(row), none=step(row) is None)
            for s, head, row in zip(strings, heads, values, strict=True)
        ]
    else:
        ends = list(zip(rows["start"].values.tolist(), rows["stop"].values.tolist(), strict=True))
        within = [next((k for k, (a, b) in enumerate(ends) if a <= p < b), None) for p in positions]
        parts = []
        for k, here in groupby(range(len(strings)), lambda i: within[i]):
            tip = [] if k is None else [f"span of {ends[k][1] - ends[k][0]}", *says(values[k])]
            inside = "".join(pages.token(strings[i], [heads[i], *tip, *_beside(text, i)]) for i in here)
            parts.append(inside if k is None else pages.bracketed(inside, step(values[k])))
    chosen = [
        *([f"{depth} {layers[at]}"] if depth else []),
        *(show(rows[d].values[preferred(rows, d)], d) for d in rest if rows.sizes[d] > 1 and d in rows.coords),
    ]
    what = ", ".join([f"{facts.label}{f' ({facts.units})' if units else ''}", *chosen])
    return pages.page(f'{pages.key(what, low, high, extend)}<div class="text">{"".join(parts)}</div>', title)


def _spans_of(ds: xr.Dataset, prompt: int) -> np.ndarray:
    """Return the places of the spans of a prompt, in order of where they begin."""
    if not {"span_prompt", "start", "stop"} <= {*ds.coords}:
        raise ValueError("the spans of this result do not say where they are: span_prompt, start and stop are missing")
    here = np.flatnonzero(ds["span_prompt"].values == prompt)
    return here[np.argsort(ds["start"].values[here], kind="stable")]


def _beside(text: xr.Dataset, i: int) -> list[str]:
    """Return a line for each further variable of a token that has a few values."""
    lines = []
    for name, v in text.data_vars.items():
        (dim, *more) = [str(d) for d in v.dims if d != "token"] or [""]
        if "token" in v.dims and not more and v.dtype.kind == "f" and v.size <= 8 * text.sizes["token"]:
            names = [show(x, dim) for x in v[dim].values] if dim in v.coords else [""]
            found = zip(names, np.atleast_1d(v.isel(token=i).values), strict=dim != "")
            said = ", ".join(f"{n}: {x:.3g}" if n else f"{x:.3g}" for n, x in found if np.isfinite(x))
            lines += [f"{facts_of(text, str(name)).label}: {said}"] if said else []
    return lines


def _columns(lines: list[str]) -> list[str]:
    """Return lines in as many columns as keep them within eight rows."""
    rows = min(len(lines), 8)
    width = max(map(len, lines)) + 2
    return ["".join(x.ljust(width) for x in lines[i::rows]).rstrip() for i in range(rows)]
