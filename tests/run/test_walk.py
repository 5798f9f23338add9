"""Functions that walk through prompts: rows and sums, stopped at any batch and taken up again."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.results import dataset
from tokinterp.results.dataset import variable
from tokinterp.run.walk import walked

LENGTHS = [5, 12, 1, 7, 12, 3]
PROMPTS = some_prompts(LENGTHS)


def ends(batch):
    last = torch.tensor(batch.lengths) - 1
    return {"end": batch.resid(3)[torch.arange(len(batch)), last], "length": last + 1}


def spread(walker, calls=None, fail_at=None):
    """Deviations of the last states from their mean: two walks."""

    def counted(batch):
        calls is not None and calls.append(batch.numbers)
        if calls is not None and len(calls) == fail_at:
            raise KeyboardInterrupt
        return ends(batch)

    total = walker.sums(PROMPTS, [ti.Site("resid", 3)], lambda b: {"end": counted(b)["end"].double().sum(0)})
    rows = walker.rows(PROMPTS, [ti.Site("resid", 3)], counted)
    far = np.linalg.norm(rows["end"] - total["end"].numpy() / len(PROMPTS), axis=1)
    return xr.Dataset(
        {"far": variable("prompt", far, "distance", "1"), "n": variable("prompt", rows["length"], "tokens", "token")},
        {"prompt": variable("prompt", range(len(PROMPTS)), "prompt", "1")},
    )


def test_rows_come_in_the_order_of_the_prompts_and_sums_are_of_all():
    ds = walked("spread", tiny(), PROMPTS, {}, spread, batch_tokens=20)
    assert ds["n"].values.tolist() == LENGTHS
    alone = [ti.capture(tiny(), PROMPTS, [i], [ti.Site("resid", 3)]).resid(3)[0, -1] for i in range(6)]
    states = torch.stack(alone).double().numpy()
    np.testing.assert_allclose(ds["far"], np.linalg.norm(states - states.mean(0), axis=1), rtol=1e-5)
    assert ds.attrs["measurement"] == "spread"


@pytest.mark.parametrize(("fail_at", "commits"), [(3, 2), (5, 2), (8, 2), (None, 0)])
def test_a_walk_that_other_code_began_names_it(fail_at, commits, tmp_path, monkeypatch):
    """In its first walk or in its second; in memory the present code alone."""
    options = {"batch_tokens": 14, "store": tmp_path / "x.zarr", "checkpoint_every": 0}
    if fail_at:
        monkeypatch.setattr(dataset, "git_commit", lambda: "a" * 40)
        with pytest.raises(KeyboardInterrupt):
            walked("spread", tiny(), PROMPTS, {}, lambda w: spread(w, [], fail_at), **options)
    monkeypatch.setattr(dataset, "git_commit", lambda: "b" * 40)
    found = walked("spread", tiny(), PROMPTS, {}, spread, **options)
    assert found.attrs["git_commit"] == "b" * 40
    assert json.loads(found.attrs.get("source_commits", "[]")) == ["a" * 40, "b" * 40][:commits]


@pytest.mark.parametrize("fail_at", [1, 3, 5, 6, 8])
def test_a_walk_is_taken_up_where_it_was_stopped(fail_at, tmp_path):
    options = {"batch_tokens": 14, "store": tmp_path / "x.zarr", "checkpoint_every": 0}
    whole, first, second = [], [], []
    plain = walked("spread", tiny(), PROMPTS, {}, lambda w: spread(w, whole), batch_tokens=14)
    with pytest.raises(KeyboardInterrupt):
        walked("spread", tiny(), PROMPTS, {}, lambda w: spread(w, first, fail_at), **options)
    again = walked("spread", tiny(), PROMPTS, {}, lambda w: spread(w, second), **options)
    xr.testing.assert_identical(again.drop_attrs(deep=False), plain.drop_attrs(deep=False))
    assert again.attrs["fingerprint"] == plain.attrs["fingerprint"]
    assert first[:-1] + second == whole, "every batch is run once"
    read = walked("spread", tiny(), PROMPTS, {}, lambda w: pytest.fail("it is there"), **options)
    xr.testing.assert_equal(read, plain)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]
    with pytest.raises(ValueError, match="settings"):
        walked("spread", tiny(), PROMPTS, {"k": 2}, spread, **options)


def test_rows_of_prompts_that_are_not_finite_are_missing():
    def fives(ids, mask):
        return (mask.sum(1, keepdim=True) == 5).expand_as(mask)

    edit = ti.edits.replace(ti.Site("resid", 1), torch.full((32,), torch.nan), fives)

    def make(walker):
        rows = walker.rows(PROMPTS, [ti.Site("resid", 3)], ends, [edit])
        assert np.isnan(rows["end"][0]).all()
        assert rows["length"].tolist() == [-1, *LENGTHS[1:]]
        return xr.Dataset(attrs={"groups": "prompts"})

    walked("ends", tiny(), PROMPTS, {}, make)


ITEMS = [ti.behaviour.Item("the river to the", ("north", "in"), 0), ti.behaviour.Item("a", ("b", "c", "d"), 1)]
CALLS = {
    "multiple_choice": lambda **walk: ti.behaviour.multiple_choice(tiny(), ITEMS, score="option", **walk),
    "patchscope": lambda **walk: ti.lexicon.patchscope(tiny(), PROMPTS, "repeat", [0, 2], true=[5] * 6, **walk),
    "continuations": lambda **walk: ti.behaviour.continuations(tiny(), PROMPTS, 2, **walk),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_walk_keep_their_results(name, tmp_path, monkeypatch):
    plain = CALLS[name]()
    kept = CALLS[name](store=tmp_path / "x.zarr", batch_tokens=12, checkpoint_every=0)
    xr.testing.assert_allclose(kept, plain, rtol=1e-4)
    monkeypatch.setattr(type(tiny()), "run", lambda *a, **k: pytest.fail("it is there"))
    xr.testing.assert_equal(CALLS[name](store=tmp_path / "x.zarr"), kept)
