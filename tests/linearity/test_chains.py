"""Sums over chains of layers: streamed, in halves, and with other shifts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from linear_pairs import pair, stand_in, streamed
from standin import partitions

import tokinterp as ti
from tokinterp.kernels import linear

torch.set_num_threads(1)


def explained(x, y):
    """Share of the variance of one cloud that a linear map of another explains, by plain least squares."""
    x, y = (z - z.mean(0) for z in (x.astype(float), y.astype(float)))
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - (left**2).sum() / (y**2).sum()


# -- the measurement ------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(partitions(4))
@pytest.mark.slow
def test_streamed_equals_whole(batches):
    model = stand_in()
    ds = streamed(model, ti.linearity.Linearity(exclude=()), batches)
    for b in range(3):
        x, y = (model.rows(n).astype(np.float32).astype(float) for n in (b, b + 1))
        assert float(ds["linearity"][b]) == pytest.approx(explained(x, y), abs=1e-8)
        assert float(ds["linearity_without_residual"][b]) == pytest.approx(explained(x, y - x), abs=1e-6)
        ratio = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
        mean = float((ds["relative_step"][:, b] * ds["prompt_n"]).sum() / ds["prompt_n"].sum())
        assert mean == pytest.approx(ratio.mean(), rel=1e-3)


def test_halves_are_prompts_of_even_and_odd_number():
    model = stand_in()
    ds = streamed(model, ti.linearity.Linearity(exclude=()))
    for b in range(3):
        x, y = ([model.rows(n, numbers) for numbers in ([0, 2], [1, 3])] for n in (b, b + 1))
        left = total = 0.0
        for i in (0, 1):
            train, test = pair(x[i], y[i]), pair(x[1 - i], y[1 - i])
            fit = linear.solve(train)
            e = linear.residual_norms(
                torch.tensor(x[1 - i]), torch.tensor(y[1 - i]), train.mean_in, train.mean_out, fit.weight
            )
            left, total = left + float((e**2).sum()), total + float(test.total)
        assert float(ds["linearity_held_out"][b]) == pytest.approx(1 - left / total, abs=1e-5)


def test_parts_with_other_shifts_merge_exactly():
    model, whole = stand_in(), streamed(stand_in(), ti.linearity.Linearity())
    a, b = ti.linearity.Linearity(), ti.linearity.Linearity()
    model.measured(a, [[0], [1]])
    model.measured(b, [[3, 2]])
    assert not torch.equal(a.sums["shift"], b.sums["shift"])
    a.merge(b)
    for name in ("linearity", "linearity_without_residual", "linearity_held_out", "rotation_similarity"):
        np.testing.assert_allclose(a.result()[name], whole[name], atol=1e-9)
