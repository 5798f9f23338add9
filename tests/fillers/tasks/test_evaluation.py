"""Scores of trained networks: area under the curve and loss by their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from tokinterp.fillers.tasks.evaluation import evaluate, loss_sum
from tokinterp.fillers.tasks.formats import IGNORED
from tokinterp.fillers.tasks.network import Network, build
from tokinterp.fillers.tasks.task import Samples, Task


def test_loss_of_words_that_are_not_supervised_is_none():
    task = Task(n=3, d=1, m=5)
    logits = torch.randn(2, 4, len(task.words), generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.full((2, 4), IGNORED)
    targets[0, 1], targets[1, 3] = task.words.true, task.words.false
    loss = loss_sum(logits, targets, task)
    log_probs = logits.detach().log_softmax(-1)
    assert loss.item() == pytest.approx(-float(log_probs[0, 1, task.words.true] + log_probs[1, 3, task.words.false]))
    loss.backward()
    assert logits.grad[0, [0, 2, 3]].abs().sum() == 0


def test_loss_of_several_columns_is_binary():
    task = Task(family="match2", n=4, d=2)
    logits = torch.randn(1, 3, len(task.words), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[IGNORED, task.words.row(torch.tensor([3, 1])).item(), IGNORED]])
    hot = torch.zeros(len(task.words), dtype=torch.float64)
    hot[[task.words.digit + 3, task.words.digit + task.words.m + 1]] = 1
    p = logits[0, 1].sigmoid()
    expected = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
    assert float(loss_sum(logits, targets, task)) == pytest.approx(float(expected), rel=1e-5)


TINY = Network(2, 32, 2, 64)


def test_loss_is_that_of_a_loop():
    task = Task("match2", n=4, d=2)
    x = task.sample("parallel", 2, torch.Generator().manual_seed(0)).sequences
    logits = torch.randn(*x.ids.shape, len(task.words))
    total = 0.0
    w = task.words
    for e, p in (x.targets >= 0).nonzero().tolist():
        hot = torch.zeros(len(w))
        word = int(x.targets[e, p])
        if word < len(w):
            hot[word] = 1
        else:
            for c, digit in enumerate(w.digits(torch.tensor(word)).tolist()):
                hot[w.digit + 10 * c + digit] = 1
        total += float(functional.binary_cross_entropy_with_logits(logits[e, p], hot))
    assert float(loss_sum(logits, x.targets, task)) == pytest.approx(total, rel=1e-5)


def test_of_answers_that_are_all_true_there_is_no_area():
    task = Task(n=4, d=2, m=3)
    test = task.test_set("filler", 60)
    only = test.answer == task.words.true
    test = Samples(type(test.sequences)(*(t[only] for t in test.sequences)), *(
        getattr(test, k)[only] for k in ("answer", "rows", "stratum")))  # fmt: skip
    assert evaluate(build(task, TINY, 0), task, test).auc is None


def test_evaluation_looks_at_the_answer_alone_and_not_at_padding():
    task = Task(n=5, d=2, m=5)
    test = task.test_set("serial", 60)
    lm = build(task, TINY, 0)
    alone = []
    for e in range(60):
        at = int(test.sequences.answer_at[e])
        logits = lm(input_ids=test.sequences.ids[e : e + 1, : at + 1]).logits[0, -1]
        alone.append(int(logits.argmax()) == int(test.answer[e]))
    assert evaluate(lm, task, test, batch=7).accuracy[0] == pytest.approx(np.mean(alone))
    half = Samples(type(test.sequences)(*(t[:30] for t in test.sequences)), *(
        getattr(test, k)[:30] for k in ("answer", "rows", "stratum")))  # fmt: skip
    assert sum(evaluate(lm, task, half).count[1:]) == 30


def test_scores_of_a_network_are_those_of_a_loop():
    from tokinterp.fillers.tasks.task import Task

    task = Task(n=4, d=2, m=3)
    test = task.test_set("filler", 60)
    true, false = task.words.true, task.words.false
    draw = torch.Generator().manual_seed(0)
    at = test.sequences.answer_at
    logits = torch.randn(*test.sequences.ids.shape, len(task.words), generator=draw)
    ahead = torch.arange(60) < 45  # says True more often than it is
    logits[torch.arange(60), at, true] += torch.where(ahead, 6.0, 0.0)

    class Fake(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            first = int(self.done)
            self.done += len(input_ids)
            return SimpleNamespace(logits=logits[first : first + len(input_ids)])

    fake = Fake()
    fake.done = 0
    found = evaluate(fake, task, test, batch=25)
    said = logits[torch.arange(60), at].argmax(-1)
    right = (said == test.answer).numpy()
    assert found.accuracy[0] == pytest.approx(right.mean())
    for number in range(1, len(task.strata)):
        here = test.stratum.numpy() == number
        assert found.count[number] == here.sum()
        if here.any():
            assert found.accuracy[number] == pytest.approx(right[here].mean())
    targets = test.sequences.targets
    asked = [(e, p) for e in range(60) for p in range(targets.shape[1]) if targets[e, p] >= 0]
    each = [-float(logits[e, p].log_softmax(-1)[targets[e, p]]) for e, p in asked]
    assert found.loss == pytest.approx(np.mean(each), rel=1e-5)
    is_true = test.answer == true
    bias = float((said == true).double().mean() - is_true.double().mean())
    assert found.true_bias == pytest.approx(bias)
    assert found.true_bias > 0.2
    score = (logits[torch.arange(60), at, true] - logits[torch.arange(60), at, false]).tolist()
    pairs = [(a > b) + 0.5 * (a == b) for a, x in zip(score, is_true, strict=True) if x
             for b, y in zip(score, is_true, strict=True) if not y]  # fmt: skip
    assert found.auc == pytest.approx(np.mean(pairs))
