"""TransformerBridges: what is refused, and what an old model is told."""

import copy

import pytest
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti


def test_bridge_in_compatibility_mode_is_refused(extras):
    from transformer_lens.model_bridge import TransformerBridge

    lm = tiny_lm("gpt2")
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "name_or_path": "none", "add_bos_token": True}
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=lm, tokenizer=tokenizer, device="cpu")
    assert ti.wrap(bridge, id="raw").info.backend == "transformer_lens"
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match=r"compatibility mode.*boot it again"):
        ti.wrap(bridge)


def test_hooked_transformer_gets_the_pointer():
    HookedTransformer = type("HookedTransformer", (), {})
    with pytest.raises(TypeError, match="transformer_lens 4: use TransformerBridge"):
        ti.wrap(HookedTransformer())
    with pytest.raises(TypeError, match="cannot wrap dict: give a Hugging Face causal LM"):
        ti.wrap({})
