"""The linearity score and the errors of single tokens hold what least squares promises, streamed or whole."""

import numpy as np
import pytest
import torch
from contract import assert_contract
from golden.llm_microscope import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_pairs import FOUND, pair, stand_in, streamed
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.kernels import linear
from tokinterp.linearity.maps import TENSORS, LinearMaps

torch.set_num_threads(1)


def score(x, y, residual=True):
    p = pair(x, y) if residual else linear.without_residual(pair(x, y))
    return float(linear.linearity(p, linear.solve(p)))


def noise(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


# -- kernel: theorems -----------------------------------------------------------------------------------------
def test_equals_the_published_function():
    for case in FOUND["linear"]:
        x, y = clouds(case["seed"], case["n"], case["d"])
        p = pair(x, y)
        fit = linear.solve(p)
        assert score(x, y) == pytest.approx(case["score"], abs=1e-9)
        assert score(x, y, residual=False) == pytest.approx(case["without_residual"], abs=1e-9)
        error = linear.residual_norms(torch.tensor(x), torch.tensor(y), p.mean_in, p.mean_out, fit.weight)
        np.testing.assert_allclose(error / p.total.sqrt(), case["errors"], atol=1e-9)


@pytest.mark.parametrize("n", [150, 260, 520])
def test_noise_has_the_floor_of_the_formula_and_the_adjusted_score_is_zero(n):
    d, found, after = 32, [], []
    for seed in range(12):
        p = pair(noise(n, d, seed), noise(n, d, seed + 1000))
        fit = linear.solve(p)
        found.append(float(linear.linearity(p, fit)))
        after.append(float(linear.adjusted(linear.linearity(p, fit), p.count, fit.rank)))
    assert float(linear.floor(p.count, fit.rank)) == pytest.approx(d / (n - 1))
    error = 3 * np.sqrt(2 / (d * n)) / np.sqrt(12)
    assert np.mean(found) == pytest.approx(d / (n - 1), abs=error)
    assert np.mean(after) == pytest.approx(0, abs=2 * error)


def test_no_more_rows_than_channels_is_one_whatever_the_clouds():
    assert score(noise(20, 32), noise(20, 32, 1)) == pytest.approx(1, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(2, 7), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_full_rank_maps_scales_and_shifts(seed, d, scale, shift):
    x, y, m = noise(60, d, seed), noise(60, d, seed + 1), noise(d, d, seed + 2) + 2 * np.eye(d)
    if np.linalg.cond(m) > 1e3:
        return
    assert score(x, x @ m + shift) == pytest.approx(1, abs=1e-7)
    assert score(x @ m, scale * y + shift) == pytest.approx(score(x, y), abs=1e-6)


def test_output_equal_to_input_has_no_score_without_the_residual():
    x = noise(60, 5)
    assert score(x, x) == pytest.approx(1)
    assert np.isnan(score(x, x, residual=False))
    assert np.isnan(score(x, np.ones((60, 5))))


def test_rotations_and_only_they_have_rotation_similarity_one():
    x, m = noise(100, 6), noise(6, 6, 1)
    assert float(linear.rotation_similarity(pair(x, 3 * x @ np.linalg.qr(m)[0] + 1))) == pytest.approx(1)
    assert float(linear.rotation_similarity(pair(x, x @ m))) < 0.97 < score(x, x @ m)


def test_residuals_on_other_rows_equal_brute_force():
    x, y = clouds(3, 120, 6)
    train, test = pair(x[:70], y[:70]), pair(x[70:], y[70:])
    fit = linear.solve(train)
    error = linear.residual_norms(torch.tensor(x[70:]), torch.tensor(y[70:]), train.mean_in, train.mean_out, fit.weight)
    assert float(linear.held_out(fit, train, test)) == pytest.approx(float((error**2).sum()), rel=1e-9)
    again = linear.held_out(fit, train, train)
    assert float(again) == pytest.approx(float(train.total - fit.explained), rel=1e-9)


def test_ridge_shrinks_to_the_closed_form():
    x, y = clouds(4, 80, 5)
    p = pair(x, y)
    lam = 0.3 * float(p.scatter.trace()) / 5
    want = torch.linalg.solve(p.scatter + lam * torch.eye(5, dtype=torch.float64), p.cross)
    fit = linear.solve(p, ridge=0.3)
    np.testing.assert_allclose(fit.weight, want, rtol=1e-8)
    left = float(linear.held_out(fit, p, p))
    assert float(p.total - fit.explained) == pytest.approx(left, rel=1e-9)


# -- the measurement ------------------------------------------------------------------------------------------


def test_one_massive_row_raises_the_score_and_its_exclusion_restores_it():
    clean = streamed(stand_in(), ti.linearity.Linearity(exclude=()))
    model = stand_in()
    for layer in (0, 1, 2, 3):
        model.streams[1][layer] = np.concatenate([model.streams[1][layer][:-1], 300 * model.streams[1][layer][-1:]])
    dirty, masked = (
        streamed(model, ti.linearity.Linearity(exclude=())),
        streamed(model, ti.linearity.Linearity(exclude=("massive",))),
    )
    assert (dirty["linearity"] > clean["linearity"] + 0.9 * (1 - clean["linearity"])).all()
    np.testing.assert_allclose(masked["linearity"], clean["linearity"], atol=0.01)
    assert int(masked["n"][0]) == int(clean["n"][0]) - 1


def test_too_few_rows_is_refused_and_says_why():
    ds = streamed(StandIn((5, 4), d=16), ti.linearity.Linearity(exclude=()))
    assert np.isnan(ds["linearity"]).all()
    assert np.isnan(ds["linearity_adjusted"]).all()
    assert np.isnan(ds["linearity_held_out"]).all()
    assert (ds["refused"] == 1).all()
    same = StandIn((40, 30), d=4)
    for n in (0, 1):
        same.streams[n][1] = same.streams[n][0]
    ds = streamed(same, ti.linearity.Linearity(blocks=[0], exclude=()))
    assert int(ds["refused"][0]) == 2
    assert float(ds["linearity"][0]) == pytest.approx(1)
    assert np.isnan(ds["linearity_without_residual"][0])


def test_contract():
    ds = assert_contract(ti.linearity.Linearity)
    assert ds.sizes == {"block": 3, "prompt": 7}
    assert ((ds["linearity"] > ds["linearity_adjusted"]) & (ds["linearity"] <= 1)).all()


def test_settings_are_checked_before_the_run():
    for bad, text in (
        ({"fit": "line"}, "fit='line'"), ({"scale": "x"}, "scale='x'"), ({"exclude": ("bos",)}, "exclude"),
        ({"tokens": 0}, "tokens=0"), ({"cutoff": 2}, "cutoff=2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            ti.linearity.TokenNonlinearity(**bad)
    with pytest.raises(TypeError, match="give a LinearMaps"):
        ti.linearity.TokenNonlinearity(maps="maps.safetensors")
    with pytest.raises(ValueError, match="blocks=\\[7\\]: tiny-llama has blocks 0 to 2"):
        ti.measure(tiny(), some_prompts([20]), {"m": ti.linearity.Linearity(blocks=[7])}, progress=False)
    with pytest.raises(ValueError, match="the prompts have 20 tokens, and a map of 32 channels"):
        ti.measure(tiny(), some_prompts([20]), {"m": ti.linearity.TokenNonlinearity()}, progress=False)


def test_floor_distinct_rows_and_steps_by_hand():
    """Repeated rows count once where they repeat at both layers; steps are relative to what they say."""
    model = stand_in(lengths=(30, 40))
    for layer in (0, 1, 2):
        model.streams[0][layer][5] = model.streams[0][layer][3]  # a copy at layers 0 to 2, and not at layer 3
    model.streams[1][1][7] = model.streams[1][1][4]  # at layer 1 alone
    ds = streamed(model, ti.linearity.Linearity(exclude=("special",)))
    rows = [np.concatenate([s[layer, 1:] for s in model.streams]).astype(np.float32) for layer in range(4)]
    n = len(rows[0])
    for b in range(3):
        rank = int(ds["rank"][b])
        assert float(ds["linearity_floor"][b]) == pytest.approx(rank / (n - 1))
        score = float(ds["linearity"][b])
        assert float(ds["linearity_adjusted"][b]) == pytest.approx(1 - (1 - score) * (n - 1) / (n - rank - 1))
    assert ds["n"].values.tolist() == [n] * 3
    assert ds["n_distinct"].values.tolist() == [n - 1, n - 1, n]
    for p, stream in enumerate(model.streams):
        x = stream[:, 1:].astype(np.float32).astype(float)
        length = np.linalg.norm(x, axis=-1)
        for b in range(3):
            step = np.linalg.norm(x[b + 1] - x[b], axis=-1)
            got = ds.isel(prompt=p, block=b)
            assert float(got["relative_step"]) == pytest.approx((step / length[b]).mean(), rel=1e-5)
            assert float(got["relative_step_after"]) == pytest.approx((step / length[b + 1]).mean(), rel=1e-5)
            cosine = (x[b] * x[b + 1]).sum(-1) / length[b] / length[b + 1]
            assert float(got["cosine"]) == pytest.approx(cosine.mean(), rel=1e-5)


def test_tokens_are_kept_of_the_prompts_below_the_number():
    model = stand_in()
    for tokens, numbers in ((2, [0, 1]), (None, [0, 1, 2, 3])):
        ds = streamed(model, ti.linearity.TokenNonlinearity(exclude=("special",), tokens=tokens))
        assert sorted(set(ds["token_prompt"].values.tolist())) == numbers
        assert ds.sizes["token"] == sum(model.lengths[n] for n in numbers)
        assert int(ds["n"]) == sum(model.lengths) - 4  # all prompts take part in the fit


def test_copies_are_no_further_rows():
    """Forty rows of which six differ are fitted exactly by any map of six channels: no score."""
    model = stand_in(lengths=(41,))
    for stream in model.streams[0]:
        stream[1:] = np.tile(stream[1:7], (7, 1))[:40]
    ds = streamed(model, ti.linearity.Linearity(exclude=("special",), held_out=False))
    assert ds["n"].values.tolist() == [40] * 3
    assert ds["n_distinct"].values.tolist() == [6] * 3
    for name in ("linearity", "linearity_adjusted", "linearity_without_residual", "linearity_floor"):
        assert ds[name].isnull().all(), name
    assert ds["refused"].values.tolist() == [1] * 3


def test_maps_of_some_blocks_are_those_of_these_blocks():
    model, asked = stand_in(), ti.linearity.TokenNonlinearity(exclude=("special",))
    whole = streamed(model, asked)
    tensors = {name: asked.sums[name] for name in TENSORS}
    maps = LinearMaps(
        **tensors, facts={"model": "", "weights": model.info.identity, "blocks": [0, 1, 2], "n": int(asked.sums["n"])}
    )
    for blocks in ([2], [0, 2]):
        part = streamed(model, ti.linearity.TokenNonlinearity(blocks=blocks, exclude=("special",), maps=maps))
        for name in ("nonlinearity", "linearity"):
            np.testing.assert_allclose(part[name], whole[name].sel(block=blocks), rtol=1e-6)


@pytest.mark.parametrize("batches", [None, [[3], [0, 2], [1]]])
def test_halves_are_even_and_odd_prompts_each_scored_by_the_map_of_the_other(batches):
    model = stand_in()
    ds = streamed(model, ti.linearity.Linearity(exclude=("special",)), batches)
    for b in range(3):
        halves = []
        for half in (0, 1):
            rows = [s[b : b + 2, 1:] for s in model.streams[half::2]]
            halves.append(np.concatenate(rows, 1).astype(np.float32).astype(float))
        left = total = 0.0
        for (x, y), (u, v) in ((halves[0], halves[1]), (halves[1], halves[0])):
            weight = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
            left += ((v - y.mean(0) - (u - x.mean(0)) @ weight) ** 2).sum()
            total += ((v - v.mean(0)) ** 2).sum()
        assert float(ds["linearity_held_out"][b]) == pytest.approx(1 - left / total, rel=1e-4)
