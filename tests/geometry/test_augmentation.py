"""Augmented readings: the edits, the bounds of what is computed from them, and models side by side."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.geometry.augmentation import reading_numbers
from tokinterp.geometry.kernels import entropy
from tokinterp.text import augment_prompts


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- edits ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["delete", "replace", "swap"])
def test_readings_are_aligned_and_edited_at_the_rate(kind):
    prompts = some_prompts([50, 2, 41, 60])
    readings = augment_prompts(prompts, 3, 0.2, kind, seed=4)
    edited = 0
    for reading in readings:
        assert len(reading) == 4
        for i in range(4):
            own, new = prompts.ids(i), reading.ids(i)
            origin = reading.origin[reading.starts[i] : reading.starts[i + 1]]
            assert new[0] == 1
            assert len(new) > 1
            if kind == "delete":
                assert np.array_equal(new, own[origin])
                assert (np.diff(origin) > 0).all()
                edited += len(own) - len(new)
            elif kind == "replace":
                assert len(new) == len(own)
                assert np.isin(new, prompts.token_ids).all()
                edited += (new != own).sum()
            else:
                assert sorted(new) == sorted(own)
                assert np.array_equal(new, own[origin])
    if kind != "swap":
        assert edited / (3 * prompts.n_tokens) == pytest.approx(0.2, abs=0.07)
    assert len({r.hash for r in readings}) == 3


def test_edits_depend_on_seed_and_prompt_only():
    prompts = some_prompts([40, 30, 50])
    again = augment_prompts(prompts[[2, 0]], 1, 0.3, seed=1)[0]
    whole = augment_prompts(prompts, 1, 0.3, seed=1)[0]
    assert np.array_equal(again.ids(0), whole.ids(2))
    assert np.array_equal(again.ids(1), whole.ids(0))
    assert augment_prompts(prompts, 1, 0.3, seed=2)[0].hash != whole.hash


def test_refused_edits():
    prompts = some_prompts([9])
    for options, text in (({"q": 0}, "q=0"), ({"rate": 1.5}, "rate=1.5"), ({"kind": "add"}, "kind='add'")):
        with pytest.raises(ValueError, match=text):
            augment_prompts(prompts, **options)


# -- kernels --------------------------------------------------------------------------------------------------
def test_infonce_is_cross_entropy_and_bounded():
    x, y = cloud(20, 8), cloud(20, 8, seed=1)
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    logits = (a @ b.T / 0.1).numpy()
    rows = [-np.log(np.exp(m[i, i]) / np.exp(m[i]).sum()) for m in (logits, logits.T) for i in range(20)]
    assert float(entropy.infonce(x, y)) == pytest.approx(np.mean(rows), rel=1e-10)
    assert float(entropy.infonce(x, x, 0.01)) < 1e-3
    assert float(entropy.infonce(torch.ones(20, 8), torch.ones(20, 8))) == pytest.approx(np.log(20))


def literal_lidar(x, delta, old=False):
    n, q, d = x.shape
    mean, overall = x.mean(1), x.mean((0, 1))
    between = sum(np.outer(m - overall, m - overall) for m in mean) / (n if old else n - 1)
    within = sum(np.outer(v - m, v - m) for m, one in zip(mean, x, strict=True) for v in one)
    within = within / (n * q if old else n * (q - 1)) + delta * np.eye(d)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.linalg.eigvalsh(root @ between @ root)
    p = p[p > 1e-12] / p.sum()
    h = -(p * np.log(p)).sum()
    return h / np.log(min(n, d)) if old else np.exp(h)


@pytest.mark.parametrize("shape", [(6, 3, 4), (5, 2, 40), (4, 6, 24)])
def test_lidar_equals_its_formula(shape):
    x = cloud(shape[0], 1, shape[2]) + 0.3 * cloud(*shape, seed=1)
    for old, name in ((False, "thilak2024"), (True, "skean2025")):
        found = float(entropy.lidar(x, 1e-2, name))
        assert found == pytest.approx(literal_lidar(x.numpy(), 1e-2, old), rel=1e-8)
    assert 1 <= float(entropy.lidar(x)) <= min(shape[0] - 1, shape[2]) + 1e-9


def test_lidar_counts_planted_directions():
    n, d, r = 200, 20, 5
    signal = cloud(n, 1, r) @ torch.linalg.qr(cloud(d, d, seed=2)).Q[:r]
    x = 100 * signal + cloud(n, 4, d, seed=3)
    assert float(entropy.lidar(x)) == pytest.approx(r, rel=0.05)


def test_dime_bounds():
    n = 30
    one = entropy.cosine_gram(cloud(n, 3))
    orders = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(5)])
    same, other = entropy.dime(one, one, orders), entropy.dime(one, entropy.cosine_gram(cloud(n, 3, seed=1)), orders)
    assert 0.1 < float(same) < np.log(n)
    assert abs(float(other)) < 0.3 * float(same)
    assert float(entropy.dime(one, torch.ones(n, n), orders)) == pytest.approx(0, abs=1e-9)
    # at d < n the kernel stays n x n: K o L of d x d covariances is another quantity
    small = entropy.cosine_gram(cloud(30, 3))
    joint = np.linalg.eigvalsh((small * small).numpy()) / n
    h = -(joint[joint > 1e-12] * np.log(joint[joint > 1e-12])).sum()
    mixed = [float(entropy.renyi(torch.linalg.eigvalsh(small * small[o][:, o]))) for o in orders]
    assert float(entropy.dime(small, small, orders)) == pytest.approx(np.mean(mixed) - h, rel=1e-9)


def test_numbers_are_means_over_pairs_of_different_readings():
    x = cloud(1, 9, 5) + 0.5 * cloud(3, 9, 5, seed=1)
    orders = np.stack([np.random.default_rng(s).permutation(9) for s in range(2)])
    found = reading_numbers(x, orders, ("infonce", "dime", "lidar"), 0.1, 1e-2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    loss = np.mean([float(entropy.infonce(x[a], x[b], 0.1)) for a, b in pairs])
    assert found["infonce_loss"] == pytest.approx(loss)
    grams = [entropy.cosine_gram(v) for v in x]
    dime = np.mean([float(entropy.dime(grams[a], grams[b], torch.from_numpy(orders))) for a, b in pairs])
    assert found["dime"] == pytest.approx(dime)
    assert found["lidar"] == pytest.approx(float(entropy.lidar(x.transpose(0, 1), 1e-2)))
    assert found["lidar_share"] == pytest.approx(found["lidar"] / 5)  # fewer channels than prompts


# -- the functions --------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_metrics_of_a_model():
    model, prompts = tiny(), some_prompts([30, 24, 28, 20, 26, 22])
    ds = ti.geometry.augmentation_metrics(model, prompts, q=3, rate=0.15, published="skean2025", progress=False)
    ti.check(ds)
    assert ds["layer"].values.tolist() == [0, 1, 2, 3]
    assert (ds["infonce_share"] <= 1).all()
    assert (ds["infonce_loss"] >= 0).all()
    assert ((ds["lidar"] >= 1) & (ds["lidar"] <= 5)).all()
    assert (ds["dime"] > 0).all()
    np.testing.assert_allclose(ds["infonce_bound"], np.log(6) - ds["infonce_loss"])
    np.testing.assert_allclose(ds["infonce_share"], ds["infonce_bound"] / np.log(6))
    np.testing.assert_allclose(ds["lidar_share"], ds["lidar"] / 5)
    again = ti.geometry.augmentation_metrics(model, prompts, q=3, rate=0.15, batch_tokens=1, progress=False)
    assert "lidar_skean2025" not in again
    for name in again.data_vars:
        np.testing.assert_allclose(again[name], ds[name], rtol=1e-3, err_msg=name)
    harder = ti.geometry.augmentation_metrics(model, prompts, q=3, rate=0.8, layers=[3], progress=False)
    assert float(harder["infonce_loss"][0]) > float(ds["infonce_loss"][3])
    assert harder.attrs["fingerprint"] != ds.attrs["fingerprint"]


def test_refusals():
    prompts = some_prompts([9, 8, 7, 6])
    for options, text in (
        ({"q": 1}, "q=1"), ({"metrics": "all"}, "metrics="), ({"pooling": "tokens"}, "'mean' or 'last'"),
        ({"published": "x"}, "skean2025"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            ti.geometry.augmentation_metrics(tiny(), prompts, progress=False, **options)
    with pytest.raises(ValueError, match="at least 4"):
        ti.geometry.augmentation_metrics(tiny(), some_prompts([9]), progress=False)


def test_two_models_side_by_side():
    texts = [t.text[:50] for t in ti.bundled_texts("story")[:12]]
    one, two = tiny(), ti.wrap(tiny_lm("gpt2", n_embd=16), tiny().tokenizer, id="small")
    ds = ti.geometry.compare_models(one, two, texts, measures=("cka", "procrustes", "rsa"), progress=False)
    assert ds["cka"].shape == (4, 4)
    assert (ds.attrs["model"], ds.attrs["other_model"]) == ("tiny-llama", "small")
    same = ti.geometry.compare_models(one, one, texts, other_layers=[3], k=4, progress=False)
    for name in ("cka", "cka_debiased", "procrustes", "rsa", "mutual_neighbours"):
        assert float(same[name].sel(layer=3, other_layer=3)) == pytest.approx(1, abs=1e-6), name
    with pytest.raises(ValueError, match="at least 8"):
        ti.geometry.compare_models(one, two, texts[:3], progress=False)


def test_something_is_left_of_every_prompt_and_nothing_special_comes_in():
    prompts = some_prompts([2, 2, 3, 2, 4])  # two of five tokens are special
    for reading in augment_prompts(prompts, 8, 0.95, "delete"):
        assert min(reading.lengths) == 2
        assert reading.special_mask.sum() == 5
    for reading in augment_prompts(prompts, 8, 0.95, "replace"):
        np.testing.assert_array_equal(reading.special_mask, prompts.special_mask)
