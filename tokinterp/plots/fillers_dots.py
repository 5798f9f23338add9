"""What is in the dots of a network trained on Match3, where it looks, and what it answers without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results.documents import interval_said
from ..results.summary import summary
from ..settings import checked
from . import style
from .fillers_training import ARMS

MEASUREMENT = ("DotProbes", "DotAttention", "DotAblation", "FillerContents")


@checked()
def dots_by_layer(ds: xr.Dataset, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw how often the logit lens at a filler shows a valid word of the chain of thought, by layer, beside chance.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``FillerContents``.  Only slots whose word depends on the digits are averaged.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    legend : bool
        Whether to name the lines.
    """
    with style.drawing(ax) as axes:
        digits = ds.isel(slot=slice(1, None, 2))
        for i, (name, label) in enumerate(
            (
                ("recovery", "valid for these rows"),
                ("recovery_shuffled", "valid for other rows"),
                ("filler_share", "the dot"),
            )
        ):
            axes.plot(
                ds["layer"], digits[name].mean("slot"), style.DASHES[i], marker=style.MARKERS[i],
                color=style.COLOURS[i], label=label,
            )  # fmt: skip
        axes.set_xlabel("layer")
        axes.set_ylabel("share of fillers whose best word is")
        axes.set_ylim(-0.02, 1.02)
        style.integer_axis(axes)
        if legend:
            axes.legend()
    return axes


@checked()
def dot_probe_map(
    ds: xr.Dataset, target: str = "pair sum", trunk: str | None = None, *, ax: Axes | None = None, colorbar: bool = True
) -> Axes:
    """Draw the accuracy of the linear probes at every filler and layer, from chance to 1.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `tokinterp.fillers.tasks.dot_probes.probe_contents`.
    target : str
        What is read.
    trunk : str, optional
        Network; the first by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    colorbar : bool
        Whether to draw the scale.

    Notes
    -----
    A dot marks cells whose interval lies above chance and above the interval of the untrained network, where there is
    one.  Cells without a score are hatched.
    """
    first = str(ds["trunk"].values[0]) if trunk is None else trunk
    one = ds.sel(target=target, trunk=first).transpose("bound", "layer", "slot")
    values, chance = one["accuracy"].values, float(one["chance"])
    with style.drawing(ax) as axes:
        drawn = axes.pcolormesh(np.ma.masked_invalid(values), vmin=chance, vmax=1.0, edgecolors="w", linewidth=0.4)
        axes.patch.set(hatch="////", edgecolor="0.7")
        bar = np.full(values.shape, chance)
        if "random" in ds["trunk"].values and first != "random":
            upper = ds["accuracy_interval"].sel(target=target, trunk="random", bound="upper").transpose("layer", "slot")
            bar = np.fmax(bar, upper.values)
        for row, column in np.argwhere(one["accuracy_interval"].sel(bound="lower").values > bar):
            axes.plot(column + 0.5, row + 0.5, ".", color="w", mec="k", mew=0.4, ms=4)
        slots, layers = ds["slot"].values, ds["layer"].values
        step = max(1, int(np.ceil(len(slots) / 14)))
        axes.set_xticks(np.arange(len(slots))[::step] + 0.5, [str(s) for s in slots[::step]])
        axes.set_yticks(np.arange(len(layers)) + 0.5, [str(x) for x in layers])
        axes.set_xlabel("filler")
        axes.set_ylabel("layer")
        if colorbar:
            axes.figure.colorbar(drawn, ax=axes, label=f"accuracy, {target}", pad=0.02)
    return axes


@checked()
def dot_probes_by_layer(
    ds: xr.Dataset, target: str = "pair sum", *, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Draw the mean accuracy of the linear probes over fillers, by layer: a line with its interval for each network.

    The dotted line is chance; the thin grey line the first network with labels permuted before the fit.
    """
    of = ds.sel(target=target)
    with style.drawing(ax) as axes:
        for t, trunk in enumerate(ds["trunk"].values):
            one, colour = of.sel(trunk=trunk), style.COLOURS[t]
            band = one["accuracy_mean_interval"].transpose("bound", "layer").values
            axes.fill_between(ds["layer"], *band, color=colour, alpha=0.2, lw=0)
            axes.plot(
                ds["layer"], one["accuracy_mean"], style.DASHES[t % 4], marker=style.MARKERS[t], color=colour,
                label=ARMS.get(str(trunk), str(trunk)),
            )  # fmt: skip
        axes.plot(ds["layer"], of["shuffled_mean"].isel(trunk=0), color="0.6", lw=0.8, label="labels permuted")
        axes.axhline(float(of["chance"]), color="0.4", ls=":", lw=0.8)
        axes.annotate("chance", (1, float(of["chance"])), xycoords=("axes fraction", "data"), ha="right", va="top",
                      fontsize=6.5)  # fmt: skip
        axes.set_ylim(max(0, float(of["chance"]) - 0.12), 1.02)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"accuracy, {target}")
        style.integer_axis(axes)
        if legend:
            axes.legend()
    return axes


@checked()
def dot_attention_by_block(
    ds: xr.Dataset, query: str = "answer", *, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Draw what each head looks at, one bar for each head of each block; the bar beside them is uniform attention.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of ``DotAttention``.
    query : {"answer", "fillers"}
        Who looks.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    legend : bool
        Whether to name the sets.
    """
    mass = ds["mass"].sel(query_set=query).mean("prompt").transpose("block", "head", "key_set").values
    chance = ds["chance"].sel(query_set=query).values
    n_blocks, n_heads, _ = mass.shape
    width = 0.8 / n_heads
    x = (np.arange(n_blocks)[:, None] + (np.arange(n_heads) - (n_heads - 1) / 2) * width).ravel()
    with style.drawing(ax) as axes:
        base, low = np.zeros(len(x)), 0.0
        for k, name in enumerate(ds["key_set"].values):
            # The answer position is no filler: all fillers are others to it.
            label = "fillers" if name == "other fillers" and query == "answer" else str(name)
            height = mass[..., k].ravel()
            axes.bar(x, height, 0.9 * width, bottom=base, color=style.COLOURS[k], label=label, lw=0)
            axes.bar(n_blocks, chance[k], 0.4, bottom=low, color=style.COLOURS[k], alpha=0.6, lw=0)
            base, low = base + height, low + chance[k]
        axes.set_xticks(range(n_blocks + 1), [*(str(b) for b in ds["block"].values), "uniform"])
        axes.set_xlabel("block, its heads side by side")
        axes.set_ylabel(f"attention of the {'answer position' if query == 'answer' else 'fillers'}")
        axes.set_ylim(0, 1)
        if legend:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=0.8, handlelength=1.0)
    return axes


