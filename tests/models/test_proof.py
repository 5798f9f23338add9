"""What is claimed of the stream is proved at load, in every block, and that no token sees a later one."""

import copy

import pytest
import torch
import transformers as T
from tiny import FAMILIES, byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm
from torch import nn
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

import tokinterp as ti
from tokinterp.models import proof

S = ti.Site
SIZE = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
GPT = {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
SUM = {"rtol": 1e-5, "atol": 1e-5}


def make(kind, config, seed=0):
    """A model with seeded random weights everywhere."""
    torch.manual_seed(seed)
    lm = kind._from_config(config).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(noise * 0.9 / p.shape[-1] ** 0.5 if p.ndim > 1 else p + 0.1 * noise)
    return lm


def stream_of(model, ids):
    sites = [S("resid", n) for n in range(model.info.n_layers + 1)]
    got = model.run(ids, sites)
    return [got[s] for s in sites]


# -- families that are built otherwise ------------------------------------------------------------------------
OTHERS = {
    "norm without weights": (T.OlmoForCausalLM, lambda: T.OlmoConfig(**SIZE), True),
    "norms without weights everywhere": (T.NanoChatForCausalLM, lambda: T.NanoChatConfig(**SIZE), True),
    "blocks return lists": (T.OpenAIGPTLMHeadModel, lambda: T.OpenAIGPTConfig(**GPT), False),
    "norm beside a decoder": (
        T.XGLMForCausalLM,
        lambda: T.XGLMConfig(vocab_size=320, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, pad_token_id=0),
        True,
    ),
    "final projection": (
        T.OPTForCausalLM,
        lambda: T.OPTConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=16, do_layer_norm_before=False,
        ),
        False,
    ),
    "state space": (
        T.MambaForCausalLM,
        lambda: T.MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=3, state_size=4),
        False,
    ),
    "recurrent": (
        T.RwkvForCausalLM,
        lambda: T.RwkvConfig(vocab_size=320, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_builds_load_and_their_stream_is_the_librarys(name):
    kind, config, parts = OTHERS[name]
    lm = make(kind, config())
    model = ti.wrap(lm)
    ids = some_ids()
    with torch.no_grad():
        own = lm(ids, output_hidden_states=True, use_cache=False)
    stream = stream_of(model, ids)
    first = int(not model.info.n_heads)  # without heads, the library lists what leaves blocks only
    for n in range(first, 3):
        assert torch.equal(stream[n], own.hidden_states[n - first]), n
    torch.testing.assert_close(model.unembed(stream[3]), own.logits, **SUM)
    assert ({"attn_out", "mlp_out"} <= model.offers) == parts
    if name in ("state space", "recurrent"):
        assert model.info.n_heads == 0
        assert not model.offers & {"pattern", "key", "value"}
        with pytest.raises(ValueError, match="site pattern is not available"):
            model.run(ids, [S("pattern", 0)])


def test_blocks_that_a_pass_on_text_skips_leave_the_stream_as_it_is():
    config = MllamaTextConfig(**{**SIZE, "pad_token_id": 0}, cross_attention_layers=[1])
    lm = make(T.MllamaForCausalLM, config)
    model = ti.wrap(lm)
    ids = some_ids()
    stream = stream_of(model, ids)
    assert torch.equal(stream[1], stream[2])
    assert not torch.equal(stream[2], stream[3])
    with torch.no_grad():
        torch.testing.assert_close(model.unembed(stream[3]), lm(ids, use_cache=False).logits, **SUM)
    assert model.offered["attn_out"] == (0, 2)
    with pytest.raises(ValueError, match=r"attn_out is not available in block 1 .*a pass on text skips block 1"):
        model.run(ids, [S("attn_out", 1)])
    kick = ti.edits.add(S("resid", 2), torch.ones(32))
    assert not torch.equal(model.run(ids, [S("resid", 3)], edits=[kick])[S("resid", 3)], stream[3])
    assert torch.equal(model.run(ids, [S("resid", 1)], edits=[kick])[S("resid", 1)], stream[1])
    # The pass stops where it has to.
    assert torch.equal(model.run(ids, [S("resid", 2)])[S("resid", 2)], stream[2])


def test_a_first_block_that_is_skipped_has_the_embedding_before_and_after_it():
    lm = make(T.MllamaForCausalLM, MllamaTextConfig(**{**SIZE, "pad_token_id": 0}, cross_attention_layers=[0]))
    model = ti.wrap(lm)
    stream = stream_of(model, some_ids())
    assert torch.equal(stream[0], stream[1])
    assert torch.equal(stream[0], lm.get_input_embeddings()(some_ids()))
    assert not torch.equal(stream[1], stream[2])


def test_parts_are_found_block_by_block():
    """A hybrid: a state space in one block, attention in the others."""
    config = T.JambaConfig(
        **SIZE, attn_layer_period=2, attn_layer_offset=0, expert_layer_period=9, expert_layer_offset=8, num_experts=1,
        num_experts_per_tok=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
    )  # fmt: skip
    model = ti.wrap(make(T.JambaForCausalLM, config))
    assert model.offered["mlp_out"] == (0, 1, 2)
    assert model.offered["attn_out"] == model.offered["resid_mid"] == (0, 2)
    with pytest.raises(ValueError, match=r"attn_out is not available in block 1 .*another mixer of tokens.*\[0, 2\]"):
        model.run(some_ids(), [S("attn_out", 1)])
    sites = [*(S("resid", n) for n in range(4)), S("attn_out", 0), S("attn_out", 2)]
    got = model.run(some_ids(), [*sites, *(S("mlp_out", b) for b in range(3))])
    for b in (0, 2):
        total = got[S("resid", b)] + got[S("attn_out", b)] + got[S("mlp_out", b)]
        torch.testing.assert_close(total, got[S("resid", b + 1)], **SUM)


def test_one_block_whose_sum_is_another_is_found_out():
    """Everything is added as it is, but for the last block, whose MLP is scaled on its way to the stream."""
    lm = tiny_lm("llama")
    block = lm.model.layers[2]

    def forward(hidden_states, **kwargs):
        middle = hidden_states + block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)[0]
        return middle + 0.9 * block.mlp(block.post_attention_layernorm(middle))

    block.forward = forward
    model = ti.wrap(lm)
    assert model.offered["attn_out"] == model.offered["mlp_out"] == (0, 1)
    with pytest.raises(ValueError, match=r"mlp_out is not available in block 2 .*one by one"):
        model.run(some_ids(), [S("mlp_out", 2)])


def test_a_large_coordinate_does_not_hide_that_parts_do_not_add_up():
    """One coordinate of one token is thousands of times the others, as in trained models."""
    lm = tiny_lm("gemma2").to(torch.bfloat16)
    with torch.no_grad():
        lm.model.embed_tokens.weight[11, 3] = 3000.0  # 11 is among the ids of the proof
    model = ti.wrap(lm)
    assert model.adds == [("post_attention_layernorm", "post_feedforward_layernorm")] * 3


class Pieces(T.LlamaForCausalLM):
    """The first block runs twice."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1] = self.model.layers[0]


def test_a_block_that_runs_twice_has_no_single_state():
    with pytest.raises(ValueError, match=r"block 0 runs 2 times in one pass"):
        ti.wrap(Pieces(tiny_lm("llama").config).eval())


def test_a_stream_that_is_changed_between_blocks_is_refused():
    config = T.RwkvConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32, rescale_every=2
    )
    with pytest.raises(ValueError, match=r"block 2 does not receive the stream that block 1 .*rescale_every = 2"):
        ti.wrap(make(T.RwkvForCausalLM, config))


def test_a_rescaled_stream_is_loaded_without_the_rescaling(tmp_path):
    settings = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "attention_hidden_size": 32}
    plain = make(T.RwkvForCausalLM, T.RwkvConfig(**settings, rescale_every=0))
    plain.config.rescale_every = 2
    plain.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = ti.load_model(tmp_path, device="cpu")
    stream = stream_of(model, some_ids())
    with torch.no_grad():  # halved between blocks, the model says the same but for the eps of its norms
        halved = plain(some_ids(), use_cache=False).logits
    torch.testing.assert_close(halved, model.unembed(stream[3]), rtol=0, atol=1e-3)


def test_several_streams_are_refused_with_that_reason():
    few = {
        "head_dim": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"stream at block 0 has shape \(2, 8, 4, 32\) .*several streams"):
        ti.wrap(make(T.DeepseekV4ForCausalLM, T.DeepseekV4Config(**SIZE, **few)))


# -- no token sees a later one --------------------------------------------------------------------------------
class NextToken(nn.Module):
    """An MLP that adds a share of the following position."""

    def __init__(self, mlp, share):
        super().__init__()
        self.mlp, self.share = mlp, share

    def forward(self, x):
        out = self.mlp(x)
        return out + self.share * torch.roll(out, -1, 1) * (torch.arange(x.shape[1]) < x.shape[1] - 1)[:, None]


class Capacity(nn.Module):
    """An MLP that serves only so many tokens of a batch, those of the first prompts first."""

    def __init__(self, mlp, most):
        super().__init__()
        self.mlp, self.most = mlp, most

    def forward(self, x):
        place = torch.arange(x[..., 0].numel()).reshape(x.shape[:2])
        return self.mlp(x) * (place < self.most)[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(lambda m: NextToken(m, 0.3), "later tokens or padding"), (lambda m: Capacity(m, 100), "later tokens|its length")],
)
def test_a_leak_in_any_block_is_refused(wrong, reason, block, dtype):
    lm = tiny_lm("llama").to(dtype)
    lm.model.layers[block].mlp = wrong(lm.model.layers[block].mlp)
    with pytest.raises(ValueError, match=rf"is not causal: at layer {block + 1} .*({reason})"):
        ti.wrap(lm)


class SeesItsLength(T.LlamaForCausalLM):
    """States depend on how long the batch is, and on nothing else that they should not see."""

    def forward(self, input_ids, **kwargs):
        embedded = self.model.embed_tokens(input_ids) * (1 + 0.1 * (input_ids.shape[1] > 32))
        return super().forward(inputs_embeds=embedded, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_follow_the_length_of_the_batch_are_refused(dtype):
    with pytest.raises(ValueError, match=r"at layer 0 .* with its length or the other prompts"):
        ti.wrap(SeesItsLength(tiny_lm("llama").config).eval().to(dtype))


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        (T.LlamaForCausalLM, lambda: T.LlamaConfig(**SIZE, is_causal=False), "is_causal=False"),
        (
            T.Gemma3ForCausalLM,
            lambda: T.Gemma3TextConfig(**SIZE, head_dim=8, use_bidirectional_attention=True),
            "use_bidirectional_attention=True",
        ),
    ],
)
def test_bidirectional_configs_are_refused(kind, config, said):
    with pytest.raises(ValueError, match=f"is not causal.*{said}.*causal language models"):
        ti.wrap(make(kind, config()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_rounding_in_half_precision_is_no_leak(family):
    for dtype in (torch.bfloat16, torch.float16):
        ti.wrap(tiny_lm(family).to(dtype))


class OtherExpert(nn.Module):
    """An MLP that answers one token otherwise where a prompt is alone, as a router does that rounding decides."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        place = torch.arange(x.shape[1])[:, None]
        return self.mlp(x) * (1 + 3.0 * ((place == 9) & (len(x) == 1))).to(x.dtype)


def test_one_token_that_rounding_sends_elsewhere_is_no_leak_in_half_precision_only():
    for dtype in (torch.bfloat16, torch.float32):
        lm = tiny_lm("llama").to(dtype)
        lm.model.layers[2].mlp = OtherExpert(lm.model.layers[2].mlp)
        if dtype == torch.bfloat16:
            ti.wrap(lm)
        else:
            with pytest.raises(ValueError, match=r"at layer 3 .* with its length or the other prompts"):
                ti.wrap(lm)


def test_load_runs_a_handful_of_short_passes():
    lm, widths = tiny_lm("llama"), []
    lm.model.layers[0].register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape[:2].numel()))
    ti.wrap(lm)
    assert sum(widths) <= 3 * proof.WHOLE + proof.PREFIX + 300


