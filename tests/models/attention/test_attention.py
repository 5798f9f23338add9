"""What attention shows and lets be changed, proved in every block: hybrids, sinks, windows, masks and adapters."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers as T
from tiny import CONFIGS, VOCAB, byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm
from torch import nn
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

import tokinterp as ti
from tokinterp.models.attention.watch import SdpaCalls
from tokinterp.models.modules import vectors_of
from tokinterp.run import edits as E

S = ti.Site
LAST = S("resid", 3)
_SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_HF = {**_SIZE, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
_MOE = {**_HF, "head_dim": 8, "num_experts_per_tok": 2}
_NEXT = {
    "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
ODD = {
    "falcon_alibi": (T.FalconConfig, {**_SIZE, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "gpt_oss": (T.GptOssConfig, {**_MOE, "num_local_experts": 4, "sliding_window": 6}),
    "minimax": (
        T.MiniMaxConfig,
        {**_MOE, "num_local_experts": 4, "layer_types": ["full_attention", "linear_attention", "full_attention"]},
    ),
    "qwen3_next": (
        T.Qwen3NextConfig,
        {**_MOE, **_NEXT, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "laguna": (
        T.LagunaConfig,
        {**_MOE, "num_attention_heads_per_layer": [4, 8, 4], "num_experts": 4, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16},
    ),
    "doge": (T.DogeConfig, _HF),
    "mpt": (T.MptConfig, {"vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "gpt_neo": (
        T.GPTNeoConfig,
        {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "window_size": 5,
         "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1], [["local"], 1]]},
    ),
    "mistral": (T.MistralConfig, {**_HF, "sliding_window": 6}),
    "gemma3": (
        T.Gemma3TextConfig,
        {**_HF, "head_dim": 8, "sliding_window": 6,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "llama4": (
        T.Llama4TextConfig,
        {**_HF, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 5},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _families():
    CONFIGS.update({f"odd {k}": v for k, v in ODD.items()})
    yield
    for k in ODD:
        del CONFIGS[f"odd {k}"]


@cache
def odd(family, attention=None):
    return ti.wrap(tiny_lm(f"odd {family}", attention=attention), byte_tokenizer(), id=family)


# -- what is offered -----------------------------------------------------------------------------------------
def test_attention_that_changes_the_stream_when_looked_at_is_not_offered(monkeypatch):
    """Falcon's eager attention adds ALiBi twice: weights of another model than the one that runs."""
    monkeypatch.setattr(SdpaCalls, "listen", lambda *_: None)
    model, ids = ti.wrap(tiny_lm("odd falcon_alibi"), byte_tokenizer(), id="falcon_alibi"), some_ids(20)
    assert not {"pattern", "query", "key", "value"} & model.offers
    with pytest.raises(ValueError, match=r"pattern is not available .*the stream differs by 0\.\d+ of its range"):
        model.run(ids, [S("pattern", 0)])
    with pytest.raises(ValueError, match=r"cannot be knocked out in blocks 0 to 2 .*the stream differs"):
        model.run(ids, [LAST], edits=[E.knock_out([5])])
    eager = odd("falcon_alibi", "eager")  # there the weights are those of the model that runs
    assert "pattern" in eager.offers


