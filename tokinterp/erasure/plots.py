"""Token erasure: a text with its segments, scores against controls, precision and recall of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Unpack

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..plots import style
from ..plots.heatmaps import maps, prompt_of, tokens_of
from ..plots.style import Look
from ..plots.tokenview import tokens
from ..plots.views import Picture, picture
from ..results.facts import pick
from ..results.tables import result_with
from ..settings import checked

__all__ = ["erasure_map", "precision_recall", "psi_distribution"]


@checked()
def erasure_map(
    ds: xr.Dataset | xr.DataTree,
    prompt: int = 0,
    *,
    positions: Sequence[int] | range | None = None,
    limit: float | None = None,
    numbers: bool = True,
    **look: Unpack[Look],
) -> Axes:
    """Draw what each token of a text forgets of itself and of the tokens before it, with the segments above.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ErasureScores` with ``delta`` per token.
    prompt : int
        Number of the prompt.
    positions : sequence of int, optional
        Which tokens; by default the first 50.
    limit : float, optional
        Ends of the colours (red: forgotten, blue: gained); by default the greatest value drawn. To compare prompts,
        give the same.
    numbers : bool
        Write psi above the brackets of segments of two or more tokens.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the result has no delta per token, or not of this prompt and these positions.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:6]]
    >>> fit, test = (ti.Prompts.from_texts(part, model, max_tokens=64) for part in (texts[:4], texts[4:]))
    >>> probes = ti.erasure.fit_probes(model, fit, layers=[1, 4], offsets=[-1, 0], method="ridge", progress=False)
    >>> asked = {"e": ti.erasure.ErasureScores(probes, start=1, end=4, offsets=[-1, 0], tokens=None)}
    >>> segments = ti.measure(model, test, asked, progress=False)["e"].to_dataset()
    >>> ax = ti.erasure.plots.erasure_map(segments, prompt=0, positions=range(20))
    """
    ds = result_with(ds, "delta")
    if "delta" not in ds:
        raise ValueError("the result keeps no delta per token: measure ErasureScores(..., tokens=) with more prompts")
    one = tokens_of(ds, prompt, positions)
    place, n = one["position"].values, ds.sizes["offset"]
    end = limit or float(np.nanmax(np.abs(one["delta"].values), initial=1e-6))
    with style.drawing(look, "double", 1.75) as axes:
        maps(one, "delta", y="offset", prompt=prompt, positions=place.tolist(), limits=(-end, end), cmap="RdBu_r",
             label=f"drop from layer {ds.attrs['start_layer']} to {ds.attrs['end_layer']}", ax=axes)  # fmt: skip
        axes.add_patch(Rectangle((-0.5, -0.5), len(place), n, color="0.85", lw=0, zorder=0))
        axes.set_facecolor("none")  # the brackets stand on no grey
        _brackets(axes, ds, prompt, place, n, numbers)
        axes.set_ylim(-0.5, n + (1.5 if numbers else 0.3))
        axes.set_yticks([*range(n), n], [*(f"offset {i}" for i in ds["offset"].values), "psi"])
        axes.set_ylabel("")
        axes.tick_params(axis="y", length=0)
    return axes


@checked()
def psi_distribution(
    ds: xr.Dataset | xr.DataTree,
    controls: Mapping[str, xr.Dataset] | None = None,
    *,
    label: str = "text",
    threshold: float | None = None,
    min_tokens: int = 2,
    **look: Unpack[Look],
) -> Axes:
    """Draw the share of segments above each score, in a text and in its controls.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ErasureScores`.
    controls : mapping of name -> Dataset, optional
        The same for shuffled text, bigram text, an untrained network; dashed.
    label : str
        Name of ``ds``.
    threshold : float, optional
        Marked by a line (see `permutation_threshold`).
    min_tokens : int
        Shortest segments that count.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If a result has no segments of this length.

    Examples
    --------
    >>> coords = {"start": ("span", [1, 3, 4]), "stop": ("span", [3, 4, 6])}
    >>> ax = psi_distribution(xr.Dataset({"psi": ("span", [0.1, 0.9, 0.5])}, coords))
    """
    ds = result_with(ds, "psi")
    sets = {label: ds, **(controls or {})}
    with style.drawing(look) as axes:
        for n, (name, one) in enumerate(sets.items()):
            if "psi" not in one or "span" not in one["psi"].dims:
                raise ValueError(f"{name}: no segments in this result; measure ErasureScores")
            psi = np.sort(one["psi"].values[(one["stop"] - one["start"]).values >= min_tokens])
            if not len(psi):
                raise ValueError(f"min_tokens={min_tokens}: no segment of {name} has so many tokens")
            share = 1 - np.arange(len(psi)) / len(psi)
            dash = style.DASHES[n % len(style.DASHES)]
            axes.plot(psi, share, color=style.COLOURS[n % len(style.COLOURS)], ls=dash, label=f"{name} ({len(psi)})")
        if threshold is not None:
            axes.axvline(threshold, color="0.4", lw=0.8, zorder=0, label=f"threshold {threshold:.2g}")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(style.wrapped("erasure score psi", str(ds["psi"].attrs.get("units", "1"))))
        axes.set_ylabel("share of segments above")
        style.legend_above(axes)
    return axes


@checked()
def precision_recall(
    scores: xr.Dataset | xr.DataTree,
    *,
    attainable: bool = True,
    subsets: Sequence[str] | None = None,
    controls: Mapping[str, xr.Dataset] | None = None,
    **look: Unpack[Look],
) -> Axes:
    """Draw precision against recall while going down the ranks of a vocabulary, with the chance level as a thin line.

    Parameters
    ----------
    scores : xarray.Dataset
        From `tokinterp.erasure.evaluation.evaluate`.
    attainable : bool
        Recall of the units that occur often enough to be found, instead of all.
    subsets : sequence of str, optional
        Kinds of units; all by default.
    controls : mapping of name -> Dataset, optional
        Evaluations of other vocabularies of the same units (shuffled text, untrained network); dashed.
    **look
        ``ax``, ``width``: see `tokinterp.plots.style.Look`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For a subset that is not there.

    Examples
    --------
    >>> values = {k: (("subset", "rank"), [[1.0, 0.5]]) for k in ("precision", "attainable_recall")}
    >>> scores = xr.Dataset({**values, "chance": ("subset", [0.1])}, {"subset": ["word"], "rank": [1, 2]})
    >>> ax = precision_recall(scores)
    """
    name = "attainable_recall" if attainable else "recall"
    scores = result_with(scores, name)
    select = None if subsets is None else {"subset": list(subsets)}
    names = pick(scores, name, select)["subset"].values.tolist()
    with style.drawing(look) as axes:
        for d, (which, one) in enumerate({"": scores, **(controls or {})}.items()):
            for n, subset in enumerate(names):
                line = pick(one, name, {"subset": subset})[name].isel(subset=0)
                precision = one["precision"].sel(subset=subset)
                colour, dash = style.COLOURS[n % len(style.COLOURS)], style.DASHES[d % len(style.DASHES)]
                text = ", ".join(x for x in (str(subset), which) if x)
                axes.plot(line.values, precision.values, color=colour, ls=dash, label=text)
                if d == 0:
                    chance = float(one["chance"].sel(subset=subset))
                    axes.axhline(chance, color=colour, lw=0.5, alpha=0.7, zorder=0, label=f"{text}, chance")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.set_xlabel("recall of attainable units" if attainable else "recall")
        axes.set_ylabel("precision")
        style.legend_above(axes)
    return axes


def _brackets(ax: Axes, ds: xr.Dataset, prompt: int, place: np.ndarray, base: int, numbers: bool) -> None:
    """Draw a bracket over each segment within the places drawn, dark where psi is high."""
    here = np.flatnonzero(ds["span_prompt"].values == prompt)
    here = here[(ds["stop"].values[here] > place.min()) & (ds["start"].values[here] <= place.max())]
    start, stop, score = (ds[name].values[here] for name in ("start", "stop", "psi"))
    shade = np.clip(score / max(float(score.max(initial=0)), 1e-9), 0, 1)
    colours = mpl.colormaps["viridis_r"](0.12 + 0.88 * shade)
    for a, b, psi, colour in zip(start.tolist(), stop.tolist(), score.tolist(), colours, strict=True):
        covered = np.flatnonzero((place >= a) & (place < b))
        if not len(covered):
            continue
        low, high, y = covered[0] - 0.4, covered[-1] + 0.4, base - 0.05
        ax.plot([low, low, high, high], [y - 0.3, y, y, y - 0.3], color=colour, lw=1.8 if b - a > 1 else 1)
        if numbers and b - a > 1:
            ax.text(
                (low + high) / 2, y + 0.15, f"{psi:.2g}", ha="center", va="bottom", rotation=90,
                fontsize=style.RC["xtick.labelsize"] - 1,
            )  # fmt: skip


def pictures(ds: xr.Dataset, prompt: int | None, width: str | float) -> Iterator[Picture]:
    """Yield what a report shows of a result of `ErasureScores`."""
    start, end = ds.attrs["start_layer"], ds.attrs["end_layer"]
    if ((ds["stop"] - ds["start"]).values > 1).any():
        text = (
            f"Share of the segments of two or more tokens whose erasure score psi (layer {start} to {end}) is above "
            "the value on the axis. On its own it says little: compare it with shuffled text and an untrained network."
        )
        yield picture("erasure", text, partial(psi_distribution, ds))
    if prompt is not None and "delta" in ds:
        text = (
            f"Prompt {prompt}, first 50 tokens: by how much the probability of a token at its own place (offset 0) and "
            f"of the tokens before it falls from layer {start} to {end}; red is forgotten, blue gained, grey has no "
            "value. Brackets are the segments, darker where psi is higher; the numbers are psi of those of two or more "
            "tokens."
        )
        yield picture("erasure_map", text, partial(erasure_map, ds, prompt), width, 1.75)


def page(ds: xr.Dataset, most: int = 6) -> str:
    """Return the first texts with their segments in brackets, as HTML for a report."""
    if "delta" not in ds:
        return ""
    numbers = np.unique(prompt_of(ds))[:most].tolist()
    here = np.isin(ds["span_prompt"].values, numbers) & ((ds["stop"] - ds["start"]).values > 1)
    end = float(np.abs(ds["psi"].values[here]).max(initial=0)) or 1.0
    said = f"layer {ds.attrs['start_layer']} to {ds.attrs['end_layer']}"
    return "\n".join(tokens(ds, "psi", n, limits=(-end, end), title=f"prompt {n}, {said}") for n in numbers)


PICTURES = {"ErasureScores": pictures}
PAGES = {"ErasureScores": page}
