"""Token and concept heads: attention and patches by another way in many families, and what controls give."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.attention.heads import concept_heads
from tokinterp.attention.heads.concept_heads import copying_scores, induction_scores
from tokinterp.attention.heads.copies import copy_prompts
from tokinterp.run.stream import capture

S = ti.Site
TEXTS = [
    "the river and the king to the sea and in the morning sting",
    "bring the ring in the spring to the evening and",
    "sing and ding to the wing in the sting and fling",
]
WORDS = ti.Spans.words(TEXTS)
HOW = {"length": 10, "sizes": (2, 3), "seed": 3}
PROJECTION = {"gpt2": "attn.c_proj", "neox": "attention.dense", "bloom": "self_attention.dense",
              "falcon": "self_attention.dense"}  # fmt: skip


def texts(model=None):
    return ti.Prompts.from_texts(TEXTS, model or tiny())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_attention_is_weighted_by_the_norms_of_values_head_by_head(family):
    model = tiny(family)
    ds = induction_scores(model, texts(model), WORDS, n=4, **HOW)
    ti.check(ds)
    for row, random in enumerate((False, True)):
        c = copy_prompts(model, texts(model), WORDS, random=random, n=4, **HOW)
        for offset, prompts in ((0, c.repeated), (2, c.shuffled)):
            found = np.zeros((4, 2, 4))
            for i, entity in enumerate(c.entities):
                batch = capture(model, prompts, [i], [S("pattern", 1), S("value", 1)])
                a, v = batch.activations[S("pattern", 1)][0, :, -1], batch.activations[S("value", 1)][0]
                size = v.reshape(len(v), -1, 8).norm(dim=-1).repeat_interleave(4 * 8 // v.shape[1], 1)
                share = a * size.T / (a * size.T).sum(-1, keepdim=True)
                start = next(p for p in range(99) if tuple(batch.ids[0, p : p + len(entity)].tolist()) == entity)
                found[i] = share[:, [start, start + len(entity) - 1]].T
            got = ds["attention"].isel(condition=row + offset).sel(block=1)
            np.testing.assert_allclose(got, found.mean(0), rtol=1e-4, err_msg=str(got["condition"].item()))
    assert ds["condition"].values.tolist()[1:3] == ["random tokens", "entities, shuffled"]
    np.testing.assert_array_equal(ds["token_score"], ds["attention"].sel(condition="random tokens", key_set="next"))
    np.testing.assert_array_equal(ds["concept_score"], ds["attention"].sel(condition="entities", key_set="end"))
    null = ds["attention"].sel(condition="entities, shuffled", key_set="end")
    np.testing.assert_array_equal(ds["concept_score_null"], null)
    low, high = ds["concept_score_interval"].values
    assert ((low <= ds["concept_score"].values) & (ds["concept_score"].values <= high)).all()


def test_what_is_written_is_another_weight_and_an_untrained_network_another_control():
    kinds = [induction_scores(tiny(), texts(), WORDS, n=4, norm=n, **HOW)["attention"] for n in ("values", "written")]
    assert 1e-3 < float(abs(kinds[0] - kinds[1]).max()) < 0.5
    ds = induction_scores(tiny(), texts(), WORDS, n=4, untrained=True, **HOW)
    assert ds["condition"].values.tolist()[4:] == ["entities, untrained", "random tokens, untrained"]
    assert not np.allclose(ds["attention"][4], ds["attention"][0], atol=1e-3)


@torch.no_grad()
def by_hooks(model, family, clean, corrupted, entities, block, donor=0):
    """(head, target) mean change of probability, by a hook on the output projection of one prompt at a time."""
    projection = model._blocks[block].get_submodule(PROJECTION.get(family, "self_attn.o_proj"))
    total = torch.zeros(4, 2).double()

    def run(ids, change=None):
        seen = []

        def hook(_m, args):
            seen.append(args[0].clone())
            return None if change is None else (change(args[0].clone()),)

        handle = projection.register_forward_pre_hook(hook)
        probs = model.lm(input_ids=torch.tensor(ids[None]).long()).logits.double().softmax(-1)
        handle.remove()
        return probs[0], seen[0]

    for i, (first, second, *_) in enumerate(entities):
        mixed = run(clean.ids((i + donor) % len(entities)))[1]
        plain = run(corrupted.ids(i))[0]
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)

            def put(x, part=part, mixed=mixed):
                x[0, -2, part] = mixed[0, -2, part]
                return x

            probs = run(corrupted.ids(i), put)[0]
            total[h, 0] += probs[-2, first] - plain[-2, first]
            total[h, 1] += probs[-1, second] - plain[-1, second]
    return total / len(entities)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "bloom", "falcon"])
def test_patches_of_heads_are_those_of_a_hook_on_their_projection(family, monkeypatch):
    monkeypatch.setattr(concept_heads, "ROWS", {"cpu": 200})
    model = tiny(family)
    ds = copying_scores(model, texts(model), WORDS, n=3, blocks=[1], **HOW)
    ti.check(ds)
    for row, random in enumerate((False, True)):
        c = copy_prompts(model, texts(model), WORDS, random=random, n=3, **HOW)
        assert len(c.entities) == 3
        for name, donor in (("copying", 0), ("copying_null", 1)):
            right = by_hooks(model, family, c.clean, c.corrupted, c.entities, 1, donor)
            got = ds[name].isel(condition=row).sel(block=1).transpose("head", "target")
            assert float(right.abs().max()) > 1e-6
            np.testing.assert_allclose(got, right, rtol=2e-2, atol=2e-3 * float(right.abs().max()))
    np.testing.assert_array_equal(ds["token_copying"], ds["copying"].sel(condition="random tokens", target="first"))
    np.testing.assert_array_equal(ds["concept_copying"], ds["copying"].sel(condition="entities", target="second"))
    null = ds["copying_null"].sel(condition="random tokens", target="first")
    np.testing.assert_array_equal(ds["token_copying_null"], null)


def test_a_head_that_writes_the_answer_is_the_only_one_that_copies():
    """Head 2 of block 1 holds nothing but the state before it, and everything it writes goes to the stream's end."""
    lm = tiny_lm("gpt2")
    with torch.no_grad():
        for b in (0, 1, 2):
            weight = lm.transformer.h[b].attn.c_proj.weight
            keep = slice(16, 24) if b == 1 else slice(0, 0)
            own = weight[keep].clone()
            weight.zero_()
            weight[keep] = own
    model = ti.wrap(lm, byte_tokenizer(), id="planted")
    ds = copying_scores(model, texts(model), WORDS, n=3, **HOW)
    size = abs(ds["copying"]).max(("condition", "target"))
    assert float(size.sel(block=1, head=2)) > 1e-6
    rest = size.where((size["block"] != 1) | (size["head"] != 2), 0)
    assert float(rest.max()) < 1e-3 * float(size.max())


def test_without_control_there_is_no_null_and_the_rest_is_the_same():
    whole = copying_scores(tiny(), texts(), WORDS, n=3, blocks=[2], **HOW)
    part = copying_scores(tiny(), texts(), WORDS, n=3, blocks=[2], control=False, **HOW)
    assert {n for n in whole if n not in part} == {"copying_null", "token_copying_null", "concept_copying_null"}
    np.testing.assert_allclose(part["copying"], whole["copying"], atol=1e-9)
    np.testing.assert_allclose(part["copying_interval"], whole["copying_interval"], atol=1e-9)


def test_heads_that_cannot_be_put_elsewhere_are_refused_in_one_line(monkeypatch):
    model = tiny("opt_post_norm")
    with pytest.raises(ValueError, match=r"site attn_out is not available for OPTForCausalLM"):
        copying_scores(model, texts(model), WORDS, n=2, **HOW)
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="odd")
    monkeypatch.setattr(model.attention, "wrote", lambda _b, mixed: 2 * mixed)
    with pytest.raises(ValueError, match=r"block 0 of LlamaForCausalLM: what its heads mix gives another output"):
        copying_scores(model, texts(model), WORDS, n=2, **HOW)