def test_attention_of_a_module_that_calls_torch_is_seen_there():
    """The model's own call is shown and changed, ALiBi included, which Falcon gives as a mask."""
    model, ids = odd("falcon_alibi"), some_ids(20)
    assert model.attention.way == "sdpa"
    assert {model.offered[n] for n in ("pattern", "query", "key", "value")} == {(0, 1, 2)}
    sites = [S(n, 1) for n in ("pattern", "query", "key", "value")]
    found = model.run(ids, [LAST, *sites])
    assert torch.equal(found[LAST], model.run(ids, [LAST])[LAST]), "looking changes the stream"
    weights, q, k, v = (found[s] for s in sites)
    q, k, v = (x.unflatten(2, (4, 8)).transpose(1, 2) for x in (q, k, v))
    alibi = build_alibi_tensor(torch.ones_like(ids), 4, torch.float32).view(2, 4, 1, -1)
    shut = torch.full((20, 20), -torch.inf).triu(1)
    right = ((q @ k.mT + alibi) / 8**0.5 + shut).softmax(-1)
    torch.testing.assert_close(weights, right, rtol=1e-4, atol=1e-6)
    mixed = {}
    dense = model.lm.transformer.h[1].self_attention.dense
    handle = dense.register_forward_pre_hook(lambda _m, args: mixed.update(value=args[0]))
    model.run(ids, [LAST])
    torch.testing.assert_close((right @ v).transpose(1, 2).flatten(2), mixed["value"], rtol=1e-4, atol=1e-5)
    handle.remove()
    cut = E.knock_out([3], queries=slice(4, None), blocks=[1], heads=[2])
    hidden = right.clone()
    hidden[:, 2, 4:, 3] = 0
    torch.testing.assert_close(
        model.run(ids, sites[:1], edits=[cut])[sites[0]], hidden / hidden.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6
    )
    zero = model.run(ids, [S("attn_out", 1)], edits=[E.zero(sites[3])])[S("attn_out", 1)]
    torch.testing.assert_close(zero, (dense.bias if dense.bias is not None else 0) * torch.ones_like(zero))
    written = model.written_norm(1, found[sites[3]])
    by_hand = v @ dense.weight.T.unflatten(0, (4, 8))
    torch.testing.assert_close(written, by_hand.norm(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "blocks"), [("minimax", (0, 2)), ("qwen3_next", (1,))])
@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.slow
def test_hybrids_offer_attention_in_the_blocks_that_have_it(family, blocks, attention):
    model, ids = odd(family, attention), some_ids(12)
    for name in ("pattern", "query", "key", "value"):
        assert model.offered[name] == blocks
    others = sorted({0, 1, 2} - set(blocks))
    for b in others:
        with pytest.raises(
            ValueError, match=rf"pattern is not available in block {b} .*blocks? .*: no attention weights .*blocks=\["
        ):
            model.run(ids, [S("pattern", b)])
    weights = model.run(ids, [S("pattern", b) for b in blocks])
    for w in weights.values():
        torch.testing.assert_close(w.sum(-1), torch.ones(2, 4, 12), rtol=1e-5, atol=1e-5)
        assert not w.triu(1).any()
    prompts = some_prompts([12, 9], model=model)
    for make in (ti.attention.AttentionMass, ti.attention.FirstTokenAttention, ti.attention.AttentionSinks):
        more = {"value_weighted": False} if make is ti.attention.AttentionMass else {}
        more = {"tokens": 8, "norms": False} if make is ti.attention.AttentionSinks else more
        with pytest.raises(ValueError, match=r"take only those that have it, blocks=\[" + ", ".join(map(str, blocks))):
            ti.measure(model, prompts, {"a": make(**more)}, progress=False)
        got = ti.measure(model, prompts, {"a": make(blocks=blocks, **more)}, progress=False)["a"]
        assert got.block.values.tolist() == list(blocks)
    with pytest.raises(ValueError, match=rf"cannot be knocked out in blocks .*take blocks=\[{blocks[0]}"):
        model.run(ids, [LAST], edits=[E.knock_out([5])])
    plain = model.run(ids, [LAST])[LAST]
    assert not torch.equal(model.run(ids, [LAST], edits=[E.knock_out([5], blocks=blocks)])[LAST][:, 6:], plain[:, 6:])