# -- what others put around a model ---------------------------------------------------------------------------
@pytest.mark.slow
def test_compiled_models_are_run_eagerly():
    ids, last = some_ids(), S("resid", 3)
    wanted = tiny("llama").run(ids, [last, S("mlp_out", 1)])
    blocks = tiny_lm("llama")
    for n in range(3):
        blocks.model.layers[n] = torch.compile(blocks.model.layers[n], backend="eager")
    whole = tiny_lm("llama")
    whole.compile(backend="eager")
    for lm in (torch.compile(tiny_lm("llama"), backend="eager"), whole, blocks):
        model = ti.wrap(lm)
        assert model.offers == tiny("llama").offers
        got = model.run(ids, list(wanted))
        assert all(torch.equal(got[s], wanted[s]) for s in wanted)
    later = ti.wrap(tiny_lm("llama"))
    later.lm.compile(backend="eager")
    assert torch.equal(later.run(ids, [last])[last], wanted[last])


class Adapted(nn.Module):
    """As PEFT wraps a model: the network lies two steps inside, under a name that also means something else."""

    def __init__(self, lm, extra=0):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = lm
        self.extra = extra

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    @property
    def config(self):
        return self.base_model.model.config

    def get_output_embeddings(self):
        return self.base_model.model.get_output_embeddings()

    def get_base_model(self):
        return self.base_model.model

    def forward(self, input_ids, **kwargs):
        prefix = input_ids[:, :1].expand(-1, self.extra)
        return self.base_model.model(torch.cat([prefix, input_ids], 1), **kwargs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_adapters_are_unwrapped_and_stay_active(family):
    lm = tiny_lm(family)
    before = stream_of(tiny(family), some_ids())[3]
    model = ti.wrap(Adapted(lm))
    assert model.info.architecture == type(lm).__name__
    assert model.offers == tiny(family).offers
    assert torch.equal(stream_of(model, some_ids())[3], before)
    adapter = nn.Linear(32, 32, bias=False)
    paths = {"llama": "model.layers.1.mlp", "gpt2": "transformer.h.1.mlp", "opt": "model.decoder.layers.1.fc2"}
    lm.get_submodule(paths[family]).register_forward_hook(lambda _m, _a, out: out + adapter(out))
    assert not torch.equal(stream_of(ti.wrap(Adapted(lm)), some_ids())[3], before)


def test_what_adds_tokens_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"Adapted computes other logits than LlamaForCausalLM .*merge"):
        ti.wrap(Adapted(tiny_lm("llama"), extra=2))


