"""Attention masses, sinks, keys and values: identities, the library's own eager attention, bounded memory."""

import gc
import weakref

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import FAMILIES, byte_tokenizer, some_ids, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.kernels import attention_masses, attention_received, chance
from tokinterp.attention.mass import AttentionMass
from tokinterp.attention.sinks import AttentionSinks
from tokinterp.attention.token_sets import MARKS
from tokinterp.run import edits as E

S = ti.Site
N, T = 3, 9
LAST = S("resid", N)
NO_INNER = {"gptj", "falcon", "bloom"}  # their attention does not pass through transformers' attention functions
PARTS = {"sink": "first", "even": None, "other": "other"}


def uniform(n, heads=2):
    return (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).expand(1, heads, n, n).clone()


def random_pattern(n, heads=2, prompts=2, seed=0):
    scores = torch.randn(prompts, heads, n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)


def sets(n, prompts=1, seed=0):
    code = torch.randint(0, 3, (prompts, 1, n), generator=torch.Generator().manual_seed(seed))
    return code == torch.arange(3)[:, None]


# -- kernels --------------------------------------------------------------------------------------------------
def test_masses_over_a_partition_sum_to_one():
    keys, queries = sets(12, 2), torch.ones(2, 1, 12, dtype=torch.bool)
    found = attention_masses(random_pattern(12), queries, keys, torch.rand(2, 2, 12) + 0.1)
    torch.testing.assert_close(found.mass.sum(-1) / 12, torch.ones(2, 2, 1).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.valued.sum(-1) / 12, torch.ones(2, 2, 1).double(), atol=1e-6, rtol=0)
    assert found.net_queries.tolist() == [[[10], [10]]] * 2  # the first two see nothing beside the first and themselves
    torch.testing.assert_close(found.net.sum(-1) / 10, torch.ones(2, 2, 1).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.net_chance.sum(-1) / 10, torch.ones(2, 2, 1).double(), atol=1e-6, rtol=0)


