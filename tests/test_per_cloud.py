"""Estimators of others on captured clouds, the dimension of predictions, and correlation with the loss."""

import numpy as np
import pytest
import xarray as xr
from contract import assert_contract
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.correlation import benjamini_hochberg
from tokinterp.dataset import variable
from tokinterp.kernels import gride as estimators
from tokinterp.kernels.neighbours import nearest


# -- PerCloud -----------------------------------------------------------------------------------------------------
def test_scikit_dimension_gets_the_cloud_and_agrees_with_ours(bundled, extras):
    import skdim

    texts = [t.text for t in ti.bundled_texts() if len(t.text) > 1200][:2]
    prompts = ti.Prompts.from_texts(texts, bundled, max_tokens=200)
    layers = [1, bundled.info.n_layers]
    asked = {
        "ours": ti.IntrinsicDimension((2, 4), layers=layers, twonn="facco", small="nan"),
        "twonn": ti.PerCloud(skdim.id.TwoNN(), layers=layers, name="twonn"),
        "gride": ti.PerCloud(skdim.id.GRIDE(n1=2, n2=4), layers=layers, name="gride", tokens=1),
        "local": ti.PerCloud(skdim.id.MLE(neighborhood_based=True), layers=layers, name="mle", tokens=1),
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

    ds = model.measured(ti.PerCloud(norms, tokens=None)).result()
    assert sorted(seen) == [19, 19, 28, 29]
    here = ds.isel(token=ds["token_prompt"].values == 0).sel(layer=1)
    x = model.streams[0][1].astype(np.float32)
    wanted = np.linalg.norm(x, axis=1)
    wanted[0] = np.nan
    np.testing.assert_allclose(here["value_token"], wanted, rtol=1e-6)
    kept = np.delete(wanted, [0, 7])
    assert float(ds["value"].sel(prompt=0, layer=1)) == pytest.approx(kept.mean())
    whole = model.measured(ti.PerCloud(norms, distinct=False)).result()
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

    model = StandIn((20, 25, 30, 10, 5), n_layers=1)
    ds = model.measured(ti.PerCloud(fragile, least=6)).result().sel(layer=1)
    assert ds["value"].values.tolist() == pytest.approx([np.nan, 2, np.nan, 1, np.nan], nan_ok=True)
    assert ds["reason"].values.tolist() == [
        "RuntimeError: no convergence after 3 steps", "warning: nearly singular", "the estimator gave inf", "",
        "4 points, least is 6",
    ]  # fmt: skip


def test_any_scikit_learn_object_whose_answer_is_named(tmp_path):
    from sklearn.cluster import KMeans
    from sklearn.neighbors import LocalOutlierFactor

    asked = {
        "k": ti.PerCloud(KMeans(2, n_init=1, random_state=0), read="inertia_", name="inertia", units="1"),
        "o": ti.PerCloud(LocalOutlierFactor(5), read="negative_outlier_factor_", tokens=1),
        "wrong": ti.PerCloud(KMeans(2, n_init=1, random_state=0)),
    }
    prompts = some_prompts([20, 15])
    run = ti.measure(tiny(), prompts, asked, store=tmp_path / "a.zarr", progress=False)
    assert np.isfinite(run["k"]["inertia"]).all()
    assert np.isfinite(run["o"]["value_token"].values[1:]).all()
    assert run["wrong"]["value"].isnull().all()
    assert "KMeans has no dimension_ after fit: name its answer with read=" in str(run["wrong"]["reason"].values[0, 0])
    again = ti.measure(tiny(), prompts, asked, store=tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(again["k"]["inertia"], run["k"]["inertia"])
    other = {**asked, "k": ti.PerCloud(KMeans(3, n_init=1, random_state=0), read="inertia_", name="inertia")}
    with pytest.raises(ValueError, match=r"another run; it differs in: measurements \(k\)"):
        ti.measure(tiny(), prompts, other, store=tmp_path / "a.zarr", progress=False)


def test_homology_dimension():
    rng = np.random.default_rng(0)
    for d, slack in ((1, 0.2), (2, 0.3), (4, 0.7)):
        cloud = rng.random((400, d)) @ rng.standard_normal((d, 7))
        assert ti.homology_dimension(cloud, sizes=8, repeats=3) == pytest.approx(d, abs=slack)
    with pytest.raises(ValueError, match="5 points"):
        ti.homology_dimension(rng.random((5, 2)))


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
    count = partial(ti.cluster_count, method=method, largest=6)
    ds = model.measured(ti.PerCloud(count, name="clusters")).result()
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
            ti.cluster_count(x, **arguments)


def test_contracts():
    assert_contract(lambda: ti.PerCloud(lambda x: (float(x.std()), x[:, 0]), tokens=2))
    assert_contract(lambda: ti.LogitDimension((2, 4), small="nan"))
    assert_contract(lambda: ti.LogitDimension((2,), space="logprob", small="nan", exclude=()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": 3}, "fit"), ({"estimator": StandIn}, r"write StandIn\(\)"),
        ({"estimator": len, "name": "n_points"}, "n_points"), ({"estimator": len, "least": 0}, "least=0"),
    ],
)  # fmt: skip
def test_impossible_settings(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ti.PerCloud(**arguments)


# -- the dimension of predictions -----------------------------------------------------------------------------------
def test_logit_dimension_is_that_of_the_models_logits():
    model, prompts = tiny(), some_prompts([40, 25])
    for space in ("logits", "logprob"):
        m = ti.LogitDimension((2, 4), space=space)
        ds = ti.measure(model, prompts, {"m": m}, progress=False)["m"].to_dataset()
        for p in range(2):
            logits = model.unembed(ti.capture(model, prompts, [p], ti.resid([3])).rows(3)[1:])
            points = (logits if space == "logits" else logits.log_softmax(-1)).double()
            near = nearest(points, 4)
            wanted = estimators.gride(near.distances, near.valid, (2, 4)).dimension[0]
            np.testing.assert_allclose(ds["dimension"].sel(prompt=p), wanted, rtol=1e-4)


def test_logits_that_do_not_fit_are_refused_before_the_run():
    with pytest.raises(ValueError, match="max_bytes"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.LogitDimension((2,), max_bytes=1000)})
    with pytest.raises(ValueError, match="scale 64 needs"):
        ti.measure(tiny(), some_prompts([40]), {"m": ti.LogitDimension()})


# -- correlation with the loss --------------------------------------------------------------------------------------
def results(n=60, layers=3, seed=0, slope=(0.0, 0.6, 2.0)):
    """A dimension whose logarithm follows the loss more and more, a loss, and covariates."""
    rng = np.random.default_rng(seed)
    length = rng.integers(400, 600, n)
    loss = rng.normal(3, 0.5, n) + 0.004 * length
    log = rng.standard_normal((n, layers, 2)) + np.asarray(slope)[:, None] * loss[:, None, None]
    attrs = {
        **dict.fromkeys(("Conventions", "created", "versions", "model", "revision", "weights", "backend", "dtype",
                         "device", "tokenizer", "parameters", "fingerprint"), "x"),
        "Conventions": "tokinterp-1", "prompts": "p", "n_layers": layers - 1,
    }  # fmt: skip
    number = variable("prompt", np.arange(n), "prompt", "1")
    depth = {"layer": variable("layer", np.arange(layers), "layer", "1"), "prompt": number}
    scale = {"scale": variable("scale", np.array([2, 4]), "scale", "1")}
    d = xr.Dataset(
        {"dimension": variable(("prompt", "layer", "scale"), np.exp(log), "d", "1")}, {**depth, **scale}, attrs
    )
    ce = np.stack([loss + 5, loss + 1, loss], 1)[..., None]
    lens = xr.Dataset({"cross_entropy": variable(("prompt", "layer", "variant"), ce, "loss", "nat")}, depth, attrs)
    more = {
        "n_tokens": length, "n_types": length // 2, "type_token_ratio": np.full(n, 0.5),
        "unigram_surprisal": rng.normal(6, 1, n),
    }  # fmt: skip
    covariates = xr.Dataset(
        {k: variable("prompt", v, k, "1") for k, v in more.items()}, {"prompt": number}, {"prompts": "p"}
    )
    return d, lens, covariates


def test_correlations_are_those_of_scipy():
    from scipy import stats

    d, lens, covariates = results()
    d["dimension"][4, 1, 0] = np.nan
    found = ti.dimension_loss_correlation(d, lens, covariates)
    loss = lens["cross_entropy"].values[:, -1, 0]
    for layer in range(3):
        for scale in range(2):
            x = np.log(d["dimension"].values[:, layer, scale])
            ok = np.isfinite(x)
            one = found.isel(layer=layer, scale=scale)
            assert int(one["n"]) == ok.sum()
            r = stats.pearsonr(x[ok], loss[ok])
            assert float(one["pearson"]) == pytest.approx(r.statistic, rel=1e-9)
            np.testing.assert_allclose(one["pearson_interval"], r.confidence_interval(0.95), rtol=1e-9)
            assert float(one["pearson_p"]) == pytest.approx(r.pvalue, abs=0.01)
            assert float(one["spearman"]) == pytest.approx(stats.spearmanr(x[ok], loss[ok]).statistic, rel=1e-9)
            fixed = np.stack([covariates[k].values for k in covariates.data_vars], 1).astype(float)[ok]
            design = np.c_[np.ones(ok.sum()), fixed]
            rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x[ok], loss[ok])]
            assert float(one["partial"]) == pytest.approx(stats.pearsonr(*rest).statistic, rel=1e-6)
    q = np.stack([stats.false_discovery_control(found["pearson_p"].values[:, s]) for s in range(2)], 1)
    np.testing.assert_allclose(found["pearson_q"], q, rtol=1e-9)
    assert found.attrs["measurement"] == "DimensionLossCorrelation"


