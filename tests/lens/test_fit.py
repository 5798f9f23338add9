"""Fits of the tuned lens: least squares, a divergence that never rises, the same again."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([60] * 8)


@pytest.fixture(scope="module")
def start(prompts):
    return ti.lens.fit_tuned_lens(tiny(), prompts, steps=0, ridge=0, progress=False)


def lens_of(lens, prompts, model=None, variants=("normed", "tuned")):
    asked = {"m": ti.lens.LogitLens(variants=variants, tuned=lens, top=2)}
    return ti.measure(model or tiny(), prompts, asked, progress=False).children["m"].to_dataset(inherit=False)


def test_closed_form_is_least_squares_towards_the_last_layer(start, prompts):
    model = tiny()
    batch = ti.capture(model, prompts, range(len(prompts)), ti.resid([1, 3]))
    keep = ~batch.tokens.special
    x, y = batch.rows(1)[keep].double().numpy(), batch.rows(3)[keep].double().numpy()
    one = np.concatenate([x, np.ones((len(x), 1))], 1)
    best = y - one @ np.linalg.lstsq(one, y, rcond=None)[0]
    lens = ti.lens.fit_tuned_lens(model, prompts, layers=[1], ridge=0, steps=0, progress=False)
    blend = lens.facts["history"]["1"]["blend"]
    assert blend > 0
    a, b = lens.weight[0].double().numpy() / blend, lens.bias[0].double().numpy() / blend
    np.testing.assert_allclose(y - (x + x @ a.T + b), best, atol=1e-4)
    assert start.digest != lens.digest


@pytest.mark.slow
def test_fitting_never_raises_the_divergence_where_it_was_checked_and_training_lowers_it(start, prompts):
    ds = lens_of(start, prompts)
    kl = ds["kl"].mean("prompt")
    assert (kl.sel(variant="tuned") <= kl.sel(variant="normed") + 1e-4).all()
    for h in start.facts["history"].values():
        assert h["kl_start"] <= h["kl_identity"]
    model = tiny()
    before = {n: p.clone() for n, p in model.lm.named_parameters()}
    trained = ti.lens.fit_tuned_lens(model, prompts, steps=30, lr=3e-3, step_tokens=240, progress=False)
    after = lens_of(trained, prompts)["kl"].mean("prompt").sel(variant="tuned")
    assert float(after[:3].sum()) < 0.985 * float(kl.sel(variant="tuned")[:3].sum())
    for n, p in model.lm.named_parameters():
        assert torch.equal(p, before[n])
        assert p.grad is None


def test_fit_is_the_same_again(prompts):
    lenses = [ti.lens.fit_tuned_lens(tiny(), prompts, layers=[1], steps=3, progress=False) for _ in range(2)]
    assert lenses[0].digest == lenses[1].digest
