"""Loading: dtypes, device maps, and what the facts of a model say."""

import pytest
import torch
from tiny import byte_tokenizer, some_ids, tiny, tiny_lm

import tokinterp as ti
from tokinterp.models.fingerprint import weights_hash

S = ti.Site


N = 3  # blocks of every tiny model


EVERYWHERE = [S("resid", n) for n in range(N + 1)]


# A sum of three float32 parts in another order than the model's.
SUM = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of saved tiny models with their tokenizer."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_lm(family).save_pretrained(made[family])
            byte_tokenizer().save_pretrained(made[family])
        return made[family]

    return folder


# -- loading --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float64])
@pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
def test_other_dtypes(family, dtype, folders, device):
    model = ti.load_model(folders(family), dtype=dtype, device=device)
    assert model.info.dtype == str(dtype).removeprefix("torch.")
    assert model.offers == tiny(family).offers
    acts = model.run(some_ids(), EVERYWHERE)
    full = tiny(family).run(some_ids(), EVERYWHERE)
    for site in EVERYWHERE:
        assert acts[site].dtype == getattr(torch, model.info.dtype)
        # 8 bits of mantissa in bfloat16, three blocks deep
        torch.testing.assert_close(acts[site].float().cpu(), full[site], rtol=0.1, atol=0.1)
    assert model.unembed(acts[S("resid", N)]).dtype == torch.float32


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(device_map, folders):
    model = ti.load_model(folders("llama"), device_map=device_map)
    site = S("resid", 3)
    torch.testing.assert_close(
        model.run(some_ids(), [site])[site].cpu(), tiny("llama").run(some_ids(), [site])[site], **SUM
    )
    with pytest.raises(ValueError, match=r"exclude each other"):
        ti.load_model(folders("llama"), device_map=device_map, device="cpu")


def test_a_model_that_accelerate_moves_from_device_to_device():
    """With the hooks that bring inputs to where the weights are; on the CPU they have nothing to move."""
    from accelerate import dispatch_model

    lm = dispatch_model(tiny_lm("llama"), {"": "cpu"}, force_hooks=True)
    assert lm.model.layers[1].__dict__.get("_hf_hook") is not None or hasattr(lm, "_hf_hook")
    model, plain = ti.wrap(lm, byte_tokenizer()), tiny("llama")
    assert model.offered == plain.offered
    sites = [S("resid", 3), S("attn_out", 1), S("mlp_out", 2), S("pattern", 0)]
    found, expected = model.run(some_ids(), sites), plain.run(some_ids(), sites)
    for site in sites:
        torch.testing.assert_close(found[site], expected[site], rtol=0, atol=0)
        assert found[site].device == model.device
    assert model.normed(found[sites[0]]).device == model.device


def test_info_says_what_decides_the_numbers(folders):
    model = ti.load_model(folders("llama"), device="cpu")
    info = model.info
    assert (info.n_layers, info.n_heads, info.d_model, info.d_vocab, info.max_tokens) == (3, 4, 32, 320, 64)
    assert (info.architecture, info.dtype, info.device, info.revision) == (
        "LlamaForCausalLM",
        "float32",
        "cpu",
        "local",
    )
    assert info.id == folders("llama").name
    assert info.weights == tiny("llama").info.weights
    assert info.tokenizer == tiny("llama").info.tokenizer != ""
    assert ti.wrap(model.lm).info.tokenizer == ""
    assert ti.wrap(model.lm).info.id == folders("llama").name, "a path of this machine in the results"
    other = tiny_lm("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert weights_hash(other) != info.weights
    assert ti.wrap(model) is model
    assert "3 blocks, d_model 32, float32 on cpu, hf" in repr(model)