def test_a_control_that_explains_all_leaves_nothing():
    d, lens, covariates = results(n=400, slope=(0, 0, 0))
    length = covariates["n_tokens"].values - 500
    rng = np.random.default_rng(5)
    lens["cross_entropy"][:] = (3 + 0.02 * length + 0.1 * rng.standard_normal(400))[:, None, None]
    d["dimension"][:] = np.exp(0.02 * length + 0.1 * rng.standard_normal(400))[:, None, None]
    found = ti.dimension_loss_correlation(d, lens, covariates).isel(layer=0, scale=0)
    assert float(found["pearson"]) > 0.9
    assert abs(float(found["partial"])) < 0.2
    low, high = found["partial_interval"].values
    width = np.arctanh(high) - np.arctanh(low)
    assert width == pytest.approx(2 * 1.959964 / (400 - 3 - 3) ** 0.5)  # one control is constant: three are left


def test_intervals_cover():
    hit = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        d, lens, _ = results(n=40, slope=(0, 0, 0), seed=seed)
        loss = lens["cross_entropy"].values[:, -1, 0]
        loss = (loss - loss.mean()) / loss.std()
        d["dimension"][:] = np.exp(0.75 * rng.standard_normal(40) + 0.5 * loss)[:, None, None]
        true = 0.5 / np.hypot(0.5, 0.75)
        low, high = ti.dimension_loss_correlation(d, lens)["pearson_interval"].values[0, 0]
        hit += low <= true <= high
    assert 0.88 <= hit / 150 <= 1


