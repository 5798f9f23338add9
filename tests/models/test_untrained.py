"""The untrained copy of a model: same shape, new weights, own name, nothing else changed."""

import pytest
import torch
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
def test_same_config_other_weights(family):
    model = ti.wrap(tiny_lm(family), byte_tokenizer(), id="tiny")
    before = [p.clone() for p in model.lm.parameters()]
    torch.manual_seed(123)  # another place in another sequence than what was drawn for the model
    state = torch.get_rng_state()
    blank = ti.untrained(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert blank.info.id == "tiny, untrained"
    assert blank.info.revision == "seed 0"
    same = ("n_layers", "n_heads", "d_model", "d_vocab", "max_tokens", "architecture", "dtype", "device", "tokenizer")
    assert all(getattr(blank.info, n) == getattr(model.info, n) for n in same)
    assert blank.lm.config.to_dict() | {"dtype": None} == model.lm.config.to_dict() | {"dtype": None}
    assert blank.lm.config is not model.lm.config
    assert all(torch.equal(a, b) for a, b in zip(before, model.lm.parameters(), strict=True))
    assert not blank.lm.training
    mine, other = (next(x.lm.get_input_embeddings().parameters()) for x in (blank, model))
    assert not torch.allclose(mine, other)
    assert mine.std() < 0.05  # as the architecture draws them, not as the tests do


def test_seed_decides_the_weights():
    one, again, other = (ti.untrained(tiny(), seed) for seed in (0, 0, 1))
    assert one.info.weights == again.info.weights != other.info.weights
    assert one.info.weights != tiny().info.weights
    assert ti.untrained(one).info.id.count("untrained") == 1


@pytest.mark.usefixtures("extras")
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same_copy(tiny_folder, backend):
    plain, other = (ti.untrained(ti.load_model(tiny_folder, backend=b, device="cpu")) for b in ("hf", backend))
    assert plain.info.weights == other.info.weights


def test_quantised_and_spread_models_are_refused():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")
    model.lm.config.quantization_config = {"bits": 4}
    with pytest.raises(ValueError, match="tiny is quantised: load it with dtype='bfloat16'"):
        ti.untrained(model)
