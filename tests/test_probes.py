"""Token probes: the gradient by hand, the fit, the published loop, closed forms, files and refusals."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.kernels import probes as kernel
from tokinterp.measurements import probes as fitting
from tokinterp.measurements.probe_text import TextStatistics, label_ids
from tokinterp.measurements.probe_training import Job, train
from tokinterp.measurements.probes import ProbeSettings, TokenProbes, fit_probes
from tokinterp.models import wrap

torch.set_num_threads(1)
FAST = ProbeSettings(rows=128, epochs=2, lr=0.03)


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_lm("llama"), id="tiny")


def text(n=12, length=40, types=50, seed=0):
    """Random ids below ``types``, so that they repeat."""
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids([rng.integers(3, types, length - i % 5) for i in range(n)])


@pytest.fixture(scope="module")
def fitted(model):
    return fit_probes(model, text(), offsets=[-1, 0], settings=FAST, validation=text(seed=1), progress=False)


# -- kernels --------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 20), st.sampled_from([1, 3, 7, 20]), st.booleans())
def test_gradient_by_hand_is_that_of_autograd_whatever_the_blocks(seed, n, block, factored):
    g = torch.Generator().manual_seed(seed)
    classes, m, d = 7, 4, 5
    x, target = torch.randn(n, d, generator=g), torch.randint(-1, classes, (n,), generator=g)
    head = torch.randn(classes, m, generator=g)
    w = torch.randn(m if factored else classes, d, generator=g, requires_grad=True)
    logits = x @ ((head @ w) if factored else w).T
    known = int((target >= 0).sum())
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / max(1, known)
    (expected,) = torch.autograd.grad(loss, w)
    scratch = kernel.Scratch(classes, n, x.device, max_bytes=4 * classes * block)
    assert scratch.rows == min(n, block)
    start = torch.randn(expected.shape, generator=g)
    for add in (False, True):
        found = start.clone()
        with torch.no_grad():
            if factored:
                value = kernel.factored_gradient(x, w, head, target, found, scratch, add=add)
            else:
                value = kernel.softmax_gradient(x, w, target, found, scratch, add=add)
        torch.testing.assert_close(found, expected + start * add, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(value, loss.detach(), atol=2e-6, rtol=1e-5)


def test_reading_is_log_softmax_and_rank_whatever_the_blocks():
    g = torch.Generator().manual_seed(0)
    x, w, b = torch.randn(33, 6, generator=g), torch.randn(11, 6, generator=g), torch.randn(11, generator=g)
    target = torch.randint(-1, 11, (33,), generator=g)
    logits = x @ w.T + b
    expected = torch.log_softmax(logits, 1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    order = logits.argsort(1, descending=True).argsort(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    for block in (1, 4, 33):
        found = kernel.read_targets(x, w, target, b, kernel.Scratch(11, 33, x.device, max_bytes=44 * block))
        torch.testing.assert_close(found.log_prob, expected.masked_fill(target < 0, torch.nan), equal_nan=True)
        assert torch.equal(found.rank, order.masked_fill(target < 0, -1))


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

    from tokinterp.measurements.probe_training import _places, _start

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


def test_states_are_standardised_over_the_tokens_of_the_text(model, fitted):
    prompts = text()
    x = torch.cat([b.rows(2) for b in ti.stream(model, prompts, ti.resid([2]))])
    y = fitted.standardise(x, 2).double()
    torch.testing.assert_close(y.mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(32, dtype=torch.float64), atol=1e-5, rtol=0)
    weight, bias = fitted.folded(2, 0)
    logits = torch.log_softmax(x @ weight.T + bias, 1)
    target = torch.cat([b.row_ids for b in ti.stream(model, prompts, ti.resid([2]))])
    expected = logits.gather(1, torch.searchsorted(fitted.labels, target)[:, None])[:, 0]
    torch.testing.assert_close(fitted.log_probs(x, 2, 0, target), expected, atol=1e-4, rtol=1e-4)


def test_the_best_epoch_is_kept(model):
    over = ProbeSettings(rows=16, epochs=8, lr=0.3, decay=False)
    held = text(seed=1)
    probes = fit_probes(model, text(3), layers=[1], offsets=[0], settings=over, validation=held, progress=False)
    history = probes._get(1, "history.0")
    assert history is not None
    best = int(history[:, 1].argmin())
    assert len(history) == best + 2  # stopped after one epoch without a lower loss
    rows = list(ti.stream(model, held, ti.resid([1])))
    loss = -torch.cat([probes.log_probs(b.rows(1), 1, 0, b.row_ids) for b in rows]).double().nanmean()
    assert float(loss) == pytest.approx(float(history[best, 1]), rel=1e-5)


def test_layers_in_groups_give_the_same_and_too_little_memory_is_refused(model, caplog):
    options = {"layers": [0, 1, 3], "offsets": [0], "settings": FAST, "progress": False}
    whole = fit_probes(model, text(), **options)
    with caplog.at_level(logging.INFO, "tokinterp"):
        parts = fit_probes(model, text(), max_bytes=240_000, **options)
    assert "3 layers in 3 groups" in caplog.text
    assert parts.digest == whole.digest
    with pytest.raises(ValueError, match=r"fitting one layer needs .* but max_bytes is 0.00 GiB"):
        fit_probes(model, text(), max_bytes=1000, **options)


def test_a_crash_loses_no_finished_layer(model, tmp_path, monkeypatch):
    options = {"layers": [0, 1, 3], "offsets": [0], "settings": FAST, "progress": False, "max_bytes": 240_000}
    whole = fit_probes(model, text(), **options)
    real, runs = fitting.train, []

    def watched(states, *rest):
        runs.append(list(states))
        if len(runs) == 2:
            raise RuntimeError("killed")
        return real(states, *rest)

    monkeypatch.setattr(fitting, "train", watched)
    with pytest.raises(RuntimeError, match="killed"):
        fit_probes(model, text(), store=tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()
    with pytest.raises(FileNotFoundError, match="no finished probes"):
        TokenProbes.load(tmp_path / "p")
    with pytest.raises(ValueError, match="differs in: offsets"):
        fit_probes(model, text(), store=tmp_path / "p", **{**options, "offsets": [1]})
    again = fit_probes(model, text(), store=tmp_path / "p", **options)
    assert runs == [[0], [1], [1], [3]]
    assert again.digest == whole.digest
    assert fit_probes(model, text(), store=tmp_path / "p", **options).digest == whole.digest
    assert len(runs) == 4
    with pytest.raises(ValueError, match="differs in: prompts"):
        fit_probes(model, text(seed=5), store=tmp_path / "p", **options)


def test_factored_probes_stay_in_the_span_of_the_unembedding(model):
    probes = fit_probes(
        model, text(), layers=[0], offsets=[0], method="factored", settings=ProbeSettings(rows=64, epochs=20, lr=0.02),
        progress=False,
    )  # fmt: skip
    head = model.head(torch.eye(32)).T[probes.labels]
    found = torch.linalg.lstsq(head, probes.weight(0, 0)).solution
    torch.testing.assert_close(head @ found, probes.weight(0, 0), atol=1e-4, rtol=1e-3)
    batch = next(iter(ti.stream(model, text(seed=1), ti.resid([0]))))
    right = (probes.rank(batch.rows(0), 0, 0, batch.row_ids) == 0).float().mean()
    assert right > 0.95


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_closed_forms_equal_those_of_the_whole_data(model, method):
    prompts = text()
    probes = fit_probes(model, prompts, layers=[2], offsets=[-1], method=method, batch_tokens=100, progress=False)
    order = torch.tensor(prompts.token_ids).long()
    x = torch.zeros(len(order), 32, dtype=torch.float64)
    for b in ti.stream(model, prompts, ti.resid([2])):
        x[torch.tensor(prompts.starts)[b.row_prompt] + b.row_position] = b.rows(2).double()
    y = (x - x.mean(0)) / x.std(0, correction=0)
    label = torch.from_numpy(label_ids(prompts, -1))
    rows, classes = label >= 0, len(probes.labels)
    hot = torch.nn.functional.one_hot(torch.searchsorted(probes.labels, label[rows]), classes).double()
    gram, eye, n = y.T @ y / len(y), torch.eye(32, dtype=torch.float64), rows.sum()
    if method == "ridge":
        weight, bias = (hot.T @ y[rows] / n) @ torch.linalg.inv(gram + 0.1 * eye), hot.mean(0)
    else:
        means, share = hot.T @ y[rows] / hot.sum(0)[:, None], hot.mean(0)
        within = gram - means.T @ torch.diag(share) @ means
        weight = means @ torch.linalg.inv(0.9 * within + 0.1 * eye)
        bias = share.log() - (weight * means).sum(1) / 2
    torch.testing.assert_close(probes.weight(2, -1).double(), weight, atol=1e-4, rtol=1e-3)
    found = probes.bias(2, -1)
    assert found is not None
    torch.testing.assert_close(found.double(), bias, atol=1e-4, rtol=1e-3)


def test_prompts_with_nan_states_are_left_out_and_named(caplog):
    lm = tiny_lm("llama")
    lm.model.embed_tokens.weight.data[60] = torch.nan
    good = text(6)
    bad = ti.Prompts.from_ids([*(good.ids(i) for i in range(6)), [*([5] * 20), 60]])
    probes = fit_probes(wrap(lm, id="nan"), bad, layers=[1], offsets=[0, -1], settings=FAST, progress=False)
    assert "prompts [6]" in caplog.text
    assert bool(probes.weight(1, -1).isfinite().all())


# -- text -----------------------------------------------------------------------------------------------------
def test_labels_skip_special_tokens_and_the_edges(bundled):
    prompts = ti.Prompts.from_texts(["The Nile flows."], bundled)
    ids = prompts.ids(0).tolist()
    assert prompts.special(0).tolist() == [True] + [False] * (len(ids) - 1)
    assert label_ids(prompts, 0).tolist() == [-1, *ids[1:]]
    assert label_ids(prompts, -1).tolist() == [-1, -1, *ids[1:-1]]
    assert label_ids(prompts, 1).tolist() == [-1, *ids[2:], -1]
    assert label_ids(prompts, -1, bos=True).tolist() == [-1, *ids[:-1]]
    assert label_ids(prompts, 0, bos=True).tolist() == [-1, *ids[1:]]
    assert label_ids(prompts, 1, bos=True).tolist() == [*ids[1:], -1]
    assert label_ids(prompts, -len(ids)).tolist() == [-1] * len(ids)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5), st.sampled_from([-2, -1, 1])
)
def test_baselines_are_those_of_counting(lists, offset):
    prompts = ti.Prompts.from_ids(lists)
    pairs = [(x[t], x[t + offset]) for x in lists for t in range(len(x)) if 0 <= t + offset < len(x)]
    if not pairs:
        with pytest.raises(ValueError, match="no token of these prompts has a label"):
            TextStatistics.of(prompts, [offset], 7, False, False)
        return
    found = TextStatistics.of(prompts, [offset], 7, False, False)
    labels = [b for _, b in pairs]
    unigram = max(range(7), key=lambda x: (labels.count(x), -x))
    assert int(found.unigram[0]) == unigram
    for a in range(7):
        after = [b for x, b in pairs if x == a]
        expected = max(range(7), key=lambda x: (after.count(x), -x)) if after else unigram
        assert int(found.bigram[0, a]) == expected
    for a in range(7):
        seen = found.seen_pair(offset, torch.full((7,), a), torch.arange(7))
        assert seen.tolist() == [(a, b) in pairs for b in range(7)]
    assert found.class_of()[0].ge(0).tolist() == [b in labels for b in range(7)]


# -- files and refusals ---------------------------------------------------------------------------------------
def test_round_trip_through_files(model, fitted, tmp_path):
    fitted.save(tmp_path / "probes")
    again = TokenProbes.load(tmp_path / "probes", model)
    assert (again.layers, again.offsets, again.digest) == (fitted.layers, fitted.offsets, fitted.digest)
    x, t = torch.randn(9, 32), torch.randint(0, 60, (9,))
    for layer in (0, 3):
        for offset in (-1, 0):
            a, b = again.read(x, layer, offset, t), fitted.read(x, layer, offset, t)
            torch.testing.assert_close(a.log_prob, b.log_prob, equal_nan=True, atol=0, rtol=0)
            assert torch.equal(a.rank, b.rank)
            known = b.rank == 0
            assert torch.equal(fitted.predict(x, layer, offset)[known, 0], t[known])
    assert torch.isnan(fitted.log_probs(x, 0, 0, torch.full((9,), 300))).all()  # a type that was never a label
    assert torch.isnan(fitted.rank(x, 0, 0, torch.full((9,), 300))).all()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted.save(tmp_path / "probes")
    fitted.save(tmp_path / "probes", overwrite=True)
    (tmp_path / "probes" / "layer-002.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        TokenProbes.load(tmp_path / "probes")


def test_probes_of_another_model_or_place_are_refused(model, fitted, tmp_path):
    fitted.save(tmp_path / "probes")
    with pytest.raises(ValueError, match="belong to another model: they were fitted on 'tiny'"):
        TokenProbes.load(tmp_path / "probes", wrap(tiny_lm("llama", seed=1), id="other"))
    with pytest.raises(ValueError, match="d_model 32 do not fit"):
        fitted.check_model(dataclasses.replace(model.info, d_model=64))
    changed = TokenProbes(fitted.layers, [0], fitted.labels, {}, {**fitted.facts, "tokenizer": "x"})
    with pytest.raises(ValueError, match="whose tokenizer hash"):
        changed.check_model(model.info)
    x = torch.randn(2, 32)
    with pytest.raises(ValueError, match=r"no probe of layer 7: probes were fitted at layers \[0, 1, 2, 3\]"):
        fitted.log_probs(x, 7, 0, torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"no probe of offset 1: probes were fitted at offsets \[-1, 0\]"):
        fitted.weight(0, 1)
    with pytest.raises(ValueError, match=r"states of shape \(2, 31\)"):
        fitted.log_probs(x[:, 1:], 0, 0, torch.zeros(2).long())


def test_released_checkpoints(model, tmp_path):
    weights = {(n, o): torch.randn(320, 32) for n in (-1, 1) for o in (0, -1)}
    for (n, o), w in weights.items():
        torch.save({"fc.weight": w}, tmp_path / f"layer{n}_tgtidx{o}.ckpt")
    probes = TokenProbes.from_authors(tmp_path, model=model)
    assert (probes.layers, probes.offsets) == ([0, 2], [-1, 0])
    x, t = torch.randn(5, 32), torch.arange(5)
    expected = torch.log_softmax(x @ weights[1, -1].T, 1)[torch.arange(5), t]
    torch.testing.assert_close(probes.log_probs(x, 2, -1, t), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="says no layer and offset"):
        TokenProbes.from_authors(tmp_path / "probe.ckpt")
    torch.save({"fc.weight": torch.randn(320, 31)}, tmp_path / "layer0_tgtidx0.ckpt")
    with pytest.raises(ValueError, match=r"fc.weight of shape \[\(320, 31\)\]; it should be \(320, 32\)"):
        TokenProbes.from_authors(tmp_path / "layer0_tgtidx0.ckpt", model=model)
    torch.save({"fc.weight": torch.randn(320, 32)}, tmp_path / "layer9_tgtidx0.ckpt")
    with pytest.raises(ValueError, match="no point of the residual stream"):
        TokenProbes.from_authors(tmp_path / "layer9_tgtidx0.ckpt", model=model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svm"}, "method='svm': give one of 'softmax'"),
        ({"settings": "fast"}, "settings='fast': give 'default', 'feucht2024'"),
        ({"settings": "feucht2024"}, "give validation="),
        ({"settings": ProbeSettings(lr=0)}, "lr=0: give a positive number"),
        ({"layers": [4]}, r"layers=\[4\]"),
        ({"offsets": []}, "offsets=\\[\\]: give a list"),
        ({"offsets": [60]}, "offset 60: no token of these prompts has a label"),
        ({"states": "int8"}, "states='int8': give one of 'float32'"),
        ({"method": "lda", "shrinkage": 0}, "shrinkage=0: give a number above 0"),
    ],
)
def test_bad_settings_are_refused_before_the_model_runs(model, monkeypatch, options, message):
    monkeypatch.setattr(type(model), "run", lambda *a, **k: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        fit_probes(model, text(), progress=False, **options)


def test_ids_outside_the_vocabulary_are_refused(model):
    with pytest.raises(ValueError, match="id 400 is not in the vocabulary of tiny"):
        fit_probes(model, ti.Prompts.from_ids([[4, 400, 3]]), progress=False)
