"""Cosines in and across prompts, and angles between neighbours: by definition, in theory, in any batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import assert_contract
from golden import token_geometry
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.kernels.cosine import neighbour_angles
from tokinterp.kernels.neighbours import nearest


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def off(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def test_every_number_is_what_its_name_says():
    model = StandIn((40, 33, 52, 26), d=8)
    found = model.measured(ti.geometry.CosineSimilarity(lags=(1, 3), close=(0.4, 0.8)), [[2, 0], [3, 1]]).result()
    for layer in range(4):
        clouds = [model.streams[p][layer][1:] for p in range(4)]  # without the special token
        for p, x in enumerate(clouds):
            one = found.sel(prompt=p, layer=layer)
            c = cosines(x)
            assert float(one["cosine"]) == pytest.approx(off(c).mean(), abs=1e-6)
            assert float(one["cosine_diagonal"]) == pytest.approx(c.mean(), abs=1e-6)
            assert float(one["cosine_centred"]) == pytest.approx(off(cosines(x - x.mean(0))).mean(), abs=1e-6)
            for lag in (1, 3):
                value = np.diagonal(c, lag).mean()
                assert float(one["cosine_lag"].sel(offset=lag)) == pytest.approx(value, abs=1e-6)
                assert float(one["smoothness"].sel(offset=lag)) == pytest.approx(value - off(c).mean(), abs=1e-6)
            np.testing.assert_allclose(one["close_pairs"], [(off(c) > 1 - d).mean() for d in (0.4, 0.8)], rtol=1e-9)
            assert int(one["n_tokens"]) == len(x)
        whole = cosines(np.concatenate(clouds))
        owner = np.repeat(range(4), [len(x) for x in clouds])
        across = whole[owner[:, None] != owner].mean()
        one = found.sel(layer=layer)
        assert float(one["cosine_across"]) == pytest.approx(across, abs=1e-6)
        within = np.mean([off(cosines(x)).mean() for x in clouds])
        assert float(one["cosine_adjusted"]) == pytest.approx(within - across, abs=1e-6)
        unit = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True) for x in clouds])
        share = (unit.sum(0) ** 2 - (unit**2).sum(0)) / off(whole).sum()
        np.testing.assert_array_equal(one["channel"], np.argsort(-share)[:3])
        np.testing.assert_allclose(one["channel_share"], np.sort(share)[::-1][:3], atol=1e-5)


def test_published_mean_is_that_of_the_authors_function():
    x = token_geometry.clouds()[0]
    model = StandIn((len(x),), n_layers=1, d=x.shape[1])
    model.streams[0][:] = x
    found = model.measured(ti.geometry.CosineSimilarity(exclude=())).result()
    wanted = json.loads(Path(token_geometry.__file__).with_suffix(".json").read_text(encoding="utf-8"))["cosine"]
    assert float(found["cosine_diagonal"].sel(prompt=0, layer=1)) == pytest.approx(wanted, abs=1e-6)


def test_shuffled_pairs_have_the_mean_of_all_pairs():
    x = np.cumsum(np.random.default_rng(0).standard_normal((60, 8)), axis=0)  # neighbours in the text are alike
    c = cosines(x)
    rng = np.random.default_rng(1)
    shuffled = [np.diagonal(c[np.ix_(p, p)], 1).mean() for p in (rng.permutation(60) for _ in range(3000))]
    model = StandIn((61,), n_layers=1)
    model.streams[0][0][1:] = x
    found = model.measured(ti.geometry.CosineSimilarity()).result().sel(prompt=0, layer=0)
    error = np.std(shuffled) / 3000**0.5
    assert np.mean(shuffled) == pytest.approx(float(found["cosine"]), abs=4 * error)
    assert float(found["smoothness"].sel(offset=1)) > 20 * error
    smooth = found["smoothness"].values
    assert (np.diff(smooth) < 0).all()


def test_angles_between_the_two_nearest():
    x = np.random.default_rng(0).standard_normal((80, 5))
    near = nearest(torch.from_numpy(x), 2)
    found = neighbour_angles(torch.from_numpy(x)[None], near.indices)[0].numpy()
    for i in range(80):
        d = np.linalg.norm(x - x[i], axis=1)
        a, b = (x[j] - x[i] for j in np.argsort(d)[1:3])
        wanted = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        assert found[i] == pytest.approx(wanted, abs=1e-6)
    line = torch.arange(9.0).double()[None, :, None] ** 1.1 * torch.ones(3)
    flat = neighbour_angles(line, nearest(line, 2).indices)[0]
    assert set(flat.round(decimals=5).tolist()) <= {0.0, 180.0}
    turned = neighbour_angles(3 * torch.from_numpy(x @ np.linalg.qr(x.T @ x)[0])[None] + 1, near.indices)[0]
    np.testing.assert_allclose(turned, found, atol=1e-9)


def test_histogram_counts_every_distinct_token():
    model = StandIn((40, 33), d=6)
    model.streams[1][1][5:9] = model.streams[1][1][4]  # four copies
    ds = model.measured(ti.geometry.CosineSimilarity()).result()
    assert ds["angle_count"].sum("bin").values.tolist() == [71, 67, 71, 71]
    mean = (ds["angle_count"] * ds["bin"]).sum("bin") / ds["angle_count"].sum("bin")
    weight = np.array([39, 32])[:, None]
    np.testing.assert_allclose(mean[0], (ds["angle"].values * weight).sum(0)[0] / 71, atol=1.5)


def test_no_pair_and_no_direction_give_nan():
    model = StandIn((1, 2, 30), n_layers=1)
    model.streams[2][1][:] = 0
    ds = model.measured(ti.geometry.CosineSimilarity(), [[0], [1], [2]]).result()
    assert bool(ds["cosine"].isel(prompt=[0, 1]).isnull().all())  # at most one token that is not special
    assert np.isnan(ds["cosine"].sel(prompt=2, layer=1))
    assert np.isnan(ds["close_pairs"].sel(prompt=2, layer=1)).all()
    assert np.isnan(ds["cosine_across"].sel(layer=1))
    assert int(ds["n_tokens"].sel(prompt=2, layer=1)) == 0
    assert np.isfinite(ds["cosine"].sel(prompt=2, layer=0))


def test_massive_rows_can_be_left_out():
    model = StandIn((40, 30), d=8)
    model.streams[0][2][9] *= 1000
    ds = model.measured(ti.geometry.CosineSimilarity(exclude=("special", "massive"))).result()
    assert ds["n_tokens"].sel(prompt=0).values.tolist() == [39, 39, 38, 39]
    x = np.delete(model.streams[0][2], [0, 9], axis=0)
    assert float(ds["cosine"].sel(prompt=0, layer=2)) == pytest.approx(off(cosines(x)).mean(), abs=1e-6)


@pytest.mark.slow
def test_contract():
    assert_contract(lambda: ti.geometry.CosineSimilarity(close=(0.3,)))
    ds = assert_contract(
        lambda: ti.geometry.CosineSimilarity(angles=False, channels=0, close=(), exclude=(), layers=[1, 3])
    )
    assert not {"angle", "channel", "close_pairs"} & {*ds.data_vars}


def test_without_thresholds_no_pair_is_looked_at(monkeypatch):
    from tokinterp.geometry.kernels import cosine

    unit, directed = torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool)
    looked = []
    monkeypatch.setattr(cosine, "neutral", lambda: looked.append(1) or torch.no_grad())
    assert cosine.close_pairs(unit, directed, ()).shape == (1, 0)
    assert looked == []
    assert cosine.close_pairs(unit, directed, (0.5,)).tolist() == [[0.0]]
    assert looked == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lags": (0,)}, "lags"), ({"close": (0.0,)}, "close"), ({"channels": -1}, "channels"), ({"exclude": "x"}, "x")],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ti.geometry.CosineSimilarity(**settings)


def test_too_many_channels():
    with pytest.raises(ValueError, match="has only 32"):
        ti.measure(tiny(), some_prompts([9]), {"c": ti.geometry.CosineSimilarity(channels=40)})
