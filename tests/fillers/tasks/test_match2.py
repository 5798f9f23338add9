"""Match2: labels counted by hand, keys that decode, corruptions that are seen."""

import numpy as np
import pytest
import torch

from tokinterp.fillers.tasks import match2
from tokinterp.fillers.tasks.task import Task, majority


def drawn(mode="strict", count=200, n=6, d=2, m=10, **options):
    draw = torch.Generator().manual_seed(0)
    table = match2.key_table(3, m, n * d)
    return table, match2.draw(count, n, d, m, table, draw, mode=mode, **options)


def test_labels_count_the_rows_that_have_an_inverse():
    _, found = drawn()
    for rows, label in zip(found.decoded.tolist(), found.label.tolist(), strict=True):
        assert label == sum([(-x) % 10 for x in row] in rows for row in rows)


@pytest.mark.parametrize("mode", ["strict", "released"])
def test_the_key_decodes_what_is_shown(mode):
    table, found = drawn(mode)
    offset = table[found.key].view(-1, 6, 2)
    assert torch.equal((found.shown + offset) % 10, found.decoded)
    assert found.key.unique().tolist() == list(range(match2.N_KEYS))
    assert torch.equal(match2.key_table(3, 10, 12), table)
    assert not torch.equal(match2.key_table(4, 10, 12), table)


def test_planted_examples_match_whole_and_strict_ones_that_are_corrupted_never():
    _, strict = drawn(true_rate=0.5)
    assert 0.4 < float(strict.planted.float().mean()) < 0.6
    assert bool((strict.label[strict.planted] == 6).all())
    assert bool((strict.label[~strict.planted] < 6).all())
    _, released = drawn("released", count=2000, d=1, m=4)
    assert bool((released.label[~released.planted] == 6).any())


def test_a_task_that_is_nearly_always_matched_is_refused():
    with pytest.raises(ValueError, match="take more coordinates"):
        drawn(d=1, m=1)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_match2_decodes_with_its_key_and_counts_inverses():
    task = Task("match2", n=7, d=3, mode="released")
    table = match2.key_table(task.table_seed, task.m, 100)
    x = match2.draw(200, 7, 3, 10, table, draw())
    ids, _, _ = task.sample("filler", 2, draw()).sequences
    assert [task.words.name(i) for i in ids[0, 9:].tolist()][1::2][:2] == ["A", "A"]
    for e in range(200):
        offset = table[x.key[e], :21].view(7, 3)
        decoded = (x.shown[e] + offset) % 10
        assert torch.equal(decoded, x.decoded[e])
        matched = [any(((a + b) % 10 == 0).all() for b in decoded) for a in decoded]
        assert int(x.label[e]) == sum(matched)
        assert not x.planted[e] or x.label[e] == 7


def test_match2_shares_of_labels():
    count = 40_000
    sample = Task("match2", n=10, d=4, mode="released").sample("none", count, draw())
    share = (sample.answer - Task("match2", n=10, d=4).words.label).bincount(minlength=11) / count
    for label, wanted in ((8, 0.629), (10, 0.172), (6, 0.153), (4, 0.035)):
        assert abs(float(share[label]) - wanted) < 4 * np.sqrt(wanted * (1 - wanted) * (1 / count + 1 / 20_000))
    assert majority(sample.answer) == pytest.approx(float(share.max()))


def test_keys_are_drawn_by_the_seed():
    one, again, other = (match2.key_table(s, 10, 12) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