@pytest.mark.parametrize(("family", "blocks"), [("minimax", [0, 2]), ("qwen3_next", [1])])
def test_fillers_look_at_the_blocks_of_a_hybrid_that_have_weights(family, blocks, monkeypatch):
    model, prompts = odd(family), some_prompts([12, 9], model=odd(family))
    monkeypatch.setattr("tokinterp.attention.coverage.separators_of", lambda _: prompts.token_ids[[3, 6]].tolist())
    asked = {"cover": ti.attention.SegmentCoverage(blocks=blocks)}
    assert ti.measure(model, prompts, asked, progress=False)["cover"]["far_mass"].isel(prompt=0).notnull().all()
    roles = ti.attention.massive_roles(model, prompts, {"first": "first"})
    for ds, name in ((roles, "norm_rank_correlation"), (roles, "update_variation")):
        seen = ds[name].isnull()
        others = [d for d in seen.dims if d != "block"]
        assert ds["block"].values[~seen.all(others).values].tolist() == blocks
        assert "no attention weights to look at" in ds.attrs["blocks_without_pattern"]
    whole = ti.attention.massive_roles(tiny("llama"), some_prompts([12]), {"first": "first"})
    assert "blocks_without_pattern" not in whole.attrs


def test_a_block_with_more_heads_than_the_others_keeps_its_pattern_to_itself():
    model, ids = odd("laguna"), some_ids(12)
    assert model.offered["pattern"] == (0, 2)
    assert model.offered["value"] == (0, 1, 2)
    with pytest.raises(ValueError, match=r"not available in block 1 .*8 heads, not 4.*blocks=\[0, 2\]"):
        model.run(ids, [S("pattern", 1)])
    assert model.run(ids, [S("query", 1)])[S("query", 1)].shape == (2, 12, 64)
    hidden = model.run(ids, [LAST], edits=[E.knock_out([5], heads=[1])])[LAST]
    assert torch.equal(hidden[:, :5], model.run(ids, [LAST])[LAST][:, :5])
    with pytest.raises(ValueError, match=r"heads \[6\]: the model has heads 0 to 3"):
        model.run(ids, [LAST], edits=[E.knock_out([5], heads=[6])])


def test_a_query_times_keys_is_the_pattern():
    """Queries and keys are those that attention uses: rotated, and every group of heads shares a key."""
    model, ids = odd("mistral"), some_ids(6)
    sites = [S("query", 1), S("key", 1), S("pattern", 1)]
    query, key, pattern = (model.run(ids, sites)[s] for s in sites)
    assert (query.shape, key.shape) == ((2, 6, 32), (2, 6, 16))
    q = query.unflatten(2, (4, 8)).transpose(1, 2)
    k = key.unflatten(2, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(scores.softmax(-1), pattern, rtol=1e-5, atol=1e-6)
    flat = model.run(ids, [S("pattern", 1)], edits=[E.zero(S("query", 1))])[S("pattern", 1)]
    torch.testing.assert_close(flat, (torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]).expand(2, 4, 6, 6))


