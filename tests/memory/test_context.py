"""Contextual memory: the decoder learns, resumes and scores as defined."""

import copy

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti

torch.set_num_threads(1)
SETTINGS = {"rows": 16, "max_prefix": 6, "warmup": 5, "lr": 3e-3, "lr_new": 3e-3, "progress": False}


@pytest.fixture(scope="module")
def prompts():
    return some_prompts([12] * 10)


@pytest.fixture(scope="module")
def decoder(prompts):
    return ti.memory.fit_context_decoder(tiny(), prompts, steps=60, **SETTINGS)


# -- the trained decoder --------------------------------------------------------------------------------------


def test_the_score_is_the_mean_loss_of_the_tokens_before(decoder, prompts):
    model, decoder = tiny(), copy.deepcopy(decoder)
    decoder.pool.data += torch.tensor([1.0, -1.0, 0.5])  # layers that weigh unlike
    ds = (
        ti.measure(model, prompts, {"m": ti.memory.ContextMemory(decoder)}, progress=False)
        .children["m"]
        .to_dataset(inherit=False)
    )
    assert int(ds["prefix_length"].max()) == 6
    ids = torch.from_numpy(prompts.ids(3).astype(np.int64))
    for position in (2, 5, 7):
        acts = model.run(ids[None], ti.resid([1, 2, 3]))
        states = torch.stack([acts[s][0, position] for s in ti.resid([1, 2, 3])])
        pooled = (decoder.pool.softmax(0)[:, None] * states).sum(0)
        first = decoder.mlp[2](torch.nn.functional.gelu(decoder.mlp[0](pooled)))
        embed = decoder.lm.get_input_embeddings()(ids[1 : position - 1])
        logits = decoder.lm(inputs_embeds=torch.cat([first[None], embed])[None]).logits[0]
        want = torch.nn.functional.cross_entropy(logits, ids[1:position])
        row = (ds["token_prompt"] == 3) & (ds["position"] == position)
        assert float(ds["context_loss"][row.values][0]) == pytest.approx(float(want), rel=1e-4)
        assert int(ds["prefix_length"][row.values][0]) == position - 1
    lengths = ds["prefix_length"].values
    one = ds["context_loss"].values[(ds["token_prompt"].values == 3) & (lengths >= 4)]
    assert float(ds["context_loss_by_length"].sel(prompt=3, bin=4)) == pytest.approx(one.mean(), rel=1e-6)
    assert int(ds["n_by_length"].sel(prompt=3, bin=4)) == 3


def test_memory_contract(decoder):
    ds = assert_contract(lambda: ti.memory.ContextMemory(decoder))
    assert (ds["context_loss"] != ds["context_loss_blank"]).any()
    assert "context_loss_blank" not in assert_contract(
        lambda: ti.memory.ContextMemory(decoder, tokens=2, control=False)
    )


def test_no_prompt_kept_gives_an_empty_table(decoder):
    """As in a share that lacks the first prompts, or where these were left out as not finite."""
    model, prompts = tiny(), some_prompts([60, 58, 55, 57, 61])
    for m in (
        ti.memory.ContextMemory(decoder, tokens=1),
        ti.linearity.TokenNonlinearity(blocks=[1], tokens=1, fit="prompt", exclude=()),
    ):
        m.begin(model.info, prompts)
        m.update(ti.capture(model, prompts, [1, 2], m.sites(model.info)))
        assert m.result().sizes["token"] == 0


def test_bad_settings(decoder, prompts):
    with pytest.raises(TypeError, match="fit_context_decoder"):
        ti.memory.ContextMemory("decoder.safetensors")
    with pytest.raises(ValueError, match="trained on tiny-llama"):
        ti.measure(tiny("gpt2"), prompts, {"m": ti.memory.ContextMemory(decoder)}, progress=False)
    with pytest.raises(ValueError, match="steps=0"):
        ti.memory.fit_context_decoder(tiny(), prompts, steps=0, progress=False)
    with pytest.raises(ValueError, match="two tokens"):
        ti.memory.fit_context_decoder(tiny(), some_prompts([2]), steps=1, progress=False)
