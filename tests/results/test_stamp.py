"""Provenance: whatever decides numbers decides the fingerprint, and nothing else does."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

from tokinterp.models.steady import current
from tokinterp.results.stamp import derived, joined, mark_of, stamped


def values(x=1.0, **attrs):
    return xr.Dataset({"x": ("prompt", np.array([x, 2.0]), {"long_name": "x", "units": "1"})}, attrs=attrs)


@pytest.fixture(scope="module")
def given():
    return values(), "f", tiny(), some_prompts((4, 5)), {"k": 3}


def test_each_fact_changes_the_fingerprint_alone(given):
    ds, name, model, prompts, settings = given
    first = stamped(*given)
    assert first.attrs["measurement"] == "f"
    assert first.attrs["prompts"] == prompts.hash
    assert json.loads(first.attrs["parameters"]) == settings
    assert stamped(*given).attrs["fingerprint"] == first.attrs["fingerprint"]
    others = [
        stamped(values(1.5), name, model, prompts, settings),
        stamped(ds, "g", model, prompts, settings),
        stamped(ds, name, tiny("gpt2"), prompts, settings),
        stamped(ds, name, model, some_prompts((4, 5), seed=1), settings),
        stamped(ds, name, model, prompts, {"k": 4}),
        stamped(ds, name, model, prompts, settings, seed=1),
        stamped(ds, name, model, prompts, settings, of=[values()]),
        stamped(ds, name, model, prompts, settings, of=[values(3.0)]),
    ]
    marks = {first.attrs["fingerprint"], *(d.attrs["fingerprint"] for d in others)}
    assert len(marks) == 1 + len(others)


def test_what_is_made_of_results_belongs_to_them(given):
    one, two = (stamped(values(x), *given[1:]) for x in (1.0, 3.0))
    made = derived(values(), "mean", [one, two], {"dim": "prompt"})
    assert made.attrs["model"] == one.attrs["model"]
    assert (made.attrs["measurement"], "measured" in made.attrs) == ("mean", False)
    assert derived(values(), "mean", [one, two], {}, same_kind=True).attrs["measured"] == "f"
    marks = [mark_of("mean", of, {"dim": d}, s) for of in ([one], [two], [one, two]) for d in "ab" for s in (0, 1)]
    assert len(set(marks)) == len(marks)
    later = one.assign_attrs(created="2001-01-01", versions="{}")
    assert mark_of("mean", [later], {}) == mark_of("mean", [one], {})


def test_what_differs_becomes_a_list():
    assert joined([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"c": 2}]) == {"a": 1, "b": '["x", "y"]', "c": 2}


def test_each_fact_of_the_network_changes_the_fingerprint(given):
    """How it was run too: in another precision, by another backend, on another kind of device."""
    ds, name, model, prompts, settings = given
    info = current(model)
    others = {"dtype": "bfloat16", "backend": "nnsight", "device": "cuda:0", "tokenizer": "other"}
    changed = [dataclasses.replace(info, **{k: v}) for k, v in others.items()]
    marks = [stamped(ds, name, i, prompts, settings).attrs["fingerprint"] for i in (info, *changed)]
    assert len(set(marks)) == 1 + len(others)
    same = dataclasses.replace(info, device="cpu:0" if info.device == "cpu" else "cpu")
    assert stamped(ds, name, same, prompts, settings).attrs["fingerprint"] == marks[0]
