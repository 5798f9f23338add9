"""Training of the context decoder: it learns, it resumes, it leaves the model alone."""

import signal

import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.measurements import context_training
from tokinterp.models.context_decoder import ContextDecoder

torch.set_num_threads(1)


SETTINGS = {"rows": 16, "max_prefix": 6, "warmup": 5, "lr": 3e-3, "lr_new": 3e-3, "progress": False}


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([12] * 10)


@pytest.fixture(scope="module")
def decoder(prompts):
    return ti.fit_context_decoder(tiny(), prompts, steps=60, **SETTINGS)


# -- the trained decoder --------------------------------------------------------------------------------------
def test_training_lowers_the_loss_and_leaves_the_model_alone(decoder, prompts):
    model = tiny()
    new = ti.fit_context_decoder(model, prompts, steps=1, **SETTINGS)
    assert decoder.facts["loss"] < new.facts["loss"] - 1
    for (name, a), b in zip(model.lm.named_parameters(), decoder.lm.parameters(), strict=True):
        assert a.grad is None
        assert not torch.equal(a, b), name
    frozen = ti.fit_context_decoder(model, prompts, steps=2, train_copy=False, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.lm.parameters(), frozen.lm.parameters(), strict=True))


def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(prompts, tmp_path, monkeypatch):
    model, whole = tiny(), ti.fit_context_decoder(tiny(), prompts, steps=6, **SETTINGS)
    step, calls = context_training._step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(context_training, "_step", stop)
    file = tmp_path / "decoder.safetensors"
    with pytest.raises(KeyboardInterrupt, match="after 3 of 6 steps; the same call goes on from there"):
        ti.fit_context_decoder(model, prompts, steps=6, file=file, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["decoder.safetensors.partial"]
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: lr \(0.003 there, 0.1 now\)"):
        ti.fit_context_decoder(model, prompts, steps=6, file=file, **{**SETTINGS, "lr": 0.1})
    again = ti.fit_context_decoder(model, prompts, steps=6, file=file, **SETTINGS)
    assert len(calls) == 6
    assert again.digest == whole.digest
    assert [p.name for p in tmp_path.iterdir()] == ["decoder.safetensors"]
    assert ti.fit_context_decoder(model, prompts, steps=6, file=file, **SETTINGS).digest == whole.digest
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: lr \(0.003 there, 0.1 now\)"):
        ti.fit_context_decoder(model, prompts, steps=6, file=file, **{**SETTINGS, "lr": 0.1})
    loaded = ContextDecoder.load(file, model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ValueError, match="was fitted on tiny-llama"):
        ContextDecoder.load(file, tiny("gpt2"))