def test_uniform_attention_is_at_chance_and_has_no_sink():
    n, keys, queries = 11, sets(11), torch.ones(1, 1, 11, dtype=torch.bool)
    found = attention_masses(uniform(n), queries, keys)
    torch.testing.assert_close(found.mass, chance(queries, keys)[:, None].expand(-1, 2, -1, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.net, found.net_chance, atol=1e-6, rtol=0)
    place = torch.arange(n)
    expected = torch.tensor([(1.0 / (place[k:] + 1)).mean() for k in range(n)])
    torch.testing.assert_close(attention_received(uniform(n))[0, 0].float(), expected)


def test_masses_are_those_of_the_definition():
    a, keys = random_pattern(7, 1, 1, 3)[0, 0].numpy(), sets(7, seed=1)[0].numpy()
    norm = np.random.default_rng(0).random(7) + 0.1
    queries = np.array([False, True, True, False, True, True, True])
    got = attention_masses(
        torch.tensor(a)[None, None], torch.tensor(queries)[None, None], torch.tensor(keys)[None],
        torch.tensor(norm).float()[None, None],
    )  # fmt: skip
    for s in range(3):
        mass = net = expect = valued = 0.0
        for q in np.flatnonzero(queries):
            mine = [k for k in range(q + 1) if keys[s, k]]
            mass += a[q, mine].sum()
            valued += (a[q, mine] * norm[mine]).sum() / (a[q, : q + 1] * norm[: q + 1]).sum()
            if q >= 2:
                inner = [k for k in mine if k not in (0, q)]
                net += a[q, inner].sum() / (1 - a[q, 0] - a[q, q])
                expect += len(inner) / (q - 1)
        got_here = [float(x[0, 0, 0, s]) for x in got[:4]]
        np.testing.assert_allclose(got_here, [mass, net, expect, valued], rtol=1e-5)


def test_what_the_weights_lack_to_one_goes_to_the_learned_sink():
    pattern = random_pattern(6)
    asked = torch.ones(2, 1, 6, dtype=torch.bool)
    found = attention_masses(0.75 * pattern, asked, asked)
    torch.testing.assert_close(found.short, torch.full_like(found.short, 6 * 0.25), atol=1e-5, rtol=0)
    np.testing.assert_allclose(attention_masses(pattern, asked, asked).short, 0, atol=1e-5)


def test_a_query_that_gives_all_to_sink_and_self_is_left_out():
    a = torch.eye(5)[None, None].clone()
    a[..., 4, :] = torch.tensor([0.5, 0.25, 0.0, 0.0, 0.25])
    found = attention_masses(a, torch.ones(1, 1, 5, dtype=torch.bool), torch.ones(1, 1, 5, dtype=torch.bool))
    assert int(found.net_queries) == 1
    assert float(found.net) == pytest.approx(1.0)


# -- sites key and value --------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_own_keys_and_values_change_nothing_and_others_do(family):
    model, ids = tiny(family), some_ids(T)
    sites = [S("key", 1), S("value", 1)]
    if family in NO_INNER:
        with pytest.raises(ValueError, match=r"site key is not available .* attention function"):
            model.run(ids, sites)
        sites = sites[1:]
    plain = model.run(ids, [*sites, LAST])
    same = model.run(ids, [LAST], edits=[E.replace(s, plain[s]) for s in sites])
    torch.testing.assert_close(same[LAST], plain[LAST], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain[LAST], model.run(ids, [LAST])[LAST], rtol=1e-4, atol=1e-5)
    changed = model.run(ids, [LAST], edits=[E.zero(sites[-1], [3])])[LAST]
    torch.testing.assert_close(changed[:, :3], plain[LAST][:, :3], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(changed[:, 4], plain[LAST][:, 4], atol=1e-3)
    other = model.run(ids.flip(0), sites)
    swapped = model.run(ids, [*sites, LAST], edits=[E.replace(s, other[s]) for s in sites])
    assert torch.equal(swapped[sites[-1]], other[sites[-1]])
    assert not torch.allclose(swapped[LAST][:, 5], plain[LAST][:, 5], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "opt", "qwen3"])
def test_pattern_times_value_written_is_what_attention_returns(family):
    model = tiny(family)
    assert {"query", "key", "value"} <= model.offers
    assert model.attention.output in ("o_proj", "c_proj", "dense", "out_proj")
    block = model._blocks[1]
    attn = getattr(block, model.modules.attn)
    got = model.run(some_ids(T), [S("value", 1)])[S("value", 1)]
    norm = model.written_norm(1, got)
    shape, out = model.attention.shapes[1], getattr(attn, model.attention.output)
    heads = got.unflatten(2, (shape.n_values, shape.d_value)).transpose(1, 2).repeat_interleave(4 // shape.n_values, 1)
    zero = out(torch.zeros(1, heads.shape[1] * heads.shape[3]))
    for h in range(4):
        alone = torch.zeros_like(heads)
        alone[:, h] = heads[:, h]
        wrote = out(alone.transpose(1, 2).flatten(2)) - zero
        torch.testing.assert_close(norm[:, h], wrote.norm(dim=-1).detach(), rtol=1e-4, atol=1e-5)


def test_nothing_is_left_of_a_pass_that_failed_or_of_one_inside_it():
    """Attention is put in sight by copies of the config: of this pass, this model only."""
    lm = tiny_lm("llama")
    model = ti.wrap(lm, id="outer")
    other = tiny_lm("llama", seed=1)
    for m in other.modules():
        if "config" in m.__dict__:
            m.config = lm.config
    other = ti.wrap(other, id="same config, other weights")
    sites = [S("key", 1), S("pattern", 1), LAST]
    plain, others, settings = model.run(some_ids(T), sites), other.run(some_ids(T), sites), dict(vars(lm.config))

    def look(site, value):
        inside = other.run(some_ids(T), [LAST])[LAST]
        assert torch.equal(inside, others[LAST])
        assert torch.equal(value, plain[site])
        if site == LAST:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        model.run(some_ids(T), sites, consume=look)
    assert vars(lm.config) == settings
    assert all(m.config is lm.config for m in lm.modules() if "config" in m.__dict__)
    with pytest.raises(ValueError, match=r"replace at key 1: the value has shape \(5,\), .* width 16"):
        model.run(some_ids(T), [LAST], edits=[E.replace(S("key", 1), torch.zeros(5))])


# -- measurements ---------------------------------------------------------------------------------------------
def make_mass():
    return AttentionMass({"sink": "first", "special": "special", "other": "other"}, {"all": "all", "last": "last"})


def test_attention_mass_keeps_the_contract():
    ds = assert_contract(make_mass, tiny("llama"))
    assert ds["mass"].dims == ("prompt", "block", "head", "query_set", "key_set")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_masses_agree_with_eager_attention_of_transformers(family):
    model = tiny(family)
    prompts = some_prompts([14, 9, 11], model=model)
    ds = ti.measure(model, prompts, {"m": make_mass()}, progress=False)["m"].to_dataset()
    lm = tiny_lm(family, attention="eager")
    for p in range(3):
        ids = torch.from_numpy(np.asarray(prompts.ids(p), dtype=np.int64))[None]
        with torch.no_grad():
            maps = lm(ids, output_attentions=True, use_cache=False).attentions
        for b, a in enumerate(maps):
            got = ds["mass"].isel(prompt=p, block=b)
            first, last = a[0, :, :, 0].mean(-1), a[0, :, -1, 0]
            np.testing.assert_allclose(got.sel(query_set="all", key_set="sink"), first, atol=1e-6)
            np.testing.assert_allclose(got.sel(query_set="last", key_set="sink"), last, atol=1e-6)
    np.testing.assert_allclose(
        ds["mass"].sel(key_set=["sink", "other"]).sum("key_set"), 1, atol=1e-5
    )  # the special token is the first
    np.testing.assert_allclose(ds["enrichment"], ds["mass"] / ds["chance"], rtol=1e-5)


@pytest.mark.slow
def test_patterns_are_let_go_block_by_block(bundled):
    """On 1,024 tokens never more than two blocks' patterns are alive, and no site is kept for update()."""
    words = " ".join(t.text for t in ti.bundled_texts()[:6])
    prompts = ti.Prompts.from_texts([words], bundled, max_tokens=min(1024, bundled.info.max_tokens))
    alive, most = [], []

    class Watched(AttentionMass):
        tried = False

        def look(self, batch, site, value):
            assert not batch.activations
            if site.name == "pattern":
                gc.collect()
                most.append(sum(r() is not None for r in alive))
                alive.append(weakref.ref(value))
            return super().look(batch, site, value)

    ds = ti.measure(bundled, prompts, {"m": Watched()}, progress=False)["m"]
    assert len(most) == bundled.info.n_layers
    assert max(most) <= 1
    np.testing.assert_allclose(ds["mass"].sum("key_set"), 1, atol=1e-5)


def test_nan_in_a_pattern_is_found_though_it_is_not_kept():
    lm = tiny_lm("llama")
    with torch.no_grad():
        lm.model.embed_tokens.weight[7] = torch.nan
    good = tiny("llama")
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer())
    model.lm.load_state_dict(lm.state_dict())
    prompts = ti.Prompts.from_ids([[1, 5, 6, 8], [1, 5, 7, 8]], good)
    run = ti.measure(model, prompts, {"m": AttentionMass({"all": "all"}, value_weighted=False)}, progress=False)
    assert run["prompts"]["first_nonfinite_layer"].values.tolist()[0] == -1
    assert run["m"]["prompt"].values.tolist() == [0]


def test_marked_tokens_and_separators(bundled):
    text = "The Nile flows north. It is long; very long, they say!"
    prompts = ti.Prompts.from_texts([text], bundled)
    strings = prompts.strings(0)
    hand = np.array([any(c in MARKS for c in s) for s in strings])
    keys = {"rule": "separators", "hand": hand}
    ds = ti.measure(bundled, prompts, {"m": AttentionMass(keys)}, progress=False)["m"]
    np.testing.assert_array_equal(ds["mass"].sel(key_set="rule"), ds["mass"].sel(key_set="hand"))
    assert int(ds["n_keys"].sel(key_set="hand").sum()) == 4


def test_attention_beside_a_measurement_that_keeps_patterns():
    """A streaming measurement gives the same numbers whether or not another one keeps the site."""

    class Keeps(ti.Measurement):
        def sites(self, info):
            return [S("pattern", 1), S("resid", 0)]

        def update(self, batch):
            self.append(prompt=batch.prompt_numbers, total=batch.activations[ti.Site("pattern", 1)].sum((1, 2, 3)))

        def result(self):
            from tokinterp.results.dataset import variable

            prompt, total = self.table("prompt", "total")
            return ti.results.dataset.xr.Dataset(
                {"total": variable("prompt", total, "total", "1")}, {"prompt": variable("prompt", prompt, "p", "1")}
            )

    prompts = some_prompts([8, 12])
    alone = ti.measure(tiny(), prompts, {"m": make_mass()}, progress=False)["m"]
    both = ti.measure(tiny(), prompts, {"k": Keeps(), "m": make_mass()}, progress=False)
    np.testing.assert_allclose(both["m"]["mass"], alone["mass"], atol=1e-6)
    np.testing.assert_allclose(both["k"]["total"], 4 * 12, rtol=1e-5)  # padded rows sum to one too


# -- bad input ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": {}}, "give a dictionary"),
        ({"keys": {"a": [1, 2]}}, "one bool per token"),
        ({"threshold": 1.5}, "between 0 and 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionMass(**settings)


def test_settings_that_do_not_fit_model_or_prompts():
    prompts = some_prompts([8])
    for asked, message in (
        (AttentionMass(blocks=[7]), "has blocks 0 to 2"),
        (AttentionMass({"a": "sinks"}), "give a rule .all, first"),
        (AttentionMass({"a": np.ones(3, bool)}), "marks 3 tokens, the prompts have 8"),
        (AttentionMass({"a": np.zeros(8, bool)}), "no token of any prompt"),
        (AttentionSinks(tokens=64), "the longest prompt has 8"),
    ):
        with pytest.raises(ValueError, match=message):
            ti.measure(tiny(), prompts, {"m": asked}, progress=False)


def test_a_model_without_patterns_says_so():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer())
    model.offered = {n: b for n, b in model.offered.items() if n != "pattern"}
    with pytest.raises(ValueError, match=r"site (value|pattern) is not available"):
        ti.measure(model, some_prompts([8]), {"m": AttentionMass()}, progress=False)
    with pytest.raises(ValueError, match="site pattern is not available for LlamaForCausalLM"):
        ti.measure(model, some_prompts([8]), {"m": AttentionMass(value_weighted=False)}, progress=False)


def test_a_site_that_some_blocks_lack_says_which_and_the_way_out():
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer())
    assert model.offered["pattern"] == (0, 1, 2)
    assert model.offered["resid"] == (0, 1, 2, 3)
    model.offered, model.withheld = model.offered | {"pattern": (0, 2)}, {"pattern": "linear attention"}
    message = (
        r"pattern is not available in block 1 of LlamaForCausalLM \(linear attention\): take only .* blocks=\[0, 2\]"
    )
    for asked in (AttentionMass(value_weighted=False), ti.attention.FirstTokenAttention()):
        with pytest.raises(ValueError, match=message):
            ti.measure(model, some_prompts([8]), {"m": asked}, progress=False)
    got = ti.measure(
        model, some_prompts([8]), {"m": AttentionMass(blocks=[0, 2], value_weighted=False)}, progress=False
    )
    assert got["m"].block.values.tolist() == [0, 2]


