"""Provenance: whatever decides numbers decides the fingerprint, and nothing else does."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.models.steady import current
from tokinterp.results import dataset
from tokinterp.results.contrasts import along, side_by_side
from tokinterp.results.joining import join_runs
from tokinterp.results.stamp import derived, joined, mark_of, stamped
from tokinterp.results.summary import summary


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


def made_by(monkeypatch, commit, make):
    monkeypatch.setattr(dataset, "git_commit", lambda: commit)
    return make()


def test_results_made_of_those_of_another_commit_name_it(given, monkeypatch):
    """What was taken over from an earlier run may not pass for numbers of the present code."""
    one = made_by(monkeypatch, "a" * 40, lambda: stamped(*given))
    two, three = (made_by(monkeypatch, "b" * 40, lambda x=x: stamped(values(x), *given[1:])) for x in (3.0, 4.0))
    assert "source_commits" not in two.attrs
    ways = {
        "derived": lambda x, y: derived(values(), "mean", [x, y], {}),
        "stamped": lambda x, y: stamped(*given, of=[x, y]),
        "along": lambda x, y: along({"x": x, "y": y}, "condition", "which"),
        "apart": lambda x, y: side_by_side({"x": x, "y": y.isel(prompt=[0])})[0],
        "summary": lambda x, y: summary(along({"x": x, "y": y}, "condition", "which")),
    }
    for name, make in ways.items():
        found = made_by(monkeypatch, "b" * 40, lambda make=make: make(one, two))
        assert found.attrs["git_commit"] == "b" * 40, name
        assert json.loads(found.attrs["source_commits"]) == ["a" * 40, "b" * 40], name
        again = made_by(monkeypatch, "c" * 40, lambda make=make, found=found: derived(values(), "again", [found], {}))
        assert dataset.commits(again.attrs) == {"a" * 40, "b" * 40, "c" * 40}, name
        same = made_by(monkeypatch, "b" * 40, lambda make=make: make(two, three))
        assert "source_commits" not in same.attrs, name
    marks = {mark_of("mean", [one.assign_attrs(source_commits=c)], {}) for c in ('["a"]', '["b"]')}
    assert marks == {mark_of("mean", [one], {})}


def test_results_of_other_packages_say_which(monkeypatch):
    one, now = values(), dataset.versions()
    assert "source_versions" not in derived(one, "mean", [one], {}).attrs
    old = one.assign_attrs(versions='{"numpy": "1.0"}')
    found = derived(values(), "mean", [old, one.assign_attrs(versions=now)], {})
    assert sorted(json.loads(found.attrs["source_versions"])) == sorted(['{"numpy": "1.0"}', now])
    assert found.attrs["versions"] == now
    assert found.attrs["fingerprint"] == derived(values(), "mean", [one, one], {}).attrs["fingerprint"]
    again = derived(values(), "mean", [found], {})
    assert '{"numpy": "1.0"}' in json.loads(again.attrs["source_versions"])


def test_runs_of_several_commits_name_them_in_every_group(monkeypatch):
    """Conditions, nulls and joined runs whose parts were measured by other code, as after a crash."""
    model, prompts = tiny(), some_prompts((4, 5, 6, 7))
    asked, numbers = {"x": ti.geometry.Curvature(layers=[0, 1])}, itertools.count()
    monkeypatch.setattr(dataset, "git_commit", lambda: f"{next(numbers):040d}")
    halves = [ti.measure(model, prompts[n], asked, progress=False) for n in ([0, 1], [2, 3])]
    trees = [
        ti.measure_conditions(model, dict.fromkeys("ab", ti.Condition(prompts)), asked, progress=False),
        ti.measure_nulls(model, prompts, asked, ("none", "random_ids"), progress=False),
        join_runs(halves, pooled="drop"),
    ]
    for tree in trees:
        for node in tree.subtree:
            assert len(json.loads(node.attrs["source_commits"])) >= 2, node.path
