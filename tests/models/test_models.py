"""Every family and backend: sites are where they are said to be, proved against the library's own outputs."""

import copy

import pytest
import torch
import transformers as T
from tiny import CONFIGS, FAMILIES, PARALLEL, byte_tokenizer, some_ids, tiny, tiny_lm
from torch import nn

import tokinterp as ti
from tokinterp.models import attention
from tokinterp.models.attention import points
from tokinterp.models.modules import find_modules
from tokinterp.run.sites import INNER

S = ti.Site
N = 3  # blocks of every tiny model
EVERYWHERE = [S("resid", n) for n in range(N + 1)]
# A sum of three float32 parts in another order than the model's.
SUM = {"rtol": 1e-5, "atol": 1e-5}


def all_sites(model):
    inside = [S(name, b) for name in ("resid_mid", "attn_out", "mlp_out", "pattern", *INNER) for b in range(N)]
    return EVERYWHERE + [s for s in inside if s.name in model.offers]


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


# -- sites, family by family ----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_equal_the_librarys_hidden_states(family, device):
    model = tiny(family, device)
    ids = some_ids().to(device)
    with torch.no_grad():
        own = model.lm(ids, output_hidden_states=True, use_cache=False)
    acts = model.run(ids, EVERYWHERE)
    for n in range(N):
        assert torch.equal(acts[S("resid", n)], own.hidden_states[n]), n
    logits = model.unembed(acts[S("resid", N)])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, own.logits, **SUM)
    assert float(own.logits.std()) > 0.05, "logits near zero would make any head look right"


def test_logits_are_divided_where_a_config_says_so():
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N, "num_attention_heads": 4}
    config = T.GraniteConfig(**size, vocab_size=320, num_key_value_heads=2, logits_scaling=4.0, initializer_range=0.2)
    torch.manual_seed(0)
    lm, ids = T.GraniteForCausalLM(config).eval(), some_ids()
    model = ti.wrap(lm)
    with torch.no_grad():
        own = lm(ids, use_cache=False).logits
    torch.testing.assert_close(model.unembed(model.run(ids, [S("resid", N)])[S("resid", N)]), own, **SUM)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_add_up_to_the_next_layer(family, device):
    model = tiny(family, device)
    expected = {"resid", "pattern"} if family == "opt_post_norm" else {"resid", "pattern", "attn_out", "mlp_out"}
    if family not in PARALLEL and family != "opt_post_norm":
        expected |= {"resid_mid"}
    # The attention of three families does not pass through transformers' functions.
    expected |= {"value"} if family in {"gptj", "falcon", "bloom"} else set(INNER)
    assert model.offers == expected
    acts = model.run(some_ids(), all_sites(model))
    for b in range(N):
        if "attn_out" in expected:
            before, after = acts[S("resid", b)], acts[S("resid", b + 1)]
            attn, mlp = acts[S("attn_out", b)], acts[S("mlp_out", b)]
            torch.testing.assert_close(before + attn + mlp, after, **SUM)
            assert float(attn.abs().mean()) > 1e-3
            assert float(mlp.abs().mean()) > 1e-3
        if "resid_mid" in expected:
            torch.testing.assert_close(acts[S("resid_mid", b)], acts[S("resid", b)] + acts[S("attn_out", b)], **SUM)
        else:
            reason = "in parallel" if family in PARALLEL else "it offers"
            with pytest.raises(ValueError, match=f"site resid_mid is not available .*{reason}"):
                model.run(some_ids(), [S("resid_mid", b)])


