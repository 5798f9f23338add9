"""The inner lexicon: words told from non-words, words found again, and attention to their pieces, over depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..settings import checked
from . import style
from .layers import Curve, curves, draw_curves, named_sets, pick

MEASUREMENT = "PieceAttention"
Other = xr.Dataset | Mapping[str, xr.Dataset] | None


@checked()
def word_accuracy(
    ds: xr.Dataset,
    *,
    ax: Axes | None = None,
    other: Other = None,
    label: str | None = None,
    places: Sequence[str] | None = None,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw how well words are told from non-words at each layer, with intervals over tokens; chance is dotted.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``word_probe``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    other, label
        What to compare with (dashed), and the name of ``ds`` beside it.
    places : sequence of {"last", "penultimate"}, optional
        Tokens at which the state is taken; all that were measured by default.
    legend : bool
        Whether to name the lines.
    width : {"column", "double"} or float
        Of a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    found = {}
    for key, one in named_sets(ds, other, label).items():
        chosen = pick(one, "accuracy", None if places is None else {"subset": list(places)})["accuracy"]
        bounds = one["accuracy_interval"].sel(subset=chosen["subset"])
        found[key] = [
            Curve(
                {"token": f"{place} token"},
                chosen["layer"].values,
                chosen.sel(subset=place).values,
                bounds.sel(subset=place).transpose("bound", "layer").values,
                np.zeros(chosen.sizes["layer"], bool),
            )
            for place in chosen["subset"].values
        ]
    with style.drawing(ax, width) as axes:
        draw_curves(axes, found, legend)
        axes.axhline(0.5, color="0.5", lw=0.8, ls=":", zorder=0)
        axes.set_ylim(min(0.4, axes.get_ylim()[0]), max(0.7, axes.get_ylim()[1]))
        axes.set_ylabel("accuracy, word or non-word")
        axes.set_xlabel("layer")
        style.integer_axis(axes)
    return axes


@checked()
def retrieval_by_layer(
    ds: xr.Dataset,
    name: str = "retrieved",
    *,
    ax: Axes | None = None,
    by: str = "kind",
    kind: str | None = None,
    variant: str | None = None,
    other: Other = None,
    label: str | None = None,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw the share of words found again at each layer, one line for each kind of case, with intervals over cases.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``retrieve_words`` (name "retrieved"), ``repeat_words`` ("success") or ``canonicity`` ("closer").
    name : str
        Variable to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    by : {"kind", "detail"}
        What the lines are: split and misspelt words, or each size and each typing error.
    kind : {"split", "typo", "natural"}, optional
        Only these cases.
    variant : str, optional
        How states are read; by default the first that was measured.
    other, label, legend, width
        As in `word_accuracy`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    found = {key: list(_grouped(one, name, variant, by, kind)) for key, one in named_sets(ds, other, label).items()}
    with style.drawing(ax, width) as axes:
        draw_curves(axes, found, legend)
        axes.set_ylim(0, 1.02 if name == "closer" else max(0.1, 1.04 * axes.get_ylim()[1]))
        if name == "closer":
            axes.axhline(0.5, color="0.5", lw=0.8, ls=":", zorder=0)
        axes.set_ylabel({"closer": "share closer to the word"}.get(name, "share of words retrieved"))
        axes.set_xlabel("layer")
        style.integer_axis(axes)
    return axes


@checked()
def canonicity_by_layer(
    ds: xr.Dataset,
    *,
    ax: Axes | None = None,
    variant: str = "centred",
    other: Other = None,
    label: str | None = None,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw the cosine of the last piece with the word as one token, and with another word, at each layer.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``canonicity``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    variant : {"centred", "raw"}
        Of the states.
    other, label, legend, width
        As in `word_accuracy`.

    Returns
    -------
    matplotlib.axes.Axes
    """
    names = {"canonicity": "the word itself", "control": "another word"}
    with style.drawing(ax, width) as axes:
        _pairs(axes, named_sets(ds, other, label), names, {"variant": variant}, "cosine with", legend)
        axes.set_ylabel(style.label(ds["canonicity"], "cosine with a one-token word"))
        axes.set_xlabel("layer")
        style.integer_axis(axes)
    return axes