def test_weights_that_do_not_mix_the_values_are_not_offered(monkeypatch):
    """A fused attention that forgets the first position: the weights beside it are those of another model."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def forgets(module, query, key, value, *args, **kwargs):
        value = value.clone()
        value[:, :, 0] = 0
        return own(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", forgets)
    model = ti.wrap(tiny_lm("odd mistral", attention="sdpa"), byte_tokenizer(), id="forgets")
    assert not {"pattern", "query", "key", "value"} & model.offers
    with pytest.raises(ValueError, match="values are mixed by other weights than those shown"):
        model.run(some_ids(), [S("pattern", 0)])


def test_masses_with_learned_sinks_say_what_is_left_to_them():
    model = odd("gpt_oss")
    prompts = some_prompts([12, 9], model=model)
    mass = ti.attention.AttentionMass({"first": "first", "other": "other"})
    run = ti.measure(
        model,
        prompts,
        {"m": mass, "f": ti.attention.FirstTokenAttention(), "n": ti.geometry.TokenNorms()},
        progress=False,
    )
    ds = run["m"]
    assert float(ds["sink_mass"].min()) > 0.01
    torch.testing.assert_close(
        torch.from_numpy((ds["mass"].sum("key_set") + ds["sink_mass"]).values), torch.ones(2, 3, 4, 1).double(),
        rtol=0, atol=1e-6,
    )  # fmt: skip
    for name in ("m", "f"):
        assert "blocks 0 to 2: a learned sink takes a share" in run[name].attrs["attention_sinks"]
    assert "attention_sinks" not in run["n"].attrs
    other = ti.measure(odd("mistral"), prompts, {"m": mass}, progress=False)["m"]
    assert "sink_mass" not in other
    assert "attention_sinks" not in other.attrs
    # The weights that are shown are those that mix the values.
    ids, sites = some_ids(9), [S("pattern", 1), S("value", 1)]
    pattern, value = (model.run(ids, sites)[s] for s in sites)
    mixed = []
    attn = model.lm.model.layers[1].self_attn.o_proj
    handle = attn.register_forward_pre_hook(lambda _m, args: mixed.append(args[0]))
    model.run(ids, [LAST])
    handle.remove()
    by = value.unflatten(2, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
    torch.testing.assert_close((pattern @ by).transpose(1, 2).flatten(2), mixed[0], rtol=1e-4, atol=1e-5)


# -- hiding ---------------------------------------------------------------------------------------------------
def leak(model, edit, n=12):
    """How far later states move when the hidden token 5 becomes another one."""
    ids = some_ids(n, batch=1).repeat(2, 1)
    ids[1, 5] = (ids[1, 5] + 7) % VOCAB
    got = model.run(ids, [LAST], edits=[edit] if edit else [])[LAST]
    return float((got[0, 6:] - got[1, 6:]).abs().max())


@pytest.mark.parametrize("family", ["mpt", "doge", "laguna", "gpt_oss", "gpt_neo", "mistral", "llama4"])
@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.slow
def test_what_is_hidden_reaches_no_later_position_whatever_the_mask(family, attention):
    model = odd(family, attention)
    assert leak(model, None) > 1e-3
    assert leak(model, E.knock_out([5])) <= 1e-5
    assert leak(model, E.knock_out([5], heads=range(3))) > 1e-4


def kept_places(gone, n):
    keep = [i for i in range(n) if i not in gone]
    return keep, torch.tensor([[sum(k < i for k in keep) for i in range(n)]]).repeat(2, 1)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("attention", [None, "eager"])
def test_hiding_equals_deleting_with_windows_too(family, attention):
    model, ids, gone = odd(family, attention), some_ids(20), [3, 4, 5, 6, 12]
    keep, places = kept_places(gone, 20)
    hidden = model.run(ids, [LAST], edits=[E.knock_out(gone)], position_ids=places)[LAST][:, keep]
    torch.testing.assert_close(hidden, model.run(ids[:, keep], [LAST])[LAST], rtol=1e-4, atol=1e-5)
    # and the other way round: what is deleted with its place kept is what is hidden in its place
    moved = torch.tensor([keep]).repeat(2, 1)
    deleted = model.run(ids[:, keep], [LAST], position_ids=moved)[LAST]
    in_place = model.run(ids, [LAST], edits=[E.knock_out(gone)])[LAST][:, keep]
    torch.testing.assert_close(deleted, in_place, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama4", "gpt_neo"])
def test_windows_that_count_by_themselves_refuse_places_where_it_matters(family):
    model, gone = odd(family), [2]
    keep, places = kept_places(gone, 12)
    with pytest.raises(ValueError, match=r"delete tokens instead of hiding them"):
        model.run(some_ids(12), [LAST], edits=[E.knock_out(gone)], position_ids=places)
    keep, places = kept_places(gone, 4)  # shorter than the window
    ids = some_ids(4)
    hidden = model.run(ids, [LAST], edits=[E.knock_out(gone)], position_ids=places)[LAST][:, keep]
    torch.testing.assert_close(hidden, model.run(ids[:, keep], [LAST])[LAST], rtol=1e-4, atol=1e-5)


def test_the_edges_of_a_knock_out_are_made_once(monkeypatch):
    model, made = odd("mistral"), []
    edges = E.KnockOut.edges
    monkeypatch.setattr(E.KnockOut, "edges", lambda *args: made.append(1) or edges(*args))
    edits = [E.knock_out([2]), E.knock_out([3], blocks=[1, 2])]
    cuts = model._cuts(edits, some_ids(), torch.ones(2, 9, dtype=torch.bool))
    assert len(made) == 2
    assert cuts[1] is cuts[2]
    assert cuts[0] is not cuts[1]


# -- what a module does ---------------------------------------------------------------------------------------
class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, and no weight of its own."""

    def __init__(self, base, rank=2):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features, generator=draw))
        self.b = nn.Parameter(torch.randn(base.out_features, rank, generator=draw))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


