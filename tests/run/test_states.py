"""States at chosen tokens are those of a pass over each prompt alone."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti

TEXTS = ["The river runs.", "A river and the other river.", "Sea."]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


@pytest.fixture(scope="module")
def prompts(model):
    return ti.Prompts.from_texts(TEXTS, model)


def alone(model, prompts, n, layer):
    with torch.no_grad():
        ids = torch.from_numpy(prompts.ids(n).copy())[None].long()
        return model.lm(ids, output_hidden_states=True).hidden_states[layer][0].numpy()


def test_each_row_is_the_state_of_its_token(model, prompts):
    ds = ti.states(model, prompts, [0, 1], batch_tokens=20)
    assert ds.sizes["token"] == int((~prompts.vocabulary.special(prompts.token_ids)).sum())
    for k in range(ds.sizes["token"]):
        n, p = int(ds["prompt"][k]), int(ds["position"][k])
        assert int(ds["token_id"][k]) == prompts.ids(n)[p]
        assert str(ds["text"].values[k]) == prompts.strings(n)[p]
        for layer in (0, 1):
            np.testing.assert_allclose(ds["state"].sel(layer=layer)[k], alone(model, prompts, n, layer)[p], atol=1e-5)
    ti.check(ds)


def test_what_is_chosen(model, prompts):
    lengths = np.array(prompts.lengths)
    for where, position in (("last", lengths - 1), (-2, lengths - 2), (1, [1, 1, 1])):
        ds = ti.states(model, prompts, [1], where)
        assert ds["prompt"].values.tolist() == [0, 1, 2]
        assert ds["position"].values.tolist() == list(position)
    spans = ti.Spans.find(TEXTS, ["river"])
    ds = ti.states(model, prompts, [1], spans)
    found = spans.align(prompts)
    assert ds["prompt"].values.tolist() == [0, 1, 1]
    assert ds["position"].values.tolist() == (found.stop - 1).tolist()
    backwards = spans.where(np.array([2, 0, 1])).align(prompts)
    np.testing.assert_array_equal(
        ti.states(model, prompts, [1], backwards)["state"].values, ds["state"].values[[2, 0, 1]]
    )
    flags = np.zeros(prompts.n_tokens, bool)
    flags[[3, -1]] = True
    assert ti.states(model, prompts, [1], flags)["position"].values.tolist() == [3, lengths[-1] - 1]


def test_other_sites_and_edits(model, prompts):
    whole = ti.states(model, prompts, [0], "last", site="mlp_out")
    assert whole["state"].dims == ("token", "block", "channel")
    edited = ti.states(model, prompts, [0], "last", site="mlp_out", edits=[ti.edits.zero(ti.Site("mlp_out", 0))])
    assert float(abs(whole["state"]).max()) > 0
    assert float(abs(edited["state"]).max()) == 0
    assert "mlp_out" in edited.attrs["edits"]
    assert len({whole.attrs["fingerprint"], edited.attrs["fingerprint"]}) == 2


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (99, "where=99: a prompt has 4 tokens|where=99: a prompt has"),
        (-99, "choose a place that all have"),
        ("first", "where='first': give 'last', a position"),
        (np.ones(3, bool), "a bool array for each of the"),
        (np.zeros(0, bool), "a bool array for each"),
    ],
)
def test_what_cannot_be_chosen_is_said(model, prompts, where, message):
    with pytest.raises(ValueError, match=message):
        ti.states(model, prompts, [1], where)


def test_no_token_is_said_before_the_run(model, prompts):
    with pytest.raises(ValueError, match="no token is chosen"):
        ti.states(model, prompts, [1], ti.Spans.find(TEXTS, ["mountain"]))
    with pytest.raises(ValueError, match="layers"):
        ti.states(model, prompts, [9])
