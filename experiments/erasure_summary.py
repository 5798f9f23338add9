"""What `experiments.erasure` found, as a small JSON record, and in sentences that the numbers decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .record import about

KEPT = (
    "all", "other", "last piece", "first piece", "middle piece", "single-token word", "last of 2", "last of 3",
    "last of 4+", "seen pair", "unseen pair",
)  # fmt: skip
TOP = 25
FEWEST = 30
"""Positions or spans below which nothing is said."""


def summarise(tree: xr.DataTree) -> dict[str, Any]:
    """Return the record: where it comes from, accuracies, gaps, psi, vocabularies, controls, and what is seen."""
    a = tree.attrs
    record: dict[str, Any] = {
        **about("erasure", a),
        "data": {n: int(a[n]) for n in ("n_train", "n_train_tokens", "n_test", "n_test_tokens", "n_segmented_tokens")},
        "seconds": {str(k).split(": ")[1]: v for k, v in a.items() if str(k).startswith("seconds: ")},
        "seconds_note": "what an earlier call had kept counts only the reading of it",
        "threshold": a.get("threshold"),
    }
    for network in tree.children:
        found: dict[str, Any] = {}
        for name, node in tree[network].children.items():
            ds = node.to_dataset(inherit=False)
            found[name] = TABLES[next(k for k in TABLES if name.endswith(k))](ds)
        record[network] = found
    record["seen"] = seen(record)
    return record


# -- tables ---------------------------------------------------------------------------------------------------
def scores_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return accuracies, gaps and baselines by subset and offset, each a list over layers."""
    subsets = [s for s in ds["subset"].values if s in KEPT or s.startswith("last of ")]
    out: dict[str, Any] = {"layer": ds["layer"].values.tolist(), "n_documents": int(ds.attrs["n_documents"])}
    for s in subsets:
        one = ds.sel(subset=s)
        if not int(one["n_positions"].max()):
            continue
        out[s] = {}
        for o in ds["offset"].values.tolist():
            here = one.sel(offset=o)
            row = {"n": int(here["n_positions"]), "accuracy": here["accuracy"].values}
            for name in ("ceiling", "bigram_accuracy", "unigram_accuracy"):
                if name in ds:
                    row[name] = here[name].item()
            if s != "other" and (s.startswith("last") or s.endswith("piece")):
                row["gap"] = here["gap"].values
                for name in ("gap_interval", "gap_band"):
                    row[name] = here[name].transpose("bound", "layer").values
            out[s][f"offset {o}"] = row
    return out


def segments_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return the distribution of psi over segments of two or more tokens."""
    length = (ds["stop"] - ds["start"]).values
    psi = ds["psi"].values[length > 1]
    return {
        "start_layer": int(ds.attrs["start_layer"]), "end_layer": int(ds.attrs["end_layer"]),
        "n_segments": len(length), "n_multi": len(psi), "mean_length": float(length.mean()),
        "psi_mean": psi.mean() if len(psi) else np.nan, "psi_sd": psi.std() if len(psi) else np.nan,
        "psi_quantiles": dict(zip(("5%", "50%", "95%", "99%"), np.quantile(psi, [0.05, 0.5, 0.95, 0.99]), strict=True))
        if len(psi) else {},
        "share_above_threshold": float((psi > ds.attrs["threshold"]).mean())
        if len(psi) and ds.attrs.get("threshold", "none") != "none" else None,
        "share_of_tokens_in_units": float(ds["in_units"].mean()),
        "mean_delta": dict(zip(ds["offset"].values.tolist(), ds["mean_delta"].mean("prompt").values, strict=True)),
    }  # fmt: skip


def vocabulary_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return size and best entries."""
    rows = [
        {"text": str(ds["text"].values[n]), "count": int(ds["count"].values[n]), "psi": float(ds["psi"].values[n])}
        for n in range(min(TOP, ds.sizes["rank"]))
    ]
    return {"n_entries": ds.sizes["rank"], "min_count": int(ds.attrs["min_count"]), "top": rows}


def evaluation_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return precision and recall of all entries, and precision of the best, by kind of unit."""
    out: dict[str, Any] = {}
    for s in ds["subset"].values:
        one = ds.sel(subset=s)
        last = one.isel(rank=-1)
        interval = one["precision_at_k_interval"].transpose("bound", "k")
        out[str(s)] = {
            **{n: last[n].item() for n in ("precision", "recall", "attainable_recall")},
            **{n: one[n].item() for n in ("n_units", "n_attainable", "average_precision", "chance")},
            "precision_at": {int(k): one["precision_at_k"].sel(k=k).item() for k in one["k"].values},
            "precision_at_interval": {int(k): interval.sel(k=k).values for k in one["k"].values},
        }
    return out


def units_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return the AUROC of known units against random spans, by kind."""
    return {
        str(s): {
            "auroc": ds["auroc"].sel(subset=s).item(), "n": int(ds["n_spans"].sel(subset=s)),
            "interval": ds["auroc_interval"].sel(subset=s).values,
        }
        for s in ds["subset"].values
    }  # fmt: skip


