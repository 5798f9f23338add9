"""Bootstrap intervals cover what they say, of means, ratios and differences, and know when they cannot be had."""

import re

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT
from scipy import stats

import tokinterp as ti
from tokinterp.results.documents import groups_of, with_documents
from tokinterp.stats import resample as r
from tokinterp.stats.jackknife import jackknife_interval, left_out
from tokinterp.stats.simultaneous import simultaneous_interval

SHAPES = {
    "normal": (lambda rng, size: rng.standard_normal(size), 0.0, 0.92),
    "lognormal": (lambda rng, size: rng.lognormal(0, 0.5, size), float(np.exp(1 / 8)), 0.88),
}


def covered(bounds, truth):
    return float(((bounds[0] <= truth) & (truth <= bounds[1])).mean())


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_means_are_covered(n, shape):
    draw, truth, least = SHAPES[shape]
    bounds = r.mean_interval(draw(np.random.default_rng(n), (n, 1500)), n_boot=500)
    assert least < covered(bounds, truth) < 0.97


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_ratios_of_unequal_groups_are_covered(n, shape):
    draw, truth, least = SHAPES[shape]
    rng = np.random.default_rng(n)
    size = rng.integers(20, 40, (n, 1500)).astype(float)
    bounds = r.ratio_interval(size * draw(rng, size.shape), size, n_boot=500)
    assert least < covered(bounds, truth) < 0.97


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_differences_of_pairs_are_covered(n, shape):
    draw, _, least = SHAPES[shape]
    rng = np.random.default_rng(n)
    item = 5 * rng.standard_normal((n, 1500))  # what both of a pair share must not count
    one, two = item + draw(rng, item.shape), item + 1 + draw(rng, item.shape)
    bounds = r.mean_interval(two - one, n_boot=500)
    assert least < covered(bounds, 1.0) < 0.97
    assert (bounds[1] - bounds[0]).mean() < 8 / n**0.5


def test_many_groups_are_put_together_and_covered(monkeypatch):
    monkeypatch.setattr(r, "MOST_GROUPS", 400)
    rng = np.random.default_rng(1)
    size = rng.integers(20, 40, (4300, 60)).astype(float)  # 10 or 11 groups in each of 400
    size[:4000] = np.where(rng.random((4000, 60)) < 0.3, 0, size[:4000])  # some have no part
    rising = np.linspace(0, 20, 4300)[:, None]  # neighbours are alike: chance alone may put groups together
    values = rising + rng.standard_normal(size.shape)
    truth = (rising * size).sum(0) / size.sum(0)
    bounds = r.ratio_interval(size * values, size, n_boot=500)
    mean = (size * values).sum(0) / size.sum(0)
    assert ((bounds[0] < mean) & (mean < bounds[1])).all()
    assert ((bounds[0] < truth) & (truth < bounds[1])).all()
    width = np.sqrt(((size * (values - mean)) ** 2).sum(0)) / size.sum(0)  # linearised standard error of a ratio
    assert np.allclose(np.median((bounds[1] - bounds[0]) / (2 * 1.96 * width)), 1, atol=0.1)
    monkeypatch.setattr(r, "MOST_GROUPS", 5000)
    whole = r.ratio_interval(size * values, size, n_boot=500)
    assert np.allclose(np.mean(bounds[1] - bounds[0]), np.mean(whole[1] - whole[0]), rtol=0.1)


def test_several_quantities_are_drawn_once(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [(rng.random((30, *s)), rng.random((30, *s))) for s in ((), (4,), (2, 3))]
    pairs[1][1][6:, 1] = 0  # 6 groups have a part: more draws
    pairs[1][0][6:, 1] = 0
    alone = [r.ratio_interval(a, b) for a, b in pairs]
    drawn = []
    monkeypatch.setattr(r, "weights", lambda n, k, seed, of=r.weights: drawn.append(k) or of(n, k, seed))
    together = r.ratio_intervals(pairs)
    assert all(np.allclose(x, y, rtol=1e-12) and x.shape == y.shape for x, y in zip(alone, together, strict=True))
    assert len(drawn) == len(set(drawn)) == 2


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
@pytest.mark.slow
def test_other_levels(level):
    bounds = r.mean_interval(np.random.default_rng(0).standard_normal((15, 2000)), level=level, n_boot=1000)
    assert covered(bounds, 0.0) == pytest.approx(level, abs=0.04)


def test_windows_of_one_document_are_one_group():
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 2, 2])
    values = rng.standard_normal((10, 1500))[document] + 0.1 * rng.standard_normal((len(document), 1500))
    assert covered(r.mean_interval(values, n_boot=500), 0.0) < 0.8, "windows as if they were independent"
    assert covered(r.mean_interval(values, document, n_boot=500), 0.0) > 0.88


