"""Intrinsic dimension: theory, the two reference packages, and the measurement over prompts."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_extras
from standin import StandIn
from tiny import tiny

import tokinterp as ti
from tokinterp.geometry.kernels import gride as estimators
from tokinterp.kernels.neighbours import nearest

GOLDEN = ROOT / "tests" / "golden"
SCALES = (2, 4, 8, 16, 32, 64)
_spec = importlib.util.spec_from_file_location("dadapy_gride", GOLDEN / "dadapy_gride.py")
RECIPE = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(RECIPE)
DADAPY = json.loads((GOLDEN / "dadapy_gride.json").read_text())["clouds"]


def near(x, k=64):
    return nearest(torch.as_tensor(np.asarray(x)), k)


def dimension(x, scales=SCALES):
    n = near(x, max(scales))
    return estimators.gride(n.distances, n.valid, scales).dimension[0].numpy()


def gauss(d, n=1024, seed=0, dim=None):
    return np.random.default_rng(seed).standard_normal((n, d)) @ np.eye(d, dim or d)


# -- theory -------------------------------------------------------------------------------------------------------
def test_first_scale_is_the_closed_form():
    n = near(gauss(8, 500))
    ratio = (n.distances[0, :, 1] / n.distances[0, :, 0]).log()
    found = estimators.gride(n.distances, n.valid, (2,))
    assert int(found.n_cut) == 0
    assert float(found.dimension) == pytest.approx(499 / float(ratio.sum()), rel=1e-9)
    assert float(found.error) == pytest.approx(float(found.dimension) / 500**0.5, rel=1e-9)
    assert float(estimators.twonn(n.distances, n.valid, "gride")) == pytest.approx(float(found.dimension), rel=1e-12)


def test_the_score_is_zero_at_the_estimate():
    n = near(gauss(5, 400))
    for n2 in (4, 16, 64):
        d = float(estimators.gride(n.distances, n.valid, (n2,)).dimension)
        log = (n.distances[0, :, n2 - 1] / n.distances[0, :, n2 // 2 - 1]).log().numpy()
        score = 399 / d + (n2 // 2 - 1) * (log / -np.expm1(-d * log)).sum() - (n2 - 1) * log.sum()
        assert abs(score) < 1e-6 * (n2 - 1) * log.sum()


@pytest.mark.parametrize(
    ("true", "expected", "errors"),
    [  # mean of three seeds at N = 1024; standard errors at n2 = 2 and 4
        (2, (1.99, 2.07, 2.03, 2.03, 2.04, 2.07), (0.06, 0.05)),
        (5, (4.92, 5.04, 4.95, 4.96, 4.85, 4.69), (0.15, 0.11)),
        (10, (9.31, 9.18, 9.10, 8.70, 8.42, 7.87), (0.31, 0.21)),
        (20, (16.4, 16.2, 15.4, 14.3, 13.4, 12.3), (0.54, 0.36)),
    ],
)
def test_gaussian_clouds(true, expected, errors):
    found = np.mean([dimension(gauss(true, seed=s)) for s in range(3)], axis=0)
    allowed = np.array([errors[0], *([errors[1]] * 5)])
    assert (np.abs(found - expected) < 3 * allowed).all(), found
    n = near(gauss(true))
    error = estimators.gride(n.distances, n.valid, (2, 4)).error[0].numpy()
    np.testing.assert_allclose(error, errors, rtol=0.12)


def test_rotation_shift_and_scale_leave_it_alone():
    x = gauss(6, 400, dim=30)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))[0]
    np.testing.assert_allclose(dimension(x @ rotation * 40 + 3), dimension(x), rtol=1e-8)


def test_duplicates_equal_the_cloud_without_them():
    """The released libraries give 0.001, 0.376 or 10.45 here."""
    x = gauss(10, 964)
    doubled = np.concatenate([x, np.repeat(x[:20], 3, axis=0)])
    shuffled = doubled[np.random.default_rng(0).permutation(len(doubled))]
    np.testing.assert_allclose(dimension(shuffled), dimension(x), rtol=1e-9)
    a, b = near(shuffled, 20), near(x, 20)
    for method in estimators.TWONN:
        ours, clean = (float(estimators.twonn(n.distances, n.valid, method)) for n in (a, b))
        assert ours == pytest.approx(clean, rel=1e-9)
    assert float(estimators.mle(a.distances, a.valid)) == pytest.approx(float(estimators.mle(b.distances, b.valid)))


def test_too_small_a_cloud_gives_no_number():
    found = dimension(gauss(3, 100))
    assert np.isnan(found).tolist() == [False, False, False, False, True, True]  # four points per rank
    assert np.isnan(dimension(np.ones((80, 3)))).all()


def test_local_dimension_tells_a_line_from_a_ball():
    rng = np.random.default_rng(0)
    line = np.zeros((300, 6))
    line[:, 0] = rng.uniform(0, 1, 300)
    ball = rng.standard_normal((300, 6)) + 100
    n = near(np.concatenate([line, ball]), 20)
    local = estimators.local_dimension(n.distances, 20)[0]
    assert float(local[:300].median()) == pytest.approx(1, abs=0.2)
    assert float(local[300:].median()) == pytest.approx(5.2, abs=0.6)


# -- reference packages -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(DADAPY))
def test_dadapy(name):
    """Golden values of DADApy 0.3.4; the recipe is beside them."""
    n, golden = near(RECIPE.cloud(name)), DADAPY[name]
    found = estimators.gride(n.distances, n.valid, SCALES)
    np.testing.assert_allclose(found.dimension[0], golden["gride"], atol=1e-6)
    np.testing.assert_allclose(found.error[0], golden["error"], rtol=1e-5)
    np.testing.assert_allclose(found.distance[0], golden["distance"], rtol=1e-6)
    assert float(estimators.twonn(n.distances, n.valid, "mle")) == pytest.approx(golden["twonn_ml"], abs=1e-6)
    assert float(estimators.twonn(n.distances, n.valid, "facco")) == pytest.approx(golden["twonn_base"], abs=1e-6)


def agree_with_skdim(x):
    import skdim.id

    n = near(x)
    reference = skdim.id.GRIDE(multiscale=True, range_max=64).fit(x)
    found = estimators.gride(n.distances, n.valid, SCALES)
    np.testing.assert_allclose(found.dimension[0], reference.dimension_scales_, atol=1e-6)
    facco = float(estimators.twonn(n.distances, n.valid, "facco"))
    assert facco == pytest.approx(skdim.id.TwoNN().fit(x).dimension_, abs=1e-6)
    censored = float(estimators.twonn(n.distances, n.valid, "mle_censored"))
    assert censored == pytest.approx(skdim.id.TwoNN(method="mle").fit(x).dimension_, abs=1e-6)
    mle = skdim.id.MLE().fit(x, n_neighbors=20)
    assert float(estimators.mle(n.distances, n.valid, 20)) == pytest.approx(mle.dimension_, abs=1e-6)
    np.testing.assert_allclose(estimators.local_dimension(n.distances, 20)[0], mle.dimension_pw_, rtol=1e-6)


@needs_extras
@pytest.mark.parametrize("d", [3, 12])
def test_scikit_dimension_on_clean_clouds(d):
    agree_with_skdim(gauss(d, 400, seed=d, dim=24))


@needs_extras
def test_scikit_dimension_on_real_token_clouds(bundled):
    """Clouds of a trained model; every token once, so that no duplicate is left to the packages."""
    text = " ".join(t.text for t in ti.bundled_texts("story"))
    prompts = ti.Prompts.from_texts([text], bundled, max_tokens=400)
    layers = [1, bundled.info.n_layers]
    batch = ti.capture(bundled, prompts, [0], ti.resid(layers))
    for layer in layers:
        x = batch.rows(layer)[1:].double().numpy()
        agree_with_skdim(x[np.sort(np.unique(x, axis=0, return_index=True)[1])])


# -- the measurement ----------------------------------------------------------------------------------------------
def measured(model, batches=None, **settings):
    return model.measured(ti.geometry.IntrinsicDimension(**{"scales": (2, 4), "k": 5, **settings}), batches).result()


def test_one_cloud_per_prompt_and_layer_whatever_the_batches():
    model = StandIn((40, 33, 52, 26))
    one, other = measured(model), measured(model, [[2, 0], [3], [1]])
    for name in one.data_vars:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-12, err_msg=str(name))
    for prompt, layer in ((0, 0), (2, 3)):
        x = model.streams[prompt][layer][1:].astype(np.float32)  # without the special token
        n = near(x, 5)
        found = estimators.gride(n.distances, n.valid, (2, 4))
        np.testing.assert_allclose(one["dimension"].sel(prompt=prompt, layer=layer), found.dimension[0], rtol=1e-12)
        np.testing.assert_allclose(one["dimension_error"].sel(prompt=prompt, layer=layer), found.error[0], rtol=1e-12)
        local = one["local_dimension"].isel(token=one["token_prompt"] == prompt).sel(layer=layer)
        assert np.isnan(local[0])
        np.testing.assert_allclose(local[1:], estimators.local_dimension(n.distances, 5)[0], rtol=1e-6)


def test_repeated_tokens_are_counted_and_share_their_value():
    ids = [[1, *range(5, 45), *range(5, 20)]]
    prompts = ti.Prompts.from_ids(ids, tiny("llama"))
    run = ti.measure(
        tiny("llama"), prompts, {"d": ti.geometry.IntrinsicDimension((2, 4), k=5, layers=[0, 2])}, progress=False
    )
    ds = run["d"].to_dataset()
    assert ds["n_removed"].sel(prompt=0).values.tolist() == [15, 0]  # rotary positions: layer 0 knows the token only
    local = ds["local_dimension"].sel(layer=0).values
    np.testing.assert_array_equal(local[1:16], local[41:56])
    ti.check(run)


def test_a_layer_of_equal_states_gives_nan_and_a_reason():
    model = StandIn((40, 40))
    model.streams[1][2][:] = 1.5
    ds = measured(model)
    assert np.isnan(ds["dimension"].sel(prompt=1, layer=2)).all()
    assert np.isnan(ds["dimension_mle"].sel(prompt=1, layer=2))
    assert int(ds["refused"].sel(prompt=1, layer=2)) == 1
    assert int(ds["n_unique"].sel(prompt=1, layer=2)) == 1
    assert not ds["refused"].sel(prompt=0).any()


def test_exclusions_and_kept_tokens():
    model = StandIn((40, 33, 52))
    model.streams[2][1][7] *= 1000
    every = measured(model, exclude=(), tokens=None)
    regular = measured(model, exclude=("special", "massive"), tokens=2)
    assert every["n_points"].sel(prompt=2).values.tolist() == [52] * 4
    assert regular["n_points"].sel(prompt=2).values.tolist() == [51, 50, 51, 51]
    assert sorted(set(every["token_prompt"].values)) == [0, 1, 2]
    assert sorted(set(regular["token_prompt"].values)) == [0, 1]
    assert "local_dimension" not in measured(model, tokens=0)
    x = np.delete(model.streams[2][1], [0, 7], axis=0).astype(np.float32)
    n = near(x, 5)
    wanted = float(estimators.mle(n.distances, n.valid, 5))
    assert float(regular["dimension_mle"].sel(prompt=2, layer=1)) == pytest.approx(wanted, rel=1e-12)


def test_short_prompts_are_refused_before_the_run():
    prompts = ti.Prompts.from_ids([list(range(3, 60)), list(range(3, 20))], tiny("llama"))
    with pytest.raises(ValueError, match=r"1 of 2 prompts have fewer than 32 tokens .*min_tokens=32.*small='nan'"):
        ti.measure(tiny("llama"), prompts, {"d": ti.geometry.IntrinsicDimension((2, 8), k=5)})
    ds = ti.measure(
        tiny("llama"), prompts, {"d": ti.geometry.IntrinsicDimension((2, 8), k=5, small="nan")}, progress=False
    )["d"]
    assert ds["dimension"].isel(layer=1).isnull().values.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": (3,)}, r"scales=\(3,\)"), ({"scales": ()}, "scales="), ({"k": 1}, "k=1"), ({"twonn": "x"}, "'x'"),
        ({"average": "median"}, "median"), ({"exclude": ("bos",)}, "bos"), ({"small": "drop"}, "drop"),
    ],
)  # fmt: skip
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ti.geometry.IntrinsicDimension(**settings)


def test_each_estimate_needs_four_distinct_points_for_its_own_ranks():
    """Scales by the scale, maximum likelihood and local dimensions by k."""
    model = StandIn((25, 60))
    few = measured(model, scales=(2,), k=8, small="nan")  # 24 points: enough for scale 2, not for 8 neighbours
    assert np.isfinite(few["dimension"]).all()
    assert few["dimension_mle"].isnull().all("layer").values.tolist() == [True, False]
    assert few["refused"].values.tolist() == [[1] * 4, [0] * 4]
    local = few["local_dimension"].isel(token=few["token_prompt"] == 0)
    assert local.isnull().all()
    wide = measured(model, scales=(2, 8), k=4, small="nan")  # enough for 4 neighbours, not for scale 8
    assert wide["dimension"].isnull().all("layer").values.tolist() == [[False, True], [False, False]]
    assert np.isfinite(wide["dimension_mle"]).all()
    local = wide["local_dimension"].isel(token=wide["token_prompt"] == 0)
    assert np.isfinite(local[1:]).all()  # all but the special token


def test_settings_reach_the_estimates():
    model = StandIn((60,))
    n = near(model.streams[0][2][1:].astype(np.float32), 5)
    for settings in ({}, {"average": "arithmetic"}):
        wanted = float(estimators.mle(n.distances, n.valid, 5, **settings))
        found = measured(model, **settings).isel(layer=2)
        assert float(found["dimension_mle"][0]) == pytest.approx(wanted, rel=1e-9)
        local = estimators.local_dimension(n.distances, 5, unbiased=False)[0]
        np.testing.assert_allclose(found["local_dimension"][1:], local, rtol=1e-5)
