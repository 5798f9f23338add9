"""Tokenizers: premiums, use of the vocabulary, ranks, what ids are, tokenization bias, Markov sources."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokinterp import plots
from tokinterp.stats.resample import mean_interval


def compose(results: xr.DataTree) -> Figure:
    """Draw the result of ``experiments.tokenizers``."""
    metrics, overview = (results[n].to_dataset() for n in ("metrics", "overview"))
    first = str(metrics["lang"].values[0])
    others = metrics.sel(lang=[x for x in metrics["lang"].values if x != first])
    markov = results["switching/bpe"].to_dataset().rename(n_train="training_strings")
    fig, axes = plots.figure("double", 7.4, rows=3, columns=2)
    with plots.paper_style():
        plots.rows(others, "premium", "lang", ax=axes[0, 0], xlabel=f"premium over {first}")
        plots.rows(metrics, "renyi_efficiency", "lang", ax=axes[0, 1], legend=False)
        plots.curves(overview.sel(lang=first), "frequency", along="token_rank", ax=axes[1, 0], legend=False)
        axes[1, 0].set_xscale("log")
        kinds(axes[1, 1], results)
        if "bytes" in results.children:
            bias(axes[2, 0], results["bytes"].to_dataset())
        else:
            plots.curves(overview, "share_length", along="n_chars", ax=axes[2, 0], legend=False)
        plots.curves(markov, "cross_entropy", along="vocab_size", ax=axes[2, 1], ylabel="bits per symbol")
        axes[2, 1].set_xscale("log", base=2)
        axes[2, 1].axhline(float(markov["entropy_rate"]), color="0.4", lw=0.8, ls=":")
        plots.panel_letters(axes)
    return fig


def kinds(ax: Axes, results: xr.DataTree) -> None:
    """Draw the share of the ids of each tokenizer that no text alone is encoded as, by category."""
    parts = {n: c.to_dataset()["n_ids"] for n, c in results["reachability"].children.items()}
    names = [c for c in next(iter(parts.values()))["category"].values.tolist() if not c.startswith("ok")]
    left = np.zeros(len(parts))
    for k, name in enumerate(names):
        share = np.array([100 * float(n.sel(category=name)) / float(n.sum()) for n in parts.values()])
        if share.any():
            ax.barh(np.arange(len(parts)), share, 0.6, left, color=plots.COLOURS[k], label=name.replace("_", " "))
        left += share
    ax.set_yticks(np.arange(len(parts)), list(parts))
    ax.invert_yaxis()
    ax.set_ylim(len(parts) - 0.4, -1.1)
    ax.set_xlabel("ids that no text alone is encoded as (%)")
    ax.legend(loc="upper right", frameon=False, ncols=2, fontsize=6)


def bias(ax: Axes, ds: xr.Dataset, longest: int = 8) -> None:
    """Draw the mean total variation by bytes since the last boundary between tokens, with intervals over texts."""
    inside, tv = ds["is_inside_token"].values, ds["total_variation"].values
    since = np.zeros(inside.shape, np.int64)
    for n in range(1, inside.shape[1]):
        since[:, n] = np.where(inside[:, n], since[:, n - 1] + 1, 0)
    at = range(longest)
    text = np.broadcast_to(np.arange(len(tv))[:, None], tv.shape)
    known = [(since == k) & np.isfinite(tv) for k in at]
    mean = np.array([tv[k].mean() if k.any() else np.nan for k in known])
    low, high = np.array([mean_interval(tv[k], text[k]) for k in known]).T
    ax.errorbar(at, mean, [mean - low, high - mean], color=plots.COLOURS[0], marker="o", ms=3, lw=1)
    ax.set_xticks(at)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("bytes since the last token boundary")
    ax.set_ylabel("tokenization bias")
