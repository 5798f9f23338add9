"""Matrix entropy: bounds, the literal formula, and what the published code makes of it."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from contract import assert_contract
from golden.skean2025 import readings, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import StandIn
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.entropy import MatrixEntropy, diff_erank
from tokinterp.geometry.kernels import entropy

GOLDEN = json.loads((ROOT / "tests" / "golden" / "skean2025.json").read_text(encoding="utf-8"))


def literal(z, alpha=1.0):
    p = np.linalg.svd(z, compute_uv=False) ** 2
    p = p[p > 0] / p.sum()
    return -(p * np.log(p)).sum() if alpha == 1 else np.log((p**alpha).sum()) / (1 - alpha)


def cloud(n=12, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def released(z):
    """Rows about their mean, of length 1, as the released code has them."""
    y = z - z.mean(0)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


# -- kernels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_equals_the_formula(alpha, shape):
    z = cloud(*shape) + 0.3
    assert float(entropy.renyi(entropy.gram_spectrum(z), alpha)) == pytest.approx(literal(z.numpy(), alpha), rel=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, float("inf")])
def test_identical_rows_have_none_and_orthonormal_rows_all(alpha):
    same, orthogonal = torch.ones(7, 4) * torch.tensor([1.0, 2, 3, 4]), torch.linalg.qr(cloud(9, 9)).Q[:6]
    if alpha:  # order 0 counts every direction that rounding leaves
        assert float(entropy.renyi(entropy.gram_spectrum(same), alpha)) == pytest.approx(0, abs=1e-6)
    assert float(entropy.renyi(entropy.gram_spectrum(orthogonal), alpha)) == pytest.approx(np.log(6), rel=1e-9)
    assert bool(entropy.renyi(torch.zeros(3), alpha).isnan())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 99), st.floats(0.1, 50))
def test_bounds_order_and_invariance(n, d, seed, scale):
    z = cloud(n, d, seed)
    s = entropy.gram_spectrum(z)
    values = [float(entropy.renyi(s, a)) for a in (0.5, 1, 2, 8)]
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] <= values[0] <= np.log(min(n, d)) + 1e-9
    turned = scale * z @ torch.linalg.qr(cloud(d, d, seed + 1)).Q
    assert float(entropy.renyi(entropy.gram_spectrum(turned))) == pytest.approx(values[1], abs=1e-9)


def test_published_clamping_is_another_matrix():
    """The released code: Gram entries clamped at 0, trace 1, positive eigenvalues scaled to sum 1."""
    for n, d in ((8, 30), (30, 8)):
        raw = cloud(n, d)
        z = released(raw.numpy())
        gram = np.clip(z @ z.T if n <= d else z.T @ z, 0, None)
        values = np.linalg.eigvalsh(gram / np.trace(gram))
        p = values[values > 0] / values[values > 0].sum()
        found = float(entropy.renyi(entropy.clamped_spectrum(raw)))
        assert found == pytest.approx(-(p * np.log(p)).sum(), rel=1e-10)
        assert abs(found / literal(z) - 1) > 0.02


@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
def test_published_order_2_is_off_by_two_logs(shape):
    """Without negative entries the shortcut is the true collision entropy plus 2 log m, as released step by step."""
    z = cloud(*shape)
    y = torch.from_numpy(released(z.numpy()))
    gram = (y @ y.T if shape[0] <= shape[1] else y.T @ y).clamp_min(0)
    gram /= gram.trace()
    step = -np.log(float((gram**2).sum() / gram.shape[0] ** 2))
    assert float(entropy.frobenius_entropy(z)) == pytest.approx(step, rel=1e-10)
    p = np.linalg.eigvalsh(gram.numpy())
    true = -np.log((p**2).sum() / p.sum() ** 2)
    assert float(entropy.frobenius_entropy(z)) == pytest.approx(true + 2 * np.log(min(shape)), rel=1e-9)


@pytest.mark.parametrize("case", GOLDEN["entropy"], ids=lambda c: f"{c['n']}x{c['d']}, order {c['alpha']}")
def test_published_entropy_is_that_of_the_authors_function(case):
    z = torch.from_numpy(rows(case["seed"], case["n"], case["d"]))
    if case["alpha"] == 2:
        found = float(entropy.frobenius_entropy(z))
    else:
        found = float(entropy.renyi(entropy.clamped_spectrum(z), case["alpha"]))
    assert found == pytest.approx(case["raw"], rel=1e-5)
    assert found / np.log(min(z.shape)) == pytest.approx(case["maxEntropy"], rel=1e-5)


@pytest.mark.parametrize("case", GOLDEN["lidar"], ids=lambda c: f"{c['prompts']} prompts")
def test_published_lidar_is_that_of_the_authors_function(case):
    names = ("seed", "prompts", "q", "n", "d")
    each = readings(*(case[n] for n in names))
    pooled = [[entropy.centred_unit(torch.from_numpy(r)).mean(0) for r in prompt] for prompt in each]
    found = entropy.lidar(torch.stack([torch.stack(p) for p in pooled]), 1e-4, "skean2025")
    assert float(found) == pytest.approx(case["maxEntropy"], rel=1e-4)  # they sum in float32


def test_pooled_centred_unit_rows_are_those_of_the_released_code():
    model = StandIn(lengths=(12, 9))
    found = model.measured(ti.geometry.PooledStates([2], exclude=(), centred_unit=True)).result()["state"]
    for n in range(2):
        z = released(model.streams[n][2].astype(np.float32))
        np.testing.assert_allclose(found.sel(prompt=n, layer=2), z.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="pooling='mean'"):
        ti.geometry.PooledStates(pooling="last", centred_unit=True)


# -- the measurement ------------------------------------------------------------------------------------------
def test_prompts_and_dataset_equal_the_formula(device):
    model = StandIn(lengths=(9, 5, 12, 2, 7, 30), device=device)
    asked = MatrixEntropy(alpha=(1, 2), exclude=("special",))
    ds = model.measured(asked).result()
    for layer in range(4):
        pooled = []
        for n, ids in enumerate(model.ids):
            z = model.streams[n][layer][ids != 0]
            pooled.append(z.mean(0))
            one = ds.sel(prompt=n, layer=layer)
            for alpha in (1, 2):
                assert float(one["prompt_entropy"].sel(order=alpha)) == pytest.approx(literal(z, alpha), abs=1e-5)
            assert float(one["prompt_effective_rank"]) == pytest.approx(np.exp(literal(z)), rel=1e-5)
            if len(z) > 1:
                share = literal(z) / np.log(min(z.shape))
                assert float(one["prompt_entropy_share"].sel(order=1)) == pytest.approx(share, abs=1e-5)
            else:
                assert np.isnan(one["prompt_entropy_share"]).all()
        z = np.array(pooled)
        assert float(ds["dataset_entropy"].sel(layer=layer, order=1)) == pytest.approx(literal(z), abs=1e-5)
        s = np.linalg.svd(z, compute_uv=False)
        rankme = np.exp(-(s / s.sum() * np.log(s / s.sum())).sum())
        assert float(ds["dataset_rankme"].sel(layer=layer)) == pytest.approx(rankme, rel=1e-4)


def test_centred_unit_rows_are_those_of_diff_erank():
    model = StandIn()
    asked = MatrixEntropy(exclude=(), centre=True, unit=True)
    ds = model.measured(asked).result()
    z = model.streams[2][1]
    y = z - z.mean(0)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(y.T @ y / len(y))
    p = values[values > 1e-12] / values.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert float(ds["prompt_effective_rank"].sel(prompt=2, layer=1)) == pytest.approx(expected, rel=1e-5)
    ds.attrs = {"parameters": "a", "prompts": "b"}
    higher = ds.assign(prompt_effective_rank=ds["prompt_effective_rank"] + 1)
    assert float(diff_erank(higher, ds).mean()) == pytest.approx(1)
    with pytest.raises(ValueError, match="differ in parameters"):
        diff_erank(ds, ds.assign_attrs(parameters="c"))


def test_diff_erank_is_positive_where_training_removed_directions():
    """Untrained: independent rows of 8 channels.  Trained: all rows on 2 orthogonal lines, whose eRank is 2."""
    untrained, trained = StandIn(lengths=(40, 50)), StandIn(lengths=(40, 50))
    rng = np.random.default_rng(0)
    for n, length in enumerate(trained.lengths):
        for layer in range(len(trained.streams[n])):
            untrained.streams[n][layer] = rng.standard_normal((length, 8))
            side = np.arange(length) // 2 % 2
            trained.streams[n][layer] = np.eye(8)[side] * (1 - 2 * (np.arange(length) % 2))[:, None]
    found = [m.measured(MatrixEntropy(exclude=(), centre=True, unit=True)).result() for m in (untrained, trained)]
    found = [ds.assign_attrs(parameters="a", prompts="b") for ds in found]
    change = diff_erank(*found)
    assert (found[1]["prompt_effective_rank"] < 2.2).all()
    assert (found[0]["prompt_effective_rank"] > 6).all()
    assert (change > 4).all()
    assert (diff_erank(*found[::-1]) < -4).all()


def test_one_massive_row_ends_the_entropy_unless_it_is_excluded():
    model = StandIn(lengths=(20, 20))
    for n in range(2):
        model.streams[n][:, 3] = 1e4
    dirty = model.measured(MatrixEntropy(exclude=("special",))).result()
    clean = model.measured(MatrixEntropy()).result()
    assert float(dirty["prompt_entropy"].max()) < 0.01
    assert float(clean["prompt_entropy_share"].min()) > 0.8
    assert (clean["n_rows"] == 18).all()


def test_contract():
    ds = assert_contract(lambda: MatrixEntropy(alpha=(1, 2)))
    assert float(ds["prompt_entropy_share"].max()) <= 1


def test_only_some_prompts():
    ds = assert_contract(lambda: MatrixEntropy(layers=[2], prompts=3, dataset=False))
    known = np.isfinite(ds["prompt_entropy"]).all(["layer", "order"])
    assert known.values.tolist() == [True] * 3 + [False] * 4
    none = ti.measure(tiny(), some_prompts([9, 7]), {"e": MatrixEntropy(prompts=0)}, progress=False)["e"]
    assert "prompt_entropy" not in none


def test_refusals():
    with pytest.raises(ValueError, match=r"alpha=-1: give .* of at least 0"):
        MatrixEntropy(alpha=-1)
    with pytest.raises(ValueError, match="dataset=False"):
        ti.measure(tiny(), some_prompts([9]), {"e": MatrixEntropy()}, memory=10, progress=False)


def test_the_largest_entropy_of_centred_rows_is_that_of_one_row_less():
    model = StandIn((9, 6))  # 8 and 5 rows without the special one, padded to one width
    for stream in model.streams:
        stream[:, 1:] = np.eye(8)[: stream.shape[1] - 1]
    for centre, most in ((False, (8, 5)), (True, (7, 4))):
        ds = model.measured(ti.geometry.MatrixEntropy(centre=centre, dataset=False)).result()
        np.testing.assert_allclose(ds["prompt_entropy_share"], 1, rtol=1e-6)
        rank = ds["prompt_effective_rank"]
        np.testing.assert_allclose(rank, np.broadcast_to(np.array(most)[:, None], rank.shape), rtol=1e-6)


def test_the_largest_entropy_of_few_prompts_is_that_of_their_number():
    model = StandIn((5, 7, 4))
    for n, stream in enumerate(model.streams):
        stream[:, 1:] = np.eye(8)[n]
    ds = model.measured(ti.geometry.MatrixEntropy()).result()
    np.testing.assert_allclose(ds["dataset_entropy"], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(ds["dataset_entropy_share"], 1, rtol=1e-6)
    np.testing.assert_allclose(ds["dataset_rankme"], 3, rtol=1e-6)


def test_few_prompts_bound_the_entropy_of_the_dataset_and_those_without_tokens_are_none():
    model = StandIn((9, 1, 5, 7))  # three means in eight channels; the second prompt is a special token alone
    ds = model.measured(ti.geometry.MatrixEntropy(exclude=("special",))).result()
    assert ds["n_prompts"].values.tolist() == [3] * 4
    for layer in range(4):
        means = np.stack([s[layer, 1:].mean(0) for s in model.streams if s.shape[1] > 1])
        share = np.linalg.svd(means, compute_uv=False) ** 2
        share /= share.sum()
        entropy = -(share * np.log(share)).sum()
        found = ds.sel(layer=layer, order=1)
        assert float(found["dataset_entropy"]) == pytest.approx(entropy, rel=1e-5)
        assert float(found["dataset_entropy_share"]) == pytest.approx(entropy / np.log(3), rel=1e-5)