def test_no_interval_of_fewer_than_three_groups():
    v = np.array([1.0, 2.0, 4.0, 8.0])
    for groups in (np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1])):
        assert np.isnan(r.mean_interval(v, groups)).all()
        assert np.isnan(simultaneous_interval(v, groups)).all()
    for values in (v[:1], v[:2], v[:0]):
        assert np.isnan(r.mean_interval(values)).all()
    assert np.isfinite(r.mean_interval(v[:3])).all()
    assert np.isnan(r.expanded_tail(2))


def test_missing_values_are_left_out_and_count():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3))
    x[3:, 1] = np.nan
    x[2:, 2] = np.nan
    low, high = r.mean_interval(x)
    assert np.isfinite(low).tolist() == [True, True, False]
    np.testing.assert_allclose([low[0], high[0]], r.mean_interval(x[:, 0]))
    few = r.mean_interval(x[:3, 1])
    assert (high - low)[1] == pytest.approx(few[1] - few[0], rel=0.25), "three of twelve groups are three groups"


def test_columns_with_missing_values_are_covered():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 1500))
    x[rng.random(x.shape) < 0.6] = np.nan
    assert 0.92 < covered(r.mean_interval(x, n_boot=500), 0.0) < 0.975


def test_tail_is_hesterbergs():
    for n, level in ((3, 0.95), (8, 0.9), (40, 0.99)):
        expected = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))
        assert r.expanded_tail(n, level) == pytest.approx(expected)
    assert r.n_draws(1000, 0.95, 300) == 300
    assert r.n_draws(7, 0.95, 200) == int(np.ceil(5 / r.expanded_tail(7)))
    assert (r.n_draws(2, 0.95, 200), r.n_draws(3, 0.95, 200)) == (200, 5000)


def test_percentiles_are_those_of_numpy():
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((999, 4))
    drawn[rng.random(drawn.shape) < 0.2] = np.nan
    n = np.array([9, 20, 20, 60])
    found = r.percentiles(drawn, n, 0.9)
    for c, tail in enumerate(r.expanded_tail(n, 0.9)):
        np.testing.assert_allclose(found[:, c], np.nanquantile(drawn[:, c], [tail, 1 - tail]))


def test_draws_go_by_the_seed_and_not_by_the_block(monkeypatch):
    x = np.random.default_rng(0).gamma(2, size=(25, 7))
    whole = r.mean_interval(x, seed=3)
    state = np.random.get_state()[1].copy()
    monkeypatch.setattr(r, "BLOCK", 2000)
    assert len(list(r.weights(25, 300))) > 1
    np.testing.assert_allclose(r.mean_interval(x, seed=3), whole, rtol=1e-12)
    assert np.abs(r.mean_interval(x, seed=4) - whole).max() > 1e-4  # more than rounding, which blocks change too
    assert np.array_equal(np.random.get_state()[1], state)
    drawn = np.concatenate(list(r.weights(25, 4000)))
    assert (drawn.sum(1) == 25).all()
    np.testing.assert_allclose(drawn.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(drawn.var(0), 24 / 25, atol=0.12)  # as of draws with replacement


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"n_boot": 0}])
def test_wrong_arguments_are_named(wrong):
    for f in (r.mean_interval, simultaneous_interval):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            f(np.arange(9.0), **wrong)


def test_the_jackknife_covers_ratios():
    rng, n, hits = np.random.default_rng(0), 20, []
    out = left_out(n, 10)
    for _ in range(800):
        size = rng.integers(20, 40, n).astype(float)
        total = size * rng.lognormal(0, 0.5, n)
        parts = np.array([np.delete(total, o).sum() / np.delete(size, o).sum() for o in out])
        low, high = jackknife_interval(total.sum() / size.sum(), parts, out.shape[1], n)
        hits.append(low <= np.exp(1 / 8) <= high)
    assert 0.9 < np.mean(hits) < 0.98


