"""Pictures of any result: what is drawn and how follows from what its variables say of themselves."""

from __future__ import annotations

import html
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.dataset import circumstances, kind
from ..results.documents import interval_said
from ..results.facts import (
    CONDITIONS,
    DEPTHS,
    PREFERRED,
    REPEATS,
    REPLICATES,
    axis_of,
    chance_name,
    facts_of,
    first_of,
    numeric,
    preferred,
    show,
)
from ..results.tables import named_results
from ..settings import checked
from . import style
from .heatmaps import maps, prompt_of
from .intervals import rows, rows_of
from .lines import curves
from .scales import spread

MOST_PANELS = 12
"""Panels of one result; what is not drawn is named."""
MOST_ROWS = 24
Draw = Callable[..., Any]


class Picture(NamedTuple):
    """A figure, what it is called and what it shows; a notebook shows it with its caption."""

    name: str
    caption: str
    figure: Figure

    def _repr_html_(self) -> str:
        return f"<figure>{style.svg(self.figure)}<figcaption>{html.escape(self.caption)}</figcaption></figure>"


class Pictures(list[Picture]):
    """The pictures of a result, which a notebook shows with their captions."""

    def _repr_html_(self) -> str:
        return "\n".join(p._repr_html_() for p in self)


class Panel(NamedTuple):
    """One pair of axes of a figure: how it is drawn and what a caption says of it."""

    name: str
    draw: Draw
    says: str
    title: str = ""
    notes: tuple[str, ...] = ()


@checked()
def draw(
    result: xr.Dataset | xr.DataTree, prompt: int | None = None, *, width: str | float = "double"
) -> Pictures:  # fmt: skip
    """Draw a result, or every result of a run: the figures of a report.

    Parameters
    ----------
    result : Dataset or DataTree
        One result, or a whole run.
    prompt : int, optional
        Prompt whose tokens are drawn; by default the first that has any.
    width : {"column", "double"} or float
        Of the figures.

    Returns
    -------
    list of Picture
        ``name``, ``caption`` and ``figure`` of each; a notebook shows them.

    Notes
    -----
    Drawn are the variables that the result puts first, and of values per token the first.  A variable with layers,
    blocks or another axis in order becomes a curve with its interval, one with two layers or with heads a map, one with
    names rows.  Controls and levels by chance stand beside what they belong to; conditions are told apart by colour.
    ``plots.py`` of a topic adds what needs a picture of its own.

    Examples
    --------
    >>> import tokinterp as ti
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"lens": ti.lens.LogitLens()}, progress=False)
    >>> [picture.name for picture in draw(run["lens"])][:2]
    ['cross_entropy', 'accuracy']
    """
    if isinstance(result, xr.DataTree):
        named = named_results(result)
        if not named:
            raise ValueError(f"result: nothing to draw in it: the groups are {', '.join(result.groups)}")
    else:
        named = {"": result}
    alone = len(named) == 1
    return Pictures(
        p if alone else p._replace(name=f"{name}/{p.name}")
        for name, ds in named.items()
        for p in pictures_of(ds, prompt, width)
    )


def pictures_of(ds: xr.Dataset, prompt: int | None = None, width: str | float = "double") -> Iterator[Picture]:
    """Yield the pictures of one result."""
    with_tokens = "token" in ds.dims and ds.sizes["token"] > 0 and "position" in ds.coords
    prompt = int(np.min(prompt_of(ds))) if prompt is None and with_tokens else prompt
    names = [n for n in first_of(ds) if ds[n].dtype.kind in "fiub" and ds[n].size]
    per_token = [n for n in names if "token" in ds[n].dims]
    beside = {n for name in names for n in beside_of(ds, name)}
    lines, squares, bars, single = [], [], [], []
    whole = {facts_of(ds, n).label for n in names if n not in per_token}
    kept = {n for n in per_token if facts_of(ds, n).label in whole}  # the same of some prompts only: a map, no mean
    for name in [n for n in names if (n not in beside or n == names[0]) and n not in kept]:
        form = form_of(ds, name)
        if form == "curves":
            lines += [p for axis in axes_of(ds, name) for p in curve_panels(ds, name, axis)]
        elif form == "map":
            squares += map_panels(ds, name)
        elif form == "rows":
            bars.append(name)
        elif form == "number":
            single.append(name)
    for panels in (lines, squares):
        if left := sorted({p.name for p in panels[MOST_PANELS:]} - {p.name for p in panels[:MOST_PANELS]}):
            last = panels[MOST_PANELS - 1]
            panels[MOST_PANELS - 1] = last._replace(notes=(*last.notes, f"not drawn: {', '.join(left)}"))
        yield from sheets(ds, panels[:MOST_PANELS], width)
    for name in bars[:MOST_PANELS]:
        yield from row_pictures(ds, name, width)
    like = {n: (facts_of(ds, n).units, facts_of(ds, n).high, _interval(ds, n)) for n in single}
    for same in dict.fromkeys(like.values()):  # what has one unit, one range and one kind of interval
        yield _numbers(ds, [n for n in single if like[n] == same], width)
    if prompt is not None and with_tokens:
        others = [str(n) for n, v in ds.data_vars.items() if "token" in v.dims and {*v.dims} & {*DEPTHS}]
        for name in (per_token or [n for n in others if ds[n].dtype.kind == "f"])[:2]:
            yield _token_map(ds, name, prompt, width)
    for module in topic_plots():  # more of a result than its variables say
        if own := getattr(module, "PICTURES", {}).get(kind(ds.attrs)):
            yield from own(ds, prompt, width)


