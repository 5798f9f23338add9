"""States at fillers: attribution sums to the logit, shifts and their variance."""

import numpy as np
import pytest
import torch
from tiny import tiny

import tokinterp as ti
from tokinterp.fillers.residual import VARIANTS, filler_states, shift

QUESTIONS = ti.bundled_questions("cloze")[:12]


# -- stream and lens ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
def test_attribution_sums_to_the_logit(family):
    """U4: with the scale of the final norm frozen at its value, the terms of all layers sum to the logit."""
    from tokinterp.fillers.residual import attribute

    model = tiny(family)
    ids = torch.randint(3, 300, (5, 7), generator=torch.Generator().manual_seed(1))
    sites = ti.resid(range(4))
    got = model.run(ids, sites)
    h = torch.stack([got[s][:, -1] for s in sites], 1)
    target = torch.tensor([4, 9, 100, 250, 17])
    parts, constant, logit = attribute(model, h, target)
    with torch.no_grad():
        own = model.lm(ids).logits[:, -1].gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logit.float(), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.sum(1) + constant, logit, rtol=1e-4, atol=1e-4)
    if family == "llama":  # no bias: the last block's term from the stream alone
        scale = h[:, -1].pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        weight = model.lm.model.norm.weight * model.lm.lm_head.weight[target]
        torch.testing.assert_close(parts[:, -1].float(), ((h[:, 3] - h[:, 2]) * scale * weight).sum(-1).detach())


def test_a_soft_cap_is_refused():
    from tokinterp.fillers.residual import attribute

    with pytest.raises(ValueError, match="soft cap"):
        attribute(tiny("gemma2"), torch.randn(2, 4, 32) * 5, torch.tensor([4, 9]))


def test_shift_without_fillers_is_zero(bundled):
    ds = shift(bundled, QUESTIONS, n_fillers=[4])
    ti.check(ds)
    assert float(ds["shift"].sel(n_fillers=0).max()) == 0
    np.testing.assert_allclose(ds["cosine"].sel(n_fillers=0), 1, atol=1e-6)
    later = ds["shift"].sel(n_fillers=4, layer=bundled.info.n_layers).mean("prompt")
    assert float(ds["shift"].sel(layer=0).max()) == 0  # the token is the same
    assert (later > 0.01).all()
    assert list(ds["variant"].values) == list(VARIANTS)
    share = ds["bias_share"].sel(n_fillers=4).isel(layer=slice(1, None))
    assert ((share > 0) & (share <= 1)).all()
    np.testing.assert_allclose(ds["attribution"].sum("layer") + ds["constant"], ds["logit"], atol=1e-3)


def test_filler_states_split_their_variance(bundled):
    ds = filler_states(bundled, QUESTIONS, n_fillers=6)
    ti.check(ds)
    np.testing.assert_allclose(ds["variance_share"].sum("component"), 1, atol=1e-9)
    assert float(ds["variance_share"].sel(layer=0, component="item")) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(ds["chance_share"].sum(), 1)
    assert float(ds["same_slot_cosine"].sel(layer=0)) == pytest.approx(1)
