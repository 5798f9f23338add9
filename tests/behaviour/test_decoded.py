"""Continuations of prompts of several lengths, plain and under edits."""

import numpy as np
import pytest
import torch
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.behaviour import continuations

PROMPTS = some_prompts([5, 9, 4, 7])
S, E = ti.Site, ti.edits


@torch.no_grad()
def alone(i, steps, edits=()):
    """One prompt by itself, token by token."""
    ids, last, said = PROMPTS.ids(i).tolist(), S("resid", 3), []
    for _ in range(steps):
        logits = tiny().unembed(tiny().run(torch.tensor([ids]), [last], edits=edits)[last][0, -1])
        ids.append(int(logits.argmax()))
        said.append(float(logits.log_softmax(-1).max()))
    return ids[-steps:], said


@pytest.mark.parametrize("batch_tokens", [9, 18, 100])
def test_prompts_are_continued_as_if_alone(batch_tokens):
    found = continuations(tiny(), PROMPTS, 3, batch_tokens=batch_tokens)
    ti.check(found)
    for i in range(4):
        ids, said = alone(i, 3)
        assert found["generated"].values[i].tolist() == ids
        np.testing.assert_allclose(found["logprob"][i], said, rtol=1e-4)
        assert str(found["text"].values[i]) == "".join(PROMPTS.vocabulary.strings(ids))


def test_edits_are_those_of_the_run():
    """Flags of all its tokens, and values that other prompts give."""
    flags = np.zeros(PROMPTS.n_tokens, bool)
    flags[PROMPTS.starts[:-1] + np.array([1, 2, 3, 1])] = True
    found = continuations(tiny(), PROMPTS, 3, edits=[E.knock_out(flags)], batch_tokens=18)
    for i, place in enumerate((1, 2, 3, 1)):
        assert found["generated"].values[i].tolist() == alone(i, 3, [E.knock_out([place])])[0]
    assert found.attrs["edits"].startswith("knock_out(keys on 4 tokens")
    site = S("resid", 2)
    patched = continuations(tiny(), PROMPTS, 3, edits=[E.patch(site, [2], donor=1)], batch_tokens=18)
    with torch.no_grad():
        given = tiny().run(torch.tensor(PROMPTS.ids(1))[None], [site])[site][0, 2]
    for i in range(4):
        ids, said = alone(i, 3, [E.replace(site, given, [2])])
        assert patched["generated"].values[i].tolist() == ids
        np.testing.assert_allclose(patched["logprob"][i], said, rtol=1e-4)
    assert patched.attrs["fingerprint"] != found.attrs["fingerprint"]


def test_what_does_not_fit_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(type(tiny()), "run", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"n_tokens=57: the longest prompt has 9 tokens, .* at most 56 more fit"):
        continuations(tiny(), PROMPTS, 57)
    with pytest.raises(ValueError, match="the longest prompt has positions 0 to 8"):
        continuations(tiny(), PROMPTS, 2, edits=[E.zero(S("resid", 1), [12])])