def test_correlations_that_mean_nothing_are_refused_or_nan():
    d, lens, covariates = results()
    few = ti.dimension_loss_correlation(d.isel(prompt=slice(7)), lens.isel(prompt=slice(7)), covariates)
    assert few["pearson"].isnull().all()
    assert few["partial_q"].isnull().all()
    with pytest.raises(ValueError, match="no layer 2"):
        ti.dimension_loss_correlation(d, lens.isel(layer=[0, 1]))
    with pytest.raises(ValueError, match="different prompts"):
        ti.dimension_loss_correlation(d.isel(prompt=slice(1, None)), lens.isel(prompt=slice(-1)))
    with pytest.raises(ValueError, match="of different prompts"):
        ti.dimension_loss_correlation(d.assign_attrs(prompts="q"), lens)
    with pytest.raises(ValueError, match="not positive"):
        ti.dimension_loss_correlation(d.assign(dimension=d["dimension"] * 0), lens)
    constant = d.assign(dimension=xr.ones_like(d["dimension"]) * 3)
    assert ti.dimension_loss_correlation(constant, lens)["pearson"].isnull().all()


def test_of_a_run(bundled):
    texts = [t.text for t in ti.bundled_texts()][:12]
    prompts = ti.Prompts.from_texts(texts, bundled, max_tokens=80)
    asked = {
        "dimension": ti.IntrinsicDimension((2, 4), k=8), "lens": ti.LogitLens(top=0, tokens=0),
        "logits": ti.LogitDimension((2, 4)),
    }  # fmt: skip
    run = ti.measure(bundled, prompts, asked, progress=False)
    d, lens, logits = (run[n].to_dataset() for n in asked)
    found = ti.dimension_loss_correlation(d, lens, ti.prompt_covariates(prompts))
    assert found["partial"].dims == ("layer", "scale")
    entropy = ti.dimension_loss_correlation(logits, lens, loss="entropy")
    assert entropy["pearson"].dims == ("scale",)
    assert np.isfinite(entropy["pearson"]).all()


def test_prompt_covariates_by_hand():
    prompts = ti.Prompts.from_ids([[1, 5, 6, 6], [1, 6, 7]], tiny())
    found = ti.prompt_covariates(prompts)
    assert found["n_tokens"].values.tolist() == [3, 2]
    assert found["n_types"].values.tolist() == [2, 2]
    wanted = -np.mean(np.log([(0 + 1) / (2 + 3), (1 + 1) / (2 + 3), (1 + 1) / (2 + 3)]))  # three types in all
    assert float(found["unigram_surprisal"][0]) == pytest.approx(wanted)
    other = ti.prompt_covariates(ti.Prompts.from_ids([[1, 300, 7, 7], [1, 7, 40]], tiny()))  # other names of the types
    np.testing.assert_allclose(other["unigram_surprisal"], found["unigram_surprisal"])


def test_benjamini_hochberg_leaves_out_nan():
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, np.nan, 0.02])), [0.02, np.nan, 0.02])


@pytest.mark.parametrize("name", ["n_used", "n_points", "reason", "position", "text", "site"])
def test_a_name_that_the_result_has_already_is_refused(name):
    with pytest.raises(ValueError, match=rf"name='{name}': the result has .* of its own"):
        ti.PerCloud(len, name=name)


def test_a_missing_library_ends_the_run():
    def estimator(points):
        raise ModuleNotFoundError("no module named skdim")

    with pytest.raises(ModuleNotFoundError, match="skdim"):
        ti.measure(tiny(), some_prompts([9, 8]), {"x": ti.PerCloud(estimator)}, progress=False)
