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
        assert np.isnan(r.simultaneous_interval(v, groups)).all()
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


@pytest.mark.parametrize("n", [4, 12, 40])
@pytest.mark.parametrize("alike", [0.0, 0.8])
@pytest.mark.slow
def test_simultaneous_intervals_cover_all_columns_at_once(n, alike):
    rng, times, columns = np.random.default_rng(n), 300, 40
    hits, single = 0, 0
    for seed in range(times):
        x = alike**0.5 * rng.standard_normal((n, 1)) + (1 - alike) ** 0.5 * rng.standard_normal((n, columns))
        low, high = r.simultaneous_interval(x, seed=seed, n_boot=300)
        hits += bool(((low <= 0) & (high >= 0)).all())
        half = stats.t.ppf(0.975, n - 1) * x.std(0, ddof=1) / n**0.5
        single += bool((np.abs(x.mean(0)) <= half).all())
    assert hits / times > 0.915
    assert single / times < 0.87


def test_simultaneous_intervals_are_narrower_where_columns_go_together():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 1))
    same, apart = base + 0.01 * rng.standard_normal((60, 100)), rng.standard_normal((60, 100))
    width = [np.mean(np.subtract(*r.simultaneous_interval(x)[::-1])) / x.std() for x in (same, apart)]
    assert width[0] < 0.7 * width[1]
    one = r.simultaneous_interval(base[:, 0])
    usual = stats.t.interval(0.95, 59, base.mean(), stats.sem(base[:, 0]))
    np.testing.assert_allclose(one, usual, atol=0.03 * (usual[1] - usual[0]))


def test_simultaneous_intervals_leave_out_constants_and_count_groups():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    low, high = r.simultaneous_interval(np.concatenate([x, np.ones((40, 1))], 1), seed=1)
    assert np.isnan([low[3], high[3]]).all()
    np.testing.assert_allclose((low[:3], high[:3]), r.simultaneous_interval(x, seed=1))
    twice = r.simultaneous_interval(np.repeat(x, 5, 0), np.repeat(np.arange(40), 5), seed=1)
    np.testing.assert_allclose(twice, r.simultaneous_interval(x, seed=1))


def test_simultaneous_intervals_of_few_values_of_many_groups_are_those_of_all_columns():
    """Nine values a column of forty groups, too few to draw: Student's intervals, at the level of twenty columns."""
    rng = np.random.default_rng(0)
    x = np.full((40, 20), np.nan)
    for column in x.T:
        column[rng.permutation(40)[:9]] = rng.standard_normal(9)
    width = np.diff(r.simultaneous_interval(x), axis=0)[0]
    wide = 2 * stats.t.isf(0.025 / 20, 8) * np.nanstd(x, axis=0, ddof=1) / 3
    np.testing.assert_allclose(width, wide, rtol=0.07)


def test_parts_of_a_ratio_stand_for_it():
    rng = np.random.default_rng(0)
    below = rng.integers(5, 60, (40, 2)).astype(float)
    below[:3, 1] = 0
    above = rng.binomial(below.astype(int), 0.3).astype(float)
    parts = r.ratio_parts(above, below)
    np.testing.assert_allclose(np.nanmean(parts, 0), above.sum(0) / below.sum(0))
    assert np.isnan(parts).sum(0).tolist() == [0, 3]
    for column in range(2):
        one = r.simultaneous_interval(parts[:, column])
        whole = r.ratio_interval(above[:, column], below[:, column], n_boot=4000)
        np.testing.assert_allclose(one, whole, atol=0.1 * (whole[1] - whole[0]))


@pytest.mark.slow
def test_the_best_of_columns_without_effect_seldom_excludes_the_null():
    """Ratios of sums of unequal documents, the best of 9: its interval is that of the band, not of a column alone."""
    rng, times, both = np.random.default_rng(1), 250, np.zeros(2)
    for seed in range(times):
        below = np.repeat(rng.integers(10, 80, (30, 1)), 9, 1)
        above = rng.binomial(below, 0.4)
        best = int((above.sum(0) / below.sum(0)).argmax())
        band = r.simultaneous_band(r.ratio_parts(above, below)[:, None], n_boot=300, seed=seed)
        assert band.shape == (2, 1, 9)
        alone = r.ratio_interval(above[:, best], below[:, best], n_boot=300, seed=seed)
        both += [band[0, 0, best] > 0.4, alone[0] > 0.4]
    assert both[0] / times < 0.06
    assert both[1] / times > 0.12


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"n_boot": 0}])
def test_wrong_arguments_are_named(wrong):
    for f in (r.mean_interval, r.simultaneous_interval):
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


def test_simultaneous_intervals_of_skewed_columns_hold_together():
    rng, times = np.random.default_rng(0), 60
    for columns, sign in ((64, 1), (8, -1)):
        hits = []
        for seed in range(times):
            low, high = r.simultaneous_interval(sign * rng.lognormal(0, 1, (20, columns)), seed=seed, n_boot=400)
            hits.append(((low <= sign * np.exp(0.5)) & (high >= sign * np.exp(0.5))).all())
        assert np.mean(hits) > 0.87


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
    colours = {"plots/nonlinearity.py", "plots/norms.py"}  # limits of a colour scale
    found = []
    for folder in ("tokinterp", "experiments", "figures"):
        for file in (ROOT / folder).rglob("*.py"):
            name = file.relative_to(ROOT / folder).as_posix()
            text = file.read_text(encoding="utf-8")
            if draws.search(text) and name != "stats/resample.py" and name not in colours:
                found.append(f"{folder}/{name}")
    assert not found


def test_a_summary_counts_the_values_and_documents_that_there_are():

    x = np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan], [8.0, 4.0], [9.0, 9.0]])
    ds = xr.Dataset({"x": (("prompt", "layer"), x)}, {"document": ("prompt", [0, 0, 1, 2, 3])})
    found = ti.summary(ds)
    assert found["x"].values.tolist() == [21 / 4, 15 / 3]
    assert found["x_count"].values.tolist() == [4, 3]
    assert found["x_groups"].values.tolist() == [3, 3]


def test_intervals_that_hold_together_are_as_wide_as_they_have_to_be():
    """One column: Student's interval. Forty: all of them hold in 95 % of the samples, the plain ones in few."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=(15, 1))
    wide = stats.t.ppf(0.975, 14) * one.std(ddof=1) / np.sqrt(15)
    low, high = r.simultaneous_interval(one, n_boot=20_000)[:, 0]
    np.testing.assert_allclose([low, high], [one.mean() - wide, one.mean() + wide], rtol=0.05)
    samples = rng.normal(size=(120, 15, 40))
    together = [
        np.prod(r.simultaneous_interval(x, n_boot=400, seed=s) * [[-1], [1]] > 0) for s, x in enumerate(samples)
    ]
    assert np.mean(together) > 0.87
    assert np.mean([np.prod(r.mean_interval(x, n_boot=200) * [[-1], [1]] > 0) for x in samples[:30]]) < 0.4
    holes = samples[0].copy()
    holes[3:, 5] = holes[2:, 6] = np.nan
    found = r.simultaneous_interval(holes)
    assert np.isfinite(found[:, 5]).all()
    assert np.isnan(found[:, 6]).all()
    few = r.simultaneous_interval(samples[0, :5])
    wide = stats.t.isf(0.025 / 40, 4) * samples[0, :5, 0].std(ddof=1) / np.sqrt(5)
    assert float(few[1, 0] - few[0, 0]) == pytest.approx(2 * wide)
