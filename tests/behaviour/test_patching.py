"""The patching sweep: what is planted is found, all of it restores the clean run, nothing changes nothing."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.behaviour import patching_sweep

AT = 3  # the token in which the prompts of a pair differ
HEAD, BLOCK = 2, 1


def pairs(lengths=(6, 9, 6), model=None):
    clean = some_prompts(lengths)
    ids = [clean.ids(i).copy() for i in range(len(lengths))]
    for one in ids:
        one[AT] = (one[AT] + 17) % 200 + 50
    return clean, ti.Prompts.from_ids(ids, model or tiny())


def planted():
    """A network in which one head of one block moves what stands elsewhere, and nothing else is added to the stream."""
    lm = tiny_lm("llama")
    size = lm.config.hidden_size // lm.config.num_attention_heads
    for n, block in enumerate(lm.model.layers):
        block.mlp.down_proj.weight.data.zero_()
        mine = block.self_attn.o_proj.weight.data[:, HEAD * size : (HEAD + 1) * size].clone()
        block.self_attn.o_proj.weight.data.zero_()
        if n == BLOCK:
            block.self_attn.o_proj.weight.data[:, HEAD * size : (HEAD + 1) * size] = 5 * mine
    return ti.wrap(lm, byte_tokenizer(), id="planted")


ANSWERS, OTHERS = [[40], [41], [42]], [[50], [51], [52]]


def test_a_planted_head_is_found():
    model = planted()
    clean, corrupted = pairs(model=model)
    found = patching_sweep(model, clean, corrupted, ANSWERS, OTHERS, progress=False)
    ti.check(found)
    n_layers = model.info.n_layers
    for name in ("logit_difference_effect", "log_prob_effect"):
        for i, length in enumerate(clean.lengths):
            effect = found[name].values[i, :, :length]
            expected = np.zeros((n_layers + 1, length))
            expected[: BLOCK + 1, AT] = 1  # before the head, where the prompts differ
            expected[BLOCK + 1 :, -1] = 1  # behind it, where the answer is read
            np.testing.assert_allclose(effect, expected, atol=5e-3)
            assert np.isnan(found[name].values[i, :, length:]).all()
    parts = patching_sweep(model, clean, corrupted, ANSWERS, site="attn_out", progress=False)
    assert parts["log_prob_effect"].dims == ("prompt", "block", "position")
    assert "logit_difference" not in parts
    last = [parts["log_prob_effect"].values[i, :, n - 1] for i, n in enumerate(clean.lengths)]
    np.testing.assert_allclose(last, np.tile(np.arange(n_layers) == BLOCK, (3, 1)), atol=5e-3)


def test_patching_everything_restores_the_clean_run():
    """Prompts of other lengths: only what is marked corresponds."""
    clean, corrupted = some_prompts([6, 9]), some_prompts([6, 9], seed=1)
    halves = [[1, 3], [1, 3]], [[3, 6], [3, 6]]
    clean, corrupted = (
        ti.text.mark(p, all=[[0, 6], [0, 9]], first=halves[0], second=halves[1]) for p in (clean, corrupted)
    )
    found = patching_sweep(tiny(), clean, corrupted, ANSWERS[:2], spans=["all", "first", "second"], progress=False)
    np.testing.assert_allclose(found["log_prob_effect"].sel(span="all"), 1, atol=1e-3)
    np.testing.assert_allclose(
        found["log_prob"].sel(span="all"), found["log_prob_clean"].values[:, None] + np.zeros(4), rtol=1e-4
    )
    assert (abs(found["log_prob_effect"].sel(span="first") - 1) > 1e-3).any()
    last = found["log_prob_effect"].sel(layer=3)
    np.testing.assert_allclose(last.sel(span="first"), 0, atol=1e-3)  # the answer is read elsewhere


def test_a_span_is_patched_as_by_hand():
    clean, corrupted = some_prompts([7, 8]), some_prompts([6, 9], seed=1)
    clean, corrupted = ti.text.mark(clean, x=[[2, 4], [5, 6]]), ti.text.mark(corrupted, x=[[3, 5], [1, 2]])
    found = patching_sweep(tiny(), clean, corrupted, ANSWERS[:2], at=[1], spans=["x"], progress=False)
    site, last = ti.Site("resid", 1), ti.Site("resid", 3)
    for i, (there, here) in enumerate((((2, 4), (3, 5)), ((5, 6), (1, 2)))):
        with torch.no_grad():
            given = tiny().run(torch.tensor(clean.ids(i))[None], [site])[site][0, slice(*there)]
            value = torch.zeros(corrupted.lengths[i], 32)
            value[slice(*here)] = given
            edit = ti.edits.replace(site, value, list(range(*here)))
            stream = tiny().run(torch.tensor(corrupted.ids(i))[None], [last], edits=[edit])[last][0, -1]
            want = tiny().unembed(stream).log_softmax(-1)[ANSWERS[i][0]]
        assert float(found["log_prob"][i, 0, 0]) == pytest.approx(float(want), abs=1e-4)


def test_a_prompt_patched_from_itself_is_as_it_was():
    clean, _ = pairs()
    found = patching_sweep(tiny(), clean, clean, ANSWERS, OTHERS, at=[0, 2], progress=False)
    for name in ("log_prob", "logit_difference"):
        for i, n in enumerate(clean.lengths):
            own = float(found[f"{name}_corrupted"][i])
            np.testing.assert_allclose(found[name].values[i, :, :n], own, atol=1e-4)
    assert np.isnan(found["log_prob_effect"]).all(), "there is nothing to restore"


def test_batches_and_stores_change_nothing(tmp_path):
    clean, corrupted = pairs()
    options = {"at": [1], "progress": False, "batch_tokens": 30}
    plain = patching_sweep(tiny(), clean, corrupted, ANSWERS, at=[1], progress=False)
    kept = patching_sweep(tiny(), clean, corrupted, ANSWERS, store=tmp_path / "s.zarr", **options)
    np.testing.assert_allclose(kept["log_prob"], plain["log_prob"], rtol=1e-4)
    again = patching_sweep(tiny(), clean, corrupted, ANSWERS, store=tmp_path / "s.zarr", **options)
    np.testing.assert_array_equal(again["log_prob"], kept["log_prob"])
    assert again.attrs["fingerprint"] == kept.attrs["fingerprint"]


def test_what_is_no_pair_is_refused_before_anything_is_run(monkeypatch):
    clean, corrupted = pairs()
    short = some_prompts([6, 8, 6])
    marked = ti.text.mark(clean, x=[[1, 2], [1, 3], [1, 1]])
    other = ti.text.mark(corrupted, x=[[1, 2], [1, 2], [1, 1]])
    monkeypatch.setattr(type(tiny()), "run", lambda *a, **k: pytest.fail("the model ran"))
    for given, options, message in (
        ((clean[:2], corrupted), {}, "corrupted: 3 prompts for 2 clean ones"),
        ((clean, short), {}, "corrupted: prompt 1 has 8 tokens, the clean one 9: give pairs of one length, or spans="),
        ((clean, corrupted), {"spans": ["x"]}, "spans: clean has no mark 'x', it has none"),
        ((marked, other), {"spans": ["x"]}, "spans: 'x' has 1 tokens in corrupted prompt 1, 2 in the clean one"),
        ((clean, corrupted), {"site": "value"}, "site='value'"),
        ((clean, corrupted), {"site": "mlp_out", "at": [3]}, r"at=\[3\]: tiny-llama has blocks 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            patching_sweep(tiny(), *given, ANSWERS, progress=False, **options)
    with pytest.raises(ValueError, match="others: 1 for 3 pairs of prompts"):
        patching_sweep(tiny(), clean, corrupted, ANSWERS, OTHERS[:1], progress=False)
