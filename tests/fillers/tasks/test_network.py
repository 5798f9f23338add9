"""The network: its published shape, and the model that is made of it."""

import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.tasks.network import Network, as_model, build, flops_per_example, parameters_hash
from tokinterp.fillers.tasks.task import Task

TINY = Network(2, 32, 2, 64)


TASK = Task(n=3, d=1, m=5, fillers="cot")


def test_network_has_the_published_shape():
    lm = build(Task(n=8), Network(), 0)
    blocks = sum(p.numel() for p in lm.model.layers.parameters())
    assert blocks / 1e6 == pytest.approx(9.44, abs=0.01)
    for n, filler, none in ((4, 1.3, 0.40), (8, 4.3, 0.63), (14, 12.6, 0.97)):
        task = Task(n=n, d=3)
        found = [flops_per_example(task, Network(), form) / 1e9 for form in ("filler", "none")]
        assert found == pytest.approx([filler, none], rel=0.03)
    before = torch.get_rng_state()
    build(TASK, TINY, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_wrapped_model_gives_the_logits_of_the_network():
    task = Task(n=4, d=2)
    lm = build(task, TINY, 0)
    model = as_model(lm, task)
    ids = task.test_set("filler", 5).sequences.ids
    last = model.run(ids, [ti.Site("resid", 2)])[ti.Site("resid", 2)]
    torch.testing.assert_close(model.unembed(last)[..., : len(task.words)], lm(input_ids=ids).logits)
    assert (model.unembed(last)[..., len(task.words) :] < -50).all()
    prompts = ti.Prompts.from_ids(ids.tolist(), model)
    assert prompts.strings(0)[4:6] == ["P", "."]
    assert prompts.special(0).sum() == 4 + 1 + 2
    with pytest.raises(ValueError, match=r"m\*\*d = 1000000 row words"):
        as_model(lm, Task(n=4, d=6))


def test_weights_are_drawn_by_the_seed():
    one, again, other = (parameters_hash(build(TASK, TINY, s)) for s in (0, 0, 1))
    assert one == again != other
