"""The experiment on tokenizers: published values beside what was found, and claims of planted results."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments import tokenizers as experiment
from experiments.runner.claims import evaluate
from tokinterp.results.dataset import variable


def metrics(**values):
    dims = ("tokenizer", "lang")
    data = {n: (dims, np.array(v, dtype=float)) for n, v in values.items()}
    return xr.Dataset(data, {"tokenizer": ["gpt2", "bundled"], "lang": ["eng_Latn", "por_Latn", "shn_Mymr"]})


def found():
    ds = metrics(n_tokens=[[52567, 101775, 7], [1, 2, 3]], premium=[[1, 2, 18.7592], [1, 2, 3]])
    ids = variable("category", [49912, 1, 343], "ids", "1")
    reach = xr.Dataset({"n_ids": ids}, {"category": ["ok", "ok_special", "undecodable"]})
    shares = xr.Dataset({"share": ("source", [0.8361, 0.0])}, {"source": ["web", "other"]})
    return {"metrics": ds, "reachability/gpt2": reach, "sources/gpt2": shares}


def test_published_values_of_the_run_stand_beside_what_was_found():
    p = experiment.Settings(langs=("eng_Latn", "por_Latn", "shn_Mymr"))
    every = {k: v.assign_attrs(fingerprint=k) for k, v in found().items()}
    ds = experiment.targets(every, p)["targets"]
    row = {str(n): float(d) for n, d in zip(ds["row"].values, ds["difference"].values, strict=True)}
    assert row["gpt2, ok"] == 0
    assert row["gpt2, undecodable"] == -1
    assert row["gpt2, n_tokens, eng_Latn"] == 0
    assert row["gpt2, n_tokens, por_Latn"] == 1
    assert row["gpt2, premium, shn_Mymr"] == 0
    assert row["gpt2, n_tokens, shn_Mymr"] == 7 - 986091
    assert row["gpt2, share of web"] == 0
    assert not [n for n in row if n.startswith(("pythia", "llama", "bundled")) or n.endswith(("code", "fertility"))]
    numbers = experiment.found_again({"targets": ds})
    off = sum(abs(v) > 1e-9 for v in row.values())
    assert next(iter(numbers.values())).value == pytest.approx(1 - off / len(row))
    assert numbers["gpt2, n_tokens, por_Latn, difference"].value == 1
    nothing = {"metrics": metrics().assign_coords(tokenizer=["a", "b"])}
    assert experiment.targets(nothing, p) == {}
    (row,) = evaluate(experiment.CLAIMS[-1:], nothing)
    assert row["verdict"] == "not measured"
    assert row["numbers"]["share found"]["why"] == "nobody has published values of these tokenizers"


def test_the_dearest_language_is_that_of_the_first_tokenizer():
    ds = metrics(premium=[[1, 4, 9], [1, 3, 2]])
    ends = np.stack([ds["premium"].values - 0.5, ds["premium"].values + 0.5], -1)
    ds["premium_interval"] = (("tokenizer", "lang", "bound"), ends)
    numbers = experiment.dearest({"metrics": ds.assign_coords(bound=["lower", "upper"])})
    assert list(numbers) == ["bundled, por_Latn", "gpt2, por_Latn"]
    assert tuple(next(iter(numbers.values())))[:3] == (3, 2.5, 3.5)


def test_bias_is_inside_less_between_over_texts():
    at = np.array([[0.1, 0.5], [0.2, 0.7], [0.0, 0.4], [0.1, 0.6], [np.nan, 0.9]])
    numbers = experiment.bias({"bytes": xr.Dataset({"bias": (("prompt", "where"), at)})})
    one = numbers["inside less between"]
    assert one.value == pytest.approx(0.45)
    assert one.low < 0.45 < one.high
    assert numbers["between"].value == pytest.approx(0.1)


def test_languages_are_parallel_and_shares_are_known():
    sentences = experiment.sentences()
    assert {len(t) for t in sentences.values()} == {20}
    assert len({s for t in sentences.values() for s in t}) == 80
    assert experiment.shares(2).tolist() == pytest.approx([2 / 3, 1 / 3])
    known = json.loads((experiment.PARTS / "tokenizer_targets.json").read_text(encoding="utf-8"))
    assert len({tuple(r[:3]) for r in known["rows"]}) == len(known["rows"])
    assert "bundled" not in {r[0] for r in known["rows"]}, "nobody else has published values of the bundled tokenizer"