@pytest.mark.slow
def test_a_summary_of_windows_draws_documents():
    model = ti.load_model()
    texts = [t.text for t in ti.bundled_texts("story")[:4]]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=40, on_long="window")
    assert len(prompts) > 8
    run = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(layers=[8], top=0)}, progress=False)
    ds = run["lens"].to_dataset()
    assert ds["document"].values.tolist() == prompts.documents.tolist()
    assert ds["token_document"].values.tolist() == prompts.documents[ds["token_prompt"].values].tolist()
    found = ti.summary(ds[["cross_entropy"]])
    assert (found.attrs["n_groups"], found.attrs["groups"]) == (4, "documents")
    assert (found["cross_entropy_groups"] == 4).all()
    assert (found["cross_entropy_count"] == len(prompts)).all()
    values = ds["cross_entropy"].values[:, 0, 0] if ds["cross_entropy"].dims[0] == "prompt" else None
    expected = r.mean_interval(values, prompts.documents)
    np.testing.assert_allclose(found["cross_entropy_interval"].isel(layer=0, variant=0), expected)
    two = ti.summary(ds[["cross_entropy"]].isel(prompt=np.flatnonzero(prompts.documents < 2)))
    assert np.isnan(two["cross_entropy_interval"]).all()
    assert "NaN for fewer than 3" in two["cross_entropy_interval"].attrs["long_name"]
    assert groups_of(ds, "token")[1] == "documents"
    apart = ti.Prompts.from_texts(texts, model, max_tokens=40)
    assert with_documents(ds.drop_vars(["document", "token_document"]), apart).coords.keys().isdisjoint({"document"})


def test_a_summary_of_one_value_is_not_certain():

    ds = xr.Dataset({"x": (("prompt", "layer"), [[3.0, 1.0], [np.nan, 2.0], [np.nan, 5.0], [np.nan, 5.0]])})
    low, high = ti.summary(ds)["x_interval"].values
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] < 3.25 < high[1]
    assert ti.summary(ds).attrs["groups"] == "prompts"


def test_few_of_many_groups_take_more_draws():
    have = np.array([2, 6, 1000])
    assert r._fewest(1000, have) == 6
    x = np.full((1000, 1), np.nan)
    x[:6, 0] = np.random.default_rng(0).lognormal(0, 1, 6)
    calls = []
    above, below = r.mean_sums(x)

    def mean(w):
        calls.append(len(w))
        return r.ratio(w @ above, w @ below)

    r.resample(mean, 1000, np.array([6]), n_boot=50)
    assert sum(calls) == r.n_draws(6, 0.95, 50) > 1000


def test_nothing_else_draws_with_replacement():
    """Intervals come from one place: no other file of the package, the experiments or the figures draws its own."""
    draws = re.compile(
        r"multinomial\((?!regression)|\.poisson\(|nanquantile\(|nanpercentile\(|replace=True|"
        r"integers\([^)]*size=\(n_boot|for _ in range\(n_boot|torch\.multinomial"
    )
    colours = {"plots/heatmaps.py"}  # limits of a colour scale
    found = []
    for folder in ("tokinterp", "experiments", "figures"):
        for file in (ROOT / folder).rglob("*.py"):
            name = file.relative_to(ROOT / folder).as_posix()
            text = file.read_text(encoding="utf-8")
            if (
                draws.search(text)
                and name not in ("stats/resample.py", "stats/simultaneous.py")
                and name not in colours
            ):
                found.append(f"{folder}/{name}")
    assert not found


def test_a_summary_counts_the_values_and_documents_that_there_are():

    x = np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan], [8.0, 4.0], [9.0, 9.0]])
    ds = xr.Dataset({"x": (("prompt", "layer"), x)}, {"document": ("prompt", [0, 0, 1, 2, 3])})
    found = ti.summary(ds)
    assert found["x"].values.tolist() == [21 / 4, 15 / 3]
    assert found["x_count"].values.tolist() == [4, 3]
    assert found["x_groups"].values.tolist() == [3, 3]
