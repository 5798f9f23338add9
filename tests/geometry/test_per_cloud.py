"""Estimators of others on captured clouds: what they get, what they answer, and what becomes of their failures."""

import numpy as np
import pytest
from contract import assert_contract
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti


# -- PerCloud -----------------------------------------------------------------------------------------------------
def test_scikit_dimension_gets_the_cloud_and_agrees_with_ours(bundled, extras):
    import skdim

    texts = [t.text for t in ti.bundled_texts() if len(t.text) > 1200][:2]
    prompts = ti.Prompts.from_texts(texts, bundled, max_tokens=200)
    layers = [1, bundled.info.n_layers]
    asked = {
        "ours": ti.geometry.IntrinsicDimension((2, 4), layers=layers, twonn="facco", small="nan"),
        "twonn": ti.geometry.PerCloud(skdim.id.TwoNN(), layers=layers, name="twonn"),
        "gride": ti.geometry.PerCloud(skdim.id.GRIDE(n1=2, n2=4), layers=layers, name="gride", tokens=1),
        "local": ti.geometry.PerCloud(skdim.id.MLE(neighborhood_based=True), layers=layers, name="mle", tokens=1),
    }
    run = ti.measure(bundled, prompts, asked, progress=False)
    np.testing.assert_allclose(run["gride"]["gride"], run["ours"]["dimension"].sel(scale=4), rtol=1e-6)
    np.testing.assert_allclose(run["twonn"]["twonn"], run["ours"]["dimension_twonn"], rtol=1e-6)
    assert (run["twonn"]["reason"] == "").all()
    local = run["local"]["mle_token"].values
    assert np.isfinite(local[1:]).all()
    assert np.isnan(local[0]).all()  # BOS
    ti.check(run)


def test_copies_get_the_value_of_their_first():
    model = StandIn((30, 20), n_layers=1)
    model.streams[0][1][7] = model.streams[0][1][3]
    seen = []

    def norms(points):
        seen.append(len(points))
        return np.linalg.norm(points, axis=1)

    ds = model.measured(ti.geometry.PerCloud(norms, tokens=None)).result()
    assert sorted(seen) == [19, 19, 28, 29]
    here = ds.isel(token=ds["token_prompt"].values == 0).sel(layer=1)
    x = model.streams[0][1].astype(np.float32)
    wanted = np.linalg.norm(x, axis=1)
    wanted[0] = np.nan
    np.testing.assert_allclose(here["value_token"], wanted, rtol=1e-6)
    kept = np.delete(wanted, [0, 7])
    assert float(ds["value"].sel(prompt=0, layer=1)) == pytest.approx(kept.mean())
    whole = model.measured(ti.geometry.PerCloud(norms, distinct=False)).result()
    assert whole["n_used"].sel(prompt=0).values.tolist() == [29, 29]


def test_failures_leave_nan_and_say_why():
    import warnings

    def fragile(points):
        if len(points) == 19:
            raise RuntimeError("no convergence\nafter 3 steps")
        if len(points) == 24:
            warnings.warn("nearly singular", stacklevel=1)
            return 2.0
        return np.inf if len(points) == 29 else 1.0

    model = StandIn((20, 25, 30, 10, 2), n_layers=1)
    ds = model.measured(ti.geometry.PerCloud(fragile)).result().sel(layer=1)
    assert ds["value"].values.tolist() == pytest.approx([np.nan, 2, np.nan, 1, np.nan], nan_ok=True)
    assert ds["reason"].values.tolist() == [
        "RuntimeError: no convergence after 3 steps", "warning: nearly singular", "the estimator gave inf", "",
        "1 points, least is 2",
    ]  # fmt: skip