def plain_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return every variable as a list."""
    return {"layer": ds["layer"].values, **{str(n): v.values for n, v in ds.data_vars.items()}}


def seeds_table(ds: xr.Dataset) -> dict[str, Any]:
    """Return the agreement of fits."""
    return {"offset": ds["offset"].values.tolist(), **{str(n): v.values for n, v in ds.data_vars.items()}}


TABLES: dict[str, Any] = {
    "_vocabulary": vocabulary_table, "_evaluation": evaluation_table, "scores": scores_table, "units": units_table,
    "ends": plain_table, "seeds": seeds_table, "text": segments_table, "shuffled": segments_table,
    "bigram": segments_table,
}  # fmt: skip


# -- in words -------------------------------------------------------------------------------------------------
def seen(record: dict[str, Any]) -> list[str]:
    """Return sentences that say what was found, null results as such."""
    trained, blank = record["trained"], record.get("untrained", {})
    out = gap_sentences(trained["scores"], blank.get("scores"))
    out += psi_sentences(trained, blank)
    out += vocabulary_sentences(trained, blank)
    if "seeds" in trained:
        s = trained["seeds"]
        alike = dict(zip(s["offset"], np.asarray(s["delta_correlation"]).tolist(), strict=True))
        out.append(
            f"Probes trained again with other seeds: delta at offset 0 correlates {alike[0]:.3f}, "
            f"{float(s['shared_segments']):.0%} of the segments are the same."
        )
    return out


def gap_sentences(trained: dict[str, Any], blank: dict[str, Any] | None) -> list[str]:
    """Say what becomes of the accuracy at last tokens, compared with the other tokens."""
    out = []
    layer = trained["layer"]
    for name in [n for n in trained if n == "last piece" or (n.startswith("last of ") and not n[8:9].isdigit())]:
        for offset in (0, -1):
            row = trained[name].get(f"offset {offset}")
            if row is None or "gap" not in row or row["n"] < FEWEST:
                continue
            gap, (low, high) = (
                np.asarray(row["gap"]),
                np.asarray(row["gap_band"]),
            )  # of all layers at once: one is chosen
            if not np.isfinite(gap).any():
                continue
            k = int(np.nanargmax(gap[1:])) + 1 if len(gap) > 1 else 0  # layer 0 knows nothing of the context
            accuracy = np.asarray(row["accuracy"])
            verdict = "lower than at other tokens" if low[k] > 0 else "not lower than at other tokens (null)"
            text = (
                f"{name}, offset {offset:+d} ({row['n']} positions): accuracy {accuracy[0]:.2f} at layer {layer[0]}, "
                f"{accuracy[-1]:.2f} at layer {layer[-1]}; at layer {layer[k]}, where the gap is largest, {verdict}: "
                f"gap {gap[k]:+.3f} [{low[k]:+.3f}, {high[k]:+.3f}] (for all {len(gap)} layers at once), at layer "
                f"{layer[0]} {gap[0]:+.3f}"
            )
            if blank is not None and name in blank and layer[k] in blank["layer"]:
                other = blank[name][f"offset {offset}"]
                at = blank["layer"].index(layer[k])
                bounds = [b[at] for b in np.asarray(other["gap_interval"])]
                text += f"; untrained network there {other['gap'][at]:+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"
                if bounds[0] > high[k]:
                    text += ", more than in the trained one, so this gap is no sign of anything learned"
            out.append(text + ".")
    return out


def psi_sentences(trained: dict[str, Any], blank: dict[str, Any]) -> list[str]:
    """Say how psi differs from the controls, and whether known units score above random spans."""
    one = trained["text"]
    names = [n for n in ("shuffled", "bigram") if n in trained]
    parts = [f"{n} {trained[n]['psi_mean']:.3f}" for n in names]
    parts += [f"untrained network {blank['text']['psi_mean']:.3f}"] if "text" in blank else []
    out = [
        f"Mean psi of segments of two or more tokens, layers {one['start_layer']} to {one['end_layer']} (an end "
        f"that is neither given nor the paper's is chosen by the gap on the same texts): text "
        f"{one['psi_mean']:.3f}; {', '.join(parts)}."
    ]
    if isinstance(one["share_above_threshold"], float):
        out.append(
            f"{one['share_above_threshold']:.1%} of these segments of the text are above the score that 5% of those of "
            "shuffled text are above."
        )
    if "ends" in trained:
        ends = trained["ends"]
        rows = zip(ends["layer"], ends["auroc"], np.asarray(ends["auroc_interval"]).T, strict=True)
        by_end = ", ".join(f"{layer}: {value:.3f} [{low:.3f}, {high:.3f}]" for layer, value, (low, high) in rows)
        out.append(f"AUROC of words against random spans by end layer of psi: {by_end}.")
    for kind, row in trained["units"].items():
        if row["n"] < FEWEST:
            continue
        low, high = row["interval"]
        verdict = "above" if low > 0.5 else "below" if high < 0.5 else "not distinguishable from"
        text = (
            f"Known units ({kind}, {row['n']}) score {verdict} random spans of the same length and prompt: AUROC "
            f"{row['auroc']:.3f} [{low:.3f}, {high:.3f}]"
        )
        if kind in blank.get("units", {}):
            text += f"; untrained network {blank['units'][kind]['auroc']:.3f}"
        out.append(text + ".")
    return out


def vocabulary_sentences(trained: dict[str, Any], blank: dict[str, Any]) -> list[str]:
    """Say how many known units are in the vocabulary, against chance and controls."""
    if "text_evaluation" not in trained:
        return ["No unit occurs often enough: there is no vocabulary."]
    out = []
    for kind, row in trained["text_evaluation"].items():
        if row["n_units"] < FEWEST:
            continue
        others = []
        for name, group in (("shuffled", trained.get("shuffled_evaluation")), ("bigram", trained.get(
            "bigram_evaluation")), ("untrained network", blank.get("text_evaluation"))):  # fmt: skip
            if group is not None and kind in group:
                others.append(f"{name} {group[kind]['precision']:.3f}")
        out.append(
            f"Vocabulary of {trained['text_vocabulary']['n_entries']} entries against {kind}: precision "
            f"{row['precision']:.3f}, recall {row['recall']:.3f} ({row['attainable_recall']:.3f} of the attainable); "
            f"random spans {row['chance']:.3f}; {', '.join(others)}."
        )
    return out
