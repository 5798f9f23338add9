"""The loss of marked tokens, and the divergence from the model without edits, against one prompt at a time."""

import numpy as np
import pytest
import torch
from by_hand import losses, streams
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.behaviour import loss as module
from tokinterp.models.hooks import HookedLM

LENGTHS = [12, 9, 14, 2, 1]


def marked():
    prompts = some_prompts(LENGTHS)
    return ti.text.mark(prompts, some=[[0, 4], [3, 9], [5, 5], [1, 2], [0, 1]])


@pytest.mark.parametrize("logits", [2**26, 1])
def test_loss_is_that_of_a_loop(monkeypatch, logits):
    monkeypatch.setattr(module, "LOGITS", logits)
    model, prompts = tiny(), marked()
    asked = {"all": ti.behaviour.TokenLoss(), "some": ti.behaviour.TokenLoss("some")}
    found = ti.measure(model, prompts, asked, progress=False)
    ti.check(found)
    for i, n in enumerate(LENGTHS):
        own = losses(model, prompts.ids(i))
        start, stop = [[0, 4], [3, 9], [5, 5], [1, 2], [0, 1]][i]
        for name, places in (("all", range(1, n)), ("some", range(max(start, 1), stop))):
            wanted = np.mean([own[t - 1] for t in places]) if len(places) else np.nan
            assert float(found[f"{name}/loss"][i]) == pytest.approx(wanted, rel=1e-5, nan_ok=True)
            assert int(found[f"{name}/n_tokens"][i]) == len(places)
    assert "kl" not in found["all"]


def test_divergence_is_from_the_model_without_edits():
    model, prompts = tiny(), marked()
    edit = ti.edits.knock_out([1, 2])
    asked = {"loss": ti.behaviour.TokenLoss("some", divergence=True)}
    found = ti.measure(model, prompts, asked, edits=[edit], progress=False)["loss"]
    plain = ti.measure(model, prompts, asked, progress=False)["loss"]
    assert np.nanmax(abs(plain["kl"])) == 0
    for i, (start, stop) in enumerate([[0, 4], [3, 9]]):
        at = [t - 1 for t in range(max(start, 1), stop)]
        with torch.no_grad():
            p, q = (
                model.unembed(streams(model, prompts.ids(i), e)[-1][at].float()).log_softmax(-1) for e in ([edit], ())
            )
        assert float(found["kl"][i]) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
        assert float(found["loss"][i]) == pytest.approx(losses(model, prompts.ids(i), [edit])[at].mean(), rel=1e-5)
    assert float(found["kl"][1]) > 1e-4


def test_a_mark_that_the_prompts_lack_is_refused():
    with pytest.raises(ValueError, match=r"of='other': the prompts have no mark of this name \(some\)"):
        ti.measure(tiny(), marked(), {"loss": ti.behaviour.TokenLoss("other")}, progress=False)


def test_states_are_compared_with_those_without_edits():
    model, prompts = tiny(), marked()
    alone = [ti.attention.keep_only(ti.attention.Policy("window", initial=0, window=1))]
    asked = {"loss": ti.behaviour.TokenLoss("some", states=True)}
    found = [ti.measure(model, prompts, asked, edits=e, progress=False)["loss"].to_dataset() for e in ([], alone)]
    assert "kl" not in found[0]
    seen = found[0]["state_cosine"].values[[0, 1, 3]]
    np.testing.assert_allclose(seen, 1, atol=1e-6)
    hidden = found[1]["state_cosine"].sel(prompt=0)
    assert float(hidden[0]) == pytest.approx(1), "the embedding has no context"
    assert (hidden[1:] < 0.999).all()
    for layer in range(4):
        wanted = []
        for t in range(1, 4):
            both = streams(model, prompts.ids(0))[layer][t - 1], streams(model, prompts.ids(0)[[t - 1]])[layer][0]
            wanted.append(float(torch.cosine_similarity(*both, dim=0)))
        assert float(hidden[layer]) == pytest.approx(np.mean(wanted), abs=1e-6)
    assert found[1]["state_cosine"].sel(prompt=4).isnull().all(), "no token is predicted"
    assert "chance" not in found[0]["state_cosine"].attrs, "1 is where nothing changes, no level by chance"


def test_what_stands_on_padding_is_no_part_of_a_mean(monkeypatch):
    model, real = tiny(), HookedLM.run

    def spoilt(self, ids, sites, *, mask=None, consume=None, **rest):
        assert mask is not None

        def shown(site, value):
            consume(site, value.masked_fill(~mask[..., None], torch.nan))

        found = real(self, ids, sites, mask=mask, consume=consume and shown, **rest)
        return {s: x.masked_fill(~mask[..., None], torch.nan) for s, x in found.items()}

    asked = {"loss": ti.behaviour.TokenLoss("some", states=True, divergence=True)}
    whole = ti.measure(model, marked(), asked, progress=False)["loss"].to_dataset()
    monkeypatch.setattr(HookedLM, "run", spoilt)
    spoilt_ds = ti.measure(model, marked(), asked, progress=False)["loss"].to_dataset()
    for name in ("state_cosine", "loss", "kl"):
        np.testing.assert_array_equal(whole[name], spoilt_ds[name], err_msg=name)