@pytest.mark.slow
def test_any_scikit_learn_object_whose_answer_is_named(tmp_path):
    from sklearn.cluster import KMeans
    from sklearn.neighbors import LocalOutlierFactor

    asked = {
        "k": ti.geometry.PerCloud(KMeans(2, n_init=1, random_state=0), read="inertia_", name="inertia", units="1"),
        "o": ti.geometry.PerCloud(LocalOutlierFactor(5), read="negative_outlier_factor_", tokens=1),
        "wrong": ti.geometry.PerCloud(KMeans(2, n_init=1, random_state=0)),
    }
    prompts = some_prompts([20, 15])
    run = ti.measure(tiny(), prompts, asked, store=tmp_path / "a.zarr", progress=False)
    assert np.isfinite(run["k"]["inertia"]).all()
    assert np.isfinite(run["o"]["value_token"].values[1:]).all()
    assert run["wrong"]["value"].isnull().all()
    assert "KMeans has no dimension_ after fit: name its answer with read=" in str(run["wrong"]["reason"].values[0, 0])
    again = ti.measure(tiny(), prompts, asked, store=tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(again["k"]["inertia"], run["k"]["inertia"])
    other = {**asked, "k": ti.geometry.PerCloud(KMeans(3, n_init=1, random_state=0), read="inertia_", name="inertia")}
    with pytest.raises(ValueError, match=r"another run; it differs in: measurements \(k\)"):
        ti.measure(tiny(), prompts, other, store=tmp_path / "a.zarr", progress=False)


@pytest.mark.slow
def test_homology_dimension():
    rng = np.random.default_rng(0)
    for d, slack in ((1, 0.2), (2, 0.3), (4, 0.7)):
        cloud = rng.random((400, d)) @ rng.standard_normal((d, 7))
        assert ti.geometry.homology_dimension(cloud, sizes=8, repeats=3) == pytest.approx(d, abs=slack)
    with pytest.raises(ValueError, match="5 points"):
        ti.geometry.homology_dimension(rng.random((5, 2)))


@pytest.mark.parametrize("method", ["hdbscan", "kmeans"])
def test_clusters_are_counted_layer_by_layer(method):
    from functools import partial

    model = StandIn((61, 81), n_layers=2)
    rng = np.random.default_rng(0)
    planted = {0: 1, 1: 3, 2: 4}
    for n, length in enumerate(model.lengths):
        for layer, k in planted.items():
            centres = 20.0 * np.eye(8)[:k] * (k > 1)
            model.streams[n][layer][1:] = centres[np.arange(length - 1) % k] + rng.standard_normal((length - 1, 8))
    count = partial(ti.geometry.cluster_count, method=method, largest=6)
    ds = model.measured(ti.geometry.PerCloud(count, name="clusters")).result()
    assert ds["clusters"].sel(layer=[1, 2]).values.tolist() == [[3, 4]] * 2
    if method == "kmeans":  # HDBSCAN has no single cluster: it finds none in a ball, or several
        assert (ds["clusters"].sel(layer=0) == 1).all()
    assert (ds["reason"] == "").all()


def test_impossible_clusters():
    x = np.random.default_rng(0).random((5, 2))
    for arguments, message in (
        ({"method": "x"}, "method='x'"), ({}, "5 points: hdbscan needs more than 5"), ({"least": 1}, "least=1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ti.geometry.cluster_count(x, **arguments)


@pytest.mark.slow
def test_contracts():
    assert_contract(lambda: ti.geometry.PerCloud(lambda x: (float(x.std()), x[:, 0]), tokens=2))
    assert_contract(lambda: ti.geometry.LogitDimension((2, 4), small="nan"))
    assert_contract(lambda: ti.geometry.LogitDimension((2,), space="logprob", small="nan", exclude=()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": 3}, "fit"), ({"estimator": StandIn}, r"write StandIn\(\)"),
        ({"estimator": len, "name": "n_points"}, "n_points"),
    ],
)  # fmt: skip
def test_impossible_settings(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ti.geometry.PerCloud(**arguments)


@pytest.mark.parametrize("name", ["n_used", "n_points", "reason", "position", "text", "site"])
def test_a_name_that_the_result_has_already_is_refused(name):
    with pytest.raises(ValueError, match=rf"name='{name}': the result has .* of its own"):
        ti.geometry.PerCloud(len, name=name)


def test_a_missing_library_ends_the_run():
    def estimator(points):
        raise ModuleNotFoundError("no module named skdim")

    with pytest.raises(ModuleNotFoundError, match="skdim"):
        ti.measure(tiny(), some_prompts([9, 8]), {"x": ti.geometry.PerCloud(estimator)}, progress=False)


def test_points_used_are_counted_and_excluded_copies_have_no_value():
    model = StandIn((30,), n_layers=1)
    model.streams[0][1][7] = model.streams[0][1][3]
    model.streams[0][1][9] = model.streams[0][1][0]  # a copy of BOS, which takes no part
    ds = model.measured(ti.geometry.PerCloud(lambda x: np.linalg.norm(x, axis=1), tokens=None)).result().sel(layer=1)
    assert (ds["n_points"].item(), ds["n_used"].item()) == (29, 28)
    value = ds["value_token"].values
    assert np.isnan(value[0])
    assert np.isfinite(value[1:]).all()
    assert value[7] == value[3]
    repeated = model.measured(ti.geometry.PerCloud(lambda x: float(len(x)), distinct=False)).result().sel(layer=1)
    assert repeated["n_used"].item() == repeated["value"].item() == 29


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_homology_dimension_is_that_of_a_loop(alpha):
    """Trees by Prim's rule, over subsamples of half of the points to all; the slope by the normal equations."""
    points = np.random.default_rng(1).random((40, 2))
    random, x, y = np.random.default_rng(3), [], []
    for size in (20, 27, 33, 40):
        total = []
        for _ in range(2 if size < 40 else 1):
            some = points[random.choice(40, size, replace=False)]
            inside, edges = {0}, []
            while len(inside) < size:
                rest = [j for j in range(size) if j not in inside]
                apart = {(i, j): np.linalg.norm(some[i] - some[j]) for i in inside for j in rest}
                best = min(apart, key=lambda pair: apart[pair])
                inside.add(best[1])
                edges.append(apart[best] ** alpha)
            total.append(sum(edges))
        x.append(np.log(size))
        y.append(np.log(np.mean(total)))
    x, y = np.array(x) - np.mean(x), np.array(y)
    slope = (x * y).sum() / (x * x).sum()
    found = ti.geometry.homology_dimension(points, alpha=alpha, sizes=4, repeats=2, seed=3)
    assert found == pytest.approx(alpha / (1 - slope), rel=1e-6)


def test_the_largest_number_of_clusters_can_be_found():
    rng = np.random.default_rng(0)
    points = 20.0 * np.eye(8)[np.arange(60) % 4] + rng.standard_normal((60, 8))
    assert ti.geometry.cluster_count(points, "kmeans", largest=4) == 4
    assert ti.geometry.cluster_count(points, "kmeans", largest=3) < 4


@pytest.mark.parametrize("answer", [{"extent": 1.0}, "large", [1.0, "b"]])
def test_an_estimator_that_returns_no_numbers_ends_the_run(answer):
    with pytest.raises(TypeError, match=r"estimator=.*: it answers with .*: let it return a number"):
        ti.measure(tiny(), some_prompts([9, 8]), {"it": ti.geometry.PerCloud(lambda points: answer)}, progress=False)
