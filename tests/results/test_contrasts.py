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


def apart(sides):
    """Conditions whose prompts are others, as `measure_conditions` keeps them."""
    sets = {}
    for name, (values, items, documents) in sides.items():
        ds = xr.Dataset({"loss": ("prompt", values, {"long_name": "loss", "units": "nat"})})
        sets[f"/{name}"] = ds.assign_coords(item=("prompt", items), document=("prompt", documents))
    return xr.DataTree.from_dict({"/": xr.Dataset(), **sets})


def test_a_planted_effect_is_found_between_items_in_any_order():
    rng, held = np.random.default_rng(2), 0
    for _ in range(60):
        base = rng.normal(size=30) * 5  # the items differ much more than the conditions
        order = rng.permutation(30)
        twice = np.append(order, order[:6])  # prompts of one item count once, as their mean
        b = base[twice] + 0.5 + rng.normal(size=36) * 0.3
        tree = apart({"whole": (base, np.arange(30), np.arange(30)), "blind": (b, twice, 100 + twice)})
        found = ti.contrast(tree, "blind", minus="whole", n_boot=300)
        wanted = np.mean([b[twice == i].mean() - base[i] for i in range(30)])
        assert float(found["loss"]) == pytest.approx(wanted)
        low, high = found["loss_interval"].values
        held += low <= 0.5 <= high
        assert high - low < 1
        assert found["loss_count"].item() == 30
    assert 52 <= held <= 60


def test_items_of_one_document_are_drawn_together():
    rng = np.random.default_rng(3)
    documents = np.repeat(np.arange(8), 5)
    a = rng.normal(size=40)
    b = a + np.repeat(rng.normal(size=8), 5)
    order = rng.permutation(40)
    tree = apart({"whole": (a, np.arange(40), documents), "blind": (b[order], order, documents[order])})
    found = ti.contrast(tree, "blind", minus="whole")
    np.testing.assert_allclose(found["loss_interval"].values, mean_interval(b - a, documents, n_boot=2000))
    assert (found.attrs["n_groups"], found.attrs["groups"]) == (8, "documents")
    by = ti.contrast(tree, "blind", minus="whole", by="document")
    assert float(by["loss"]) == pytest.approx((b - a).mean())
    assert by["loss_count"].item() == 8
    strangers = apart({"whole": (a, np.arange(40), documents), "blind": (b, 50 + order, documents)})
    with pytest.raises(ValueError, match=r"by='item': nothing makes pairs: no item of 'blind' is one of 'whole'"):
        ti.contrast(strangers, "blind", "whole")
    with pytest.raises(ValueError, match=r"by='topic': under 'blind' there is no such coordinate .*item"):
        ti.contrast(tree, "blind", "whole", by="topic")


def test_nulls_have_contrasts_too():
    prompts = some_prompts(LENGTHS)
    found = ti.measure_nulls(tiny(), prompts, asked(), ("none", "shuffle:3"), progress=False)["cosine"].to_dataset()
    change = ti.contrast(found, "shuffle:3", minus="none")
    wanted = (found["cosine"].sel(null="shuffle:3") - found["cosine"].sel(null="none")).mean("prompt")
    np.testing.assert_allclose(change["cosine"].values, wanted.values, rtol=1e-6, atol=1e-9)


def test_what_is_drawn_does_not_depend_on_which_condition_comes_first():
    """Documents of the other side were forgotten: 40 items of 8 documents would have been drawn one by one."""
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(8), 5)
    a = rng.normal(size=40)
    b = a + np.repeat(rng.normal(size=8), 5)
    tree = apart({"whole": (a, np.arange(40), documents), "blind": (b, np.arange(40), np.arange(40))})
    one, other = ti.contrast(tree, "blind", minus="whole"), ti.contrast(tree, "whole", minus="blind")
    np.testing.assert_allclose(one["loss_interval"].values, mean_interval(b - a, documents, n_boot=2000))
    assert [x.attrs["n_groups"] for x in (one, other)] == [8, 8]
    crossed = apart({"whole": (a, np.arange(40), documents), "blind": (b, np.arange(40), np.roll(documents, 2) // 2)})
    assert ti.contrast(crossed, "blind", minus="whole").attrs["n_groups"] == 1
