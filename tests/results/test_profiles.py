"""Profiles by class and correlations over tokens equal brute force; intervals widen where prompts differ."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from tiny import some_prompts

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.results.profiles import class_profile, mcnemar, span_labels, token_correlation

PROMPTS = some_prompts([30] * 12)


def result(seed=0, blocks=None, prompt_effect=0.0, shuffle=True):
    """A per-token result with values of its own at each place, in any order."""
    rng = np.random.default_rng(seed)
    n = PROMPTS.n_tokens
    shape = (n,) if blocks is None else (n, blocks)
    number = np.repeat(np.arange(12), 30)
    values = rng.standard_normal(shape)
    values += (prompt_effect * rng.standard_normal(12)[number]).reshape(-1, *[1] * (len(shape) - 1))
    position = np.tile(np.arange(30), 12)
    order = rng.permutation(n) if shuffle else np.arange(n)
    dims = ("token",) if blocks is None else ("token", "block")
    coords = {"token_prompt": ("token", number[order]), "position": ("token", position[order])}
    if blocks is not None:
        coords["block"] = np.arange(blocks)
    return xr.Dataset({"x": variable(dims, values[order], "x", "nat")}, coords)


def labels(seed=1):
    return np.random.default_rng(seed).choice(["a", "b", "c"], PROMPTS.n_tokens, p=[0.6, 0.3, 0.1])


@pytest.mark.parametrize("blocks", [None, 2])
def test_profile_equals_brute_force(blocks):
    ds, kinds = result(blocks=blocks), labels()
    out = class_profile(ds, "x", kinds, PROMPTS, n_boot=50)
    assert out["subset"].values.tolist() == ["a", "b", "c"]
    own = kinds[PROMPTS.starts[ds["token_prompt"].values] + ds["position"].values]
    x = ds["x"].values.reshape(PROMPTS.n_tokens, -1)
    for c in "abc":
        for k in range(x.shape[1]):
            one = out.sel(subset=c) if blocks is None else out.sel(subset=c, block=k)
            mine, rest = x[own == c, k], x[own != c, k]
            sd = np.sqrt(((len(mine) - 1) * mine.var(ddof=1) + (len(rest) - 1) * rest.var(ddof=1)) / (len(own) - 2))
            assert float(one["mean"]) == pytest.approx(mine.mean())
            assert float(one["effect"]) == pytest.approx((mine.mean() - rest.mean()) / sd)
            delta = np.sign(mine[:, None] - rest).mean()
            assert float(one["dominance"]) == pytest.approx(delta)
            assert int(one["n_tokens"]) == len(mine)
            assert float(one["mean_interval"][0]) < mine.mean() < float(one["mean_interval"][1])


def test_intervals_cover_the_truth_and_are_wider_where_prompts_differ():
    kinds, hits = labels(), 0
    for seed in range(60):
        out = class_profile(result(seed, prompt_effect=1.0), "x", kinds, PROMPTS, n_boot=200)
        low, high = out["mean_interval"].sel(subset="a").values
        hits += low < 0 < high
    assert hits >= 48  # 95 % nominal, 12 prompts; tokens drawn alone would cover about half
    alone = class_profile(result(0), "x", kinds, PROMPTS)["mean_interval"].sel(subset="a")
    wide = class_profile(result(0, prompt_effect=1.0), "x", kinds, PROMPTS)["mean_interval"].sel(subset="a")
    assert float(wide[1] - wide[0]) > 2 * float(alone[1] - alone[0])


def test_missing_values_and_unlabelled_tokens_take_no_part():
    ds, kinds = result(shuffle=False), labels().astype(object)
    kinds[:60] = ""
    ds["x"][60:90] = np.nan
    out = class_profile(ds, "x", kinds, PROMPTS, least=1)
    assert int(out["n_tokens"].sum()) == PROMPTS.n_tokens - 90
    without = class_profile(ds, "x", kinds, PROMPTS, least=1, leave_out=("", "c"))
    mine, rest = (ds["x"].values[90:][kinds[90:] == c] for c in "ab")
    np.testing.assert_allclose(without["dominance"].sel(subset="a"), np.sign(mine[:, None] - rest).mean())
    used = ds["x"].values[90:][kinds[90:] == "b"]
    assert float(out["mean"].sel(subset="b")) == pytest.approx(used.mean())
    with pytest.raises(ValueError, match="no class has 500 tokens"):
        class_profile(ds, "x", kinds, PROMPTS, least=500)
    with pytest.raises(ValueError, match="no variable 'y'"):
        class_profile(ds, "y", kinds, PROMPTS)
    with pytest.raises(ValueError, match=r"^classes=.*: 3 labels for prompts of 360 tokens"):
        class_profile(ds, "x", ["a"] * 3, PROMPTS)


@pytest.mark.parametrize("blocks", [None, 3])
def test_correlation_equals_scipy(blocks):
    a, b = result(0, blocks), result(5)
    mixed = (
        b["x"].values + 0.3 * a["x"].values.reshape(360, -1)[np.argsort(_key(a))][np.argsort(np.argsort(_key(b))), 0]
    )
    b["x"] = ("token", np.round(mixed, 1))  # ties
    out = token_correlation(a["x"], b["x"], n_boot=100)
    i, j = np.argsort(_key(a)), np.argsort(_key(b))
    x, y = a["x"].values.reshape(360, -1)[i], b["x"].values[j]
    for k in range(x.shape[1]):
        one = out if blocks is None else out.isel(block=k)
        assert float(one["pearson"]) == pytest.approx(stats.pearsonr(x[:, k], y)[0])
        assert float(one["spearman"]) == pytest.approx(stats.spearmanr(x[:, k], y)[0])
        assert float(one["pearson_interval"][0]) < float(one["pearson"]) < float(one["pearson_interval"][1])


def _key(ds):
    return ds["token_prompt"].values * 1000 + ds["position"].values


def test_correlation_of_parts_and_of_constants():
    a, b = result(0)["x"], result(0)["x"].isel(token=slice(0, 100))
    out = token_correlation(a, b)
    assert float(out["pearson"]) == pytest.approx(1)
    assert int(out["n_tokens"]) == 100
    assert np.isnan(token_correlation(a, xr.full_like(a, 2.0))["pearson"])
    with pytest.raises(ValueError, match="no token has both"):
        token_correlation(a, b.assign_coords(token_prompt=b["token_prompt"] + 50))
    with pytest.raises(ValueError, match="two values at one place"):
        token_correlation(a, xr.concat([b, b], "token"))


def test_mcnemar_equals_the_binomial_test():
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.6, rng.random(80) < 0.45
    out = mcnemar(a, b)
    lost, won = int((a & ~b).sum()), int((~a & b).sum())
    assert out["p"] == pytest.approx(stats.binomtest(lost, lost + won, 0.5).pvalue)
    assert out["difference"] == pytest.approx(b.mean() - a.mean())
    assert mcnemar(a, a)["p"] == 1
    with pytest.raises(ValueError, match="one for each item"):
        mcnemar(a, b[:3])


def test_profile_of_real_spans(bundled):
    """From typed spans to the profile of a measured value: every number again by a loop over the spans."""
    texts, spans = [t.text for t in ti.bundled_texts()], ti.bundled_spans().of_kind("entity")
    prompts = ti.Prompts.from_texts(texts[:16], bundled, max_tokens=160, progress=False)
    here = spans.where(spans.document < 16).align(prompts)
    labels = span_labels(here, prompts, kind="entity")
    run = ti.measure(bundled, prompts, {"n": ti.geometry.TokenNorms(layers=[2])}, progress=False)["n"].to_dataset()
    run = run.sel(layer=2)
    out = class_profile(run, "norm", labels, prompts, least=20, n_boot=100)
    at = dict(zip(_key(run).tolist(), run["norm"].values.tolist(), strict=True))
    found = {}
    for p, a, b, t in zip(here.prompt, here.start, here.stop, here.type, strict=True):
        for token in range(a, b):
            found.setdefault(str(t), {})[int(p) * 1000 + token] = at[int(p) * 1000 + token]
    wanted = {t: list(v.values()) for t, v in found.items() if len(v) >= 20}
    assert set(out["subset"].values) == set(wanted)
    assert len(wanted) >= 3
    for t, values in wanted.items():
        assert int(out["n_tokens"].sel(subset=t)) == len(values)
        assert float(out["mean"].sel(subset=t)) == pytest.approx(np.mean(values), rel=1e-6)
        low, high = out["mean_interval"].sel(subset=t).values
        n = int(out["n_documents"].sel(subset=t))
        assert n == len(np.unique(here.prompt[here.type == t]))
        assert (low <= np.mean(values) <= high) if n >= 3 else np.isnan([low, high]).all()


def test_labels_of_spans_reach_all_tokens_of_a_word():
    from tiny import tiny

    texts = ["the river bends, the rock stays", "to see the lake"]
    prompts = ti.Prompts.from_texts(texts, tiny())
    words = ti.Spans.words(texts)
    records = [
        {"document": d, "start": a, "stop": b, "kind": "pos", "type": "DT" if w == "the" else "W"}
        for d, a, b, w in zip(words.document, words.start, words.stop, words.strings(), strict=True)
    ]
    found = span_labels(ti.Spans.from_records(records, texts).align(prompts), prompts, kind="pos", other="-")
    for i in range(2):
        here = found[prompts.starts[i] : prompts.starts[i + 1]]
        assert here[0] == "-"
        strings = np.array([s.strip() for s in prompts.strings(i)])
        assert (here[strings == "the"] == "DT").all()
        assert (here == "W").sum() > (np.isin(strings, ["river"])).sum()
    with pytest.raises(ValueError, match="of kind 'tag'"):
        span_labels(words.align(prompts), prompts, kind="tag")


def test_windows_of_one_document_are_one_group(bundled):
    prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:4]], bundled, max_tokens=40,
                                    on_long="window", progress=False)  # fmt: skip
    run = ti.measure(bundled, prompts, {"n": ti.geometry.TokenNorms(layers=[2, 5])}, progress=False)["n"].to_dataset()
    labels = np.where(np.arange(prompts.n_tokens) % 2, "odd", "even")
    out = class_profile(run, "norm", labels, prompts, n_boot=100)
    assert out.attrs["n_groups"] == 4
    assert (out["n_documents"] == 4).all()
    assert (out["n_prompts"] == 64).all(), "whose tokens are kept"
    two = run.isel(token=np.flatnonzero(run["token_document"].values < 2))
    assert np.isnan(class_profile(two, "norm", labels, prompts, n_boot=100)["mean_interval"]).all()
    found = token_correlation(run["norm"], run["norm"].sel(layer=5) ** 2, n_boot=100)
    assert (int(found["n_groups"]), int(found["n_prompts"])) == (4, 64)
    assert found["n_groups"].attrs["long_name"].startswith("documents")
    few = token_correlation(two["norm"], two["norm"].sel(layer=5) ** 2, n_boot=100)
    assert np.isnan(few["pearson_interval"]).all()
    assert np.isfinite(few["pearson"]).all()


def test_least_counts_values():
    place = {"token_prompt": ("token", np.repeat(np.arange(4), 10)), "position": ("token", np.tile(np.arange(10), 4))}
    values = np.arange(40.0)
    labels = np.where(np.arange(40) % 2, "odd", "even")
    values[:30][labels[:30] == "odd"] = np.nan
    ds = xr.Dataset({"x": ("token", values)}, place)
    prompts = ti.Prompts.from_ids([list(range(5, 15))] * 4)
    assert class_profile(ds, "x", labels, prompts, least=6)["subset"].values.tolist() == ["even"]
    assert class_profile(ds, "x", labels, prompts, least=5)["subset"].values.tolist() == ["even", "odd"]


def test_the_longest_of_overlapping_spans_counts():
    from tiny import tiny

    texts = ["the river and the sea"]
    prompts = ti.Prompts.from_texts(texts, tiny())
    long = {"document": 0, "start": 0, "stop": 9, "kind": "x", "type": "long"}
    short = {"document": 0, "start": 4, "stop": 9, "kind": "x", "type": "short"}
    for records in ([long, short], [short, long]):
        found = span_labels(ti.Spans.from_records(records, texts).align(prompts), prompts, other="-")
        assert set(found.tolist()) == {"long", "-"}


def test_intervals_of_a_mean_far_from_zero_lie_around_it():
    far = result(0)
    far["x"] = far["x"] + 1000
    out, near = class_profile(far, "x", labels(), PROMPTS), class_profile(result(0), "x", labels(), PROMPTS)
    np.testing.assert_allclose(out["mean"], near["mean"] + 1000, rtol=1e-9)
    np.testing.assert_allclose(out["mean_interval"], near["mean_interval"] + 1000, rtol=1e-9)
    np.testing.assert_allclose(out["effect_interval"], near["effect_interval"], atol=1e-6)
