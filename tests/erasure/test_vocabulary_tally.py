"""Erasure scores that were made otherwise are not added up, and a sample is at most all tokens."""

import json

import pytest

import tokinterp as ti
from tokinterp.erasure.vocabulary_tally import Tally

SETTINGS = {"probes": "a", "offsets": [0, -1], "centred": False, "unseen": "missing", "exclude": ["special"],
            "max_length": None, "penalty": 0.0, "tokens": 64}  # fmt: skip
ATTRS = {"scale": "prob", "denominator": "code", "identity": "x", "tokenizer": "t", "dtype": "float32", "edits": "[]"}


def scores(prompts, settings=None, **attrs):
    import xarray as xr

    coords = {"span_prompt": ("span", [0, 0]), "start": ("span", [0, 3]), "stop": ("span", [2, 5])}
    given = {**ATTRS, "parameters": json.dumps({**SETTINGS, **(settings or {})}), **attrs}
    return xr.Dataset({"psi": ("span", [0.3, 0.5]), "seen": ("span", [1.0, 1.0])}, coords, given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("probes", "b"), ("offsets", [0]), ("centred", True), ("unseen", "zero"), ("exclude", []), ("max_length", 2),
     ("penalty", 0.5)],
)  # fmt: skip
def test_scores_of_other_settings_are_refused_by_name(name, value):
    prompts = ti.Prompts.from_ids([[5, 6, 7, 5, 6]])
    one, two = scores(prompts), scores(prompts, {name: value})
    with pytest.raises(ValueError, match=rf"cannot be added up: {name} \("):
        ti.erasure.read_out([(one, prompts), (two, prompts)])
    with pytest.raises(ValueError, match=name):
        Tally().add(one, prompts).merge(Tally().add(two, prompts))


@pytest.mark.parametrize("name", ["identity", "tokenizer", "dtype", "edits", "scale"])
def test_scores_of_another_model_are_refused_by_name(name):
    prompts = ti.Prompts.from_ids([[5, 6, 7, 5, 6]])
    with pytest.raises(ValueError, match=rf"cannot be added up: {name} \("):
        ti.erasure.read_out([(scores(prompts), prompts), (scores(prompts, **{name: "other"}), prompts)])


def test_scores_that_keep_another_number_of_deltas_are_the_same_scores():
    prompts = ti.Prompts.from_ids([[5, 6, 7, 5, 6]])
    found = ti.erasure.read_out([(scores(prompts), prompts), (scores(prompts, {"tokens": None}), prompts)])
    assert found["count"].values.tolist() == [4]


def test_a_sample_larger_than_the_text_is_all_of_it():
    model = ti.load_model()
    prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts()][:2], model, max_tokens=30)
    ask = {"sample": 10**6, "layers": [0, 8], "measures": ("cka",)}
    found = ti.measure(model, prompts, {"s": ti.geometry.LayerSimilarity(**ask)}, progress=False)["s"]
    assert int(found["n_sample"]) == prompts.n_tokens - int(prompts.special_mask.sum())
    with pytest.raises(ValueError, match="a sample of 60 tokens needs"):
        ti.measure(model, prompts, {"s": ti.geometry.LayerSimilarity(**ask)}, memory=1000, progress=False)


def test_no_error_of_cka_over_two_prompts():
    import numpy as np

    model = ti.load_model()
    prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts()][:3], model, max_tokens=30)
    for n, known in ((2, False), (3, True)):
        asked = {"s": ti.geometry.LayerSimilarity([0, 8], measures=("cka",), over="prompt")}
        error = ti.measure(model, prompts[:n], asked, progress=False)["s"]["cka_error"].values
        assert np.isfinite(error[0, 1]) == known