class Bent(Adapted):
    def forward(self, x):
        return super().forward(x).tanh()


def test_written_norms_are_those_of_what_the_projection_does():
    lm, ids = tiny_lm("odd mistral"), some_ids()
    for block in lm.model.layers:
        block.self_attn.o_proj = Adapted(block.self_attn.o_proj)
    model, site = ti.wrap(lm, id="adapted"), S("value", 1)
    value = model.run(ids, [site])[site]
    norms = model.written_norm(1, value)
    out = lm.model.layers[1].self_attn.o_proj
    whole = out.base.weight + out.b @ out.a
    by = value.unflatten(2, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
    wrote = torch.einsum("phtd,mhd->phtm", by, whole.unflatten(1, (4, 8)))
    torch.testing.assert_close(norms, wrote.norm(dim=-1).detach(), rtol=1e-4, atol=1e-5)
    plain = torch.einsum("phtd,mhd->phtm", by, out.base.weight.unflatten(1, (4, 8))).norm(dim=-1)
    assert not torch.allclose(norms, plain, rtol=0.1)


def test_a_projection_that_is_not_linear_gives_no_written_norms():
    lm = tiny_lm("odd mistral")
    lm.model.layers[2].self_attn.o_proj = Bent(lm.model.layers[2].self_attn.o_proj)  # in a later block only
    model = ti.wrap(lm, id="bent")
    assert model.offered["value"] == (0, 1, 2)
    with pytest.raises(ValueError, match="no output projection of attention was found that fits by value"):
        model.written_norm(0, torch.zeros(1, 2, 16))


def test_adapted_heads_and_embeddings_are_applied_not_read():
    """An adapter round the head, one round the embedding: d_vocab, logits and vectors are those of what they do."""
    lm, ids = tiny_lm("odd mistral", tie_word_embeddings=False), some_ids()
    lm.lm_head = Adapted(lm.lm_head)
    base = lm.model.embed_tokens
    lm.model.embed_tokens = nn.Sequential(base, nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        lm.model.embed_tokens[1].weight.copy_(2 * torch.eye(32))
    model = ti.wrap(lm, id="adapted")
    assert (model.info.d_vocab, model.info.dtype) == (VOCAB, "float32")
    with torch.no_grad():
        own = lm(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(model.unembed(model.run(ids, [LAST])[LAST]), own, rtol=1e-4, atol=1e-5)
    head = lm.lm_head
    whole = (head.base.weight + head.b @ head.a).detach()
    torch.testing.assert_close(vectors_of(head, width=32), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors_of(lm.model.embed_tokens, rows=VOCAB), 2 * base.weight.detach())


def test_vectors_of_an_adapted_head_are_without_its_bias():
    head = Adapted(nn.Linear(32, 50))
    whole = (head.base.weight + head.b @ head.a).detach()
    assert head.base.bias.abs().max() > 0.01
    torch.testing.assert_close(vectors_of(head, width=32), whole, rtol=1e-4, atol=1e-5)
