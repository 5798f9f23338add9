"""The grid of the lens: what each layer would answer at each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..plots import style
from ..plots.heatmaps import maps, prompt_of, tokens_of
from ..plots.style import Look
from ..plots.views import Picture, picture
from ..results.facts import pick
from ..results.tables import result_with
from ..settings import checked

__all__ = ["lens_table"]

MOST_LAYERS = 24  # rows of the table without layers=
CELL = 6  # pt, type in a cell of the table


@checked()
def lens_table(
    ds: xr.Dataset | xr.DataTree,
    prompt: int = 0,
    *,
    positions: Sequence[int] | range | None = None,
    layers: Sequence[int] | None = None,
    colour: str = "top_prob",
    variant: str | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw what each layer would answer at each token: its most probable next token, on its probability.

    Input tokens are written below, the true next tokens above; an answer in bold is the true next token.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``LogitLens`` with ``top`` of at least 1 and the prompt among those whose tokens were kept.
    prompt : int
        Number of the prompt.
    positions : sequence of int, optional
        Which tokens; by default the first 13, which fit on a page.
    layers : sequence of int, optional
        Which layers; by default all, or up to 24 of them.
    colour : str
        ``"top_prob"``, or a per-token variable such as ``"token_entropy"``, ``"token_cross_entropy"``, ``"token_kl"``.
    variant : str, optional
        How layers are decoded; by default the first that was measured.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the answers were not kept (``top=0``), or not for this prompt.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"lens": ti.lens.LogitLens(top=1)}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)
    >>> ax = ti.lens.plots.lens_table(run["lens"], layers=[0, 4, 8])
    """
    ds = result_with(ds, "top_id")
    if "top_id" not in ds:
        raise ValueError(
            "this result has no answers per token: measure with LogitLens(top=1) or more, and tokens=None or > 0"
        )
    numbers = ds["layer"].values
    if layers is None:
        step = int(np.ceil(len(numbers) / MOST_LAYERS))
        layers = sorted(numbers[::-1][::step].tolist())  # the last layer is always there
    chosen = {"variant": variant or str(ds["variant"].values[0]), "layer": list(layers)}
    rows = tokens_of(ds, prompt, positions)
    rows = rows.isel(token=slice(13)) if positions is None else rows
    ids = pick(rows, "top_id", chosen)["top_id"].isel(rank=0, variant=0).transpose("layer", "token").values
    shade = pick(rows, colour, chosen)[colour].isel(variant=0)
    shade = (shade.isel(rank=0) if "rank" in shade.dims else shade).transpose("layer", "token")
    n_layers, n_tokens = ids.shape
    following = next_ids(ds, prompt, rows["position"].values)
    names = token_names(ds)
    texts = np.array([names.get(int(i), f"<{i}>") for i in ids.ravel()], dtype=object).reshape(ids.shape)
    above = [names.get(int(i), f"<{i}>") if i >= 0 else "" for i in following]
    low = float(shade.min()) if (shade < 0).any() else 0.0
    limits = (low, 1.0 if colour == "top_prob" else max(float(shade.max()), low + 1e-9))
    at = {d: [x] for d, x in (("variant", chosen["variant"]), ("rank", 0)) if d in ds[colour].dims}
    with style.drawing(look, "double", table_height(n_layers)) as axes:
        maps(rows, colour, prompt=prompt, positions=rows["position"].values.tolist(), ax=axes, limits=limits,
             select={"layer": list(layers), **at}, cmap="cividis",
             label="probability of the answer" if colour == "top_prob" else None)  # fmt: skip
        drawn = axes.collections[-1]
        drawn.set(edgecolor="white", linewidth=0.4)
        axes.tick_params(length=0)
        room = int(0.82 * style.figure_of(axes).get_size_inches()[0] * 72 / n_tokens / (0.58 * CELL))
        dark = shade_is_dark(drawn, shade.values)
        for (row, column), text in np.ndenumerate(texts):
            axes.text(
                column, row, style.shown(text, max(room, 3)), ha="center", va="center", fontsize=CELL, parse_math=False,
                color="white" if dark[row, column] else "black",
                fontweight="bold" if ids[row, column] == following[column] else "normal",
            )  # fmt: skip
        axes.set_xlabel("input token")
        top = axes.secondary_xaxis("top")
        top.set_xticks(range(n_tokens))
        top.set_xticklabels(
            [style.shown(t) for t in above], rotation=90, fontsize=style.RC["xtick.labelsize"], parse_math=False
        )
        top.tick_params(length=0)
        top.spines[:].set_visible(False)
        top.set_xlabel("true next token")
    return axes


def table_height(n_layers: int) -> float:
    """Return the height of a figure, in inches, in which the rows of the table are legible."""
    return max(2.2, 1.25 + 0.17 * n_layers)


def shade_is_dark(drawn: Any, values: np.ndarray) -> np.ndarray:
    """Return where the cells of a mesh are so dark that white type reads better."""
    rgba = drawn.cmap(drawn.norm(np.nan_to_num(values, nan=np.inf)))
    linear = np.where(rgba[..., :3] <= 0.03928, rgba[..., :3] / 12.92, ((rgba[..., :3] + 0.055) / 1.055) ** 2.4)
    return (linear @ [0.2126, 0.7152, 0.0722] < 0.18) & ~np.isnan(values)


def token_names(ds: xr.Dataset) -> dict[int, str]:
    """Return id -> string for the ids that occur in a result."""
    names = {}
    if "token_id" in ds.coords and "text" in ds.coords:
        names.update(zip(ds["token_id"].values.tolist(), map(str, ds["text"].values), strict=True))
    if "vocab_text" in ds.coords:
        names.update(zip(ds["vocab"].values.tolist(), map(str, ds["vocab_text"].values), strict=True))
    return names


def next_ids(ds: xr.Dataset, prompt: int, positions: np.ndarray) -> np.ndarray:
    """Return the id that follows each position of a prompt, -1 where nothing does."""
    here = prompt_of(ds) == prompt
    known = dict(zip(ds["position"].values[here].tolist(), ds["token_id"].values[here].tolist(), strict=True))
    return np.array([known.get(int(p) + 1, -1) for p in positions])


def pictures(ds: xr.Dataset, prompt: int | None, width: str | float) -> Iterator[Picture]:
    """Yield what a report shows of a result of `LogitLens` beside its curves."""
    if prompt is None or "top_id" not in ds:
        return
    few = 13 if style.inches_of(width) > 5 else 6
    places = np.sort(ds["position"].values[prompt_of(ds) == prompt])[:few]
    text = (
        f"Most probable next token at each layer, prompt {prompt}: input below, true next token above, bold where the "
        "answer is the true next token."
    )
    draw = partial(lens_table, ds, prompt, positions=places.tolist())
    yield picture("lens_table", text, draw, width, table_height(min(ds.sizes["layer"], MOST_LAYERS)))


PICTURES = {"LogitLens": pictures}
