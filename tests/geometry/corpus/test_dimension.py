"""Dimensions of the cloud of a corpus: planted ones are found, one prompt is as by itself, intervals are by prompt."""

import numpy as np
import pytest
from planted_clouds import MODEL, corpus, flat, planted, search

import tokinterp as ti
from tokinterp.stats.jackknife import jackknife_interval, left_out

DIMENSION = ti.geometry.corpus_dimension


@pytest.mark.slow
def test_one_prompt_has_the_numbers_of_the_prompt(bundled):
    prompts = ti.Prompts.from_texts([ti.bundled_texts("article")[0].text], bundled, max_tokens=110)[[0]]
    layers = [0, 3]
    own = ti.geometry.IntrinsicDimension((2, 4, 8), layers=layers, k=10, twonn="facco")
    want = ti.measure(bundled, prompts, {"d": own}, progress=False)["d"].to_dataset().isel(prompt=0)
    cloud = ti.geometry.corpus_cloud(bundled, prompts, layers, progress=False)
    found = DIMENSION(search(cloud, 16), (2, 4, 8), k=10, twonn="facco")
    for name in ("dimension", "dimension_error", "distance", "n_tied", "n_cut", "dimension_mle", "dimension_twonn"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(found["local_dimension"], want["local_dimension"][-found.sizes["token"] :], rtol=1e-5)
    assert found["dimension_interval"].isnull().all()
    assert found.attrs["n_groups"] == 1


@pytest.mark.slow
def test_planted_dimensions_are_found_at_every_scale_and_around_tokens():
    x = np.stack([flat(1600, 2, 16, curved=True), flat(1600, 5, 16)], 1)
    cloud = planted(x, corpus(40, 40))
    near = search(cloud, 64, n_tokens=500)
    ds = DIMENSION(near, (2, 4, 8), k=20, cloud=cloud, local=64)
    for name in ("dimension", "dimension_mle", "dimension_twonn", "local_twonn_mean"):
        low, high = ds[name].values
        assert abs(np.asarray(low) - 2).max() < 0.35, name
        assert abs(np.asarray(high) - 5).max() < 1, name
    np.testing.assert_allclose(ds["local_twonn"].mean("token"), ds["local_twonn_mean"], rtol=1e-12)
    assert (ds["dimension_interval"].diff("bound") > 0).all()


def test_a_layer_has_the_same_numbers_whichever_others_there_are():
    """At the first each state is there several times, and counts once; at the second all are different."""
    states = np.stack([np.repeat(flat(100, 3, 8), [1, 2, 3, 2] * 25, 0), flat(200, 3, 8, seed=1)], 1)
    cloud = planted(states, corpus(20, 10))
    both, one = (DIMENSION(search(c, 16), (2, 4), k=10, cloud=c, local=16) for c in (cloud, cloud.isel(layer=[0])))
    for name in ("dimension", "dimension_mle", "local_twonn_mean", "local_twonn_mean_interval"):
        np.testing.assert_allclose(both[name].isel(layer=0), one[name].squeeze("layer"), rtol=1e-12, err_msg=name)
    first = search(cloud, 16)["distinct"].values[:, 0]
    np.testing.assert_allclose(both["local_twonn_mean"][0], both["local_twonn"].values[first, 0].mean(), rtol=1e-12)


def test_repeated_prompts_change_nothing():
    """With their copies the distances would be rounding, and the dimension that of nothing."""
    ids = [p.tolist() for p in np.random.default_rng(0).integers(5, 60, (12, 20))]
    readings = [ti.Prompts.from_ids(i, MODEL) for i in (ids, ids + ids[::2])]
    once, twice = (ti.geometry.corpus_cloud(MODEL, r, [1], progress=False) for r in readings)
    assert twice.attrs["n_same_beginning"] == once.attrs["n_same_beginning"] + 120
    one, two = (DIMENSION(search(c, 8), (2, 4, 8), k=8) for c in (once, twice))
    np.testing.assert_allclose(one["dimension"], two["dimension"], rtol=1e-6)


def test_what_stands_near_in_the_text_makes_a_line_unless_kept_apart():
    """Prompts are smooth paths through a cloud of dimension 6: neighbours in time lie on a line."""
    random = np.random.default_rng(0)
    turns = random.normal(size=(40, 3, 6, 2))
    time = np.sort(random.uniform(0, 3, (40, 60)), 1)[:, :, None, None]
    speed = np.arange(1, 4)[None, None, :, None]
    waves = turns[:, None, :, :, 0] * np.sin(time * speed) + turns[:, None, :, :, 1] * np.cos(time * speed)
    cloud = planted(waves.sum(2).reshape(2400, 1, 6), corpus(40, 60))
    path = DIMENSION(search(cloud, 8, n_tokens=600), (2,), k=8)
    free = DIMENSION(search(cloud, 8, n_tokens=600, window=20), (2,), k=8)
    assert float(path["dimension"].squeeze()) < 1.5
    assert float(free["dimension"].squeeze()) > 4
    assert free.attrs["window"] == 20


def test_intervals_are_those_of_the_jackknife_over_prompts():
    cloud = planted(flat(300, 3, 8).reshape(300, 1, 8), corpus(30, 10))
    near = search(cloud, 16, n_tokens=150)
    ds = DIMENSION(near, (2, 4), k=10, groups=10, level=0.9, seed=2)
    known = np.unique(near["prompt"])
    out = left_out(len(known), 10, 2)
    parts = [DIMENSION(near.isel(token=~np.isin(near["prompt"], known[some])), (2, 4), k=10, groups=0) for some in out]
    for name in ("dimension", "dimension_mle", "dimension_twonn"):
        want = jackknife_interval(
            ds[name].values, np.stack([p[name].values for p in parts]), out.shape[1], len(known), 0.9
        )
        np.testing.assert_allclose(ds[f"{name}_interval"], want, rtol=1e-9)
    assert ds.attrs["groups"] == "prompts"
    assert "bound" not in DIMENSION(near, (2, 4), k=10, groups=0).dims


def test_a_state_that_others_have_is_not_left_out_with_its_first_token():
    """Each state is in every prompt: whoever is left out, the dimension stays, and the interval has no width."""
    cloud = planted(np.tile(flat(50, 3, 8), (6, 1)).reshape(300, 1, 8), corpus(6, 50))
    ds = DIMENSION(search(cloud, 16), (2, 4), k=10)
    assert ds.attrs["n_groups"] == 6
    for name in ("dimension", "dimension_mle", "dimension_twonn"):
        np.testing.assert_allclose(ds[f"{name}_interval"][0], ds[name], rtol=1e-12)
        np.testing.assert_allclose(ds[f"{name}_interval"][1], ds[name], rtol=1e-12)


def test_windows_of_one_document_are_left_out_together():
    cloud = planted(flat(300, 3, 8).reshape(300, 1, 8), corpus(30, 10))
    by_prompt = DIMENSION(search(cloud, 16), (2,), k=10)
    windows = cloud.assign_coords(token_document=("token", cloud["prompt"].values // 3, cloud["prompt"].attrs))
    ds = DIMENSION(search(windows, 16), (2,), k=10)
    assert (ds.attrs["groups"], ds.attrs["n_groups"]) == ("documents", 10)
    joined = search(cloud.assign_coords(prompt=("token", cloud["prompt"].values // 3, cloud["prompt"].attrs)), 16)
    np.testing.assert_allclose(ds["dimension_interval"], DIMENSION(joined, (2,), k=10)["dimension_interval"])
    assert not np.allclose(ds["dimension_interval"], by_prompt["dimension_interval"])


def test_what_is_not_there_is_refused():
    cloud = planted(flat(60, 3, 8).reshape(60, 1, 8), corpus(6, 10))
    near = search(cloud, 8)
    for wrong, says in (
        ({"scales": (2, 16)}, r"scales=16: near has 8 neighbours of each token: search more"),
        ({"k": 9, "scales": (2,)}, "k=9"),
        ({"cloud": cloud, "local": 9, "scales": (2,), "k": 8}, "local=9"),
        ({"cloud": cloud[{"token": slice(1, None)}], "local": 8, "scales": (2,), "k": 8}, "in another cloud"),
    ):
        with pytest.raises(ValueError, match=says):
            DIMENSION(near, **wrong)
    with pytest.raises(ValueError, match=r"near: it has no neighbours: make it with corpus_neighbours\(\)"):
        DIMENSION(cloud)
