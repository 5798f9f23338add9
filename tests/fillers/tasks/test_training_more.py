"""A step of the training is that of a loop, and it stops where it is told."""

import pytest
import torch

from tokinterp.fillers.tasks.evaluation import loss_sum
from tokinterp.fillers.tasks.last import last_evaluation
from tokinterp.fillers.tasks.network import Network, build
from tokinterp.fillers.tasks.schedule import Schedule
from tokinterp.fillers.tasks.task import Task
from tokinterp.fillers.tasks.training import Run, train

TINY = Network(2, 32, 2, 64)


TASK = Task(n=3, d=1, m=5, fillers="cot")


def quick(task=TASK, mixture=None, steps=6, **options):
    schedule = options.pop("schedule", Schedule(steps=steps, batch=16, rate=1e-3, evaluations=3))
    options = {"network": TINY, "test_examples": 40, "device": "cpu", "progress": False, **options}
    return train(task, mixture, schedule=schedule, **options)


@pytest.mark.parametrize("task", [Task(n=4, d=2, fillers=3), Task("match2", n=4, d=2)])
@pytest.mark.parametrize("form", ["none", "filler", "parallel"])
def test_the_input_gets_no_gradient(task, form):
    x = task.sample(form, 5, torch.Generator().manual_seed(0)).sequences
    logits = torch.randn(*x.ids.shape, len(task.words), requires_grad=True)
    loss_sum(logits, x.targets, task).backward()
    given_words = task.n + (1 if task.family == "match3" else 2)
    assert logits.grad is not None
    assert (logits.grad[:, : given_words - 1] == 0).all()
    assert (logits.grad[:, given_words - 1 :].abs().sum(-1) > 0).all()


def test_a_step_is_that_of_a_loop():
    """Mean loss over the supervised words of all formats, clipped, AdamW at the rate of the step, data of the seed."""
    task = Task(n=4, d=2, m=5)
    schedule = Schedule(steps=10, batch=8, rate=1e-2, warmup=0.5, clip=0.2, weight_decay=0.1)
    run = Run(task, {"filler": 5, "none": 3}, TINY, schedule, 3, torch.device("cpu"), False)
    lm = build(task, TINY, 3).train()
    adam = torch.optim.AdamW(lm.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    ours, theirs = run.streams(), [task.stream(form, n, 3, 8) for form, n in (("filler", 5), ("none", 3))]
    for step in range(3):
        run.take_step([next(s) for s in ours])
        losses = []
        for x in [next(s) for s in theirs]:
            logp = lm(input_ids=x.ids).logits.log_softmax(-1)
            losses += [-logp[e, p, x.targets[e, p]] for e, p in (x.targets >= 0).nonzero().tolist()]
        torch.stack(losses).mean().backward()
        norm = torch.stack([p.grad.square().sum() for p in lm.parameters() if p.grad is not None]).sum().sqrt()
        for p in lm.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, 0.2 / float(norm))
        adam.param_groups[0]["lr"] = 1e-2 * (step + 1) / 5
        adam.step()
        adam.zero_grad()
    for (name, a), b in zip(run.lm.named_parameters(), lm.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


def test_the_first_format_says_when_to_stop(monkeypatch):
    from tokinterp.fillers.tasks import evaluation, training

    right = {"none": 0.2, "filler": 0.9}

    def fake(lm, task, test):
        share = right["filler" if (test.sequences.ids == task.words.filler).any() else "none"]
        return evaluation.Answers([share] * len(task.strata), [1] * len(task.strata), None, None, 1.0, [])

    monkeypatch.setattr(training, "evaluate", fake)
    schedule = Schedule(steps=6, batch=16, evaluations=3, stop_at=0.5)
    for forms, steps in ((("filler", "none"), 2), (("none", "filler"), 6)):
        ds, _ = quick(mixture=dict.fromkeys(forms, 1), schedule=schedule)
        assert ds["seconds"].notnull().sum() == steps // 2
        assert int(last_evaluation(ds)["steps_taken"][0]) == steps
        assert ds["step"].values.tolist()[: steps // 2] == [2, 4, 6][: steps // 2]


def test_a_solved_task_stops_early():
    ds, _ = quick(mixture={"none": 1}, schedule=Schedule(steps=6, batch=16, evaluations=3, stop_at=0.0))
    assert ds["seconds"].notnull().sum() == 1
    assert int(last_evaluation(ds)["steps_taken"][0]) == 2
