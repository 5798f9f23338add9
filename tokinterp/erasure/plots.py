"""Token erasure: a text with its segments, scores against controls, precision and recall of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..plots import pages, style
from ..plots.heatmaps import prompt_of, strings_of, tokens_of
from ..plots.style import Look
from ..plots.views import Picture
from ..results.facts import pick
from ..results.tables import result_with
from ..settings import checked

__all__ = ["erasure_html", "erasure_map", "precision_recall", "psi_distribution"]


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
        Which tokens; by default the first 48.
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
    delta = one["delta"].transpose("offset", "token")
    offsets, place = ds["offset"].values, one["position"].values
    end = limit or float(np.nanmax(np.abs(delta.values), initial=1e-6))
    n = len(offsets)
    with style.drawing(look, "double", 1.75) as axes:
        axes.add_patch(Rectangle((-0.5, -0.5), len(place), n, color="0.85", lw=0))
        drawn = style.cells(axes, delta.values, cmap="RdBu_r", vmin=-end, vmax=end, rasterized=True)
        axes.set_facecolor("none")  # the brackets stand on no grey
        _brackets(axes, ds, prompt, place, n, numbers)
        axes.set_ylim(-0.5, n + (1.5 if numbers else 0.3))
        axes.set_yticks([*range(n), n], [*(f"offset {i}" for i in offsets), "psi"])
        axes.tick_params(axis="y", length=0)
        style.write_tokens(axes, strings_of(one))
        axes.set_xlabel("")
        what = f"drop, layer {ds.attrs['start_layer']} to {ds.attrs['end_layer']}"
        style.colour_bar(axes, drawn, what, style.beyond(delta.values, -end, end))
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
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:6]]
    >>> fit, test = (ti.Prompts.from_texts(part, model, max_tokens=64) for part in (texts[:4], texts[4:]))
    >>> probes = ti.erasure.fit_probes(model, fit, layers=[1, 4], offsets=[-1, 0], method="ridge", progress=False)
    >>> asked = {"e": ti.erasure.ErasureScores(probes, start=1, end=4, offsets=[-1, 0], tokens=None)}
    >>> segments = ti.measure(model, test, asked, progress=False)["e"].to_dataset()
    >>> ax = ti.erasure.plots.psi_distribution(segments)
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
    >>> import tokinterp as ti
    >>> model, texts = ti.load_model(), [t.text for t in ti.bundled_texts("story")[:6]]
    >>> fit, test = (ti.Prompts.from_texts(part, model, max_tokens=64) for part in (texts[:4], texts[4:]))
    >>> probes = ti.erasure.fit_probes(model, fit, layers=[1, 4], offsets=[-1, 0], method="ridge", progress=False)
    >>> asked = {"e": ti.erasure.ErasureScores(probes, start=1, end=4, offsets=[-1, 0], tokens=None)}
    >>> segments = ti.measure(model, test, asked, progress=False)["e"].to_dataset()
    >>> found = ti.erasure.read_out(segments, test, min_count=1, min_psi=None, n_boot=50)
    >>> scores = ti.erasure.evaluate(found, ti.Spans.words(test).align(test), test, k=[2])
    >>> ax = ti.erasure.plots.precision_recall(scores)
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
                (low + high) / 2, y + 0.15, f"{psi:.2f}", ha="center", va="bottom", rotation=90,
                fontsize=style.RC["xtick.labelsize"] - 1,
            )  # fmt: skip


@checked()
def erasure_html(
    ds: xr.Dataset | xr.DataTree,
    prompt: int = 0,
    *,
    limit: float | None = None,
    min_tokens: int = 2,
    title: str | None = None,
) -> pages.Html:
    """Show a text with its segments in brackets, coloured by their erasure score.

    Segments of ``min_tokens`` or more are bracketed and coloured, red where psi is positive (the end of the segment
    forgets its tokens), blue where it is negative; the others are plain. Pointing at a token shows its segment, its
    score and the delta of each offset.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ErasureScores` with ``delta`` of this prompt.
    prompt : int
        Number of the prompt.
    limit : float, optional
        psi at the ends of the colours; by default the greatest of the prompt. To compare prompts, give the same.
    min_tokens : int
        Shortest segments with brackets.
    title : str, optional
        First line.

    Returns
    -------
    Html
        A string; a notebook shows it, ``.save(path)`` writes a page. Texts are escaped.

    Raises
    ------
    ValueError
        If the result has no delta per token, or not of this prompt.

    Examples
    --------
    >>> coords = {"token_prompt": ("token", [0, 0]), "position": ("token", [1, 2]), "offset": [0],
    ...           "text": ("token", ["<b", ">"]), "token_id": ("token", [5, 6]),
    ...           "span_prompt": ("span", [0]), "start": ("span", [1]), "stop": ("span", [3])}
    >>> delta = {"psi": ("span", [0.5]), "delta": (("token", "offset"), [[0.1], [0.9]])}
    >>> ds = xr.Dataset(delta, coords, {"start_layer": 1, "end_layer": 3})
    >>> "&lt;b" in erasure_html(ds)
    True
    """
    ds = result_with(ds, "delta")
    if "delta" not in ds:
        raise ValueError("the result keeps no delta per token: measure ErasureScores(..., tokens=) with more prompts")
    one = tokens_of(ds, prompt, range(1 + int(ds["position"].max())))
    strings, place = strings_of(one), one["position"].values.tolist()
    delta = one["delta"].transpose("token", "offset").values
    offsets = ds["offset"].values.tolist()
    here = np.flatnonzero(ds["span_prompt"].values == prompt)
    spans = {int(ds["start"].values[k]): (int(ds["stop"].values[k]), float(ds["psi"].values[k])) for k in here}
    scores = [psi for start, (stop, psi) in spans.items() if stop - start >= min_tokens]
    end = limit or max((abs(s) for s in scores), default=1.0) or 1.0
    parts, at = [], 0
    while at < len(strings):
        stop, psi = spans.get(place[at], (place[at] + 1, np.nan))
        n = max(1, sum(p < stop for p in place[at:]))
        inside = "".join(
            _token(strings[k], place[k], psi, delta[k], offsets, stop - place[at]) for k in range(at, at + n)
        )
        parts.append(_bracketed(inside, psi, end) if stop - place[at] >= min_tokens else inside)
        at += n
    what = f"psi, layer {ds.attrs['start_layer']} to {ds.attrs['end_layer']}"
    key = pages.key(what, -end, end, style.beyond(np.array(scores), -end, end))
    return pages.page(f'{key}<div class="text">{"".join(parts)}</div>', title)


def _token(text: str, position: int, psi: float, delta: np.ndarray, offsets: list[int], length: int) -> str:
    drops = ", ".join(f"{o:+d}: {d:.3f}" for o, d in zip(offsets, delta.tolist(), strict=True) if np.isfinite(d))
    tip = [f"{text!r}, position {position}"]
    tip += [f"segment of {length}, psi {psi:.3f}"] if np.isfinite(psi) else []
    return pages.token(text, [*tip, *([f"delta {drops}"] if drops else [])])


def _bracketed(inside: str, psi: float, end: float) -> str:
    return f'<span class="unit" data-shade="{pages.step_of(psi, -end, end)}"><b>[</b>{inside}<b>]</b></span>'


def pictures(ds: xr.Dataset, prompt: int | None, width: str | float) -> Iterator[Picture]:
    """Yield what a report shows of a result of `ErasureScores`."""
    start, end = ds.attrs["start_layer"], ds.attrs["end_layer"]
    if ((ds["stop"] - ds["start"]).values > 1).any():
        fig, axes = style.figure("column")
        with style.paper_style():
            psi_distribution(ds, ax=axes[0, 0])
        text = (
            f"Share of the segments of two or more tokens whose erasure score psi (layer {start} to {end}) is above "
            "the value on the axis. On its own it says little: compare it with shuffled text and an untrained network."
        )
        yield Picture("erasure", text, fig)
    if prompt is not None and "delta" in ds:
        fig, axes = style.figure(width, 1.75)
        with style.paper_style():
            erasure_map(ds, prompt, ax=axes[0, 0])
        text = (
            f"Prompt {prompt}, first 48 tokens: by how much the probability of a token at its own place (offset 0) and "
            f"of the tokens before it falls from layer {start} to {end}; red is forgotten, blue gained, grey has no "
            "value. Brackets are the segments, darker where psi is higher; the numbers are psi of those of two or more "
            "tokens."
        )
        yield Picture("erasure_map", text, fig)


def page(ds: xr.Dataset, most: int = 6) -> str:
    """Return the first texts with their segments in brackets, as HTML for a report."""
    if "delta" not in ds:
        return ""
    numbers = np.unique(prompt_of(ds))[:most].tolist()
    here = np.isin(ds["span_prompt"].values, numbers) & ((ds["stop"] - ds["start"]).values > 1)
    limit = float(np.abs(ds["psi"].values[here]).max(initial=0)) or None
    return "\n".join(erasure_html(ds, n, limit=limit, title=f"prompt {n}") for n in numbers)


PICTURES = {"ErasureScores": pictures}
PAGES = {"ErasureScores": page}
