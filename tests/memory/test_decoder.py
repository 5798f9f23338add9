"""The context decoder as a file: the same numbers, of the same model, undamaged."""

import pytest
import torch
from tiny import tiny

from tokinterp.memory.decoder import ContextDecoder


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    out = ContextDecoder(tiny(), {"max_prefix": 4})
    with torch.no_grad():
        out.pool.copy_(torch.randn(3))
        out.mean_state.normal_()
    return out


@torch.no_grad()
def test_it_writes_from_the_pooled_states_of_one_token(decoder):
    states = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    prefix = torch.tensor([[5, 9, 7], [11, -1, -1]])
    loss = decoder(states, prefix)
    assert loss[1, 1:].tolist() == [0, 0]
    for row, n in ((0, 3), (1, 1)):
        first = decoder.mlp((decoder.pool.softmax(0)[:, None] * states[row]).sum(0))
        embed = decoder.lm.get_input_embeddings()(prefix[row, : n - 1])
        logits = decoder.lm(inputs_embeds=torch.cat([first[None], embed])[None]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, prefix[row, :n], reduction="none")
        torch.testing.assert_close(loss[row, :n], expected, rtol=1e-4, atol=1e-5)


def test_the_copy_is_its_own(decoder):
    mine, model = decoder.lm.get_input_embeddings().weight, tiny().lm.get_input_embeddings().weight
    assert torch.equal(mine, model)
    assert mine.data_ptr() != model.data_ptr()


def test_a_file_gives_the_same_decoder_and_leaves_random_numbers_alone(decoder, tmp_path):
    path = decoder.save(tmp_path / "d.safetensors")
    before = torch.get_rng_state()
    found = ContextDecoder.load(path, tiny())
    assert torch.equal(before, torch.get_rng_state())
    assert found.digest == decoder.digest
    assert all(torch.equal(a, b) for a, b in zip(found.tensors().values(), decoder.tensors().values(), strict=True))
    with pytest.raises(ValueError, match="another model: fitted on tiny-llama"):
        ContextDecoder.load(path, tiny("gpt2"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        ContextDecoder.load(path, tiny())


def test_other_facts_have_another_digest(decoder):
    other = ContextDecoder(tiny(), {"max_prefix": 5})
    other.take(decoder.tensors())
    assert other.digest != decoder.digest
    assert "prefixes up to 5" in repr(other)
