"""States that probes are trained on: standardised, in groups of layers."""

import logging

import few_probes
import pytest
import torch
from few_probes import FAST, text
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.erasure.probe_states import capture_states
from tokinterp.erasure.probes import fit_probes
from tokinterp.models import wrap

torch.set_num_threads(1)
model, fitted = few_probes.model, few_probes.fitted


def test_states_are_standardised_over_the_tokens_of_the_text(model, fitted):
    prompts = text()
    x = torch.cat([b.rows(2) for b in ti.stream(model, prompts, ti.resid([2]))])
    y = fitted.standardise(x, 2).double()
    torch.testing.assert_close(y.mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(32, dtype=torch.float64), atol=1e-5, rtol=0)
    logits = torch.log_softmax(fitted.standardise(x, 2) @ fitted.weight(2, 0).T, 1)
    target = torch.cat([b.tokens.ids for b in ti.stream(model, prompts, ti.resid([2]))])
    expected = logits.gather(1, torch.searchsorted(fitted.labels, target)[:, None])[:, 0]
    torch.testing.assert_close(fitted.read(x, 2, 0, target).log_prob, expected, atol=1e-4, rtol=1e-4)


def test_layers_in_groups_give_the_same_and_too_little_memory_is_refused(model, caplog):
    options = {"layers": [0, 1, 3], "offsets": [0], "settings": FAST, "progress": False}
    whole = fit_probes(model, text(), **options)
    with caplog.at_level(logging.INFO, "tokinterp"):
        parts = fit_probes(model, text(), memory=240_000, **options)
    assert "3 layers in 3 groups" in caplog.text
    assert parts.digest == whole.digest
    with pytest.raises(ValueError, match=r"fitting one layer needs .* but memory is 0.00 GiB"):
        fit_probes(model, text(), memory=1000, **options)


@pytest.mark.parametrize("method", ["softmax", "ridge"])
def test_special_tokens_take_no_part_in_mean_and_scale(method):
    """Over several batches, of which the first alone gives another mean."""
    model = wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")
    prompts = ti.Prompts.from_texts(["the river ran to the north", "and in", "to the moon and the owl"], model)
    probes = fit_probes(
        model, prompts, layers=[2], offsets=[-1, 0], method=method, settings=FAST, batch_tokens=10, progress=False
    )
    rows = torch.cat([ti.capture(model, prompts, [i], ti.resid([2])).rows(2) for i in range(3)]).double()
    own = rows[torch.from_numpy(~prompts.special_mask)]
    mean, scale = own.mean(0), own.std(0, unbiased=False)
    torch.testing.assert_close(probes.standardise(rows, 2).double(), (rows - mean) / scale, rtol=1e-4, atol=1e-4)


def test_captured_rows_are_the_models_about_the_mean_of_the_tokens_of_the_text():
    """In the order of the tokens, whatever that of the batches; validation by the mean and scale of the training."""
    model, prompts = tiny(), some_prompts([12, 20, 7])
    found = capture_states(model, prompts, [2], torch.float32, 30, lambda _: None, True)
    rows = torch.cat([ti.capture(model, prompts, [i], ti.resid([2])).rows(2) for i in range(3)]).double()
    text = rows[torch.from_numpy(~prompts.special_mask)]
    wanted = (rows - text.mean(0)) / text.std(0, correction=0)
    torch.testing.assert_close(found.rows[2].double(), wanted, rtol=1e-3, atol=1e-3)
    other = capture_states(model, prompts[[2]], [2], torch.float32, 30, lambda _: None, True, found.standard)
    torch.testing.assert_close(other.rows[2].double(), wanted[-7:], rtol=1e-3, atol=1e-3)