@checked()
def piece_attention(
    ds: xr.Dataset,
    pieces: int | None = None,
    *,
    ax: Axes | None = None,
    head: int | None = None,
    other: Other = None,
    label: str | None = None,
    legend: bool = True,
    width: str | float = "column",
) -> Axes:
    """Draw how much the last token of words attends to their earlier tokens in each block, with its control.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``PieceAttention``.
    pieces : int, optional
        Tokens of the words; by default the fewest that were measured.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    head : int, optional
        One head; by default the mean of all.
    other, label, legend, width
        As in `word_accuracy`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        For one head of a result that has only the mean of all.
    """
    if head is not None and "head" not in ds.dims:
        raise ValueError(f"head {head}: this result has the mean of all heads; measure PieceAttention(by_head=True)")
    sets = named_sets(ds, other, label)
    if "head" in ds.dims and head is None:
        sets = {k: one.mean("head", keep_attrs=True) for k, one in sets.items()}
    n = int(ds["pieces"].values[0]) if pieces is None else pieces
    select = {"pieces": n} | ({} if head is None else {"head": head})
    names = {"attention": "earlier pieces of its word", "control": "one-token words before it"}
    with style.drawing(ax, width) as axes:
        _pairs(axes, sets, names, select, "attention to", legend)
        style.from_zero(axes)
        axes.set_ylim(0, (1.55 if len(sets) > 1 else 1.25) * axes.get_ylim()[1])  # room for the legend
        axes.set_ylabel("attention to the token before" if n == 2 else f"attention to the {n - 1} tokens before")
        axes.set_xlabel("block")
        style.integer_axis(axes)
    return axes


def _grouped(ds: xr.Dataset, name: str, variant: str | None, by: str, kind: str | None) -> Iterator[Curve]:
    """Yield a line for each kind of case."""
    if by not in ds.coords:
        raise ValueError(f"by={by!r}: this result does not say the {by} of its cases: measure it with Cases")
    if kind is not None:
        known = ds["kind"].values
        if kind not in known:
            raise ValueError(f"kind {kind!r}: this result has {', '.join(sorted(set(known.tolist())))}")
        ds = ds.isel(prompt=np.flatnonzero(known == kind))
    select = {"variant": variant or str(ds["variant"].values[0])} if "variant" in ds[name].dims else None
    labels = ds[by].values
    for value in sorted(set(labels.tolist())):
        for curve in curves(ds.isel(prompt=np.flatnonzero(labels == value)), name, select):
            yield curve._replace(of={by: value})


def _pairs(
    ax: Axes, sets: Mapping[str, xr.Dataset], names: Mapping[str, str], select: Mapping[str, object], dim: str,
    legend: bool,
) -> None:  # fmt: skip
    """Draw two variables by colour, datasets by dashes."""
    found = {
        key: [c._replace(of={dim: text}) for name, text in names.items() for c in curves(one, name, select)]
        for key, one in sets.items()
    }
    draw_curves(ax, found, legend)


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure: what to look at first in a result of ``PieceAttention``."""
    sizes = ds["pieces"].values.tolist()[:2]
    fig, axes = style.figure("double", 2.4, columns=len(sizes))
    with style.paper_style():
        for n, (ax, size) in enumerate(zip(axes[0], sizes, strict=True)):
            piece_attention(ds, size, ax=ax, legend=n == 0)
        style.panel_letters(axes)
    yield (
        "pieces",
        "Attention from the last token of words of several tokens to their earlier tokens, mean, "
        f"{interval_said(ds)}, for words of {' and '.join(map(str, sizes))} tokens; beside it, attention from "
        "one-token words to as many one-token words before them.",
        fig,
    )
