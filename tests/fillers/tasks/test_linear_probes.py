"""The linear probe finds what is there and is scored on other examples."""

import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.tasks import linear_probes
from tokinterp.fillers.tasks.network import Network, as_model, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=5)


@pytest.fixture(scope="module")
def lm():
    return build(TASK, Network(2, 32, 2, 64), 0)


def test_linear_probe_finds_an_answer_written_into_a_layer(lm, monkeypatch):
    def planted(model, ids, where):
        states = list(states_of(model, ids, where))
        true = (ids[:, -1] == TASK.words.true).float()
        states[1][:, 1, 3] += 20 * true
        return iter(states)

    states_of = linear_probes.states_at
    monkeypatch.setattr(linear_probes, "states_at", planted)
    ds = linear_probes.linear_probe(lm, TASK, positions=[4, 9], examples=300)
    assert float(ds["accuracy"].sel(layer=1, position=9)) > 0.97
    assert float(ds["shuffled"].sel(layer=1, position=9)) < 0.8
    # At the end of the input, layer 0, every prompt has the same state.
    assert float(ds["accuracy"].sel(layer=0, position=4)) == 0.5


def test_the_linear_probe_is_scored_on_other_examples(lm, monkeypatch):
    """States that are noise tell the answer of the examples of the fit alone."""

    def noise(model, ids, where):
        draw = torch.Generator().manual_seed(int(ids.sum()))  # the same examples, the same states
        return iter([torch.randn(len(ids), len(where), 32, generator=draw) for _ in range(3)])

    monkeypatch.setattr(linear_probes, "states_at", noise)
    ds = linear_probes.linear_probe(lm, TASK, positions=[4], examples=40)
    assert float(ds["accuracy"].max()) < 0.8
    share = float((TASK.test_set("filler", 40, 101).answer == TASK.words.true).double().mean())
    assert float(ds["majority"]) == max(share, 1 - share)


def test_states_are_those_of_the_wrapped_model(lm):
    ids = TASK.test_set("filler", 4).sequences.ids
    model = as_model(lm, TASK)
    own = model.run(ids, ti.resid([0, 1, 2]))
    for layer, states in enumerate(linear_probes.states_at(model, ids, [0, 5, 7])):
        torch.testing.assert_close(states, own[ti.Site("resid", layer)][:, [0, 5, 7]])
