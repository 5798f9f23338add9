"""Words of the synthetic tasks are sums of one-hot blocks."""

import torch

from tokinterp.fillers.tasks.task import Task


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_words_are_sums_of_one_hot_blocks():
    task = Task(n=4, d=2, m=10)
    w = task.words
    ids, _, _ = task.sample("parallel", 3, draw()).sequences
    hot = w.multi_hot(ids)
    rows = w.digits(ids[:, :4])
    for e in range(3):
        for p in range(4):
            wanted = {w.slot + p, w.digit + int(rows[e, p, 0]), w.digit + 10 + int(rows[e, p, 1])}
            assert set(hot[e, p].nonzero()[:, 0].tolist()) == wanted
        for p in range(4, ids.shape[1]):
            assert hot[e, p].nonzero()[:, 0].tolist() == [int(ids[e, p])]
    assert len({w.name(i) for i in range(len(w))} | {f"[{w.name(len(w) + i)}]" for i in range(100)}) == len(w) + 100


def test_digits_of_a_row_are_those_it_was_made_of():
    w = Task(n=4, d=3, m=7).words
    digits = torch.randint(7, (20, 4, 3), generator=draw())
    assert torch.equal(w.digits(w.row(digits)), digits)
    assert w.name(int(w.row(torch.tensor([1, 2, 3])))) == "123"
