"""The picture of a route: tokens to the right, layers upwards, and the edges that brought about a prediction."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize

from ..plots import style
from ..plots.heatmaps import tokens_of
from ..plots.style import Look
from ..plots.views import Picture, picture
from ..settings import checked

__all__ = ["draw_route"]

LAST = 24
"""Tokens before the prediction that are drawn, and those further back on its route: at most twice as many in all."""
GREYS = ListedColormap(colormaps["Greys"](np.linspace(0.25, 1, 256)))  # the weakest are seen
HEADS = 10
"""Strongest edges of attention whose head is written beside them."""


@checked()
def draw_route(
    ds: xr.Dataset, prompt: int = 0, **look: Unpack[Look]
) -> Axes:  # fmt: skip
    """Draw the route of one prediction: the darker and wider an edge, the larger its share.

    Points are the stream before and after each block; lines between different tokens are attention (the strongest say
    block and head), upright lines the residual connection and what a token takes from itself, squares the MLPs.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `route_graph`.
    prompt : int
        Number of the prompt.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If there is no such prompt.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> graph = ti.attention.route_graph(model, ti.Prompts.from_texts(["The Nile flows north."], model))
    >>> ax = ti.attention.plots.draw_route(graph)
    """
    if prompt not in ds["prompt"].values:
        raise ValueError(f"prompt={prompt}: the result has prompts {ds['prompt'].values.tolist()}")
    here = ds.isel(edge=np.flatnonzero(ds["edge_prompt"].values == prompt))
    target = int(ds["target"].sel(prompt=prompt))
    used = {*here["from_position"].values.tolist(), target}
    places = sorted({*range(max(0, target + 1 - LAST), target + 1), *used})[-2 * LAST :]
    column = {p: i for i, p in enumerate(places)}
    height = {s: _height(s) for s in {*here["from_site"].values.tolist(), *here["to_site"].values.tolist()}}
    lines, weights, marks = [], [], []
    names = ("from_position", "to_position", "from_site", "to_site", "weight")
    for a, b, below, above, weight in zip(*(here[n].values.tolist() for n in names), strict=True):
        if a not in column or b not in column:
            continue
        if below.startswith("mlp_out"):
            marks.append((column[b], height[below], weight))
        elif not above.startswith("mlp_out"):
            lines.append([(column[a], height[below]), (column[b], height[above])])
            weights.append(weight)
    with style.drawing(look, "double", tall(ds)) as axes:
        share = np.array(weights)
        drawn = LineCollection(lines, cmap=GREYS, norm=Normalize(0, 1), lw=0.5 + 2.5 * share, zorder=1)
        drawn.set_array(share)
        axes.add_collection(drawn)
        if marks:
            x, y, w = np.array(marks).T
            axes.scatter(x, y, marker="s", s=4 + 40 * w, color=style.COLOURS[1], zorder=2, label="MLP")
        nodes = {point for line in lines for point in line} | {(column[target], float(ds.attrs["n_layers"]))}
        axes.scatter(*np.array(sorted(nodes)).T, s=5, color=style.COLOURS[0], zorder=3, label="stream")
        _write_heads(axes, here, column)
        strings = tokens_of(ds, prompt, places).set_index(token="position")
        shown = strings["text"].sel(token=places).values.tolist() if "text" in strings else list(map(str, places))
        style.write_tokens(axes, [str(t) for t in shown])
        axes.set_xlim(-0.7, len(places) - 0.3)
        axes.set_ylim(-0.4, ds.attrs["n_layers"] + 0.4)
        style.integer_axis(axes, "y")
        axes.set_ylabel("layer")
        if left := len(used - column.keys()):
            axes.set_xlabel(f"not drawn: {left} tokens of the route, before position {places[0]}")
        style.legend_above(axes)
        style.colour_bar(axes, drawn, "share")
    return axes


def tall(ds: xr.Dataset) -> float:
    """Return the height of a figure, in inches, in which the blocks are apart."""
    return min(1.3 + 0.3 * (int(ds.attrs["n_layers"]) + 1), 7.5)


def _height(site: str) -> float:
    """Return where a site is drawn: layers at whole numbers, the middle of a block between them."""
    name, _, at = site.partition(".")
    return int(at) + {"resid": 0.0, "resid_mid": 0.45, "mlp_out": 0.72}[name]


def _write_heads(axes: Axes, here: xr.Dataset, column: dict[int, int]) -> None:
    """Write block and head beside the strongest edges between different tokens."""
    a, b = here["from_position"].values, here["to_position"].values
    between = np.flatnonzero((a != b) & (here["head"].values >= 0))
    for n in between[np.argsort(-here["head_weight"].values[between], kind="stable")][:HEADS]:
        one = here.isel(edge=int(n))
        if int(a[n]) in column and int(b[n]) in column:
            x = 0.75 * column[int(b[n])] + 0.25 * column[int(a[n])]
            y = 0.75 * _height(one["to_site"].item()) + 0.25 * _height(one["from_site"].item())
            axes.text(x, y, f"{int(one['block'])}.{int(one['head'])}", fontsize=5.5, color=style.COLOURS[3], ha="right",
                      va="bottom")  # fmt: skip


def pictures(ds: xr.Dataset, prompt: int | None, width: str | float) -> Iterator[Picture]:
    """Yield what a report shows of a result of `route_graph`."""
    number = int(ds["prompt"].values[0]) if prompt is None else prompt
    if number not in ds["prompt"].values:
        return
    target = int(ds["target"].sel(prompt=number))
    text = (
        f"Route of the prediction at position {target} of prompt {number}: edges whose share is above the threshold, "
        "darker and wider the larger it is; squares are MLPs; block and head of the strongest edges between tokens."
    )
    yield picture("route", text, partial(draw_route, ds, number), width, tall(ds))


PICTURES = {"route_graph": pictures}
