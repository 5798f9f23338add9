"""Probes in closed form are those of the whole data."""

import few_probes
import pytest
import torch
from few_probes import text

import tokinterp as ti
from tokinterp.erasure import probe_closed
from tokinterp.erasure.probe_files import check_layer
from tokinterp.erasure.probe_text import label_ids
from tokinterp.erasure.probes import fit_probes
from tokinterp.erasure.token_probes import TokenProbes
from tokinterp.kernels.state import _products

torch.set_num_threads(1)
model = few_probes.model


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_closed_forms_equal_those_of_the_whole_data(model, method):
    prompts = text()
    probes = fit_probes(model, prompts, layers=[2], offsets=[-1], method=method, batch_tokens=100, progress=False)
    order = torch.tensor(prompts.token_ids).long()
    x = torch.zeros(len(order), 32, dtype=torch.float64)
    for b in ti.stream(model, prompts, ti.resid([2])):
        x[torch.tensor(prompts.starts)[b.tokens.prompt] + b.tokens.position] = b.rows(2).double()
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


def test_a_class_that_is_never_a_label_at_an_offset_is_never_said_there(model, tmp_path):
    prompts = ti.Prompts.from_ids([[5, 6, 7, 8, 5], [5, 6, 7, 8]])  # two tokens on there are 5, 7 and 8
    probes = fit_probes(model, prompts, layers=[2], offsets=[-1, 2], method="lda", progress=False)
    for found in (probes, ti.erasure.TokenProbes.load(probes.save(tmp_path / "lda"))):
        bias, before = found.bias(2, 2), found.bias(2, -1)
        assert bias is not None
        assert before is not None
        assert bias.isneginf().tolist() == [False, True, False, False]  # labels 5, 6, 7, 8
        assert bool(before.isfinite().all())
        states = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)) * 9
        assert 6 not in found.predict(states, 2, 2, 3)


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_every_offset_is_solved_with_its_own_labels(model, method):
    """Offsets fitted together are those fitted alone, though their labels are not equally common."""
    prompts = text(types=30)
    together = fit_probes(model, prompts, layers=[1], offsets=[-3, 0, 2], method=method, progress=False)
    for o in (-3, 0, 2):
        alone = fit_probes(model, prompts, layers=[1], offsets=[o], method=method, progress=False)
        torch.testing.assert_close(together.weight(1, o), alone.weight(1, o), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.bias(1, o), alone.bias(1, o), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together.bias(1, -3), together.bias(1, 2), atol=1e-3)  # pyright: ignore[reportArgumentType]


def test_a_label_without_a_row_to_fit_has_no_loss_and_not_an_infinite_one(model):
    """A type may be a label only in prompts that were left out of the fit."""
    prompts = ti.Prompts.from_ids([[5, 6, 7, 8, 5, 6], [7, 8, 5, 6, 6, 7]])
    fitted = fit_probes(model, prompts, layers=[1], offsets=[0], method="lda", progress=False)
    part = {n: fitted._get(1, n, torch.device("cpu")).clone() for n in ("weight.0", "bias.0", "mean", "scale")}
    part["weight.0"][1], part["bias.0"][1] = 0.0, -torch.inf  # of 5, 6, 7, 8
    probes = TokenProbes([1], [0], fitted.labels, {1: part}, fitted.facts, fitted.text)
    states = torch.randn(30, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([5, 6, 7, 8, 9, -1]).repeat(5)
    found, whole = probes.read(states, 1, 0, targets), (probes.standardise(states, 1) @ part["weight.0"].T).double()
    unknown = torch.tensor([False, True, False, False, True, True]).repeat(5)
    assert found.log_prob.isnan().equal(unknown)
    assert (found.rank == -1).equal(unknown)
    wanted = (whole + part["bias.0"].double()).log_softmax(1)
    for row in (~unknown).nonzero()[:, 0].tolist():
        assert float(found.log_prob[row]) == pytest.approx(float(wanted[row, int(targets[row]) - 5]), abs=1e-4)


def test_infinite_numbers_of_other_kinds_are_refused():
    weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    right = {"weight.0": weight, "bias.0": torch.tensor([0.5, -torch.inf])}
    check_layer(right, [0], 2, 2, "probes")
    for bias in (
        [torch.nan, -torch.inf],
        [0.5, torch.inf],
        [torch.inf, 0.0],
        [-torch.inf, 0.0],
        [-torch.inf, -torch.inf],
    ):
        with pytest.raises(ValueError, match=r"NaN or infinite numbers in bias\.0"):
            check_layer({**right, "bias.0": torch.tensor(bias)}, [0], 2, 2, "probes")


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_products_are_those_of_float32_whatever_the_caller_has_set(model, method, monkeypatch):
    """A GPU would round moments to 10 bits; and rows are summed in blocks, the blocks in float64."""
    seen, solve = [], probe_closed.SOLVERS[method]

    def watched(gram, *rest):
        seen.append(([getattr(p, name) == full for p, name, full in _products(torch.backends)], gram.dtype))
        return solve(gram, *rest)

    monkeypatch.setitem(probe_closed.SOLVERS, method, watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = fit_probes(model, text(), layers=[2], offsets=[-1], method=method, progress=False)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert all(all(full) and dtype == torch.float64 for full, dtype in seen)
    monkeypatch.setattr(probe_closed, "BLOCK_ROWS", 7)
    again = fit_probes(model, text(), layers=[2], offsets=[-1], method=method, progress=False)
    torch.testing.assert_close(again.weight(2, -1), found.weight(2, -1), atol=1e-4, rtol=1e-3)