@pytest.mark.parametrize("family", FAMILIES)
def test_pattern_is_the_librarys_eager_attention(family, device):
    model = tiny(family, device)
    ids = some_ids().to(device)
    acts = model.run(ids, [S("pattern", b) for b in range(N)])
    kind = tiny_lm(family).config._attn_implementation
    assert model.lm.config._attn_implementation == kind, "the kind of attention was not put back"
    eager = tiny_lm(family, attention="eager").to(device)
    with torch.no_grad():
        own = eager(ids, output_attentions=True, use_cache=False).attentions
    exact = ti.wrap(eager).run(ids, [S("pattern", b) for b in range(N)])
    for b in range(N):
        weights = acts[S("pattern", b)]
        assert weights.shape == (2, model.info.n_heads, 9, 9)
        assert torch.equal(exact[S("pattern", b)], own[b])
        torch.testing.assert_close(weights, own[b], rtol=1e-4, atol=1e-6)  # of the model's own stream, not eager's
        assert not weights.triu(1).any(), "a position sees a later one"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_the_models_own_whether_or_not_attention_is_looked_at(family):
    model, ids = tiny(family), some_ids()
    alone = model.run(ids, EVERYWHERE)
    with torch.no_grad():
        own = model.lm(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    beside = model.run(ids, all_sites(model))
    for n in range(N):
        assert torch.equal(alone[S("resid", n)], own[n])
        if family == "falcon":  # chooses its attention by itself: proved equal but for rounding
            torch.testing.assert_close(beside[S("resid", n)], own[n], rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(beside[S("resid", n)], own[n])


# -- backends -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.slow
def test_backends_give_the_same_numbers(family, backend, folders, extras):
    """Attention weights are among the sites, so every backend runs eager attention.

    nnsight runs the very modules of transformers: equal. TransformerLens computes attention by its own code: the
    tolerance is a few roundings of float32 at each of three blocks.
    """
    hf = ti.load_model(folders(family), device="cpu")
    other = ti.load_model(folders(family), backend=backend, device="cpu")
    assert other.info.backend == backend
    # TransformerLens has hook points for the rotated queries and keys of GPT-NeoX, but does not run them.
    unseen = {"query", "key"} if (backend, family) == ("transformer_lens", "neox") else set()
    assert other.offered == {k: v for k, v in hf.offered.items() if k not in unseen}
    same = {k: v for k, v in vars(other.info).items() if k != "backend"}
    assert same == {k: v for k, v in vars(hf.info).items() if k != "backend"}
    ids = some_ids(11, 3)
    a, b = hf.run(ids, all_sites(hf)), other.run(ids, all_sites(other))
    tolerance = 0 if backend == "nnsight" else 5e-6
    for site in all_sites(other):
        assert float((a[site] - b[site]).abs().max()) <= tolerance * float(a[site].abs().max()), site
    last = a[S("resid", N)]
    torch.testing.assert_close(hf.unembed(last), other.unembed(last), **SUM)
    with pytest.raises(ValueError, match=r"layer 4: .* has layers 0 to 3"):
        other.run(ids, [S("resid", 4)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_queries_keys_and_values_are_changed_alike_through_transformer_lens(family, folders, extras):
    """TransformerLens shows them at hook points, whose outputs are theirs to change."""
    hf = ti.load_model(folders(family), device="cpu")
    lens = ti.load_model(folders(family), backend="transformer_lens", device="cpu")
    ids, last = some_ids(9, 2), [S("resid", N), S("pattern", 1)]
    plain = hf.run(ids, last)
    for name in [n for n in INNER if n in lens.offers]:
        width = hf.run(ids, [S(name, 1)])[S(name, 1)].shape[-1]
        vector = torch.linspace(-1, 1, width)
        for edit in (ti.edits.add(S(name, 1), vector, positions=[3]), ti.edits.zero(S(name, 1), positions=slice(2, 5))):
            a, b = hf.run(ids, last, edits=[edit]), lens.run(ids, last, edits=[edit])
            for site in last:
                torch.testing.assert_close(a[site], b[site], rtol=1e-4, atol=1e-5, msg=f"{name} {site}")
            assert not torch.equal(a[last[0]], plain[last[0]])
    with pytest.raises(ValueError, match="width"):
        lens.run(ids, last, edits=[ti.edits.add(S("value", 1), torch.ones(5))])


def test_points_that_are_not_what_attention_uses_are_not_offered(folders, extras, monkeypatch):
    monkeypatch.setattr(points, "QUERIES_KEYS", (("q.hook_out", "k.hook_out"),))  # before they are rotated
    lens = ti.load_model(folders("llama"), backend="transformer_lens", device="cpu")
    assert set(INNER) & lens.offers == {"value"}
    with pytest.raises(ValueError, match="do not pass through the attention function"):
        lens.run(some_ids(9, 2), [S("query", 1)])
    monkeypatch.undo()
    monkeypatch.setattr(points, "VALUES", "q.hook_out")
    assert not set(INNER) & ti.load_model(folders("neox"), backend="transformer_lens", device="cpu").offers


def test_a_block_whose_points_are_not_proved_is_named(folders, extras, monkeypatch):
    real = attention.find_points
    calls = []

    def found(*args):
        calls.append(args)
        return {} if len(calls) == 2 else real(*args)

    monkeypatch.setattr(attention, "find_points", found)
    lens = ti.load_model(folders("llama"), backend="transformer_lens", device="cpu")
    assert lens.offered["query"] == (0, 2)
    with pytest.raises(ValueError, match=r"site query is not available in block 1 .* take only those that have it"):
        lens.run(some_ids(9, 2), [S("query", 1)])


@pytest.mark.slow
def test_backends_agree_on_a_trained_model(extras):
    text = "Once upon a time, there was a little girl named Lily."
    hf = ti.load_model(device="cpu")
    ids = torch.tensor(hf.tokenizer(text)["input_ids"])[None]
    sites = [S("resid", n) for n in range(hf.info.n_layers + 1)]
    sites += [S(name, b) for name in sorted(hf.offers - {"resid"}) for b in range(hf.info.n_layers)]
    a = hf.run(ids, sites)
    for backend in ("transformer_lens", "nnsight"):
        b = ti.load_model(backend=backend, device="cpu").run(ids, sites)
        for site in sites:
            torch.testing.assert_close(a[site], b[site], rtol=1e-5, atol=1e-5, msg=f"{backend} {site}")


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_tokenizer_of_the_user_is_not_changed(backend, folders, extras):
    mine = copy.deepcopy(byte_tokenizer())
    mine.padding_side = "right"
    facts = {k: copy.copy(v) for k, v in mine.init_kwargs.items()}, mine.padding_side, mine.pad_token, mine("the river")
    model = ti.load_model(folders("gpt2"), backend=backend, tokenizer=mine, device="cpu")
    now = dict(mine.init_kwargs), mine.padding_side, mine.pad_token, mine("the river")
    assert now == facts
    assert model.tokenizer("the river")["input_ids"] == mine("the river")["input_ids"]


# -- the proof by value ---------------------------------------------------------------------------------------
def test_wrong_modules_are_caught_by_value():
    lm = tiny_lm("llama")
    right = find_modules(lm)
    for wrong in (
        ti.Modules(right.blocks, None, right.attn, right.mlp),
        ti.Modules(right.blocks, "model.layers.0.input_layernorm", right.attn, right.mlp),
    ):
        with pytest.raises(ValueError, match=r"differs from the model's own logits.*modules=tokinterp.Modules"):
            ti.wrap(lm, modules=wrong)
    lm.model.some_blocks = nn.ModuleList(lm.model.layers[:2])
    with pytest.raises(ValueError, match=r"blocks \(model.some_blocks\)"):
        ti.wrap(lm, modules=ti.Modules("model.some_blocks", right.norm, right.attn, right.mlp))
    lm.model.reversed_blocks = nn.ModuleList(reversed(lm.model.layers))
    with pytest.raises(ValueError, match=r"blocks \(model.reversed_blocks\)"):
        ti.wrap(lm, modules=ti.Modules("model.reversed_blocks", right.norm, right.attn, right.mlp))


def test_wrong_parts_are_not_offered():
    lm = tiny_lm("gemma2")
    right = find_modules(lm)
    # The attention module of Gemma 2 is followed by a norm: its own output is not what is added.
    given = ti.Modules(right.blocks, right.norm, right.attn, right.mlp, attn_adds="self_attn", mlp_adds="mlp")
    model = ti.wrap(lm, modules=given)
    assert model.offers == {"resid", "pattern", *INNER}
    with pytest.raises(ValueError, match="site attn_out is not available for Gemma2ForCausalLM"):
        model.run(some_ids(), [S("attn_out", 0)])


class ScaledLlama(T.LlamaForCausalLM):
    """Logits that tokinterp knows nothing about."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.01
        return out


def test_unknown_scaling_of_the_logits_is_caught():
    lm = ScaledLlama(tiny_lm("llama").config).eval()
    with pytest.raises(ValueError, match=r"ScaledLlama: unembed.* differs from the model's own logits by 0.0099"):
        ti.wrap(lm)


class Odd(nn.Module):
    """An architecture with a list of blocks in an unusual place."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_lm("llama")
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **inputs):
        return self.inner(**inputs)


def test_unknown_architecture_says_what_was_looked_for_and_the_way_out():
    with pytest.raises(
        ValueError, match=r"unknown architecture Odd: no list of blocks at model.layers.*the model has: inner.*modules="
    ):
        ti.wrap(Odd())
    modules = ti.Modules(blocks="inner.model.layers", norm="inner.model.norm", attn="self_attn", mlp="mlp")
    model = ti.wrap(Odd(), modules=modules)
    assert model.offers == tiny("llama").offers
    for site in all_sites(model):
        assert torch.equal(model.run(some_ids(), [site])[site], tiny("llama").run(some_ids(), [site])[site])
    with pytest.raises(ValueError, match=r"no module 'inner.layers': name the list of blocks"):
        ti.wrap(Odd(), modules=ti.Modules(blocks="inner.layers", norm=None))


def test_real_model_gives_its_own_loss(bundled):
    """Unembedding the captured last layer is the model: same next-token loss."""
    model = bundled
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    site = S("resid", model.info.n_layers)
    logits = model.unembed(model.run(ids, [site])[site])
    loss = nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    with torch.no_grad():
        assert abs(float(loss) - float(model.lm(ids, labels=ids).loss)) < 1e-4


def test_every_family_of_the_tests_is_another_architecture():
    assert len({kind for kind, _ in CONFIGS.values()}) == len(CONFIGS) - 2  # NeoX and OPT come in two forms
