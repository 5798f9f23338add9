"""The training of probes: planted codes, the published loop, one at a time or together."""

import dataclasses

import few_probes
import numpy as np
import pytest
import torch
from few_probes import FAST, text

import tokinterp as ti
from tokinterp.erasure import probe_training
from tokinterp.erasure import probes as fitting
from tokinterp.erasure.probe_training import Job, train
from tokinterp.erasure.probes import ProbeSettings, fit_probes

torch.set_num_threads(1)
model, fitted = few_probes.model, few_probes.fitted


def job_of(targets, n_classes, s, validation=None, starts=(0,), offsets=None):
    n = targets.shape[1]
    offsets = offsets or list(range(len(targets)))
    return Job(targets, validation, np.array([*starts, n]), np.arange(n), n_classes, offsets, s, 0, torch.float32)


def test_planted_code_is_found_and_what_is_not_there_is_not():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (3000,), generator=g)
    here, before = torch.randn(20, 48, generator=g), torch.randn(20, 48, generator=g)
    states = here[ids] + before[ids.roll(1)] + 0.1 * torch.randn(3000, 48, generator=g)
    targets = torch.stack([ids.roll(2), ids.roll(1), ids])
    with torch.no_grad():
        found = train({3: states}, {}, job_of(targets, 20, dataclasses.replace(FAST, epochs=4)), lambda k, w: None)
    right = [((states @ found[3, o]["weight"].T).argmax(1) == targets[o]).float().mean() for o in range(3)]
    assert right[1] == 1
    assert right[2] == 1
    assert right[0] < 0.25  # chance is 0.05; a linear map of 48 coordinates fits a little noise


