"""The LLM-Microscope dimension: right without duplicates, inflated by them exactly as described."""

import numpy as np
import pytest
import torch

from tokinterp.kernels.airi import airi_twonn

torch.set_num_threads(1)


def cloud(share, seed, n=2048, d=10):
    """n points of a d-dimensional Gaussian, of which a share coincide with others in pairs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    pairs = round(share * n / 2)
    x[n - pairs :] = x[:pairs]
    return torch.from_numpy(x)


# specs of the defect, measured with the released code: share of points with a coincident one -> estimate
@pytest.mark.parametrize(("share", "published"), [(0, 9.3), (0.01, 11.0), (0.02, 11.5), (0.1, 19.4), (0.4, 59.7)])
def test_duplicates_inflate_the_released_estimate(share, published):
    found = np.mean([float(airi_twonn(cloud(share, seed))) for seed in range(6)])
    assert found == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize("share", [0, 0.1, 0.4])
def test_counting_only_the_points_on_the_line_repairs_it(share):
    found = np.mean([float(airi_twonn(cloud(share, seed), keep_duplicates=False)) for seed in range(6)])
    assert found == pytest.approx(9.5, abs=0.8)


def test_equals_the_released_steps_word_for_word():
    x = cloud(0.05, 3, n=300).numpy()
    z = x - x.mean(0)
    z = z / np.linalg.norm(z, axis=1).mean()
    mu = []
    for i in range(len(z)):
        r = np.sort(np.delete(np.linalg.norm(z - z[i], axis=1), i))[:2]
        mu.append(-1.0 if r[0] < 1e-8 else r[1] / r[0])
    mu = np.sort(mu)
    u = int((mu <= 1 + 1e-8).sum())
    rest = mu[u:]
    f = (u + np.arange(1, len(rest) + 1)) / len(z)
    k = len(rest) // 5
    want = (np.log(rest[:k]) * -np.log(1 - f[:k])).sum() / (np.log(rest[:k]) ** 2).sum()
    assert float(airi_twonn(torch.from_numpy(x), block=77)) == pytest.approx(want, rel=1e-10)


def test_shift_scale_and_rotation_change_nothing():
    x = cloud(0, 1, n=400)
    q = torch.linalg.qr(cloud(0, 2, n=10))[0]
    assert float(airi_twonn(7 * x @ q + 3)) == pytest.approx(float(airi_twonn(x)), rel=1e-9)


def test_bad_clouds():
    assert airi_twonn(torch.ones(50, 4)).isnan()
    with pytest.raises(ValueError, match="at least 3 points"):
        airi_twonn(torch.ones(2, 4))
    with pytest.raises(ValueError, match="reduction=0"):
        airi_twonn(torch.randn(9, 4), reduction=0)
