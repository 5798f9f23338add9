"""The Jacobian lens: a linear network's own maps, batches, resume, files of both kinds, the read-out, refusals."""

import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.lens import JacobianLens, LogitLens, fit_jacobian_lens, jacobian

TEXTS = ["The river to the sea and the morning.", "One thing and the other thing in the evening.", "Short."]


def model(**changes):
    return ti.wrap(tiny_lm("llama", **changes), byte_tokenizer(), id="tiny")


def fit(of, texts=TEXTS, **settings):
    return fit_jacobian_lens(of, texts, **{"skip": 3, "progress": False, **settings})


def test_where_blocks_add_nothing_the_jacobian_counts_targets():
    lm = tiny_lm("llama")
    with torch.no_grad():
        for block in lm.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    lens = fit(ti.wrap(lm, byte_tokenizer(), id="still"), layers=[0, 1])
    torch.testing.assert_close(lens.weight, torch.eye(32).expand(2, 32, 32), rtol=0, atol=1e-6)


def test_positions_from_skip_to_the_last_but_one_take_part():
    of = model()
    prompts = ti.Prompts.from_texts(TEXTS, of, progress=False)
    ids, mask, _ = (torch.from_numpy(x) for x in prompts.padded(range(3)))
    valid = torch.zeros_like(mask)
    for n, length in enumerate(prompts.lengths):
        valid[n, 3 : length - 1] = True
    expected = jacobian.jacobians(of, ids, mask, [1, 2], 3, valid) / 3
    torch.testing.assert_close(fit(of).weight, expected.float(), rtol=1e-4, atol=1e-6)


def test_batches_and_stops_leave_the_mean_as_it_is(tmp_path):
    of = model()
    whole, single = fit(of), fit(of, batch_tokens=1)
    assert whole.facts["n_prompts"] == single.facts["n_prompts"] == 3
    torch.testing.assert_close(whole.weight, single.weight, rtol=1e-4, atol=1e-6)
    place = tmp_path / "lens.safetensors"
    stored = fit(of, store=place, checkpoint_every=0, batch_tokens=1)
    assert torch.equal(stored.weight, single.weight)
    assert fit(of, store=place, batch_tokens=1).digest == stored.digest
    with pytest.raises(ValueError, match="skip"):
        fit(of, store=place, batch_tokens=1, skip=4)


def test_a_prompt_without_positions_is_not_counted():
    of = model()
    lens = fit(of, skip=10)
    assert lens.facts["n_prompts"] == 2
    torch.testing.assert_close(lens.weight, fit(of, TEXTS[:2], skip=10).weight, rtol=1e-4, atol=1e-6)


def test_the_read_out_is_head_of_norm_of_the_mapped_state():
    of = model()
    lens = fit(of)
    asked = LogitLens(variants=("normed", "jacobian"), jacobian=lens, layers=[1, 3], tokens=None)
    ds = ti.measure(of, TEXTS, {"lens": asked}, progress=False)["lens"].to_dataset()
    prompts = ti.Prompts.from_texts(TEXTS, of, progress=False)
    x = ti.capture(of, prompts, [0], ti.resid([1, 3]))
    expected = of.unembed(x.rows(1) @ lens.weight[0].T).log_softmax(-1)[:-1]
    target = torch.tensor(prompts.ids(0)[1:])
    loss = -expected.gather(1, target[:, None]).mean()
    at = ds["cross_entropy"].sel(prompt=0, variant="jacobian")
    assert float(at.sel(layer=1)) == pytest.approx(float(loss), rel=1e-5)
    assert float(at.sel(layer=3)) == pytest.approx(
        float(ds["cross_entropy"].sel(prompt=0, layer=3, variant="normed"))
    ), "the last layer is read as it is"
    logits = of.head(x.rows(1) @ lens.weight[0].T)
    torch.testing.assert_close(x.rows(1) @ lens.directions(of, [7, 9], 1).T, logits[:, [7, 9]], rtol=1e-4, atol=1e-5)


def test_files_of_both_kinds_hold_the_same_lens(tmp_path):
    of = model()
    lens = fit(of)
    assert JacobianLens.load(lens.save(tmp_path / "a.safetensors"), of).digest == lens.digest
    theirs = {  # their block l is our layer l + 1
        "J": {n - 1: w.half() for n, w in zip(lens.layers, lens.weight, strict=True)}, "source_layers": [0, 1],
        "n_prompts": 2, "d_model": of.info.d_model,
    }  # fmt: skip
    torch.save(theirs, tmp_path / "a.pt")
    again = JacobianLens.load(tmp_path / "a.pt", of)
    assert again.layers == lens.layers == [1, 2]
    assert torch.equal(again.weight, lens.weight.half().float())
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt holds no Jacobian lens"):
        JacobianLens.load(tmp_path / "b.pt")


def test_a_gradient_that_is_not_finite_stops_the_fit_at_once(tmp_path, monkeypatch):
    of, own, calls = model(), jacobian.jacobians, []

    def broken(*given):
        calls.append(given)
        return own(*given) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(jacobian, "jacobians", broken)
    with pytest.raises(ValueError, match="gradients of prompts 0 are NaN or infinite in float32: load"):
        fit(of, batch_tokens=1, store=tmp_path / "lens.safetensors", checkpoint_every=0)
    assert len(calls) == 2


def test_wrong_layers_lengths_and_models_are_refused():
    of = model()
    with pytest.raises(ValueError, match=r"layers=\[3\]: give layers from 0 to 2"):
        fit(of, layers=[3])
    with pytest.raises(ValueError, match=r"to=4: tiny has layers 0 to 3"):
        fit(of, to=4)
    with pytest.raises(ValueError, match=r"skip=200: the longest prompt has"):
        fit(of, skip=200)
    lens = fit(of, layers=[1])
    with pytest.raises(ValueError, match="the variant 'jacobian' and jacobian= go together"):
        LogitLens(jacobian=lens)
    with pytest.raises(ValueError, match=r"has no layers \[2\]"):
        lens.check_use(of.info, [2])
    with pytest.raises(ValueError, match="leads to layer 2, the head reads 3"):
        fit(of, layers=[1], to=2).check_use(of.info, [1])
    with pytest.raises(ValueError, match="Jacobian lens"):
        lens.check_use(ti.wrap(tiny_lm("llama", seed=1), byte_tokenizer(), id="other").info, [1])