class Int8(nn.Module):
    """A linear module whose weights are stored in 8 bits."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale.detach())
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


def test_quantised_layers_and_head_load():
    lm = tiny_lm("llama")
    for name, module in list(lm.named_modules()):
        if isinstance(module, nn.Linear):
            lm.set_submodule(name, Int8(module))
    model = ti.wrap(lm)
    assert model.offers >= {"resid", "resid_mid", "attn_out", "mlp_out"}
    assert (model.info.dtype, model.info.d_vocab) == ("float32", 320)
    with torch.no_grad():
        torch.testing.assert_close(model.unembed(stream_of(model, some_ids())[3]), lm(some_ids()).logits, **SUM)


# -- rotary embeddings that follow the longest prompt ---------------------------------------------------------
def longrope():
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    settings = {**SIZE, "rope_parameters": rope, "original_max_position_embeddings": 16, "pad_token_id": 0}
    return make(T.Phi3ForCausalLM, T.Phi3Config(**settings))


def test_prompts_on_both_sides_of_a_longrope_step_are_never_in_one_batch():
    model = ti.wrap(longrope())
    assert model.length_steps == (16,)
    prompts = some_prompts([9, 16, 17, 30, 12], model=model)
    assert list(prompts.batches(1000, model=model)) == [[3, 2], [1, 4, 0]]
    assert list(prompts.batches(1000)) == [[3, 2, 1, 4, 0]]
    together = ti.measure(model, prompts, {"n": ti.geometry.TokenNorms()}, batch_tokens=1000, progress=False)["n"]
    alone = ti.measure(model, prompts, {"n": ti.geometry.TokenNorms()}, batch_tokens=1, progress=False)["n"]
    torch.testing.assert_close(torch.tensor(together.norm.values), torch.tensor(alone.norm.values), **SUM)
    ids, mask, _ = (torch.from_numpy(a) for a in prompts.padded([0, 3]))
    with pytest.raises(ValueError, match=r"a prompt of 9 tokens in a batch 30 wide: .*longer than 16 tokens"):
        model.run(ids, [S("resid", 1)], mask=mask)
    places = torch.arange(12).expand(2, 12).clone()
    places[1] += 8
    with pytest.raises(ValueError, match="a prompt of 12 tokens in a batch 20 wide"):
        model.run(some_ids(12), [S("resid", 1)], position_ids=places)
    with pytest.raises(ValueError, match=r"position_ids lie between 0 and 128: .* places 0 to 127"):
        model.run(some_ids(12), [S("resid", 1)], position_ids=places + torch.tensor([[0], [109]]))


def test_every_function_batches_apart():
    model = ti.wrap(longrope())
    prompts = some_prompts([9, 30, 12, 40], model=model)
    batches = list(ti.stream(model, prompts, [S("resid", 2)], batch_tokens=1000))
    assert [b.numbers for b in batches] == [[3, 1], [2, 0]]


def test_a_pass_does_not_depend_on_longer_ones_before_it():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    lm = make(T.LlamaForCausalLM, T.LlamaConfig(**{**SIZE, "max_position_embeddings": 16}, rope_parameters=rope))
    model = ti.wrap(lm)
    last = S("resid", 3)
    for n in (9, 16):
        first = model.run(some_ids(n), [last])[last]
        with torch.no_grad():
            lm(some_ids(60))
        assert torch.equal(model.run(some_ids(n), [last])[last], first), n


# -- messages -------------------------------------------------------------------------------------------------
def test_a_hook_that_does_not_fire_is_said():
    model = ti.wrap(tiny_lm("llama"))
    block = model.lm.model.layers[1]
    block.mlp.__class__ = type("Past", (type(block.mlp),), {"__call__": lambda self, x: self.forward(x)})
    with pytest.raises(ValueError, match=r"site mlp_out at 1 .*was not reached.*called past its hooks"):
        model.run(some_ids(), [S("mlp_out", 1)])
    with pytest.raises(ValueError, match=r"site mlp_out is not available in block 1"):
        ti.wrap(copy.deepcopy(model.lm)).run(some_ids(), [S("mlp_out", 1)])