def topic_plots() -> Iterator[Any]:
    """Yield the modules called ``plots`` of the topics."""
    package = (__package__ or "").partition(".")[0]
    root = Path(__file__).parents[1]
    for info in pkgutil.iter_modules([str(root)]):
        if info.ispkg and (root / info.name / "plots.py").is_file():
            yield import_module(f"{package}.{info.name}.plots")


def page_of(ds: xr.Dataset) -> str:
    """Return HTML beside the figures, where the ``plots.py`` of a topic has a page for such results."""
    pages = [m.PAGES[kind(ds.attrs)] for m in topic_plots() if kind(ds.attrs) in getattr(m, "PAGES", {})]
    return "\n".join(page(ds) for page in pages)


def form_of(ds: xr.Dataset, name: str) -> str:
    """Return how a variable is drawn: ``curves``, ``map``, ``rows``, ``number``, or nothing."""
    dims = {str(d) for d in ds[name].dims if d not in (*REPEATS, *REPLICATES)}
    large = {d for d in (*dims, *({"prompt"} & {*ds[name].dims} if "channel" in dims else ())) if ds.sizes[d] > 1}
    wide = {"other_layer", "other_cell", "channel"} & dims
    if wide or (len(large & {"head", "slot"}) == 1 and large & {*DEPTHS} and len(large - {"trunk", "target"}) == 2):
        return "map" if len(large) > 1 and "channel_in" not in dims else ""
    if not dims:
        return "" if "token" in ds[name].dims else "number"
    if {"vocab", "entry", "byte", "bound"} & dims:
        return ""
    return "curves" if axis_of(ds, name) is not None else "rows"


def axes_of(ds: xr.Dataset, name: str) -> list[str]:
    """Return the dimensions over each of which a variable is drawn."""
    said = [d for d in facts_of(ds, name).along if d in ds[name].dims and ds.sizes[d] > 1]
    return said or [str(axis_of(ds, name))]


# -- which of the further dimensions are lines, panels, or one value -----------------------------------------------
def plan(
    ds: xr.Dataset, name: str, taken: Sequence[str], colours: int = 1
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], str]], tuple[str, ...]]:
    """Return what to select for all panels of a variable, select and title of each, and what was left out."""
    v, notes = ds[name], []
    rest = [str(d) for d in v.dims if d not in (*taken, *REPEATS, *REPLICATES, "head", "bound") and v.sizes[d] > 1]
    compared = [d for d in rest if d in CONDITIONS]
    others = sorted((d for d in rest if d not in CONDITIONS), key=lambda d: (not numeric(ds, d), -v.sizes[d]))
    lines = compared[:1] or others[:colours]
    select: dict[str, Any] = {}
    for d in lines:
        values = v[d].values.tolist() if d in v.coords else list(range(v.sizes[d]))
        most = 6 if numeric(ds, d) else len(style.COLOURS)
        if len(values) > most:
            select[d] = spread(values, 5) if numeric(ds, d) else values[:most]
            notes.append(f"{d.replace('_', ' ')}: {len(select[d])} of {len(values)} are drawn")
    rest = [d for d in rest if d not in lines]
    facet = min((d for d in rest if d not in compared and d not in PREFERRED), key=lambda d: v.sizes[d], default=None)
    facet = None if compared and facet is not None and v.sizes[facet] > 2 else facet
    for d in rest:
        if d != facet and d in v.coords:
            select[d] = [v[d].values[preferred(ds, d)]]
            notes.append(f"{show(select[d][0], d)} only")
    panels: list[tuple[dict[str, Any], str]] = [({}, "")]
    if facet is not None and facet in v.coords:
        values = v[facet].values.tolist()
        panels = [({facet: [x]}, show(x, facet)) for x in values[:4]]
        if len(values) > 4:
            notes.append(f"{facet.replace('_', ' ')}: 4 of {len(values)} are drawn")
    return select, panels, tuple(notes)