def test_measured_masses_are_a_loop_over_queries_heads_and_keys():
    """Each mean over the queries that it names: all of the set, or those with something left beside first and self."""
    model, prompts = tiny("llama"), some_prompts([12, 7])
    marked = np.random.default_rng(1).random(prompts.n_tokens) < 0.4
    asked = AttentionMass({"marked": marked, "rest": ~marked}, {"all": "all", "marked": marked}, threshold=0.4)
    ds = ti.measure(model, prompts, {"m": asked}, progress=False)["m"].to_dataset()
    for p in range(2):
        on = marked[prompts.starts[p] : prompts.starts[p + 1]]
        acts = model.run(torch.from_numpy(prompts.ids(p).astype(np.int64))[None], [S("pattern", 1), S("value", 1)])
        weights = acts[S("pattern", 1)][0].double().numpy()
        norm = model.written_norm(1, acts[S("value", 1)])[0].double().numpy()
        for i, queries in enumerate((np.arange(len(on)), np.flatnonzero(on))):
            for j, key in enumerate((on, ~on)):
                masses = []
                for h, a in enumerate(weights):
                    at = {"prompt": p, "block": 1, "head": h, "query_set": i, "key_set": j}
                    mass, valued, net, luck = [], [], [], []
                    for q in queries:
                        mass.append(a[q, key].sum())
                        valued.append((a[q] * norm[h])[key].sum() / (a[q] * norm[h]).sum())
                        if q >= 2:
                            inner = np.arange(1, q)
                            net.append(a[q, inner][key[inner]].sum() / a[q, inner].sum())
                            luck.append(key[inner].mean())
                    chance = np.mean([key[: q + 1].mean() for q in queries])
                    masses.append(np.mean(mass))
                    wanted = {
                        "n_queries": len(queries), "n_keys": key.sum(), "chance": chance, "mass": np.mean(mass),
                        "enrichment": np.mean(mass) / chance, "net_mass": np.mean(net), "net_chance": np.mean(luck),
                        "net_enrichment": np.sum(net) / np.sum(luck), "valued_mass": np.mean(valued),
                    }  # fmt: skip
                    for name, value in wanted.items():
                        got = ds[name].variable.isel(at, missing_dims="ignore").item()
                        assert got == pytest.approx(value, rel=1e-4), (name, h, i, j)
                above = ds["heads_above"].variable.isel(at, missing_dims="ignore").item()
                assert above == (np.array(masses) > 0.4).sum()
