"""Correlations of what the prompts give: those of scipy, their intervals and controls."""

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.stats.tests import false_discovery


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
    ce = np.stack([5 + loss[::-1], 5 - loss, loss], 1)[..., None]
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
    found = ti.geometry.dimension_loss_correlation(d, lens, covariates)
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
            half = stats.norm.ppf(0.975) * np.sqrt(1.06 / (ok.sum() - 3))
            wanted = np.tanh(np.arctanh(float(one["spearman"])) + half * np.array([-1, 1]))
            np.testing.assert_allclose(one["spearman_interval"], wanted, rtol=1e-9)
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
    found = ti.geometry.dimension_loss_correlation(d, lens, covariates).isel(layer=0, scale=0)
    assert float(found["pearson"]) > 0.9
    assert abs(float(found["partial"])) < 0.2
    low, high = found["partial_interval"].values
    width = np.arctanh(high) - np.arctanh(low)
    assert width == pytest.approx(2 * 1.959964 / (400 - 3 - 3) ** 0.5)  # one control is constant: three are left


def test_intervals_cover():
    hit = 0
    for seed in range(25):  # with six draws each
        rng = np.random.default_rng(seed)
        d, lens, _ = results(n=40, slope=(0, 0, 0), seed=seed)
        loss = lens["cross_entropy"].values[:, -1, 0]
        loss = (loss - loss.mean()) / loss.std()
        d["dimension"][:] = np.exp(0.75 * rng.standard_normal((40, 3, 2)) + 0.5 * loss[:, None, None])
        true = 0.5 / np.hypot(0.5, 0.75)
        found = ti.geometry.dimension_loss_correlation(d, lens)["pearson_interval"]
        hit += int(((found[..., 0] <= true) & (true <= found[..., 1])).sum())
    assert 0.88 <= hit / 150 <= 1


@pytest.mark.slow
def test_windows_of_one_document_are_not_independent():
    hit = alone = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        d, lens, covariates = results(n=60, slope=(0, 0, 0), seed=seed)
        shared = np.repeat(rng.standard_normal((2, 12)), 5, axis=1)  # 12 documents of five alike windows
        log, loss = shared + 0.1 * rng.standard_normal((2, 60))
        d["dimension"][:] = np.exp(log)[:, None, None]
        lens["cross_entropy"][:] = loss[:, None, None]
        low, high = ti.geometry.dimension_loss_correlation(d, lens)["pearson_interval"].values[0, 0]
        alone += low <= 0 <= high
        document = variable("prompt", np.repeat(np.arange(12), 5), "document", "1")
        found = ti.geometry.dimension_loss_correlation(
            *(x.assign_coords(document=document) for x in (d, lens)), covariates
        )
        low, high = found["pearson_interval"].values[0, 0]
        hit += low <= 0 <= high
        for kind in ("pearson", "spearman", "partial"):
            one = found[kind].values[0, 0], *found[f"{kind}_interval"].values[0, 0], found[f"{kind}_p"].values[0, 0]
            assert one[1] < one[0] < one[2]
            assert (one[3] < 0.05) == (one[1] > 0 or one[2] < 0), "interval and p say the same"
    assert alone < 20 < 26 <= hit
    assert (found["n_groups"] == 12).all()
    assert (found.attrs["n_groups"], found.attrs["groups"]) == (12, "documents")
    assert "over 12 documents" in found["partial_interval"].attrs["long_name"]
    two = variable("prompt", np.repeat([0, 1], 30), "document", "1")
    none = ti.geometry.dimension_loss_correlation(*(x.assign_coords(document=two) for x in (d, lens)))
    assert np.isfinite(none["pearson"]).all()
    assert none["pearson_interval"].isnull().all()
    assert none["pearson_p"].isnull().all()


def test_correlations_that_mean_nothing_are_refused_or_nan():
    d, lens, covariates = results()
    few = ti.geometry.dimension_loss_correlation(d.isel(prompt=slice(7)), lens.isel(prompt=slice(7)), covariates)
    assert few["pearson"].isnull().all()
    assert few["partial_q"].isnull().all()
    with pytest.raises(ValueError, match="no layer 2"):
        ti.geometry.dimension_loss_correlation(d, lens.isel(layer=[0, 1]))
    with pytest.raises(ValueError, match="different prompts"):
        ti.geometry.dimension_loss_correlation(d.isel(prompt=slice(1, None)), lens.isel(prompt=slice(-1)))
    with pytest.raises(ValueError, match="of different prompts"):
        ti.geometry.dimension_loss_correlation(d.assign_attrs(prompts="q"), lens)
    with pytest.raises(ValueError, match="not positive"):
        ti.geometry.dimension_loss_correlation(d.assign(dimension=d["dimension"] * 0), lens)
    constant = d.assign(dimension=xr.ones_like(d["dimension"]) * 3)
    assert ti.geometry.dimension_loss_correlation(constant, lens)["pearson"].isnull().all()


@pytest.mark.slow
def test_of_a_run(bundled):
    texts = [t.text for t in ti.bundled_texts()][:12]
    prompts = ti.Prompts.from_texts(texts, bundled, max_tokens=80)
    asked = {
        "dimension": ti.geometry.IntrinsicDimension((2, 4), k=8), "lens": ti.lens.LogitLens(top=0, tokens=0),
        "logits": ti.geometry.LogitDimension((2, 4)),
    }  # fmt: skip
    run = ti.measure(bundled, prompts, asked, progress=False)
    d, lens, logits = (run[n].to_dataset() for n in asked)
    found = ti.geometry.dimension_loss_correlation(d, lens, ti.geometry.prompt_covariates(prompts))
    assert found["partial"].dims == ("layer", "scale")
    entropy = ti.geometry.dimension_loss_correlation(logits, lens, loss="entropy")
    assert entropy["pearson"].dims == ("scale",)
    assert np.isfinite(entropy["pearson"]).all()


def test_prompt_covariates_by_hand():
    prompts = ti.Prompts.from_ids([[1, 5, 6, 6], [1, 6, 7]], tiny())
    found = ti.geometry.prompt_covariates(prompts)
    assert found["n_tokens"].values.tolist() == [3, 2]
    assert found["n_types"].values.tolist() == [2, 2]
    wanted = -np.mean(np.log([(0 + 1) / (2 + 3), (1 + 1) / (2 + 3), (1 + 1) / (2 + 3)]))  # three types in all
    assert float(found["unigram_surprisal"][0]) == pytest.approx(wanted)
    other = ti.geometry.prompt_covariates(
        ti.Prompts.from_ids([[1, 300, 7, 7], [1, 7, 40]], tiny())
    )  # other names of the types
    np.testing.assert_allclose(other["unigram_surprisal"], found["unigram_surprisal"])


def test_false_discovery_leaves_out_nan():
    np.testing.assert_allclose(false_discovery(np.array([0.01, np.nan, 0.02])), [0.02, np.nan, 0.02])