def test_bfloat16_products_end_where_float32_does():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30, (4000,), generator=g)
    states = torch.randn(30, 16, generator=g)[ids] + 0.7 * torch.randn(4000, 16, generator=g)
    losses = []
    for products in (torch.float32, torch.bfloat16):
        job = job_of(ids[None], 30, dataclasses.replace(FAST, epochs=3), validation=ids[None])
        job.products = products
        with torch.no_grad():
            found = train({0: states}, {0: states}, job, lambda k, w: None)[0, 0]
        losses.append(float(found["history"][-1, 1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[0] < 1.0


def test_published_loop_step_by_step():
    """Against the literal loop with autograd: first step after 31 batches, leaking epochs, clip, warm-up."""
    g = torch.Generator().manual_seed(0)
    lengths = [3 + i % 4 for i in range(70)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    n, d, classes = int(starts[-1]), 6, 9
    states, target = torch.randn(n, d, generator=g), torch.randint(-1, classes, (1, n), generator=g)
    held, checked = torch.randn(50, d, generator=g), torch.randint(0, classes, (1, 50), generator=g)
    s = dataclasses.replace(fitting.choose_settings("feucht2024"), documents=1, epochs=7, warmup=99, clip=0.3)
    job = job_of(target, classes, s, validation=checked, starts=starts[:-1])
    with torch.no_grad():
        got = train({0: states}, {0: held}, job, lambda k, w: None)[0, 0]

    from tokinterp.erasure.probe_training import _places, _start

    w = _start(0, 0, job, d, states.device).weight.clone().requires_grad_()
    assert float(w.detach().abs().max()) <= d**-0.5
    optimizer = torch.optim.AdamW([w], lr=0.1, weight_decay=0.001)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=3, threshold=0)
    base, number, losses = 0.1, 0, []
    for epoch in range(7):
        for b, places in enumerate(_places(job, epoch)):
            loss = torch.nn.functional.cross_entropy(states[places] @ w.T, target[0, places], ignore_index=-1)
            if (target[0, places] >= 0).any():
                loss.backward()
            if b % 30 == 0 and b > 0:
                torch.nn.utils.clip_grad_norm_([w], 0.3)
                optimizer.param_groups[0]["lr"] = base * min(1, (number + 1) / 99)
                optimizer.step()
                optimizer.zero_grad()
            number += 1
        losses.append(float(torch.nn.functional.cross_entropy(held @ w.detach().T, checked[0])))
        optimizer.param_groups[0]["lr"] = base
        plateau.step(losses[-1])
        base = optimizer.param_groups[0]["lr"]
    assert base < 0.1  # noise is not learnt: the plateau was reached, so that branch is compared too
    torch.testing.assert_close(got["weight"], w.detach(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(got["history"][:, 1], losses, rtol=1e-5)


# -- the fit --------------------------------------------------------------------------------------------------
def test_joint_fit_is_the_fit_one_at_a_time(model, fitted):
    for layer, offset in ((0, 0), (2, -1)):
        alone = fit_probes(
            model, text(), layers=[layer], offsets=[offset], settings=FAST, validation=text(seed=1), progress=False
        )
        torch.testing.assert_close(alone.weight(layer, offset), fitted.weight(layer, offset), atol=0, rtol=0)


def test_the_best_epoch_is_kept(model):
    over = ProbeSettings(rows=16, epochs=8, lr=0.3, decay=False)
    held = text(seed=1)
    probes = fit_probes(model, text(3), layers=[1], offsets=[0], settings=over, validation=held, progress=False)
    history = probes._get(1, "history.0")
    assert history is not None
    best = int(history[:, 1].argmin())
    assert len(history) == best + 2  # stopped after one epoch without a lower loss
    rows = list(ti.stream(model, held, ti.resid([1])))
    loss = -torch.cat([probes.read(b.rows(1), 1, 0, b.tokens.ids).log_prob for b in rows]).double().nanmean()
    assert float(loss) == pytest.approx(float(history[best, 1]), rel=1e-5)


def test_batches_are_drawn_anew_in_every_epoch_by_the_seed():
    starts, usable = np.array([0, 4, 9, 12, 20]), np.array([1, 2, 3, 5, 6, 8, 11, 13, 14, 17, 19])

    def batches(seed, epoch, **options):
        none = torch.zeros(0)
        job = Job(none, None, starts, usable, 2, [0], ProbeSettings(**options), seed, torch.float32)
        return [b.tolist() for b in probe_training._places(job, epoch)]

    for options, every in (({"rows": 3}, usable), ({"documents": 1}, np.arange(20))):
        one = batches(0, 0, **options)
        assert sorted(t for b in one for t in b) == every.tolist()
        assert one == batches(0, 0, **options)
        for others in ([batches(0, e, **options) for e in range(5)], [batches(s, 0, **options) for s in range(5)]):
            assert len({str(b) for b in others}) > 2
    assert [len(b) for b in batches(0, 0, rows=3)] == [3, 3, 3, 2]


def test_rates_rise_over_the_warm_up_and_fall_to_the_end():
    s = ProbeSettings(epochs=4, warmup=5, decay=True)
    found = [probe_training._factor(s, n, 10) for n in range(40)]
    np.testing.assert_allclose(found, [min(1, (n + 1) / 5) * (1 - n / 40) for n in range(40)])
    plain = ProbeSettings(epochs=4, warmup=0, decay=False)
    assert {probe_training._factor(plain, n, 10) for n in range(40)} == {1.0}


def test_weights_begin_by_seed_layer_and_offset():
    none = torch.zeros(0)

    def weights(seed, layer, row):
        job = Job(
            none, None, np.array([0, 3]), np.arange(3), 4, [-1, 0], ProbeSettings(zeros=False), seed, torch.float32
        )
        return probe_training._start(layer, row, job, 9, torch.device("cpu")).weight

    first = weights(0, 1, 0)
    assert torch.equal(first, weights(0, 1, 0))
    assert float(first.abs().max()) <= 1 / 3
    assert not any(torch.equal(first, other) for other in (weights(1, 1, 0), weights(0, 2, 0), weights(0, 1, 1)))
