"""The first block taken apart: terms that add up to its weights in every family, by hand, ALiBi, refusals."""

import numpy as np
import pytest
import torch
import transformers as T
from tiny import CONFIGS, FAMILIES, VOCAB, byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.models.attention.first_block import first_block

S = ti.Site
HIDDEN = {"gptj", "falcon", "bloom"}  # whose queries and keys cannot be seen
ORDINARY = torch.arange(3, 300)
IDS = torch.tensor([5, 9, 200, 9, 30, 31, 7, 250])


def attended(model, ids=IDS):
    return model.run(ids[None], [S("pattern", 0)])[S("pattern", 0)][0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_add_up_to_the_weights_of_every_family_or_are_refused(family):
    model = tiny(family)
    if family in HIDDEN:
        with pytest.raises(ValueError, match=r"site query is not available for \w+"):
            first_block(model, ORDINARY, 8)
        return
    if family == "opt_post_norm":
        with pytest.raises(ValueError, match=r"its embedding is mapped before places are added to it"):
            first_block(model, ORDINARY, 8)
        return
    block = first_block(model, ORDINARY, 8)
    assert block.places == ("learned" if family in ("gpt2", "opt") else "rotary")
    terms = block.terms(IDS)
    assert tuple(terms) == block.names
    true = attended(model)
    logits = torch.stack([*terms.values()]).sum(0).masked_fill(true == 0, -torch.inf)
    np.testing.assert_allclose(logits.softmax(-1), true, atol=2e-4)
    assert all(float(t.std()) > 1e-4 for t in terms.values())


def test_alibi_is_a_slope_and_no_term_of_tokens():
    CONFIGS["slope"] = (T.FalconConfig, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3,
                                         "num_attention_heads": 4, "alibi": True, "multi_query": False,
                                         "parallel_attn": False})  # fmt: skip
    model = ti.wrap(tiny_lm("slope"), byte_tokenizer(), id="slope")
    del CONFIGS["slope"]
    block = first_block(model, ORDINARY, 8)
    assert block.places == "alibi"
    steps = 0.25 ** np.arange(1, 5) / 8**0.5
    np.testing.assert_allclose(block.slopes, steps, rtol=1e-3)
    np.testing.assert_allclose(block.by_offset(5, ORDINARY), -np.arange(5)[:, None] * steps, rtol=1e-3)
    logits = torch.stack([*block.terms(IDS).values()]).sum(0) + torch.full((8, 8), -torch.inf).triu(1)
    np.testing.assert_allclose(logits.softmax(-1), attended(model), atol=1e-4)


@torch.no_grad()
def test_terms_of_learned_places_are_the_published_six():
    model = tiny("gpt2")
    block = first_block(model, ORDINARY, 8)
    own, norm = model.lm.transformer, model.lm.transformer.h[0].ln_1
    w, b = (x.double() for x in (own.h[0].attn.c_attn.weight, own.h[0].attn.c_attn.bias))
    e, p = own.wte.weight[IDS].double(), own.wpe.weight[:8].double()
    size = ((e + p).var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    centre = torch.eye(32).double() - 1 / 32
    into = centre @ torch.diag(norm.weight.double()) @ w
    bias = norm.bias.double() @ w + b

    def heads(x):
        return x.reshape(-1, 4, 8).transpose(0, 1)

    q, k = (
        {"token": heads(e / size @ into[:, part]), "place": heads(p / size @ into[:, part])}
        for part in (slice(32), slice(32, 64))
    )
    fixed = heads(bias[None, :32])
    terms = block.terms(IDS)
    for asks in ("token", "place"):
        for has in ("token", "place"):
            right = q[asks] @ k[has].mT / 8**0.5
            np.testing.assert_allclose(terms[f"{asks}-{has}"], right, atol=1e-4, err_msg=f"{asks}-{has}")
        right = (fixed @ k[asks].mT / 8**0.5).expand(4, 8, 8)
        np.testing.assert_allclose(terms[asks], right, atol=1e-4, err_msg=asks)
    whole = own.wte.weight[ORDINARY].double()[:, None] + own.wpe.weight[:6].double()
    inverse = (1 / (whole.var(-1, unbiased=False) + norm.eps).sqrt()).mean(0)[:, None]
    at = own.wpe.weight[:6].double() * inverse
    q6, k6 = heads(at @ into[:, :32]), heads(at @ into[:, 32:64])
    logit = torch.einsum("hd,hpd->ph", q6[:, -1] + fixed[:, 0], k6).flip(0) / 8**0.5
    np.testing.assert_allclose(block.by_offset(6, ORDINARY), logit - logit[:1], atol=1e-4)


def test_rotary_terms_of_a_pair_are_those_of_the_model_at_any_distance():
    """Mean query and mean key, at the offset, give place; the rest of both, one apart, token-token."""
    model = tiny("llama")
    block = first_block(model, ORDINARY, 8)
    found = model.run(torch.stack([ORDINARY, ORDINARY]).T, [S("query", 0), S("key", 0)])

    def by(x, at):
        x = x[:, at].unflatten(1, (-1, 8))
        return x.repeat_interleave(4 // x.shape[1], 1)

    q, k = by(found[S("query", 0)], 1), by(found[S("key", 0)], 0)
    one = torch.einsum("shd,vhd->shv", q - q.mean(0), k - k.mean(0)) / 8**0.5
    got = block.next_scores(ORDINARY, None)[..., ORDINARY]
    np.testing.assert_allclose(got, one, atol=1e-4)
    still = by(found[S("query", 0)], 0).mean(0)
    place = ((q.mean(0) - still) * k.mean(0)).sum(-1) / 8**0.5
    np.testing.assert_allclose(block.by_offset(2, ORDINARY)[1], place, atol=1e-5)


def test_weights_that_are_no_softmax_of_products_are_refused():
    model = ti.wrap(tiny_lm("gemma2", attention="eager", attn_logit_softcapping=0.05), byte_tokenizer(), id="capped")
    with pytest.raises(ValueError, match=r"are no softmax of products .*: a soft cap, or another bias"):
        first_block(model, ORDINARY, 8)