def curve_panels(ds: xr.Dataset, name: str, axis: str) -> list[Panel]:
    """Return the panels of a variable, with those that stand beside it in each."""
    names = [name, *(n for n in beside_of(ds, name) if axis in ds[n].dims)]
    long = [str(ds[n].attrs.get("long_name", n)) for n in names]
    says = f"{long[0]}{'' if axis in DEPTHS else f' over {show(axis)}'}" + "".join(
        f"; beside it, {x}" for x in long[1:]
    )
    more = ("mean over heads",) if "head" in ds[name].dims else ()
    planned = plan(ds, name, [axis], colours=int(len(names) == 1))
    return _panels(name, says, partial(curves, ds, names, along=axis), planned, more)


def _panels(
    name: str, says: str, draw: Draw, planned: tuple[dict[str, Any], list[tuple[dict[str, Any], str]], tuple[str, ...]],
    more: tuple[str, ...] = (),
) -> list[Panel]:  # fmt: skip
    """Return the panels that a `plan` says, drawn at what each selects."""
    select, panels, notes = planned
    return [Panel(name, partial(draw, select={**select, **at}), says, title, (*notes, *more)) for at, title in panels]


def beside_of(ds: xr.Dataset, name: str) -> list[str]:
    """Return the variables that can be told apart in one panel with another; none beside more than three conditions."""
    many = any(d in ds[name].dims and ds.sizes[d] > 3 for d in CONDITIONS)
    return [] if many else [n for n in facts_of(ds, name).beside if {*ds[n].dims} <= {*ds[name].dims, *REPEATS}]


def map_panels(ds: xr.Dataset, name: str) -> list[Panel]:
    """Return the maps of a variable, one for each value of a further dimension."""
    dims = [str(d) for d in ds[name].dims if d not in (*REPEATS, *REPLICATES)]
    square = ("other_layer", "other_cell", "head", "channel", "slot", "layer", "block", "cell")
    two = [d for d in dims if d in square][:2]
    up = "prompt" if two == ["channel"] else None
    says, draw = str(ds[name].attrs.get("long_name", name)), partial(maps, _replicate_mean(ds, name), name, y=up)
    return _panels(name, says, draw, plan(ds, name, two, colours=0))


def _replicate_mean(ds: xr.Dataset, name: str) -> xr.Dataset:
    times = [d for d in REPLICATES if d in ds[name].dims]
    return ds.assign({name: ds[name].mean(times, keep_attrs=True)}) if times else ds


# -- figures ----------------------------------------------------------------------------------------------------
def picture(
    name: str, text: str, draw: Draw, width: str | float = "column", height: float | None = None, title: str = ""
) -> Picture:  # fmt: skip
    """Return a figure of one pair of axes, on which ``draw(ax=)`` draws."""
    fig, axes = style.figure(width, height)
    with style.paper_style():
        draw(ax=axes[0, 0])
        if title:
            _title(axes[0, 0], title)
    return Picture(name, text, fig)


