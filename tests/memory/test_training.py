"""Training of the context decoder: it learns, it resumes, it leaves the model alone."""

import signal

import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.memory import training as context_training
from tokinterp.memory.decoder import ContextDecoder

torch.set_num_threads(1)


SETTINGS = {"rows": 16, "max_prefix": 6, "warmup": 5, "lr": 3e-3, "lr_new": 3e-3, "progress": False}


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([12] * 10)


@pytest.fixture(scope="module")
def decoder(prompts):
    return ti.memory.fit_context_decoder(tiny(), prompts, steps=60, **SETTINGS)


# -- the trained decoder --------------------------------------------------------------------------------------
def test_training_lowers_the_loss_and_leaves_the_model_alone(decoder, prompts):
    model = tiny()
    new = ti.memory.fit_context_decoder(model, prompts, steps=1, **SETTINGS)
    assert decoder.facts["loss"] < new.facts["loss"] - 1
    for (name, a), b in zip(model.lm.named_parameters(), decoder.lm.parameters(), strict=True):
        assert a.grad is None
        assert not torch.equal(a, b), name
    frozen = ti.memory.fit_context_decoder(model, prompts, steps=2, train_copy=False, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.lm.parameters(), frozen.lm.parameters(), strict=True))


def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(prompts, tmp_path, monkeypatch):
    model, whole = tiny(), ti.memory.fit_context_decoder(tiny(), prompts, steps=6, **SETTINGS)
    step, calls = context_training._step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(context_training, "_step", stop)
    file = tmp_path / "decoder.safetensors"
    with pytest.raises(KeyboardInterrupt, match="after 3 of 6 steps; the same call goes on from there"):
        ti.memory.fit_context_decoder(model, prompts, steps=6, store=file, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["decoder.safetensors.partial"]
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: lr \(0.003 there, 0.1 now\)"):
        ti.memory.fit_context_decoder(model, prompts, steps=6, store=file, **{**SETTINGS, "lr": 0.1})
    again = ti.memory.fit_context_decoder(model, prompts, steps=6, store=file, **SETTINGS)
    assert len(calls) == 6
    assert again.digest == whole.digest
    assert [p.name for p in tmp_path.iterdir()] == ["decoder.safetensors"]
    assert ti.memory.fit_context_decoder(model, prompts, steps=6, store=file, **SETTINGS).digest == whole.digest
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: lr \(0.003 there, 0.1 now\)"):
        ti.memory.fit_context_decoder(model, prompts, steps=6, store=file, **{**SETTINGS, "lr": 0.1})
    loaded = ContextDecoder.load(file, model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ValueError, match="another model: fitted on tiny-llama"):
        ContextDecoder.load(file, tiny("gpt2"))


def test_training_is_that_of_a_loop(prompts, monkeypatch):
    """Each step's states are the model's at layers 1 on, each loss the mean over its prefix, the rate as it is said."""
    model, taken, rates = tiny(), [], []
    step = context_training._step

    def watched(decoder, optimizer, states, prefix):
        rates.append([g["lr"] for g in optimizer.param_groups])
        with torch.no_grad():
            every = decoder(states, prefix)
        own = [every[i][prefix[i] >= 0].mean() for i in range(len(prefix))]
        loss = step(decoder, optimizer, states, prefix)
        assert loss == pytest.approx(float(torch.stack(own).mean()), rel=1e-5)
        taken.append((states, prefix))
        return loss

    monkeypatch.setattr(context_training, "_step", watched)
    settings = {**SETTINGS, "warmup": 4, "lr": 2e-3, "lr_new": 6e-3}
    decoder = ti.memory.fit_context_decoder(model, prompts, steps=8, **settings)
    for done, (new, copy) in enumerate(rates):
        factor = min(1, (done + 1) / 4) * (1 - done / 8)
        assert (new, copy) == pytest.approx((6e-3 * factor, 2e-3 * factor))
    every = torch.cat([states for states, _ in taken])
    torch.testing.assert_close(decoder.mean_state, every.mean(0), atol=1e-5, rtol=1e-4)
    assert len({tuple(prefix.flatten().tolist()) for _, prefix in taken}) == 8  # other draws in every step
    lengths, ids = set(), [prompts.ids(i).tolist() for i in range(len(prompts))]
    for states, prefix in taken:
        for row, tokens in zip(states, prefix, strict=True):
            before = tokens[tokens >= 0].tolist()
            lengths.add(len(before))
            (i,) = (n for n, own in enumerate(ids) if own[1 : 1 + len(before)] == before) if len(before) > 2 else (-1,)
            if i >= 0:  # the state is that of the token behind the prefix, which holds no BOS
                batch = ti.capture(model, prompts, [i], ti.resid(range(1, model.info.n_layers + 1)))
                own = torch.stack([batch.resid(n)[0, 1 + len(before)] for n in range(1, model.info.n_layers + 1)])
                torch.testing.assert_close(row, own, atol=1e-5, rtol=1e-4)
    assert lengths == set(range(1, SETTINGS["max_prefix"] + 1))