@checked()
def dot_ablation(ds: xr.Dataset, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw the accuracy under each intervention on the fillers, one marker with its interval for each network."""
    names = [str(i) for i in ds["intervention"].values]
    s = summary(ds[["correct"]])
    with style.drawing(ax, height=0.9 + 0.2 * len(names)) as axes:
        trunks = ds["trunk"].values
        for t, trunk in enumerate(trunks):
            one = s.sel(trunk=trunk)
            y = np.arange(len(names)) + 0.22 * (t - (len(trunks) - 1) / 2)
            low, high = one["correct_interval"].transpose("bound", "intervention").values
            axes.hlines(y, low, high, color=style.COLOURS[t], lw=1)
            axes.plot(one["correct"], y, style.MARKERS[t], color=style.COLOURS[t], label=ARMS.get(str(trunk), trunk))
        axes.axvline(float(ds["majority"]), color="0.4", ls=":", lw=0.8)
        axes.annotate("majority", (float(ds["majority"]), 1), xycoords=("data", "axes fraction"), ha="center",
                      va="bottom", fontsize=6.5)  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy of the answer")
        axes.set_xlim(min(0.4, float(s["correct_interval"].min()) - 0.03), 1.03)
        if legend and len(trunks) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.06), ncols=3, columnspacing=1.0)
    return axes


@checked()
def slot_effects(ds: xr.Dataset, trunk: str | None = None, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw what the mean ablation of single fillers does, where a third row completes the filler's pair and where not.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `tokinterp.fillers.tasks.dot_ablation.ablate_dots` with ``slots=True``.
    trunk : str, optional
        Network; the first by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw.
    legend : bool
        Whether to name the two.
    """
    first = ds["trunk"].values[0] if trunk is None else trunk
    change = ds["slot_change"].sel(trunk=first)
    with style.drawing(ax) as axes:
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
        for i, (match, label) in enumerate(((True, "pair completed by a third row"), (False, "not completed"))):
            there = change.where(ds["slot_match"] == match)
            s = summary(xr.Dataset({"x": there}))
            few: Any = s["x_count"].values < 2
            x = ds["slot"].values + 0.24 * (i - 0.5)
            low, high = np.where(few, np.nan, s["x_interval"].transpose("bound", "slot").values)
            axes.vlines(x, low, high, color=style.COLOURS[i], lw=1)
            axes.plot(x, np.where(few, np.nan, s["x"].values), style.MARKERS[i], color=style.COLOURS[i], label=label)
        axes.set_xlabel("filler that is mean-ablated")
        axes.set_ylabel("logit of the right answer less\nthat of the wrong one, change")
        style.integer_axis(axes)
        if legend:
            axes.legend()
    return axes


def overview(ds: xr.Dataset, prompt: int | None = None) -> Iterator[tuple[str, str, Figure]]:
    """Yield the figures of one of the four results."""
    kind = ds.attrs["measurement"]
    uncertain = f"Bars: {interval_said(ds)}."
    if kind == "FillerContents":
        text = "Share of fillers whose best word, dots left out, could stand there in the chain of thought, by layer."
        plans = [("dots", text, dots_by_layer, {})]
    elif kind == "DotAttention":
        plans: list[tuple[str, str, Any, dict[str, Any]]] = [
            (f"attention_{q}", f"What {who} at, by block and head; right: uniform attention.",
             dot_attention_by_block, {"query": q})
            for q, who in (("answer", "the answer position looks"), ("fillers", "the fillers look"))
        ]  # fmt: skip
    elif kind == "DotAblation":
        plans = [("ablation", f"Accuracy when the fillers are changed. {uncertain}", dot_ablation, {})]
        if "slot_change" in ds:
            plans.append(("slots", f"Single fillers mean-ablated. {uncertain}", slot_effects, {}))
    else:
        plans = []
        for target in ds["target"].values.tolist():
            name = target.replace(" ", "_")
            text = f"Linear probes of the {target} at each filler and layer; dots: above chance and the untrained."
            plans.append((f"map_{name}", text, dot_probe_map, {"target": target}))
            text = f"Mean over fillers of the accuracy for the {target}; bands: {interval_said(ds)}."
            plans.append((f"layers_{name}", text, dot_probes_by_layer, {"target": target}))
    for name, caption, draw, options in plans:
        tall = 0.9 + 0.2 * ds.sizes["intervention"] if draw is dot_ablation else None
        fig, axes = style.figure("column", tall)
        with style.paper_style():
            draw(ds, ax=axes[0, 0], **options)
        yield name, caption, fig
