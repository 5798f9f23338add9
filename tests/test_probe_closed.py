"""Probes in closed form are those of the whole data."""

import numpy as np
import pytest
import torch
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.measurements.probe_text import label_ids
from tokinterp.measurements.probes import fit_probes
from tokinterp.measurements.token_probes import check_layer
from tokinterp.models import wrap

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_lm("llama"), id="tiny")


def text(n=12, length=40, types=50, seed=0):
    """Random ids below ``types``, so that they repeat."""
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids([rng.integers(3, types, length - i % 5) for i in range(n)])


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


def test_a_class_that_is_never_a_label_at_an_offset_is_never_said_there(model, tmp_path):
    prompts = ti.Prompts.from_ids([[5, 6, 7, 8, 5], [5, 6, 7, 8]])  # two tokens on there are 5, 7 and 8
    probes = fit_probes(model, prompts, layers=[2], offsets=[-1, 2], method="lda", progress=False)
    for found in (probes, ti.TokenProbes.load(probes.save(tmp_path / "lda"))):
        bias, before = found.bias(2, 2), found.bias(2, -1)
        assert bias is not None
        assert before is not None
        assert bias.isneginf().tolist() == [False, True, False, False]  # labels 5, 6, 7, 8
        assert bool(before.isfinite().all())
        states = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)) * 9
        assert 6 not in found.predict(states, 2, 2, 3)


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