def sheets(ds: xr.Dataset, panels: Sequence[Panel], width: str | float) -> Iterator[Picture]:
    """Yield figures of up to four panels, two beside each other where the page is wide enough."""
    inches = style.inches_of(width)
    across = 2 if inches > 5 else 1
    for start in range(0, len(panels), 4):
        some = panels[start : start + 4]
        columns = min(across, len(some))
        down = -(-len(some) // columns)
        wide = width if columns == across else inches / 2
        fig, axes = style.figure(wide, (2.3 if columns == 2 else 2.2) * down, rows=down, columns=columns)
        with style.paper_style():
            for ax, panel in zip(axes.flat, some, strict=False):
                panel.draw(ax=ax)
            for ax in axes.flat[len(some) :]:
                ax.remove()
            if len(some) > 1:
                style.panel_letters(axes.flat[: len(some)])
            _one_legend(list(axes.flat[: len(some)]))
            for ax, panel in zip(axes.flat, some, strict=False):
                if panel.title:
                    _title(ax, panel.title)
            fig.draw_without_rendering()  # labels of ticks change with the room of the axes: laid out again when drawn
        yield Picture(f"{some[0].name}{'' if start == 0 or some[0].name != panels[0].name else f'_{start // 4 + 1}'}",
                      caption(ds, some), fig)  # fmt: skip


def _title(ax: Axes, text: str) -> None:
    legend = ax.get_legend()
    rows = 0 if legend is None else -(-len(legend.get_texts()) // max(1, legend._ncols))  # pyright: ignore
    ax.set_title(text, loc="center", pad=4 + 10.5 * rows)


def _one_legend(axes: Sequence[Axes]) -> None:
    """Leave out the legends that say what that of the panel before says."""
    before: list[str] = []
    for ax in axes:
        legend = ax.get_legend()
        texts = [] if legend is None else [t.get_text() for t in legend.get_texts()]
        if legend is not None and texts == before:
            legend.remove()
        before = texts or before


def caption(ds: xr.Dataset, panels: Sequence[Panel]) -> str:
    """Return what stands under a figure: what each panel shows, what intervals are of, and what was left out."""
    parts = []
    for i, p in enumerate(panels):
        letter = f"({chr(97 + i)}) " if len(panels) > 1 else ""
        says = "the same" if i and panels[i - 1].says == p.says else p.says
        parts.append(f"{letter}{_upper(says)}{f' ({p.title})' if p.title else ''}.")
    notes = list(dict.fromkeys(n for p in panels for n in p.notes))
    text = " ".join([*parts, *_intervals(ds, panels), *(f"{_upper(n)}." for n in notes)])
    levels = [facts_of(ds, p.name).chance for p in panels]
    if dotted := dict.fromkeys(chance_name(ds, c) if isinstance(c, str) else "chance" for c in levels if c):
        text += f" Dotted: {', '.join('by chance' if d == 'chance' else d for d in dotted)}."
    return _upper(" ".join([text, *(f"{_upper(line)}." for line in circumstances(ds.attrs))]).strip())


def _intervals(ds: xr.Dataset, panels: Sequence[Panel]) -> list[str]:
    """Return what the intervals are of, of which panels where they are not of the same."""
    of: dict[str, list[str]] = {}
    for i, p in enumerate(panels):
        of.setdefault(_interval(ds, p.name), []).append(chr(97 + i))
    return [f"({', '.join(of[said])}) {said}" if len(of) > 1 else said for said in of if said]


def _interval(ds: xr.Dataset, name: str) -> str:
    """Return what is drawn of a variable of several prompts, tokens or replicates, and of what its interval is."""
    over = next((f"{d}s" for d in REPEATS if d in ds[name].dims), None)
    times = [d for d in REPLICATES if d in ds[name].dims and ds.sizes[d] > 1]
    what = " and ".join([*([over] if over else []), *(f"{d}s" for d in times)])
    if form_of(ds, name) == "map":
        return f"Mean over {what}." if what and {*ds[name].dims} != {"prompt", "channel"} else ""
    if times:
        return f"Mean{f' over {over}' if over else ''}, and each replicate as a thin line."
    if over:
        return f"Mean over {over}, {interval_said(ds, over.removesuffix('s'))}."
    own = ds.get(f"{name}_interval")
    return "" if own is None else f"Bands: {own.attrs.get('long_name', 'interval')}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def row_pictures(ds: xr.Dataset, name: str, width: str | float) -> Iterator[Picture]:
    """Yield a figure with a row for each value of the dimension with names."""
    dim = rows_of(ds, name)
    n = min(ds.sizes[dim], MOST_ROWS)
    more = () if n == ds.sizes[dim] else (f"the first {n} of {ds.sizes[dim]}",)
    says, draw = str(ds[name].attrs.get("long_name", name)), partial(rows, ds, name, dim, most=MOST_ROWS)
    panels = _panels(name, says, draw, plan(ds, name, [dim]), more)
    for i, panel in enumerate(panels):
        called = f"{name}_{i + 1}" if len(panels) > 1 else name
        yield picture(called, caption(ds, [panel]), panel.draw, min(style.inches_of(width), 4.6), 1.0 + 0.24 * n,
                      panel.title)  # fmt: skip


def _numbers(ds: xr.Dataset, names: list[str], width: str | float) -> Picture:
    """Return a figure of single numbers that have one unit."""
    says = "; ".join(str(ds[n].attrs.get("long_name", n)) for n in names)
    draw = partial(rows, ds, names, xlabel=None if len(names) == 1 else "value")
    text = caption(ds, [Panel(names[0], rows, says)])
    return picture(names[0], text, draw, min(style.inches_of(width), 4.6), 0.8 + 0.26 * len(names))


def _token_map(ds: xr.Dataset, name: str, prompt: int, width: str | float) -> Picture:
    """Return a map of the tokens of one prompt."""
    depth = next((d for d in DEPTHS if d in ds[name].dims), None)
    rest = [str(d) for d in ds[name].dims if d not in ("token", depth) and ds.sizes[d] > 1]
    select = {d: [ds[d].values[preferred(ds, d)]] for d in rest if d in ds.coords}
    of = "".join(f"; {show(v[0], d)} only" for d, v in select.items())
    text = f"{ds[name].attrs.get('long_name', name)}, at the tokens of prompt {prompt}{of}."
    height = max(1.9, 1.4 + 0.085 * min(ds.sizes.get(depth, 1), 40))
    return picture(f"{name}_tokens", _upper(text), partial(maps, ds, name, prompt=prompt, select=select), width, height)
