"""The difference between two conditions: against a loop, over documents, as often right as it says."""

import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.stats.resample import mean_interval

LENGTHS = [12, 9, 14, 7, 11, 8]


def asked():
    return {"cosine": ti.geometry.CosineSimilarity(), "lens": ti.lens.LogitLens(top=0, tokens=0)}


@pytest.fixture(scope="module")
def run():
    prompts, zero = some_prompts(LENGTHS), ti.edits.zero(ti.Site("mlp_out", 1))
    conditions = {
        "whole": ti.Condition(prompts), "no MLP": ti.Condition(prompts, [zero]),
        "blind: 1": ti.Condition(prompts, [ti.edits.knock_out([1, 2])]),
    }  # fmt: skip
    return ti.measure_conditions(tiny(), conditions, asked(), progress=False)


def pairs(a, b, documents=None):
    coords = {"condition": ["whole", "blind"], "prompt": range(len(a))}
    ds = xr.Dataset({"loss": (("condition", "prompt"), [a, b], {"long_name": "loss", "units": "nat"})}, coords)
    return ds if documents is None else ds.assign_coords(document=("prompt", documents))


def test_contrast_equals_a_loop(run):
    ds = run["lens"].to_dataset()
    found = ti.contrast(ds, "blind: 1", minus="whole", n_boot=200, seed=3)
    ti.check(found)
    for layer in ds["layer"].values:
        for variant in ds["variant"].values:
            at = {"layer": layer, "variant": variant}
            differences = []
            for p in ds["prompt"].values:
                x = ds["cross_entropy"].sel(prompt=p, **at)
                differences.append(float(x.sel(condition="blind: 1")) - float(x.sel(condition="whole")))
            assert float(found["cross_entropy"].sel(at)) == pytest.approx(np.mean(differences), rel=1e-12, abs=1e-12)
            assert int(found["cross_entropy_count"].sel(at)) == len(LENGTHS)
    assert "change of" in found["cross_entropy"].attrs["long_name"]
    assert "from 'whole' to 'blind: 1'" in found["cross_entropy"].attrs["long_name"]
    other = ti.contrast(ds, "no MLP", minus="whole", n_boot=200, seed=3)
    assert found.attrs["n_groups"] == 6
    assert len({d.attrs["fingerprint"] for d in (ds, found, other)}) == 3
    back = ti.contrast(ds, "whole", minus="blind: 1", n_boot=200, seed=3)
    np.testing.assert_allclose(back["cross_entropy"], -found["cross_entropy"])


def test_whole_documents_are_drawn_and_few_have_no_interval():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(8), 5)
    a, b = rng.normal(size=40), rng.normal(size=40) + np.repeat(rng.normal(size=8), 5)
    found = ti.contrast(pairs(a, b, documents), "blind", minus="whole")
    wanted = mean_interval(b - a, documents, n_boot=2000)
    np.testing.assert_array_equal(found["loss_interval"].values, wanted)
    assert (found.attrs["n_groups"], found.attrs["groups"]) == (8, "documents")
    few = ti.contrast(pairs(a[:10], b[:10], documents[:10]), "blind", minus="whole")
    assert np.isnan(few["loss_interval"].values).all()
    assert few.attrs["n_groups"] == 2
    a[3] = np.nan
    assert int(ti.contrast(pairs(a, b), "blind", minus="whole")["loss_count"]) == 39


def test_intervals_hold_the_difference_as_often_as_they_say():
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        a = rng.normal(size=24) * 5  # the pairs share what varies most
        b = a + 0.5 + rng.normal(size=24)
        low, high = ti.contrast(pairs(a, b), "blind", minus="whole", n_boot=400)["loss_interval"].values
        held += low <= 0.5 <= high
        assert high - low < 2
    assert 178 <= held <= 199


def test_contrast_refuses_what_is_no_pair(run):
    ds = run["cosine"].to_dataset()
    for wrong, message in (
        ({"condition": "blinds", "minus": "whole"}, "condition='blinds': there are 'whole'"),
        ({"condition": "whole", "minus": "nothing"}, "minus='nothing'"),
        ({"condition": "whole", "minus": "whole"}, "less itself"),
        ({"condition": "no MLP", "minus": "whole", "over": "head"}, "over='head'"),
    ):
        with pytest.raises(ValueError, match=message):
            ti.contrast(ds, **wrong)
    with pytest.raises(ValueError, match="no dimension condition"):
        ti.contrast(ds.isel(condition=0, drop=True), "no MLP", "whole")


def test_nulls_have_contrasts_too():
    prompts = some_prompts(LENGTHS)
    found = ti.measure_nulls(tiny(), prompts, asked(), ("none", "shuffle:3"), progress=False)["cosine"].to_dataset()
    change = ti.contrast(found, "shuffle:3", minus="none")
    wanted = (found["cosine"].sel(null="shuffle:3") - found["cosine"].sel(null="none")).mean("prompt")
    np.testing.assert_allclose(change["cosine"].values, wanted.values, rtol=1e-6, atol=1e-9)
